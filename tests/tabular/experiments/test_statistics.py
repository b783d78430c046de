import math

import numpy as np
import pytest

from tabular.core.statistics import median
from tabular.experiments.statistics import (
    NOT_REACHED,
    area_under_curve,
    final_length,
    final_return,
    format_interval,
    learning_curve,
    seed_interval,
    steps_to_threshold,
)
from tabular.history import History


def history(returns, lengths):
    made = History()
    for end, total, length in zip(np.cumsum(lengths), returns, lengths, strict=True):
        made.add_episode(int(end), total, length)
    return made


def test_a_threshold_that_was_not_reached_is_printed_as_never():
    interval = seed_interval([100, 200, NOT_REACHED, NOT_REACHED, 150], median)
    assert interval.value == 200
    assert interval.high == NOT_REACHED
    assert format_interval(interval) == "200 [100, never]"
    assert format_interval(seed_interval([NOT_REACHED] * 5, median)) == "never"
    assert format_interval(seed_interval([2.0, 2.0])) == "2"
    assert format_interval(seed_interval([123456.0])) == "123456"


def test_steps_to_a_threshold():
    made = history([0, 0, 10, 10, 10, 0], [5, 5, 10, 10, 10, 10])
    assert steps_to_threshold(made, 10, window=1) == 20
    assert steps_to_threshold(made, 10, window=3) == 40
    assert steps_to_threshold(made, 5, window=4) == 30
    assert steps_to_threshold(made, 11, window=1) == NOT_REACHED
    assert steps_to_threshold(made, 0, window=100) == NOT_REACHED  # too few episodes


def test_learning_curves():
    made = history([1, 2, 6], [10, 10, 20])
    curve = learning_curve(made, np.array([5.0, 10, 20, 39, 40, 100]), window=2)
    assert curve == pytest.approx([math.nan, 1, 1.5, 1.5, 4, 4], nan_ok=True)
    curve = learning_curve(made, np.array([5.0, 10, 40]), 2, "lengths")
    assert curve == pytest.approx([math.nan, 10, 15], nan_ok=True)
    assert final_length(made, window=2) == 15
    assert math.isnan(final_length(History()))


def test_the_area_under_the_curve_is_over_steps():
    """90 steps at return 0 and ten episodes of one step at return 1: a tenth, not the ten elevenths of a mean."""
    made = history([0] + [1] * 10, [90] + [1] * 10)
    assert area_under_curve(made, 100) == pytest.approx(0.1)
    assert area_under_curve(made, 200) == pytest.approx(0.55)  # the rest counts with the last episode
    assert area_under_curve(made, 45) == 0
    assert math.isnan(area_under_curve(History(), 10))
    assert final_return(made, window=2) == 1
    assert math.isnan(final_return(History()))
