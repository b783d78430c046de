"""Statistics of samples with bootstrap intervals. numpy only: these are read, not differentiated."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


def mean(values: Any) -> Any:
    """The mean over the last axis."""
    return np.mean(np.asarray(values, dtype=float), axis=-1)


def median(values: Any) -> Any:
    """The median over the last axis; for an even number of values the mean of the two in the middle, which is
    infinite if one of them is."""
    ordered = np.sort(np.asarray(values, dtype=float), axis=-1)
    n = ordered.shape[-1]
    return mean(ordered[..., [(n - 1) // 2, n // 2]])


def iqm(values: Any) -> Any:
    """The interquartile mean over the last axis: of the middle half of the values, the ones on its edges weighted by
    their share inside it. Agarwal et al. (2021), arXiv 2108.13264."""
    ordered = np.sort(np.asarray(values, dtype=float), axis=-1)
    weights = np.diff(np.clip(np.linspace(0, 1, ordered.shape[-1] + 1), 0.25, 0.75))
    inside = weights > 0  # values outside may be infinite: 0 * inf is nan
    return ordered[..., inside] @ weights[inside] / weights.sum()


@dataclass(frozen=True)
class Interval:
    """A statistic of a sample with its bootstrap interval."""

    value: float
    low: float
    high: float


def bootstrap_interval(
    values: Sequence[float | int] | np.ndarray,
    statistic: Callable[..., Any] = mean,
    confidence: float | int = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    interpolate: bool = True,
) -> Interval:
    """The percentile bootstrap: quantiles of the statistic over samples drawn with replacement. Efron (1979).

    Args:
        values: the sample, [N].
        statistic: maps samples [..., N] to numbers [...].
        confidence: share of the resampled statistics inside the interval, in (0, 1).
        resamples: samples drawn with replacement.
        seed: of these draws; the same seed gives the same interval.
        interpolate: take quantiles linearly between two resampled statistics. False takes one of them, which is right
            where values may be infinite.

    Raises:
        ValueError: no values, nan among them, or a confidence outside (0, 1).
    """
    values = np.asarray(values, dtype=float)
    if len(values) == 0 or np.isnan(values).any():
        raise ValueError(f"a bootstrap interval needs numbers, got {values.tolist()}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    picks = np.random.default_rng(seed).integers(0, len(values), size=(resamples, len(values)))
    samples = statistic(values[picks])
    tail = round((1 - confidence) / 2, 12)  # 0.025, not 0.025000000000000022
    if interpolate:
        low, high = np.quantile(samples, [tail, 1 - tail])
    else:
        samples = np.sort(samples)
        low = samples[int(tail * resamples)]
        high = samples[min(int((1 - tail) * resamples), resamples - 1)]
    return Interval(value=float(statistic(values)), low=float(low), high=float(high))
