"""Statistics of learning: figures of one learner's history, and their intervals over seeds.

Learners differ from seed to seed and from one thousand steps to the next, so every figure is one number per seed and
comes with a bootstrap interval over the seeds. Agarwal et al. (2021), arXiv 2108.13264.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from tabular.core.statistics import Interval, bootstrap_interval, mean
from tabular.history import History

Number = float | int

NOT_REACHED = math.inf
"""Steps to a threshold that was not reached: larger than any other value, so that medians over seeds stay right."""


def seed_interval(
    values: Sequence[Number] | np.ndarray, statistic: Callable[..., Any] = mean, resamples: int = 2000
) -> Interval:
    """A statistic of one value per seed, with its 95% bootstrap interval. Values may be `NOT_REACHED`.

    Raises:
        ValueError: no values, or nan among them.
    """
    return bootstrap_interval(values, statistic, resamples=resamples, interpolate=False)


def format_interval(interval: Interval) -> str:
    """`0.5 [0.4, 0.6]`; only the value where the interval has no width, `never` for `NOT_REACHED`."""
    if interval.low == interval.high:
        return _format(interval.value)
    return f"{_format(interval.value)} [{_format(interval.low)}, {_format(interval.high)}]"


def _format(value: float) -> str:
    if value == NOT_REACHED:
        return "never"
    return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"


def final_return(history: History, window: int = 100) -> float:
    """Mean return of the last `window` training episodes; nan if none ended."""
    return float(np.mean(history.returns[-window:])) if history.returns else math.nan


def steps_to_threshold(history: History, threshold: Number, window: int = 100) -> float:
    """Environment steps until the mean return of `window` successive training episodes reached `threshold`;
    `NOT_REACHED` if it never did."""
    if len(history.returns) < window:
        return NOT_REACHED
    totals = np.cumsum([0.0, *history.returns])
    reached = totals[window:] - totals[:-window] >= threshold * window - 1e-9
    return float(history.ends[int(reached.argmax()) + window - 1]) if reached.any() else NOT_REACHED


def final_length(history: History, window: int = 100) -> float:
    """Mean length of the last `window` training episodes; nan if none ended."""
    return float(np.mean(history.lengths[-window:])) if history.lengths else math.nan


def learning_curve(
    history: History, steps: Float[np.ndarray, "N"], window: int = 100, quantity: str = "returns"
) -> Float[np.ndarray, "N"]:
    """Mean return of the last `window` (or fewer) training episodes at each of the `steps`; nan before the first.

    Args:
        quantity: what to average: the history's "returns" or "lengths".
    """
    totals = np.cumsum([0.0, *getattr(history, quantity)])
    done = np.searchsorted(history.ends, steps, side="right")
    first = np.maximum(done - window, 0)
    return np.where(done > 0, (totals[done] - totals[first]) / np.maximum(done - first, 1), np.nan)


def area_under_curve(history: History, total_steps: int) -> float:
    """Mean over the steps 0 to `total_steps` of the return of the training episode that a step belonged to.

    Steps of an unfinished episode count with the last one that ended; nan if none did. Unlike a mean over episodes it
    gives the many short episodes of a bad (or good) phase no more weight.
    """
    if not history.ends:
        return math.nan
    ends = np.minimum([0, *history.ends, total_steps], total_steps)
    return float(np.diff(ends) @ np.array([*history.returns, history.returns[-1]]) / total_steps)
