"""Schedules: functions from a step (0, 1, ...) to a number, for learning rates, epsilon, clip ranges, coefficients.

`linear(...)(0)` is the start and `linear(...)(total)` the end, which stays; a run of `total` steps uses 0 to total - 1.
"""

import math
from collections.abc import Callable

Schedule = Callable[[int], float]

SCHEDULES = ("constant", "linear", "cosine")


def constant(value: float | int) -> Schedule:
    """`value` at every step."""
    return lambda step: float(value)


def linear(start: float | int, end: float | int, total: int) -> Schedule:
    """From `start` at step 0 in a straight line to `end` at step `total`. Raises ValueError for `total < 1`."""
    _check_total(total)
    return lambda step: start + (end - start) * min(step / total, 1.0)


def cosine(start: float | int, end: float | int, total: int) -> Schedule:
    """From `start` at step 0 along half a cosine to `end` at step `total`. Raises ValueError for `total < 1`.

    Loshchilov & Hutter (2017), arXiv 1608.03983, eq. 5.
    """
    _check_total(total)
    return lambda step: end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(step / total, 1.0)))


def warmup(schedule: Schedule, steps: int) -> Schedule:
    """Puts `steps` steps of a linear rise before a schedule: step `i` gives `(i + 1) / steps` of its first value.

    The schedule itself begins at step `steps`, so its end comes that much later. Raises ValueError for `steps < 0`.
    """
    if steps < 0:
        raise ValueError(f"warm-up steps must not be negative, got {steps}")
    return lambda step: schedule(0) * (step + 1) / steps if step < steps else schedule(step - steps)


def make_schedule(name: str, start: float | int, total: int, warmup_steps: int = 0, end: float | int = 0.0) -> Schedule:
    """A schedule by name, over `total` steps of which the first `warmup_steps` rise; "constant" ignores `end`.

    Raises ValueError for an unknown name and for a warm-up that leaves nothing of the `total`.
    """
    if name not in SCHEDULES:
        raise ValueError(f"unknown schedule {name!r}; known are {', '.join(SCHEDULES)}")
    if name == "constant":
        return warmup(constant(start), warmup_steps)
    if warmup_steps >= total:
        raise ValueError(f"warmup_steps must be below the total of {total} steps, got {warmup_steps}")
    decay = linear if name == "linear" else cosine
    return warmup(decay(start, end, total - warmup_steps), warmup_steps)


def _check_total(total: int) -> None:
    if total < 1:
        raise ValueError(f"total must be at least 1 step, got {total}")
