"""The report's charts: rows of metrics.jsonl and eval.jsonl as SVG shapes, which the template draws.

No plotting library is used, so that the charts share the page's fonts, follow the reader's light or dark theme, and the
same rows give the same bytes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from rlhf.report.numbers import NAN, Row, finite, mean, number, scientific, series, smooth, smoothing_window

SMALL, LARGE = (360, 190), (560, 310)
"""Width and height of a chart in SVG units, about one CSS pixel each."""
ENDS = ("", "_low", "_high")
"""Suffixes of a held-out measure's value and of the two ends of its interval."""


def _latest(values: np.ndarray) -> float:
    return mean(values[-smoothing_window(len(values)) :])


def _thin(values: np.ndarray, buckets: int = 200) -> np.ndarray:
    """Indices of the minimum and maximum of each bucket of points: charts of long runs stay small and keep spikes."""
    if len(values) <= 2 * buckets:
        return np.arange(len(values))
    keep = {0, len(values) - 1}
    for chunk in np.array_split(np.arange(len(values)), buckets):
        finite_points = chunk[np.isfinite(values[chunk])]
        if finite_points.size == 0:
            keep.add(chunk[0])
            continue
        keep |= {finite_points[values[finite_points].argmin()], finite_points[values[finite_points].argmax()]}
    return np.array(sorted(keep))


def round_step(rough: float, whole: bool = False) -> float:
    """The next 1, 2, 2.5 or 5 times a power of ten, for ticks and bars; with `whole`, a whole number."""
    base = 10.0 ** math.floor(math.log10(rough))
    steps = [base * m for m in (1, 2, 2.5, 5, 10) if not whole or (base * m).is_integer()]
    return next(step for step in steps if step >= 0.999 * rough)


# ---------------------------------------------------------------------------------------------------- shapes


@dataclass(frozen=True)
class Axis:
    """A linear map from [low, high] to the SVG units [start, end]."""

    low: float
    high: float
    start: float
    end: float
    whole: bool = False
    """Ticks at whole numbers only."""

    @classmethod
    def around(cls, values: np.ndarray, start: float, end: float, zero: bool = False) -> "Axis":
        """The axis of all finite values with a small margin; with `zero`, it includes zero."""
        values = np.append(values[np.isfinite(values)], [0.0] if zero else [])
        low, high = float(values.min()), float(values.max())
        span = (high - low) or abs(high) or 1.0
        return cls(low if zero and low == 0 else low - 0.06 * span, high + 0.06 * span, start, end)

    def __call__(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """(position, label) of a few round numbers."""
        step = round_step((self.high - self.low) / 4, self.whole)
        values = step * np.arange(math.ceil(self.low / step - 1e-6), math.floor(self.high / step + 1e-6) + 1)
        return [(self(float(v)), self._label(float(v), step)) for v in values]

    @staticmethod
    def _label(value: float, step: float) -> str:
        """As many decimals as the distance between two ticks needs."""
        if abs(value) < step / 2:
            return "0"
        if not 5e-4 <= step < 5e5:
            return scientific(value)
        if step >= 500:
            return f"{value / 1000:g}k".replace("-", "−")
        half = f"{step:.1e}"[2] == "5"  # 2.5, 0.25: one digit more
        return f"{value:.{max(0, math.ceil(-math.log10(step) - 1e-6) + half)}f}".replace("-", "−")


class Point(NamedTuple):
    """A held-out evaluation."""

    x: float
    y: float
    low: float
    """y of the interval's lower end"""
    high: float
    tooltip: str
    label: str


@dataclass
class Chart:
    """Shapes in SVG units; the template draws them in this order and gives each class its colour."""

    size: tuple[int, int]
    x: Axis
    y: Axis
    x_name: str = "step"
    latest: str = ""
    areas: list[tuple[str, str]] = field(default_factory=list)
    """(class, path)"""
    lines: list[tuple[str, str]] = field(default_factory=list)
    """(class, path)"""
    timed: list[tuple[str, str]] = field(default_factory=list)
    """(progress through the run as "37%", path)"""
    points: list[Point] = field(default_factory=list)
    marks: list[tuple[float, float, str]] = field(default_factory=list)
    """(x, y, text) of the values that the cursor shows"""

    def path(self, xs: np.ndarray, ys: np.ndarray) -> str:
        """SVG path data; a NaN interrupts the line, a single point is a dot."""
        commands, pen = [], "M"
        for x, y in zip(xs, ys, strict=True):
            if math.isnan(x) or math.isnan(y):
                pen = "M"
            else:
                commands.append(f"{pen}{self.x(x):g},{self.y(y):g}" + ("h0" if pen == "M" else ""))
                pen = "L"
        return "".join(commands)

    def area(self, xs: np.ndarray, low: np.ndarray, high: np.ndarray) -> str:
        """SVG path data of the area between `low` and `high`, where both are finite."""
        finite_points = np.isfinite(low) & np.isfinite(high)
        xs = xs[finite_points]
        low = low[finite_points]
        high = high[finite_points]
        return self.path(np.concatenate([xs, xs[::-1]]), np.concatenate([high, low[::-1]])) + "Z" if xs.size else ""

    def marks_of(self, steps: np.ndarray, values: np.ndarray) -> list[tuple[float, float, str]]:
        pairs = zip(steps.tolist(), values.tolist(), strict=True)
        return [(self.x(x), self.y(y), f"step {x:.0f}: {number(y)}") for x, y in pairs if math.isfinite(y)]

    def points_of(self, evals: Sequence[Row], name: str, xs: np.ndarray, labelled: Sequence[int] = ()) -> list[Point]:
        """A point with its interval for each evaluation of the measure `name`; `xs` are their x values."""
        points = []
        for row, x in zip(evals, xs, strict=True):
            value, low, high = (finite(row.get(name + end)) for end in ENDS)
            if math.isfinite(value) and math.isfinite(x):
                low, high = (self.y(value if math.isnan(bound) else bound) for bound in (low, high))
                step, text = f"step {row['step']}", f"held-out, step {row['step']}: {number(value)}"
                label = step if row["step"] in labelled else ""
                points.append(Point(self.x(x), self.y(value), low, high, text, label))
        return points


def canvas(size: tuple[int, int]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Start and end of the x and y axes in SVG units, inside the tick labels."""
    width, height = size
    return (42.0, width - 8.0), (height - 22.0, 8.0)


def _step_axis(rows: Sequence[Row], evals: Sequence[Row], size: tuple[int, int]) -> Axis:
    """The x axis of steps, the same for all charts of a run."""
    last = max(row["step"] for row in [*rows, *evals])
    return Axis(0.0, float(max(last, 1)), *canvas(size)[0], whole=True)


# ---------------------------------------------------------------------------------------------------- charts


def curve(
    rows: Sequence[Row],
    evals: Sequence[Row],
    metric: str,
    faint: str = "",
    held_out: str = "",
    zero: bool = False,
    floor: float = -math.inf,
    exact: bool = False,
    size: tuple[int, int] = SMALL,
) -> Chart | None:
    """One metric over the steps, with an optional second metric behind it and held-out evaluations on top.

    Args:
        rows: rows of metrics.jsonl.
        evals: rows of eval.jsonl.
        metric: name of the metric.
        faint: name of the metric behind it.
        held_out: name of the held-out measure.
        zero: include zero in the y axis.
        floor: smaller values are drawn at this one.
        exact: the metric has no noise, so draw it without smoothing.
        size: width and height in SVG units.

    Returns:
        The chart; None if no row has a finite value of `metric`.
    """
    steps, values = series(rows, "step"), series(rows, metric)
    if not np.isfinite(values).any():
        return None
    behind = series(rows, faint) if faint else np.full_like(values, NAN)
    at = series(evals, "step")
    held, low, high = (series(evals, held_out + end) for end in ENDS)
    shown = np.maximum(np.concatenate([values, behind, held, low, high]), floor)
    indices = _thin(values)
    latest = values[np.isfinite(values)][-1] if exact else _latest(values)
    y = Axis.around(shown, *canvas(size)[1], zero=zero)
    chart = Chart(size, _step_axis(rows, evals, size), y, latest=number(latest))
    chart.areas = [("band", chart.area(at, low, high))]
    chart.lines = [
        ("faint", chart.path(steps[indices], smooth(behind, indices))),
        ("raw", chart.path(steps[indices], values[indices])),
        ("smooth", chart.path(steps[indices], values[indices] if exact else smooth(values, indices))),
        ("held", chart.path(at, held)),
    ]
    chart.points = chart.points_of(evals, held_out, at)
    chart.marks = chart.marks_of(steps[indices], values[indices])
    return chart


def stack(rows: Sequence[Row], evals: Sequence[Row], metrics: Sequence[str], total: str) -> Chart | None:
    """Smoothed metrics as stacked areas under a line for their total. None if the total was not logged."""
    steps, whole = series(rows, "step"), series(rows, total)
    if not np.isfinite(whole).any():
        return None
    indices = _thin(whole)
    layers = [np.nan_to_num(smooth(series(rows, name), indices)) for name in metrics]
    sums, line = np.cumsum([np.zeros(len(indices)), *layers], axis=0), smooth(whole, indices)
    y = Axis.around(np.append(sums, line), *canvas(SMALL)[1], zero=True)
    chart = Chart(SMALL, _step_axis(rows, evals, SMALL), y, latest=f"{number(_latest(whole))} s")
    for layer, (low, high) in enumerate(pairwise(sums), start=1):
        chart.areas.append((f"layer-{layer}", chart.area(steps[indices], low, high)))
    chart.lines = [("total", chart.path(steps[indices], line))]
    chart.marks = chart.marks_of(steps[indices], whole[indices])
    return chart


def score_against_kl(rows: Sequence[Row], evals: Sequence[Row], labelled: Sequence[int]) -> Chart | None:
    """Score against KL: training as a line coloured by step, held-out evaluations on top.

    The evaluations at the steps `labelled` get a label. None if no row has both numbers.
    """
    kl, score = series(rows, "objective/kl"), series(rows, "objective/score")
    if not np.isfinite(kl + score).any():
        return None
    at = series(evals, "kl")
    held, low, high = (series(evals, "score" + end) for end in ENDS)
    nodes = np.unique(np.linspace(0, len(kl) - 1, 120).astype(int))
    kl, score = smooth(kl, nodes), smooth(score, nodes)
    x_range, y_range = canvas(LARGE)
    x = Axis.around(np.append(kl, at), *x_range, zero=True)
    y = Axis.around(np.concatenate([score, held, low, high]), *y_range)
    chart = Chart(LARGE, x, y, x_name="KL, nats")
    for i in range(len(nodes) - 1):
        chart.timed.append((f"{100 * i / len(nodes):.0f}%", chart.path(kl[i : i + 2], score[i : i + 2])))
    chart.lines = [("held", chart.path(at, held))]
    chart.points = chart.points_of(evals, "score", at, labelled)
    return chart
