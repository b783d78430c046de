"""Reward functions: Python functions of the user, called with texts and the data set's columns."""

import importlib
import importlib.util
import inspect
import math
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from rlhf.errors import UserError


def load_function(name: str) -> Callable[..., Any]:
    """Import the function that `file.py:name` or `package.module:name` names.

    Raises:
        UserError: there is no such file, module or function, its import fails, or it does not take `**kwargs`.
    """
    module_name, _, function_name = name.rpartition(":")
    module = _import_module(module_name)
    function = getattr(module, function_name, None)
    if not callable(function):
        functions = [key for key, v in vars(module).items() if inspect.isfunction(v) and not key.startswith("_")]
        raise UserError(f"{module_name} has no function {function_name!r}; it has {', '.join(functions) or 'none'}")
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # a built-in without a signature
        parameters = []
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        raise UserError(
            f"reward function {name} must take **kwargs: it is called as "
            f"{function_name}(prompts=..., completions=..., <every other column of the dataset>=...)"
        )
    return function


def _import_module(name: str) -> Any:
    try:
        if not name.endswith(".py"):
            return importlib.import_module(name)
        if not Path(name).is_file():
            raise UserError(f"reward function file {name} does not exist")
        spec = importlib.util.spec_from_file_location(Path(name).stem, name)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"cannot import {name} for the reward function: {type(error).__name__}: {error}") from error
    return module


class FunctionReward:
    """Scores by `fn(prompts=[...], completions=[...], **columns) -> list[float]`."""

    def __init__(self, function: Callable[..., Any], name: str):
        self.function = function
        self.name = name

    def __call__(self, prompts: list[Any], completions: list[str], columns: dict[str, list[Any]]) -> list[float]:
        """One score for each completion.

        Raises:
            UserError: the function raises, or returns anything but one finite number for each completion.
        """
        try:
            scores = self.function(prompts=prompts, completions=completions, **columns)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            frame = frames[1] if len(frames) > 1 else frames[0]  # in the user's function, whatever it called from there
            raise UserError(
                f"reward function {self.name} raised {type(error).__name__}: {error} "
                f"({frame.filename}, line {frame.lineno})"
            ) from error
        if isinstance(scores, Tensor) or hasattr(scores, "tolist"):
            scores = scores.tolist()
        if not isinstance(scores, Sequence) or isinstance(scores, str):
            raise UserError(f"reward function {self.name} returned {scores!r:.80}, but must return a list of numbers")
        if len(scores) != len(completions):
            raise UserError(
                f"reward function {self.name} returned {len(scores)} scores for {len(completions)} completions"
            )
        for score, completion in zip(scores, completions, strict=True):
            if not _is_finite(score):
                raise UserError(
                    f"reward function {self.name} returned {score!r} for the completion {completion!r:.120}, "
                    "but a score must be a finite number"
                )
        return [float(score) for score in scores]


def _is_finite(score: Any) -> bool:
    try:
        return math.isfinite(score)
    except (TypeError, ValueError, OverflowError):  # not a number, several numbers, or too large for a float
        return False
