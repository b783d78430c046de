"""Figures, their axes and their files: what all pictures share.

matplotlib comes with the `demo` extra; without it `new_figure` raises ValueError.
"""

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

LARGEST = 1e100
"""Numbers beyond it overflow while matplotlib lays out the axes."""

DECADES = 30
"""Ratio of the medians at the start and at the end from which a positive quantity gets a logarithmic axis."""

WIDE = 10
"""Ratio of the range of a whole curve to that of its last nine tenths from which its start is left out of the axis."""

TITLE_CHARACTERS = 10.5
"""Characters of a title that fit into an inch."""


def new_figure(rows: int = 1, columns: int = 1, size: tuple[float, float] = (6.4, 4.0)) -> tuple[Any, Any]:
    """A figure and its axes [rows, columns].

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("pictures need matplotlib: pip install 'tabular-rlhf[demo]'") from error
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def draw_all(*pictures: Callable[[], None], quiet: bool = False) -> None:
    """Draws each picture; prints why one cannot be drawn, each reason once, since a run is complete without it."""
    reasons: dict[str, None] = {}
    for picture in pictures:
        try:
            picture()
        except ValueError as error:
            reasons.setdefault(str(error))
    if not quiet:
        for reason in reasons:
            print(f"no picture: {reason}")


def new_file(file: Path) -> Path:
    """The same path, if a file can be written there.

    Raises:
        ValueError: the file exists, for nothing is overwritten, or its folder does not.
    """
    if file.exists():
        raise ValueError(f"{file} exists already: take another name")
    if not file.parent.is_dir():
        raise ValueError(f"{file} cannot be written: there is no folder {file.parent}")
    return file


def set_title(figure: Any, title: str) -> None:
    """A title over the whole figure, in as many lines as its width needs."""
    characters = int(TITLE_CHARACTERS * figure.get_figwidth())
    figure.suptitle("\n".join(textwrap.wrap(title, characters)), fontsize=10)


def steps_axis(ax: Any) -> None:
    """Few ticks along environment steps, as 100k or 1M."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: thousands(x)))


def plain_log_ticks(ax: Any) -> None:
    """Ticks of a logarithmic y axis at 10, 20, 50, 100, ..., as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: thousands(y)))
    ax.yaxis.set_minor_formatter(NullFormatter())


def thousands(steps: float | int) -> str:
    """500, 2.5k, 100k, 1.25M."""
    size, unit = next(pair for pair in ((1e6, "M"), (1e3, "k"), (1, "")) if abs(steps) >= pair[0] or pair[0] == 1)
    return f"{steps / size:g}{unit}"


def add_legend(figure: Any, ax: Any) -> None:
    """Inside the axes for two curves, below all of them for more, where it hides no curve."""
    lines, names = ax.get_legend_handles_labels()
    if len(lines) <= 2:
        ax.legend(frameon=False)
    else:
        figure.legend(lines, names, frameon=False, ncols=min(3, len(lines)), loc="outside lower center", fontsize=9)


def set_range(ax: Any, curves: Sequence[np.ndarray], outliers: float | int = 0) -> None:
    """Scale and limits of the y axis for curves [N] over time.

    - A quantity that is never negative and changes by orders of magnitude gets a logarithmic axis.
    - The start of the curves is inside the limits, unless it is so far away that it would flatten the rest: then the
      axes say where it lies.

    Args:
        outliers: percentage of the points on either side that may lie outside the limits.
    """
    starts = [curve[: -(-len(curve) // 10)] for curve in curves]
    rests = [curve[-(-len(curve) // 10) :] for curve in curves]
    start, rest = _finite(starts), _finite(rests)
    if not len(rest):
        rest = start
    if not len(rest):
        return
    start = start if len(start) else rest
    if _spans_decades(start, rest):
        positive = np.concatenate([start, rest])
        positive = positive[positive > 0]
        ax.set_yscale("log", nonpositive="clip")
        ax.set_ylim(float(positive.min()) / 1.5, float(positive.max()) * 1.5)
        return
    low, high = (float(bound) for bound in np.percentile(rest, [outliers, 100 - outliers]))
    start_low, start_high = (float(bound) for bound in np.percentile(start, [5 * outliers, 100 - 5 * outliers]))
    whole_low, whole_high = min(low, start_low), max(high, start_high)
    span = high - low or 0.1 * abs(high)
    if span == 0 or whole_high - whole_low <= WIDE * span:
        low, high = whole_low, whole_high
    else:
        furthest = start_low if low - start_low > start_high - high else start_high
        ax.text(
            0.99, 0.98, f"start, at {furthest:.3g}, not shown", transform=ax.transAxes, ha="right", va="top",
            fontsize=7, color="grey",
        )  # fmt: skip
    ax.set_ylim(with_margin(low, high))


def _finite(curves: Sequence[np.ndarray]) -> np.ndarray:
    values = np.concatenate([np.asarray(curve, dtype=float) for curve in curves]) if curves else np.zeros(0)
    return values[np.isfinite(values)]


def _spans_decades(start: np.ndarray, rest: np.ndarray) -> bool:
    """Whether a non-negative quantity changes by more than a factor of `DECADES` from its start to its end."""
    if min(start.min(), rest.min()) < 0:
        return False
    end = rest[-max(1, len(rest) // 2) :]
    positive = np.concatenate([start, rest])
    positive = positive[positive > 0]
    if not len(positive):
        return False
    first, last = (max(float(np.median(part)), float(positive.min())) for part in (start, end))
    return max(first, last) > DECADES * min(first, last)


def with_margin(low: float, high: float) -> tuple[float, float]:
    """The limits of an axis around values from `low` to `high`: a tenth more on either side, also of a constant."""
    margin = 0.1 * (high - low) or 0.1 * abs(high) or 1.0
    return low - margin, high + margin
