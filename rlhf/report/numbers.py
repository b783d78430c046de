"""Numbers of a run's files, and how the report writes them: text and charts use the same functions."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Row = Mapping[str, Any]
"""An object of a jsonl file; those of metrics.jsonl and eval.jsonl have a "step"."""

NAN = float("nan")


def finite(value: Any) -> float:
    """A finite number as a float, everything else (null, NaN, infinity, text) as NaN."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else NAN


def series(rows: Sequence[Row], name: str) -> np.ndarray:
    """[len(rows)] one value of each row, NaN where it is missing, null or infinite."""
    return np.array([finite(row.get(name)) for row in rows])


def mean(values: np.ndarray) -> float:
    """The mean of the finite values; NaN if there are none."""
    values = values[np.isfinite(values)]
    return float(values.mean()) if values.size else NAN


def number(value: Any) -> str:
    """Three significant digits, with a typographic minus; a dash for a value that is missing or not finite."""
    value = finite(value)
    size = abs(value)
    if math.isnan(value):
        return "–"
    if size and not 0.001 <= size < 1e7:
        return scientific(value)
    decimals = next((d for d, edge in enumerate((100, 10, 1, 0.01)) if size >= edge), 4) if size else 0
    return f"{value:,.{decimals}f}".replace("-", "−")


def scientific(value: float) -> str:
    """Two significant digits and an exponent: 2.5e−6."""
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}".replace("-", "−")


def smooth(values: np.ndarray, at: np.ndarray) -> np.ndarray:
    """[len(at)] the centred running mean of the finite values at the indices `at`; NaN stays NaN.

    Near the ends the window shrinks on both sides, so that a straight line stays straight, but not below a fifth of its
    size, so that the ends of a noisy curve are smoothed too.
    """
    half, last = smoothing_window(len(values)) // 2, len(values) - 1
    centres = np.clip(at, half // 5, last - half // 5)
    means = [mean(values[i - r : i + r + 1]) for i in centres for r in [min(half, i, last - i)]]
    return np.where(np.isfinite(values[at]), means, NAN)


def smoothing_window(points: int) -> int:
    """Points in the window of `smooth`, an odd number; 1 (no smoothing) for fewer than 30 points."""
    return max(5, points // 15) | 1 if points >= 30 else 1


def signed(value: Any) -> str:
    """A number with a plus if it is positive."""
    return ("+" if finite(value) > 0 else "") + number(value)


def percent(value: Any) -> str:
    """A fraction as a percentage."""
    value = finite(value)
    return "–" if math.isnan(value) else f"{100 * value:.1f}%"


def parameters(count: float | int) -> str:
    """The size of a model: 1.2B, 950M, 20.4k."""
    unit, suffix = next(((u, s) for u, s in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if count >= u), (1, ""))
    return f"{count / unit:.3g}{suffix}"


def duration(seconds: float | int) -> str:
    """A time in two units: 3 h 12 min, 3 min 22 s, 4.20 s."""
    minutes, hours = seconds / 60, seconds / 3600
    if minutes < 1:
        return f"{number(seconds)} s"
    return f"{int(minutes)} min {int(seconds % 60)} s" if hours < 1 else f"{int(hours)} h {int(minutes % 60)} min"
