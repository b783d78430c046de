import math

import numpy as np
import pytest

from tabular.core.statistics import Interval, bootstrap_interval, iqm, mean, median


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2, 3, 4], 2.5),
        ([4, 100, 2, 3, -50, 1, 5, 6], 3.5),  # the middle four of eight: 2, 3, 4, 5
        ([7], 7),
        ([0, 10], 5),
        ([0, 3, 9], (0 * 1 + 3 * 4 + 9 * 1) / 6),  # a third each: a twelfth of the outer ones lies inside
        ([1, 2, 3, 4, 5], (0.05 * 0 + 0.15 * 2 + 0.2 * 3 + 0.15 * 4) / 0.5),
    ],
)
def test_interquartile_mean(values, expected):
    assert iqm(values) == pytest.approx(expected)


def test_infinite_values():
    assert median([100, np.inf, 200]) == 200
    assert median([100, np.inf, np.inf]) == np.inf
    assert median([100, np.inf]) == np.inf
    assert median([np.inf, np.inf]) == np.inf  # not inf - inf
    assert iqm([1, 2, 3, np.inf]) == 2.5
    interval = bootstrap_interval([100, 200, np.inf, np.inf, 150], median, interpolate=False)
    assert interval.value == 200
    assert interval.high == np.inf


def test_bootstrap_intervals_cover():
    """Of 200 samples of 20 from a normal distribution, the 90% interval covers the mean in about 90% (a little fewer:
    percentile intervals of small samples are too narrow)."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        interval = bootstrap_interval(generator.normal(3, 2, 20), confidence=0.9, resamples=300)
        covered += interval.low <= 3 <= interval.high
    assert 0.8 <= covered / 200 <= 0.95


def test_intervals():
    assert bootstrap_interval([2, 2, 2]) == Interval(2.0, 2.0, 2.0)
    assert bootstrap_interval([1, 2, 3], seed=1) == bootstrap_interval([1, 2, 3], seed=1)
    narrow, wide = (bootstrap_interval(range(20), confidence=c) for c in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high
    for bad in ([], [1, math.nan]):
        with pytest.raises(ValueError, match="a bootstrap interval needs numbers"):
            bootstrap_interval(bad)
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\), got 95"):
        bootstrap_interval([1, 2], confidence=95)


@pytest.mark.parametrize("n", [1, 2, 5, 64])
def test_quantiles_of_the_resampled_means(n):
    """The definition: 2000 samples with replacement, quantiles of their means."""
    values = np.random.default_rng(3).normal(size=n)
    picks = np.random.default_rng(0).integers(0, n, size=(2000, n))
    low, high = np.quantile(values[picks].mean(axis=1), [0.025, 0.975])
    assert bootstrap_interval(values.tolist()) == Interval(float(values.mean()), float(low), float(high))


def test_intervals_without_interpolation_are_resampled_values():
    values = [1.0, 2.0, 4.0]
    picks = np.random.default_rng(0).integers(0, 3, size=(2000, 3))
    ordered = np.sort(np.median(np.array(values)[picks], axis=1))
    interval = bootstrap_interval(values, median, interpolate=False)
    assert (interval.low, interval.high) == (ordered[50], ordered[1950])


def test_statistics_of_several_rows_and_in_double_precision():
    rows = np.array([[1, 2, 3, 4], [40, 20, 30, 10]])
    assert iqm(rows).tolist() == [2.5, 25]
    assert median(rows).tolist() == [2.5, 25]
    assert mean(rows).tolist() == [2.5, 25]
    assert float(mean(np.array([2**24, 1], dtype=np.float32))) == 2**23 + 0.5  # in float32 the sum is 2^24


@pytest.mark.parametrize("confidence", [0, 1, 1.5])
def test_a_confidence_outside_the_open_interval_is_rejected(confidence):
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\)"):
        bootstrap_interval([1, 2], confidence=confidence)


def test_uninterpolated_ends_are_at_the_share_of_the_sorted_resamples():
    values = np.arange(11.0)
    picks = np.random.default_rng(0).integers(0, 11, size=(100, 11))
    ordered = np.sort(values[picks].mean(axis=1))
    interval = bootstrap_interval(values, mean, confidence=0.8, resamples=100, interpolate=False)
    assert (interval.low, interval.high) == (ordered[10], ordered[90])
    whole = bootstrap_interval(values, mean, confidence=1 - 1e-14, resamples=100, interpolate=False)
    assert (whole.low, whole.high) == (ordered[0], ordered[99])
