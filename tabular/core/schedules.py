"""Schedules of learning rates, epsilon, clip ranges and coefficients: functions from a step (0, 1, ...) to a number.

`linear(...)(0)` is the start and `linear(...)(total)` the end, and later steps stay at the end. A run of `total` steps
uses the steps 0 to total - 1.
"""

import math
from collections.abc import Callable

from tabular.core.checks import check_at_least, check_choice

Schedule = Callable[[int], float]

SCHEDULES = ("constant", "linear", "cosine")


def constant(value: float | int) -> Schedule:
    """`value` at every step."""
    return lambda step: float(value)


def linear(start: float | int, end: float | int, total: int) -> Schedule:
    """From `start` at step 0 in a straight line to `end` at step `total`. Raises ValueError for `total < 1`."""
    check_at_least(1, total=total)
    return lambda step: start + (end - start) * min(step / total, 1.0)


def linear_to_zero(start: float | int, total: int) -> Schedule:
    """From `start` at step 0 in a straight line to 0 at step `total`; constant for `total = 0`."""
    return linear(start, 0.0, total) if total else constant(start)


def cosine(start: float | int, end: float | int, total: int) -> Schedule:
    """From `start` at step 0 along half a cosine to `end` at step `total`. Raises ValueError for `total < 1`.

    Loshchilov & Hutter (2017), arXiv 1608.03983, eq. 5.
    """
    check_at_least(1, total=total)
    return lambda step: end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(step / total, 1.0)))


def warmup(schedule: Schedule, steps: int) -> Schedule:
    """Put a linear rise of `steps` steps before a schedule: step `i` has `(i + 1) / steps` of its first value.

    The schedule itself begins at step `steps`, so it ends that much later. Raises ValueError for `steps < 0`.
    """
    check_at_least(0, warmup_steps=steps)
    return lambda step: schedule(0) * (step + 1) / steps if step < steps else schedule(step - steps)


def make_schedule(name: str, start: float | int, total: int, warmup_steps: int = 0, end: float | int = 0.0) -> Schedule:
    """A schedule by name, over `total` steps of which the first `warmup_steps` rise linearly.

    Args:
        name: constant, linear or cosine; "constant" ignores `end`.

    Raises:
        ValueError: for an unknown name, and if the warm-up is not shorter than the total.
    """
    check_choice(SCHEDULES, schedule=name)
    if name == "constant":
        return warmup(constant(start), warmup_steps)
    if warmup_steps >= total:
        raise ValueError(f"warmup_steps is {warmup_steps}, but must be below the total of {total} steps")
    decay = linear if name == "linear" else cosine
    return warmup(decay(start, end, total - warmup_steps), warmup_steps)
