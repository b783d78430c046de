"""Curves of training: returns and episode lengths with bands over seeds, and the metrics that learners record."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from tabular.core.statistics import Interval
from tabular.experiments.figures import LARGEST, add_legend, new_figure, plain_log_ticks, set_range, steps_axis
from tabular.experiments.statistics import learning_curve, seed_interval
from tabular.history import History

POINTS = 100
"""Points of a curve."""

LONG = 50
"""Ratio of the longest to the shortest episode from which lengths get a logarithmic axis."""


def learning_curves(
    file: Path,
    groups: Mapping[str, Sequence[History]],
    steps: int,
    threshold: float | int | None = None,
    window: int = 100,
) -> None:
    """Training returns and, below them, episode lengths: the mean over seeds with 95% bootstrap bands.

    A point is the mean of a seed's last `window` episodes, or of a twentieth of its episodes where these are fewer.
    The lengths show learning where every episode has the same return, as in a maze.

    Args:
        file: PNG file.
        groups: name of a curve (an algorithm) -> the histories of its seeds.
        steps: environment steps of the run.
        threshold: return to draw a line at.
        window: episodes to average over.
    """
    figure, axes = new_figure(2, 1, (6.4, 5.6))
    above, below = axes.ravel()
    places = np.linspace(0, steps, POINTS + 1)[1:]
    for name, histories in groups.items():
        width = max(1, min([window, *(len(history.returns) // 20 for history in histories)]))
        label = f"{name} ({len(histories)} seeds)" if len(histories) > 1 else name
        for ax, quantity in ((above, "returns"), (below, "lengths")):
            curves = [learning_curve(history, places, width, quantity) for history in histories]
            draw_band(ax, places, np.clip(curves, -LARGEST, LARGEST), label)
    set_range(above, [line.get_ydata() for line in above.get_lines()])
    set_range(below, [line.get_ydata() for line in below.get_lines()])
    if threshold is not None:
        above.axhline(threshold, color="grey", linewidth=1, linestyle=":")
    above.set(ylabel="return", title="training episodes")
    below.set(ylabel="length in steps", xlabel="environment steps")
    lengths = [y for line in below.get_lines() for y in line.get_ydata()]
    if lengths and max(lengths) > LONG * min(lengths):
        below.set_yscale("log")
        below.set_ylim(min(lengths) / 1.2, max(lengths) * 1.2)
    if below.get_yscale() == "log":
        plain_log_ticks(below)
    above.set_xlim(-0.03 * steps, 1.03 * steps)
    below.sharex(above)
    above.tick_params(labelbottom=False)
    steps_axis(below)
    add_legend(figure, above)
    figure.savefig(file, dpi=120)


def draw_band(ax: Any, places: np.ndarray, curves: np.ndarray, label: str) -> None:
    """The mean of curves [N, P] at the places [P] where all have a value, with its 95% bootstrap band."""
    complete = ~np.isnan(curves).any(axis=0)
    places, curves = places[complete], curves[:, complete]
    (line,) = ax.plot(places, curves.mean(axis=0), label=label)
    if len(curves) > 1 and complete.any():
        bounds = [seed_interval(column, resamples=500) for column in curves.T]
        lows, highs = [bound.low for bound in bounds], [bound.high for bound in bounds]
        ax.fill_between(places, lows, highs, alpha=0.2, color=line.get_color())


def metric_curves(file: Path, groups: Mapping[str, Sequence[History]], xlabel: str = "environment steps") -> None:
    """A panel for each metric that learners recorded (epsilon, td_error, approx_kl, ...): the mean over seeds, and each
    seed as a faint line where there are several.

    Args:
        file: PNG file.
        groups: name of a curve (an algorithm) -> the histories of its seeds.
        xlabel: what the steps of the metrics count.

    Raises:
        ValueError: no metric was recorded.
    """
    names = sorted({name for histories in groups.values() for history in histories for name in history.metrics})
    if not names:
        raise ValueError("no metric was recorded")
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure, axes = new_figure(rows, columns, (4.2 * columns, 2.8 * rows))
    for ax, name in zip(axes.ravel(), names, strict=False):
        curves = []
        for i, (group, histories) in enumerate(groups.items()):
            series = [np.array(h.metrics[name]).clip(-LARGEST, LARGEST) for h in histories if name in h.metrics]
            _draw_series(ax, series, color=f"C{i}", label=group)
            curves += [points[:, 1] for points in series]
        ax.set_title(name, fontsize=10)
        set_range(ax, curves, outliers=1)
        steps_axis(ax)
    for ax in axes.ravel()[len(names) :]:
        ax.axis("off")
    if len(groups) > 1:
        lines, labels = axes.ravel()[0].get_legend_handles_labels()
        figure.legend(lines, labels, frameon=False, ncols=min(6, len(groups)), loc="outside upper center")
    figure.supxlabel(xlabel, fontsize=10)
    figure.savefig(file, dpi=110)


def noise_curves(file: Path, levels: Sequence[float | int], groups: Mapping[str, Float[np.ndarray, "K N"]]) -> None:
    """Greedy returns against the share of actions that are replaced by random ones: the mean over seeds with 95%
    bootstrap bands.

    Args:
        file: PNG file.
        levels: K shares.
        groups: name of a curve (an algorithm) -> its mean returns with each share, of each seed.
    """
    figure, axes = new_figure()
    (ax,) = axes.ravel()
    for name, returns in groups.items():
        draw_band(ax, np.array(levels, dtype=float), returns.T, name)
        ax.get_lines()[-1].set_marker(".")
    ax.set(xlabel="share of actions replaced by random ones", ylabel="greedy return")
    add_legend(figure, ax)
    figure.savefig(file, dpi=120)


def interval_bars(file: Path, groups: Mapping[str, Interval], label: str) -> None:
    """A bar for each group (an environment), with its interval.

    Args:
        file: PNG file.
        groups: name -> a figure with its interval.
        label: what the figure is.
    """
    figure, axes = new_figure(size=(6.4, 1.4 + 0.5 * len(groups)))
    (ax,) = axes.ravel()
    values = [interval.value for interval in groups.values()]
    errors = np.array([[i.value - i.low, i.high - i.value] for i in groups.values()]).clip(min=0).T
    ax.barh(list(groups), values, xerr=errors, height=0.6, color="C0", alpha=0.8, capsize=4)
    ax.invert_yaxis()
    ax.set(xlabel=label)
    figure.savefig(file, dpi=120)


def _draw_series(ax: Any, series: Sequence[np.ndarray], color: str, label: str) -> None:
    """One metric of several seeds, points [N, 2] each, and their mean where all have the same steps."""
    for points in series:
        ax.plot(*points.T, color=color, alpha=1.0 if len(series) == 1 else 0.25, linewidth=1)
    if len(series) > 1 and len({tuple(points[:, 0]) for points in series}) == 1:
        ax.plot(series[0][:, 0], np.mean([points[:, 1] for points in series], axis=0), color=color)
    ax.plot([], [], color=color, label=label)
