"""Reward functions: Python functions and classes of the user, called with texts and the data set's columns."""

import asyncio
import concurrent.futures
import importlib
import importlib.util
import inspect
import sys
import threading
import traceback
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from rlhf.errors import UserError
from rlhf.rewards import event_loop
from rlhf.rewards.results import TEXTS_ONLY, Context, Score, as_numbers, read_scores
from rlhf.rewards.rules import RULES

TEXTS = ("prompts", "completions")
CONTEXT = ("step", "completion_ids")
"""Arguments that only functions which name them get."""
_CALLERS = (__file__, event_loop.__file__)
_LOOPS = tuple(str(Path(module.__file__ or "").parent) for module in (asyncio, concurrent.futures))
"""Files between the call of a function and the function itself, before an exception's traceback reaches it."""


def load_function(name: str) -> Callable[..., Any]:
    """Import the function that `file.py:name` or `package.module:name` names.

    Raises:
        UserError: there is no such file, module or function, or its import fails.
    """
    module_name, _, function_name = name.rpartition(":")
    module = _import_module(module_name)
    function = getattr(module, function_name, None)
    if not callable(function):
        own = [
            key
            for key, value in vars(module).items()
            if (inspect.isfunction(value) or (inspect.isclass(value) and "__call__" in vars(value))) and key[0] != "_"
        ]
        raise UserError(f"{module_name} has no function {function_name!r}; it has {', '.join(own) or 'none'}")
    return function


def _import_module(name: str) -> Any:
    try:
        if not name.endswith(".py"):
            return importlib.import_module(name)
        file = Path(name).expanduser()
        if not file.is_file():
            raise UserError(f"reward function file {name} does not exist")
        module_name = file.stem if file.stem not in sys.modules else f"reward_file_{file.stem}"
        spec = importlib.util.spec_from_file_location(module_name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module  # dataclasses look their own module up there
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"cannot import {name} for the reward function: {type(error).__name__}: {error}") from error
    return module


class SourceTimeoutError(UserError):
    """A source took longer than its time limit."""


class FunctionReward:
    """Scores by `fn(prompts=[...], completions=[...], **columns)`, a plain or an async function.

    A function without `**kwargs` gets the arguments that it names. `step`, the number of finished training steps, and
    `completion_ids`, the token ids of each response, go only to functions that name them.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        name: str,
        parameters: Mapping[str, Any] | None = None,
        timeout: float | None = None,
        kind: str = "reward function",
    ):
        """Make an object of a class, and look at the arguments.

        Args:
            function: a function, a class with `__call__`, or an object of one.
            name: for error messages.
            parameters: further keyword arguments of each call, which win over columns; of a class, those of its
                constructor.
            timeout: seconds that a call may take; None: no limit.
            kind: what the name is the name of.

        Raises:
            UserError: the class cannot be made, or the function takes no such parameters.
        """
        self.name = name
        self.kind = kind
        self.timeout = timeout
        self.fixed = dict(parameters or {})
        if inspect.isclass(function):
            function = self._make_object(function)
        self.function = function
        try:
            self.parameters = list(inspect.signature(function).parameters.values())
        except ValueError:  # a built-in without a signature
            self.parameters = []
        self.takes_everything = not self.parameters or any(p.kind is p.VAR_KEYWORD for p in self.parameters)
        self.names = {parameter.name for parameter in self.parameters}
        for parameter in self.fixed:
            if parameter in (*TEXTS, *CONTEXT) or not (self.takes_everything or parameter in self.names):
                others = [name for name in self._arguments() if name not in (*TEXTS, *CONTEXT)]
                raise UserError(
                    f"{self} takes no parameter {parameter!r}; it takes {', '.join(others) or 'none'} besides texts"
                )

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"

    @property
    def waits(self) -> bool:
        """Whether it is an async function, which can wait at the same time as others."""
        return inspect.iscoroutinefunction(self.function) or inspect.iscoroutinefunction(
            getattr(self.function, "__call__", None)  # noqa: B004 - the method is inspected, not called
        )

    def _arguments(self) -> list[str]:
        return [p.name for p in self.parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]

    def _make_object(self, kind: type) -> Any:
        if "__call__" not in dir(kind):
            raise UserError(f"{self} is a class without __call__, so that it cannot score")
        try:
            made = kind(**self.fixed)
        except Exception as error:
            raise UserError(f"{self} cannot be made: {type(error).__name__}: {error}") from error
        self.fixed = {}
        return made

    def check_columns(self, columns: Collection[str], path: str | None) -> None:
        """Check that the function can be called with these columns.

        Args:
            columns: the data set's columns besides the prompts.
            path: of the data set, for error messages.

        Raises:
            UserError: a column has the name of another argument, or the function needs one that is not there.
        """
        taken = [*TEXTS, *(name for name in CONTEXT if name in self.names)]
        for name in taken:
            if name in columns:
                raise UserError(
                    f"{path} has a column {name!r}, but reward functions such as {self.name} get the {name} of the run "
                    f"under that name; rename the column"
                )
        available = (*TEXTS, *columns)
        taken += self.fixed
        for parameter in self.parameters:
            if parameter.kind is parameter.POSITIONAL_ONLY:
                raise UserError(
                    f"{self} takes {parameter.name!r} by position, but is called by keyword, with "
                    f"{', '.join(available)}"
                )
            is_needed = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            if is_needed and parameter.default is parameter.empty and parameter.name not in (*available, *taken):
                raise UserError(
                    f"{self} needs an argument {parameter.name!r}, but {path} has no such column; "
                    f"there are {', '.join(available)}"
                )

    def __call__(self, prompts: list[Any], completions: list[str], columns: dict[str, list[Any]]) -> list[float]:
        """One number for each completion, of rewards by token their sum.

        Raises:
            UserError: the function raises, or has no finite number for a completion.
        """
        return as_numbers(self.score(prompts, completions, columns), str(self), prompts, completions)

    def score(
        self, prompts: list[Any], completions: list[str], columns: dict[str, list[Any]], context: Context = TEXTS_ONLY
    ) -> list[Score]:
        """One score for each completion.

        Raises:
            UserError: the function raises, takes too long, or returns anything but one entry for each completion.
        """
        arguments = {"prompts": prompts, "completions": completions, **columns}
        if not self.takes_everything:
            arguments = {name: value for name, value in arguments.items() if name in self.names}
        for name in CONTEXT:
            if name in self.names and name not in columns:
                arguments[name] = getattr(context, name)
        try:
            returned = self._call(arguments | self.fixed)
        except SourceTimeoutError:
            raise
        except UserError as error:
            raise UserError(f"{self}: {error}") from error
        except (Exception, SystemExit) as error:
            frames = traceback.extract_tb(error.__traceback__)
            ours = max((i for i, f in enumerate(frames) if f.filename in _CALLERS), default=-1)
            below = [f for f in frames[ours + 1 :] if not f.filename.startswith(_LOOPS)] or frames
            frame = below[0]  # in the user's function, whatever it called from there
            where = f"{frame.filename}, line {frame.lineno}"
            raise UserError(f"{self} raised {type(error).__name__}: {error} ({where})") from error
        return read_scores(returned, str(self), prompts, completions, context.first_row)

    def _call(self, arguments: dict[str, Any]) -> Any:
        """The function's result, awaited where it is to be. Raises SourceTimeoutError above the time limit."""
        result = self._call_within_limit(arguments) if self.timeout and not self.waits else self.function(**arguments)
        if not inspect.isawaitable(result):
            return result
        try:
            return event_loop.wait_for(result, self.timeout)
        except TimeoutError as error:
            if self.timeout is None:
                raise
            raise self._too_slow() from error

    def _call_within_limit(self, arguments: dict[str, Any]) -> Any:
        """A plain function's result. It runs in a thread, which nothing can end: above the limit it is left alone."""
        outcome: dict[str, Any] = {}

        def call() -> None:
            try:
                outcome["result"] = self.function(**arguments)
            except BaseException as error:
                outcome["error"] = error

        thread = threading.Thread(target=call, name=f"reward {self.name}", daemon=True)
        thread.start()
        thread.join(self.timeout)
        if not outcome:
            raise self._too_slow()
        if "error" in outcome:
            raise outcome["error"]
        return outcome["result"]

    def _too_slow(self) -> SourceTimeoutError:
        return SourceTimeoutError(f"{self} took longer than its time limit of {self.timeout:g} s (timeout)")


def open_rule(name: str, parameters: Mapping[str, Any] | None = None, timeout: float | None = None) -> FunctionReward:
    """A rule that ships as a source. Its parameters come from the config alone, never from columns of the same name.

    Raises:
        UserError: there is no such rule, or it does not take these parameters.
    """
    if name not in RULES:
        raise UserError(f"there is no rule {name!r}; there are {', '.join(RULES)}")
    rule = RULES[name]
    arguments = inspect.signature(rule).parameters.values()
    settings = {p.name: p.default for p in arguments if p.kind is p.KEYWORD_ONLY}
    chosen = settings | dict(parameters or {})
    missing = [key for key, value in chosen.items() if value is inspect.Parameter.empty]
    if missing:
        raise UserError(f"rule {name} needs a parameter {missing[0]!r}; set it in the source's parameters")
    source = FunctionReward(rule, name, chosen, timeout, "rule")
    source.score([], [], {p.name: [] for p in arguments if p.kind is not p.KEYWORD_ONLY})  # checks the parameters
    return source
