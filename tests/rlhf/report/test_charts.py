"""Charts against values worked by hand: round ticks, smoothing without bias, spikes kept in long runs."""

import numpy as np
import pytest

from rlhf.report.charts import Axis, curve
from rlhf.report.numbers import number, smooth, smoothing_window


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.1234, "0.123"),
        (-0.5, "−0.500"),
        (1.234, "1.23"),
        (12.34, "12.3"),
        (123.4, "123"),
        (12345, "12,345"),
        (0.00712, "0.0071"),
        (1e-5, "1e−5"),
        (2.53e-6, "2.5e−6"),
        (3e12, "3e12"),
        (None, "–"),
        (float("nan"), "–"),
        (float("inf"), "–"),
        ("text", "–"),
    ],
)
def test_a_number_has_three_significant_digits(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("low", "high", "whole", "labels"),
    [
        (0, 100, True, ["0", "25", "50", "75", "100"]),
        (0, 3, True, ["0", "1", "2", "3"]),
        (0, 1, True, ["0", "1"]),
        (0, 9, True, ["0", "5"]),
        (-1.1, 1.1, False, ["−1", "0", "1"]),
        (0, 0.1, False, ["0", "0.025", "0.050", "0.075", "0.100"]),
        (0, 1e-4, False, ["0", "2.5e−5", "5e−5", "7.5e−5", "1e−4"]),
        (0, 6000, False, ["0", "2k", "4k", "6k"]),
        (0, 4e30, False, ["0", "1e30", "2e30", "3e30", "4e30"]),
    ],
)
def test_ticks_are_round_numbers(low, high, whole, labels):
    axis = Axis(float(low), float(high), 0.0, 100.0, whole=whole)
    assert [label for _, label in axis.ticks] == labels
    assert all(0 <= position <= 100 for position, _ in axis.ticks)


def test_the_axis_of_a_constant_has_margins():
    for constant in (0.0, 0.05, -3.0, 1e-5):
        axis = Axis.around(np.array([constant, np.nan]), 0.0, 100.0)
        assert axis.low < constant < axis.high
        assert axis(constant) == pytest.approx(50.0)


def test_smoothing_keeps_a_straight_line_and_averages_noise():
    line, everywhere = np.arange(100.0), np.arange(100)
    np.testing.assert_allclose(smooth(line, everywhere), line)
    noise = np.random.default_rng(0).normal(size=100)
    assert smooth(noise, everywhere)[10:90].std() < 0.5 * noise.std()
    assert smooth(noise, np.array([50])) == pytest.approx(noise[47:54].mean())
    noise = np.random.default_rng(0).normal(size=600)
    assert smooth(noise, np.array([0, 599])) == pytest.approx([noise[:9].mean(), noise[-9:].mean()])
    assert smoothing_window(29) == 1


def test_smoothing_keeps_gaps_and_skips_them_in_means():
    values = np.ones(60)
    values[[20, 21]] = np.nan
    smoothed = smooth(values, np.arange(60))
    assert np.flatnonzero(np.isnan(smoothed)).tolist() == [20, 21]
    np.testing.assert_allclose(smoothed[np.isfinite(smoothed)], 1.0)


def test_a_huge_spike_changes_only_its_window():
    values = np.ones(60)
    values[30] = 1e30
    np.testing.assert_allclose(smooth(values, np.array([20, 40])), 1.0)


def test_a_long_run_keeps_its_spikes():
    rows = [{"step": step, "policy/grad_norm": 1.0} for step in range(1, 5001)]
    rows[2345]["policy/grad_norm"] = 50.0
    chart = curve(rows, [], "policy/grad_norm")
    assert chart is not None
    assert len(chart.marks) <= 402
    assert "step 2346: 50.0" in [text for *_, text in chart.marks]


def test_an_exact_metric_is_not_smoothed():
    rows = [{"step": step, "policy/lr": 1.0 if step < 100 else 0.5} for step in range(1, 101)]
    chart = curve(rows, [], "policy/lr", exact=True)
    assert chart is not None
    lines = dict(chart.lines)
    assert lines["smooth"] == lines["raw"]
    assert chart.latest == "0.500"
