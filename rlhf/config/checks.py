"""Checks of settings: values out of range, and values that have no effect beside the other settings.

All messages name the setting in full: `ppo.lr is -1.0, but must be positive`.
"""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from types import NoneType
from typing import Any, get_args

from rlhf.config.parsing import as_text
from rlhf.errors import UserError
from tabular.core.checks import require


@dataclass(frozen=True)
class Range:
    """The values that a setting may have."""

    condition: str
    """In words, after `must be`."""
    contains: Callable[[Any], bool]
    """Whether a value is in the range; nan is in none."""


POSITIVE = Range("positive", lambda value: value > 0)
AT_LEAST_0 = Range("at least 0", lambda value: value >= 0)
ABOVE_1 = Range("above 1", lambda value: value > 1)
AT_LEAST_2 = Range("at least 2", lambda value: value >= 2)
FRACTION = Range("between 0 and 1", lambda value: 0 <= value <= 1)
FRACTION_BELOW_1 = Range("at least 0 and below 1", lambda value: 0 <= value < 1)
FRACTIONS_BELOW_1 = Range("at least 0 and below 1", lambda values: all(0 <= value < 1 for value in values))
NOT_EMPTY = Range("not empty", lambda values: len(values) > 0)


def check_ranges(settings: Any, ranges: Mapping[Range, tuple[str, ...]], section: str | None = None) -> None:
    """Check the values of a settings dataclass. A setting whose type allows null may always be null.

    Args:
        settings: the dataclass.
        ranges: range -> the names of the settings that it holds for.
        section: its dotted name in a job, such as `eval.judge`; None: its attribute `section`.

    Raises:
        UserError: a value is out of its range.
    """
    section = section or settings.section
    types = {field.name: field.type for field in fields(settings)}
    for allowed, names in ranges.items():
        for name in names:
            value = getattr(settings, name)
            if value is None:
                continue
            null_or = "null or " if NoneType in get_args(types[name]) else ""
            check(allowed.contains(value), f"{section}.{name}", value, null_or + allowed.condition)


def check(holds: bool, key: str, value: object, condition: str) -> None:
    """Raise UserError unless a condition on the setting `key` holds."""
    require(holds, key, repr(value), condition)


def reject_unused(settings: Any, names: tuple[str, ...], reason: str, section: str | None = None) -> None:
    """Reject settings that are not at their defaults although the other settings leave them without effect.

    Args:
        settings: a settings dataclass, as for `check_ranges`.
        names: the settings that have no effect.
        reason: why, after `because`.
        section: as for `check_ranges`.

    Raises:
        UserError: one of them has another value than its default.
    """
    section = section or settings.section
    defaults = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in fields(settings)}
    for name in names:
        value = getattr(settings, name)
        if value != defaults[name]:
            key = f"{section}.{name}"
            raise UserError(
                f"{key} is {value!r}, but it has no effect because {reason}; remove it, or override it with its "
                f"default, --{key} {as_text(defaults[name])}"
            )


def divisors_near(part: int, whole: int) -> str:
    """The three divisors of `whole` that are nearest to `part`, as text."""
    divisors = [d for d in range(1, whole + 1) if whole % d == 0]
    nearest = sorted(sorted(divisors, key=lambda d: abs(d - part))[:3])
    return ", ".join(map(str, nearest))


def check_seed(seed: int) -> None:
    """Raise UserError for a seed that numpy does not take."""
    check(0 <= seed < 2**32, "seed", seed, "at least 0 and below 2**32")


def check_set(job: object, *keys: str) -> None:
    """Raise UserError if one of the dotted keys is null."""
    for key in keys:
        value = job
        for name in key.split("."):
            value = getattr(value, name)
        if value is None:
            raise UserError(f"{key} is not set; give it with --{key} or in a --config file")
