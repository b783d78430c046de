"""What the report shows of `reward_quality.json`: calibration, accuracy by margin, length, and agreement of people."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rlhf.report.charts import LARGE, Axis, Chart, Point, canvas
from rlhf.report.numbers import NAN, Row, finite, number, percent
from rlhf.report.run_files import setting


@dataclass(frozen=True)
class Measure:
    """A row of a table: a share with its interval, or another number as text."""

    name: str
    value: str
    bounds: str = ""
    total: str = ""
    note: str = ""


@dataclass(frozen=True)
class RewardQuality:
    """The section on the reward model; each part may be missing."""

    reliability: Chart | None
    margins: list[Measure]
    length: list[Measure]
    calibration_error: float
    people: list[Measure]
    """Held-out accuracy beside the agreement of people, which bounds it."""


def reward_quality(content: Row) -> RewardQuality | None:
    """The section from the file's content; None where there is nothing to show."""
    if not content:
        return None
    margins = [
        measure(f"{number(row.get('low'))} to {number(row.get('high'))}", row.get("accuracy"))
        for row in _rows(setting(content, "held_out.margins"))
    ]
    correlation = finite(setting(content, "held_out.length.correlation"))
    length = [
        measure("the preferred text is the longer one", setting(content, "held_out.length.chosen_longer")),
        measure("the model scores the longer text higher", setting(content, "held_out.length.scored_longer")),
    ]
    if math.isfinite(correlation):
        length.append(Measure("correlation of score and tokens", number(correlation)))
    return RewardQuality(
        reliability=reliability_chart(_rows(setting(content, "held_out.reliability"))),
        margins=margins,
        length=length if margins else [],
        calibration_error=finite(setting(content, "held_out.calibration_error")),
        people=people(content),
    )


def people(content: Row) -> list[Measure]:
    """Held-out accuracy, and how far people agree with themselves and with one another; empty without people."""
    if not isinstance(content.get("people"), Mapping):
        return []
    alpha = finite(setting(content, "people.alpha"))
    agreed, basis = setting(content, "people.agreement_decided"), "agreement"
    if not (isinstance(agreed, Mapping) and agreed.get("total")):
        agreed, basis = setting(content, "people.self_consistency"), "self-consistency"
    shares = (
        ("reward model’s held-out accuracy", "held_out.accuracy", "it prefers what people preferred"),
        ("self-consistency", "people.self_consistency", "the same choice when a pair comes again"),
        ("agreement of two people", "people.agreement_decided", "the same choice, where both prefer one"),
        ("agreement with ties", "people.agreement", "the same choice, a tie being one"),
    )
    rows = [measure(name, setting(content, key), note) for name, key, note in shares]
    rows.insert(1, faultless(agreed if isinstance(agreed, Mapping) else {}, basis))
    note = "agreement beyond chance: 1 is full, 0 chance"
    return [*rows, Measure("Krippendorff’s alpha", number(alpha), note=note)]


def faultless(share: Row, basis: str) -> Measure:
    """The accuracy of a model that errs in nothing, on choices of people who do.

    Two people who each err in a share e of the pairs, independently, agree in a = (1 - e)^2 + e^2 of them, and with
    the faultless model in 1 - e = (1 + sqrt(2 a - 1)) / 2, which is more than a.

    Args:
        share: a with its interval; missing or below one half, where no e gives it, the row has dashes.
        basis: which agreement a is.
    """

    def accuracy(agreed: float) -> float:
        return (1 + math.sqrt(2 * agreed - 1)) / 2 if agreed >= 0.5 else NAN

    converted = {key: accuracy(finite(share.get(key))) for key in ("value", "low", "high")}
    row = measure("accuracy of a faultless model", converted)
    return Measure(row.name, row.value, row.bounds, note=f"at that {basis}, if people err independently")


def measure(name: str, share: object, note: str = "") -> Measure:
    """A share as a row."""
    row = share if isinstance(share, Mapping) else {}
    value, low, high, total = (finite(row.get(key)) for key in ("value", "low", "high", "total"))
    bounds = f"{percent(low)} to {percent(high)}" if math.isfinite(low + high) else ""
    return Measure(name, percent(value), bounds, f"{int(total):,}" if total > 0 else "none", note)


def reliability_chart(rows: list[Row]) -> Chart | None:
    """Accuracy against confidence, a point for each bin; the diagonal is a calibrated model."""
    shares = [(finite(row.get("confidence")), row.get("accuracy") or {}) for row in rows]
    points = [(x, finite(share.get("value")), share) for x, share in shares if isinstance(share, Mapping)]
    points = [(x, y, share) for x, y, share in points if math.isfinite(x + y)]
    if not points:
        return None
    x_range, y_range = canvas(LARGE)
    x, y = Axis(0.5, 1.0, *x_range), Axis(0.0, 1.0, *y_range)
    chart = Chart(LARGE, x, y, x_name="confidence of the model")
    xs, ys = np.array([point[0] for point in points]), np.array([point[1] for point in points])
    chart.lines = [("diagonal", chart.path(np.array([0.5, 1.0]), np.array([0.5, 1.0]))), ("held", chart.path(xs, ys))]
    for confidence, accuracy, share in points:
        low, high = (finite(share.get(key, NAN)) for key in ("low", "high"))
        low, high = (y(accuracy if math.isnan(bound) else bound) for bound in (low, high))
        tip = f"{finite(share.get('total')):,.0f} pairs: confidence {percent(confidence)}, accuracy {percent(accuracy)}"
        chart.points.append(Point(x(confidence), y(accuracy), low, high, tip, ""))
    return chart


def _rows(value: object) -> list[Row]:
    return [row for row in value if isinstance(row, Mapping)] if isinstance(value, list) else []
