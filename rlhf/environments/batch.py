"""Environments of the user, one for each response of a batch, reset and stepped at the same time."""

import inspect
import math
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol

from rlhf.config.environment import EnvironmentConfig
from rlhf.errors import UserError
from rlhf.rewards import event_loop
from rlhf.rewards.functions import load_function

MAX_THREADS = 64
"""Environments that run at the same time."""


class Environment(Protocol):
    """One conversation with the policy; a new object for each response. Both methods may be async."""

    def reset(self, prompt: Any, **columns: Any) -> Any:
        """The text that the policy answers first, or messages for the chat template.

        Args:
            prompt: of the data set, a text or messages.
            columns: the data set's other columns.
        """
        ...

    def step(self, text: str) -> tuple[str | None, float]:
        """The reply to the policy's turn, None where the episode ends, and the reward of the turn."""
        ...


@dataclass(frozen=True)
class Step:
    """An environment's answer to a turn of the policy."""

    reply: str | None
    """None: the episode has ended."""
    reward: float


@dataclass(frozen=True)
class EnvironmentFailure:
    """Why an episode cannot continue."""

    message: str


def load_environment(config: EnvironmentConfig) -> Callable[..., Environment]:
    """The class that `environment.path` names.

    Raises:
        UserError: there is no such class, it lacks a method, or it cannot be made with `environment.parameters`.
    """
    assert config.path is not None
    kind = load_function(config.path)
    for method in ("reset", "step"):
        if not callable(getattr(kind, method, None)):
            raise UserError(
                f"environment.path {config.path} has no method {method}; it needs reset(prompt) and step(text)"
            )
    try:
        kind(**config.parameters)
    except Exception as error:
        raise UserError(f"environment {config.path} cannot be made: {type(error).__name__}: {error}") from error
    return kind


class EnvironmentBatch:
    """A new environment for each prompt; a slow or failing one does not hold up or end the others."""

    def __init__(self, kind: Callable[..., Environment], config: EnvironmentConfig, prompts: Sequence[Any]):
        self.config = config
        self.prompts = prompts
        self.environments = [kind(**config.parameters) for _ in prompts]

    def reset(self, columns: Mapping[str, Sequence[Any]]) -> list[Any | EnvironmentFailure]:
        """The first text or messages of each episode."""

        def call(row: int) -> Any:
            own = {name: values[row] for name, values in columns.items()}
            return _check_start(_awaited(_call_with_named(self.environments[row].reset, self.prompts[row], own)))

        results = self._call_all({row: lambda row=row: call(row) for row in range(len(self.prompts))}, "reset")
        return [results[row] for row in range(len(self.prompts))]

    def step(self, texts: Mapping[int, str]) -> dict[int, Step | EnvironmentFailure]:
        """The answers to the turns of some rows."""

        def call(row: int) -> Step:
            return _check_step(_awaited(self.environments[row].step(texts[row])))

        return self._call_all({row: lambda row=row: call(row) for row in texts}, "step")

    def _call_all(self, calls: Mapping[int, Callable[[], Any]], method: str) -> dict[int, Any]:
        results: dict[int, Any] = {}
        rows = list(calls)
        for first in range(0, len(rows), MAX_THREADS):
            futures = {row: _in_thread(calls[row]) for row in rows[first : first + MAX_THREADS]}
            for row, future in futures.items():
                results[row] = self._result(row, future, method)
        return results

    def _result(self, row: int, future: "Future[Any]", method: str) -> Any:
        where = f"environment {self.config.path}, {method} of prompt {self.prompts[row]!r:.80}"
        try:
            return future.result(self.config.timeout)
        except TimeoutError:
            return EnvironmentFailure(f"{where}: took longer than environment.timeout = {self.config.timeout:g} s")
        except ValueError as error:
            return EnvironmentFailure(f"{where}: {type(error).__name__}: {error}")
        except BaseException as error:  # what a user's code raises, SystemExit included
            return EnvironmentFailure(f"{where}: raised {type(error).__name__}: {error}")


def _in_thread(call: Callable[[], Any]) -> "Future[Any]":
    """The future result of a call in a thread that does not keep the process alive: a step may never return."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


def _awaited(value: Any) -> Any:
    return event_loop.wait_for(value) if inspect.isawaitable(value) else value


def _call_with_named(function: Callable[..., Any], prompt: Any, columns: Mapping[str, Any]) -> Any:
    """Call `reset` with the columns that it names, or all of them where it takes `**columns`."""
    parameters = inspect.signature(function).parameters.values()
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        names = {p.name for p in parameters}
        columns = {name: value for name, value in columns.items() if name in names}
    return function(prompt, **columns)


def _check_start(value: Any) -> Any:
    if not isinstance(value, str | list) or not value:
        raise ValueError(f"reset returned {value!r:.80}, but must return a text or messages")
    return value


def _check_step(value: Any) -> Step:
    if not isinstance(value, tuple | list) or len(value) != 2:
        raise ValueError(f"step returned {value!r:.80}, but must return (reply or None, reward)")
    reply, reward = value
    if reply is not None and not isinstance(reply, str):
        raise ValueError(f"step returned the reply {reply!r:.80}, but a reply is a text, or None at the end")
    try:
        number = float(reward)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"step returned the reward {reward!r:.80}, but a reward must be a finite number")
    return Step(reply, number)
