"""Pictures of runs: learning curves with bands, and what an agent thinks of a grid world.

matplotlib comes with the `demo` extra; without it every function here raises ValueError and says so.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from tabular.envs.table import Grid
from tabular.experiments import evaluation as judging
from tabular.history import History

POINTS = 100
"""Places along the x-axis of a curve."""

TOO_LARGE = 1e100
"""Numbers beyond it overflow while their axes are laid out."""

LONG = 50
"""Times the shortest: longer episodes than that put all lengths on a logarithmic axis."""


def _figure(rows: int = 1, columns: int = 1, size: tuple[float, float] = (6.4, 4.0)) -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ValueError("pictures need matplotlib: pip install 'tabular-rlhf[demo]'") from error
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def draw(*pictures: Callable[[], None], quiet: bool = False) -> None:
    """Draws, or says why not, each reason once: a run without pictures is a run all the same."""
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
    """The same path. Raises ValueError if something is there already (nothing is ever overwritten), or no folder."""
    if file.exists():
        raise ValueError(f"{file} exists already: give another name")
    if not file.parent.is_dir():
        raise ValueError(f"{file}: there is no folder {file.parent}")
    return file


def _steps_axis(ax: Any) -> None:
    """Few ticks along environment steps, as 100k or 1M."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    ax.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: thousands(x)))


def thousands(steps: float | int) -> str:
    """500, 2.5k, 100k, 1.25M."""
    size, unit = next(pair for pair in ((1e6, "M"), (1e3, "k"), (1, "")) if abs(steps) >= pair[0] or pair[0] == 1)
    return f"{steps / size:g}{unit}"


def _legend(figure: Any, ax: Any) -> None:
    """Inside the panel for two curves, below all panels for more: there it can hide none of them."""
    lines, names = ax.get_legend_handles_labels()
    if len(lines) <= 2:
        ax.legend(frameon=False)
    else:
        figure.legend(lines, names, frameon=False, ncols=min(3, len(lines)), loc="outside lower center", fontsize=9)


def learning_curves(
    file: Path,
    groups: Mapping[str, Sequence[History]],
    steps: int,
    threshold: float | int | None = None,
    window: int = 100,
) -> None:
    """Mean over seeds of the training return and, below it, of the episodes' lengths, with 95% bootstrap bands; one
    curve a group (an algorithm).

    A point is the mean of a seed's last `window` episodes, or a twentieth of its episodes where these are fewer. The
    lengths tell of learning where every episode pays the same in the end, as in a maze.
    """
    figure, axes = _figure(2, 1, (6.4, 5.6))
    above, below = axes.ravel()
    places = np.linspace(0, steps, POINTS + 1)[1:]
    for name, histories in groups.items():
        width = max(1, min([window, *(len(history.returns) // 20 for history in histories)]))
        label = f"{name} ({len(histories)} seeds)" if len(histories) > 1 else name
        for ax, figure_of in ((above, "returns"), (below, "lengths")):
            curves = [judging.learning_curve(history, places, width, figure_of) for history in histories]
            _band(ax, places, np.clip(curves, -TOO_LARGE, TOO_LARGE), label)
    if threshold is not None:
        above.axhline(threshold, color="grey", linewidth=1, linestyle=":")
    above.set(ylabel="return", title="training episodes", ylim=_sensible_range(above))
    below.set(ylabel="length in steps", xlabel="environment steps", ylim=_sensible_range(below))
    lengths = [y for line in below.get_lines() for y in line.get_ydata()]
    if lengths and below.get_ylim()[1] > LONG * min(lengths):
        below.set_yscale("log")
        below.set_ylim(min(lengths) / 1.2, max(lengths) * 1.2)
    below.sharex(above)
    above.tick_params(labelbottom=False)
    _steps_axis(below)
    _legend(figure, above)
    figure.savefig(file, dpi=120)


def _band(ax: Any, places: np.ndarray, curves: np.ndarray, label: str) -> None:
    known = ~np.isnan(curves).any(axis=0)
    places, curves = places[known], curves[:, known]
    (line,) = ax.plot(places, curves.mean(axis=0), label=label)
    if len(curves) > 1 and known.any():
        bounds = [judging.interval(column, resamples=500) for column in curves.T]
        ax.fill_between(places, [b.low for b in bounds], [b.high for b in bounds], alpha=0.2, color=line.get_color())


def _sensible_range(ax: Any) -> tuple[float, float]:
    """Without the first tenth of the curves, where a beginner's returns can dwarf all that follows."""
    curves = [np.asarray(line.get_ydata(), dtype=float) for line in ax.get_lines()]
    late = [float(y) for curve in curves for y in curve[len(curve) // 10 :]]
    low, high = (min(late), max(late)) if late else (0.0, 1.0)
    return _with_margin(low, high)


def metric_curves(file: Path, groups: Mapping[str, Sequence[History]]) -> None:
    """A panel for each figure that learners noted (epsilon, td_error, approx_kl, ...): the mean over seeds, and each
    seed faintly where there are several. Raises ValueError if nothing was noted."""
    names = sorted({name for histories in groups.values() for history in histories for name in history.metrics})
    if not names:
        raise ValueError("nothing was noted while learning")
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    figure, axes = _figure(rows, columns, (4.2 * columns, 2.8 * rows))
    for ax, name in zip(axes.ravel(), names, strict=False):
        drawn = []
        for i, (group, histories) in enumerate(groups.items()):
            series = [np.array(h.metrics[name]).clip(-TOO_LARGE, TOO_LARGE) for h in histories if name in h.metrics]
            drawn += series
            for points in series:
                ax.plot(*points.T, color=f"C{i}", alpha=1.0 if len(series) == 1 else 0.25, linewidth=1)
            if len(series) > 1 and len({tuple(points[:, 0]) for points in series}) == 1:
                ax.plot(series[0][:, 0], np.mean([points[:, 1] for points in series], axis=0), color=f"C{i}")
            ax.plot([], [], color=f"C{i}", label=group)
        ax.set_title(name, fontsize=10)
        ax.set_ylim(_robust_range(drawn))
        _steps_axis(ax)
    for ax in axes.ravel()[len(names) :]:
        ax.axis("off")
    if len(groups) > 1:
        lines, labels = axes.ravel()[0].get_legend_handles_labels()
        figure.legend(lines, labels, frameon=False, ncols=min(6, len(groups)), loc="outside upper center")
    figure.supxlabel("environment steps", fontsize=10)
    figure.savefig(file, dpi=110)


def _robust_range(series: Sequence[np.ndarray]) -> tuple[float, float]:
    """The 1st to the 99th percentile of points [N, 2] after the first tenth of each series: one outlier, or a
    beginner's first figures, shall not flatten all the rest."""
    late = np.concatenate([points[len(points) // 10 :, 1] for points in series])
    late = late[np.isfinite(late)]
    low, high = (float(end) for end in np.percentile(late, [1, 99])) if len(late) else (0.0, 1.0)
    return _with_margin(low, high)


def _with_margin(low: float, high: float) -> tuple[float, float]:
    margin = 0.1 * (high - low) or max(1.0, 0.1 * abs(high))
    return low - margin, high + margin


def error_curves(file: Path, groups: Mapping[str, Float[np.ndarray, "N E"]]) -> None:
    """Mean over seeds [N] of the error before and after each episode [E], with its 95% bootstrap band; one curve a
    group (a method)."""
    figure, axes = _figure()
    (ax,) = axes.ravel()
    for name, errors in groups.items():
        places = np.unique(np.linspace(0, errors.shape[1] - 1, POINTS + 1).astype(int))
        _band(ax, places, errors[:, places], name)
    ax.set(xlabel="episodes", ylabel="RMS error of the values")
    ax.set_ylim(bottom=0)
    _legend(figure, ax)
    figure.savefig(file, dpi=120)


def estimates(
    file: Path,
    states: Int[np.ndarray, "S"],
    exact: Float[np.ndarray, "S"],
    groups: Mapping[str, tuple[Float[np.ndarray, "K S"], Float[np.ndarray, "S"]]],
    episodes: Sequence[int],
) -> None:
    """A panel for each group (a method): its mean estimates after some `episodes` [K], the standard deviation of the
    last ones as a band, and the exact values. After Sutton & Barto (2018), figure 6.2."""
    figure, axes = _figure(1, len(groups), (2.0 + 3.2 * len(groups), 3.8))
    from matplotlib import colormaps

    places = np.arange(len(states))
    for ax, (name, (values, spread)) in zip(axes.ravel(), groups.items(), strict=True):
        if ax is not axes[0, 0]:
            ax.sharey(axes[0, 0])
        colours = colormaps["viridis_r"](np.linspace(0.1, 0.9, len(values)))
        for row, colour, episode in zip(values, colours, episodes, strict=True):
            ax.plot(places, row, color=colour, marker=".", label=str(episode))
        band = {"color": colours[-1], "alpha": 0.15, "linewidth": 0, "label": f"{episodes[-1]} ± std of seeds"}
        ax.fill_between(places, values[-1] - spread, values[-1] + spread, **band)
        ax.plot(places, exact, color="black", linestyle="--", marker="o", markersize=4, label="exact")
        ax.set_title(name, fontsize=10)
        ax.set_xticks(places, states, fontsize=8 if len(states) <= 15 else 6)
        ax.label_outer()
    axes[0, 0].set_ylabel("value")
    lines, names = axes[0, 0].get_legend_handles_labels()
    figure.legend(lines, names, title="episodes", frameon=False, fontsize=8, loc="outside right upper")
    figure.supxlabel("state", fontsize=10)
    figure.savefig(file, dpi=120)


def grid_values(
    file: Path,
    grid: Grid,
    values: Float[np.ndarray, "S"],
    actions: Bool[np.ndarray, "S A"] | None,
    known: Bool[np.ndarray, "S"],
    title: str,
    label: str = "value",
    chances: Float[np.ndarray, "S"] | None = None,
) -> None:
    """A heat map of one number a state, with an arrow for each of the `actions`; states not `known` stay blank.

    `label` says what the number is; `chances` are the probabilities of the arrows where a policy is not certain, and
    stand below them. Raises ValueError for numbers that are too large to draw.
    """
    if (np.abs(values[known]) > TOO_LARGE).any():
        raise ValueError(f"{file.name}: the {label}s are too large to draw")
    rows, columns = grid.shape
    figure, axes = _figure(size=(1.2 + 0.45 * columns, 1.0 + 0.45 * rows))
    (ax,) = axes.ravel()
    places = np.array(grid.positions)
    cells = np.full((rows, columns), np.nan)
    cells[tuple(places[known].T)] = values[known]
    picture = ax.imshow(np.ma.masked_invalid(cells), cmap="viridis")
    ax.set_facecolor("0.92")
    figure.colorbar(picture, ax=ax, shrink=0.8, label=label)
    middle = np.nanmean([picture.norm.vmin, picture.norm.vmax])
    for row, line in enumerate(grid.cells):
        for column, cell in enumerate(line):
            if cell == "#":
                ax.add_patch(_square(row, column))
            elif cell in "SGCH":
                ax.text(column - 0.33, row - 0.28, cell, ha="center", va="center", fontsize=7, color="tab:red")
    if actions is not None and grid.arrows:
        for state in np.flatnonzero(known):
            row, column = grid.positions[state]
            text = "".join(arrow for arrow, good in zip(grid.arrows, actions[state], strict=True) if good)
            colour = "white" if cells[row, column] < middle else "black"
            size = 12 if len(text) == 1 else 8 if len(text) == 2 else 5
            ax.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)
            if chances is not None:
                chance = f"{chances[state]:.2f}".removeprefix("0")
                ax.text(column, row + 0.36, chance, ha="center", va="center", color=colour, fontsize=6)
    ax.set(xticks=[], yticks=[])
    figure.suptitle("\n".join(textwrap.wrap(title, int(16 * figure.get_figwidth()))), fontsize=10)
    figure.savefig(file, dpi=110)


def _square(row: int, column: int) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((column - 0.5, row - 0.5), 1, 1, color="0.2")
