"""Reward functions: Python functions of the user, called with texts and the data set's columns."""

import importlib
import importlib.util
import inspect
import math
import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from rlhf.errors import UserError


def load_function(name: str) -> Callable[..., Any]:
    """Import the function that `file.py:name` or `package.module:name` names.

    Raises:
        UserError: there is no such file, module or function, or its import fails.
    """
    module_name, _, function_name = name.rpartition(":")
    module = _import_module(module_name)
    function = getattr(module, function_name, None)
    if not callable(function):
        functions = [key for key, v in vars(module).items() if inspect.isfunction(v) and not key.startswith("_")]
        raise UserError(f"{module_name} has no function {function_name!r}; it has {', '.join(functions) or 'none'}")
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


class FunctionReward:
    """Scores by `fn(prompts=[...], completions=[...], **columns) -> list[float]`.

    A function without `**kwargs` gets the arguments that it names.
    """

    def __init__(self, function: Callable[..., Any], name: str):
        self.function = function
        self.name = name
        try:
            self.parameters = list(inspect.signature(function).parameters.values())
        except ValueError:  # a built-in without a signature
            self.parameters = []
        self.takes_everything = not self.parameters or any(p.kind is p.VAR_KEYWORD for p in self.parameters)

    def check_columns(self, columns: Collection[str], path: str | None) -> None:
        """Check that the function can be called with these columns.

        Args:
            columns: the data set's columns besides the prompts.
            path: of the data set, for error messages.

        Raises:
            UserError: a column has the name of another argument, or the function needs one that is not there.
        """
        for name in ("prompts", "completions"):
            if name in columns:
                raise UserError(
                    f"{path} has a column {name!r}, but reward functions such as {self.name} get the {name} of the run "
                    f"under that name; rename the column"
                )
        available = ("prompts", "completions", *columns)
        for parameter in self.parameters:
            if parameter.kind is parameter.POSITIONAL_ONLY:
                raise UserError(
                    f"reward function {self.name} takes {parameter.name!r} by position, but is called by keyword, with "
                    f"{', '.join(available)}"
                )
            is_needed = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
            if is_needed and parameter.default is parameter.empty and parameter.name not in available:
                raise UserError(
                    f"reward function {self.name} needs an argument {parameter.name!r}, but {path} has no such column; "
                    f"there are {', '.join(available)}"
                )

    def __call__(self, prompts: list[Any], completions: list[str], columns: dict[str, list[Any]]) -> list[float]:
        """One score for each completion.

        Raises:
            UserError: the function raises, or returns anything but one finite number for each completion.
        """
        arguments = {"prompts": prompts, "completions": completions, **columns}
        if not self.takes_everything:
            named = {parameter.name for parameter in self.parameters}
            arguments = {name: value for name, value in arguments.items() if name in named}
        try:
            scores = self.function(**arguments)
        except (Exception, SystemExit) as error:
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
