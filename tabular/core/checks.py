"""Range checks of settings and arguments, with one style of message: `NAME is VALUE, but must be ...`.

Each function takes the values by name, `check_positive(lr=lr, n_envs=n_envs)`, and raises ValueError for the first one
that is out of range. nan is out of every range, and infinity out of all but where noted. Standard library only, so that
every package can use it.
"""

import math
from collections.abc import Sequence

from tabular.core.errors import UserError

Number = float | int


def check_finite(**numbers: Number) -> None:
    """Raise ValueError for a number that is nan or infinite."""
    for name, number in numbers.items():
        require(math.isfinite(number), name, number, "finite")


def check_positive(**numbers: Number) -> None:
    """Raise ValueError for a number that is not above 0 and finite."""
    check_finite(**numbers)
    for name, number in numbers.items():
        require(number > 0, name, number, "positive")


def check_not_negative(**numbers: Number) -> None:
    """Raise ValueError for a number that is not at least 0 and finite."""
    check_finite(**numbers)
    for name, number in numbers.items():
        require(number >= 0, name, number, "at least 0")


def check_fraction(**numbers: Number) -> None:
    """Raise ValueError for a number outside [0, 1]."""
    for name, number in numbers.items():
        require(0 <= number <= 1, name, number, "between 0 and 1")


def check_at_least(minimum: Number, **numbers: Number) -> None:
    """Raise ValueError for a number below `minimum` (infinity is allowed)."""
    for name, number in numbers.items():
        require(number >= minimum, name, number, f"at least {minimum}")


def check_below(limit: Number, **numbers: Number) -> None:
    """Raise ValueError for a number that is not below `limit`."""
    for name, number in numbers.items():
        require(number < limit, name, number, f"below {limit}")


def check_choice(choices: Sequence[str], **values: str) -> None:
    """Raise ValueError for a value that is not one of `choices`."""
    for name, value in values.items():
        require(value in choices, name, repr(value), f"one of {', '.join(choices)}")


def require(holds: bool, name: str, value: object, condition: str) -> None:
    """Raise UserError, which is a ValueError, unless the condition holds."""
    if not holds:
        raise UserError(f"{name} is {value}, but must be {condition}")
