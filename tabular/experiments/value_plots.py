"""Pictures of values: errors and estimates of prediction, and values with actions on a grid world."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from tabular.envs.table import Grid
from tabular.experiments.figures import LARGEST, add_legend, new_figure, set_title
from tabular.experiments.plots import POINTS, draw_band

NAMES = 2
"""Names of actions that fit into a cell."""

NARROWEST = 4.0
"""Width in inches of the smallest grid's picture: its title needs it."""


def error_curves(file: Path, groups: Mapping[str, Float[np.ndarray, "N E"]]) -> None:
    """The error before and after each episode [E]: the mean over seeds [N] with its 95% bootstrap band.

    Args:
        file: PNG file.
        groups: name of a curve (a method) -> its errors.
    """
    figure, axes = new_figure()
    (ax,) = axes.ravel()
    for name, errors in groups.items():
        places = np.unique(np.linspace(0, errors.shape[1] - 1, POINTS + 1).astype(int))
        draw_band(ax, places, errors[:, places], name)
    ax.set(xlabel="episodes", ylabel="RMS error of the values")
    ax.set_ylim(bottom=0)
    add_legend(figure, ax)
    figure.savefig(file, dpi=120)


def step_size_curves(file: Path, alphas: Sequence[float | int], errors: Mapping[str, Float[np.ndarray, "K N"]]) -> None:
    """The mean error against the step size, with 95% bootstrap bands over seeds. After Sutton & Barto (2018), figure
    12.6.

    Args:
        file: PNG file.
        alphas: K step sizes.
        errors: name of a curve -> its errors with each step size, of each seed; infinite ones are not drawn.
    """
    figure, axes = new_figure()
    (ax,) = axes.ravel()
    places = np.array(alphas, dtype=float)
    for name, by_alpha in errors.items():
        curves = np.where(np.isfinite(by_alpha), by_alpha, np.nan).T
        draw_band(ax, places, curves, name)
        ax.get_lines()[-1].set_marker(".")
    lowest = min(float(by_alpha.mean(axis=1).min()) for by_alpha in errors.values())
    largest = max(float(by_alpha[np.isfinite(by_alpha)].max()) for by_alpha in errors.values())
    ax.set(xlabel="step size alpha", ylabel="RMS error, mean over episodes")
    ax.set_ylim(0, min(largest, 2.5 * lowest) * 1.05)
    add_legend(figure, ax)
    figure.savefig(file, dpi=120)


def estimates(
    file: Path,
    states: Int[np.ndarray, "S"],
    exact: Float[np.ndarray, "S"],
    groups: Mapping[str, tuple[Float[np.ndarray, "K S"], Float[np.ndarray, "S"]]],
    episodes: Sequence[int],
) -> None:
    """Estimated values beside the exact ones, a panel for each method. After Sutton & Barto (2018), figure 6.2.

    Args:
        file: PNG file.
        states: numbers of the states.
        exact: their exact values.
        groups: name of a method -> its mean estimates after each of the `episodes`, and the standard deviation of the
            last ones over the seeds.
        episodes: K numbers of episodes.
    """
    figure, axes = new_figure(1, len(groups), (2.0 + 3.2 * len(groups), 3.8))
    from matplotlib import colormaps

    places = np.arange(len(states))
    for ax, (name, (values, deviation)) in zip(axes.ravel(), groups.items(), strict=True):
        if ax is not axes[0, 0]:
            ax.sharey(axes[0, 0])
        colours = colormaps["viridis_r"](np.linspace(0.1, 0.9, len(values)))
        for row, colour, episode in zip(values, colours, episodes, strict=True):
            ax.plot(places, row, color=colour, marker=".", label=str(episode))
        band = {"color": colours[-1], "alpha": 0.15, "linewidth": 0, "label": f"{episodes[-1]} ± std of seeds"}
        ax.fill_between(places, values[-1] - deviation, values[-1] + deviation, **band)
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
    shown: Bool[np.ndarray, "S"],
    title: str,
    label: str = "value",
    probabilities: Float[np.ndarray, "S"] | None = None,
) -> None:
    """A heat map of one number per state, with arrows for actions.

    Args:
        file: PNG file.
        grid: the grid world.
        values: the numbers.
        actions: True on the actions to draw an arrow for; None: no arrows.
        shown: the states to draw; the others stay blank.
        title: title of the picture.
        label: what the numbers are.
        probabilities: of the arrows, written below them.

    Raises:
        ValueError: numbers too large to draw.
    """
    rows, columns = grid.shape
    figure, axes = new_figure(size=(max(NARROWEST, 1.2 + 0.45 * columns), 1.0 + 0.45 * rows))
    picture = _draw_heat_map(file, axes[0, 0], grid, values, shown, label)
    if actions is not None and grid.arrows:
        _draw_arrows(axes[0, 0], grid, values, actions, shown, probabilities)
    figure.colorbar(picture, ax=axes[0, 0], shrink=0.8, label=label)
    set_title(figure, title)
    figure.savefig(file, dpi=110)


def grid_comparison(
    file: Path,
    grid: Grid,
    panels: Mapping[str, tuple[Float[np.ndarray, "S"], Bool[np.ndarray, "S A"]]],
    shown: Bool[np.ndarray, "S"],
    title: str,
) -> None:
    """Heat maps of values with arrows for actions, beside each other with the same colours.

    Args:
        file: PNG file.
        grid: the grid world.
        panels: title of a panel -> its values, and the actions to draw arrows for.
        shown: the states to draw.
        title: title of the picture.

    Raises:
        ValueError: numbers too large to draw.
    """
    rows, columns = grid.shape
    size = (1.0 + len(panels) * (0.3 + 0.42 * columns), 1.2 + 0.42 * rows)
    figure, axes = new_figure(1, len(panels), size)
    shown_values = np.concatenate([values[shown] for values, _ in panels.values()])
    for ax, (name, (values, actions)) in zip(axes.ravel(), panels.items(), strict=True):
        picture = _draw_heat_map(file, ax, grid, values, shown, "value")
        picture.set_clim(shown_values.min(), shown_values.max())
        if grid.arrows:
            _draw_arrows(ax, grid, values, actions, shown, middle=float(picture.norm.vmin + picture.norm.vmax) / 2)
        ax.set_title(name, fontsize=10)
        if ax is axes[0, -1]:
            figure.colorbar(picture, ax=ax, shrink=0.8, label="value")
    set_title(figure, title)
    figure.savefig(file, dpi=110)


def _draw_heat_map(
    file: Path, ax: Any, grid: Grid, values: Float[np.ndarray, "S"], shown: Bool[np.ndarray, "S"], label: str
) -> Any:
    """The numbers of the states as colours, the walls, and the letters of start, goal, cliff and holes."""
    from matplotlib.patches import Rectangle

    if (np.abs(values[shown]) > LARGEST).any():
        raise ValueError(f"{file.name}: the {label}s are too large to draw")
    places = np.array(grid.positions)
    cells = np.full(grid.shape, np.nan)
    cells[tuple(places[shown].T)] = values[shown]
    picture = ax.imshow(np.ma.masked_invalid(cells), cmap="viridis")
    ax.set_facecolor("0.92")
    ax.set(xticks=[], yticks=[])
    for row, line in enumerate(grid.cells):
        for column, cell in enumerate(line):
            if cell == "#":
                ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, color="0.2"))
            elif cell in "SGCH":
                ax.text(column - 0.33, row - 0.28, cell, ha="center", va="center", fontsize=7, color="tab:red")
    return picture


def _draw_arrows(
    ax: Any,
    grid: Grid,
    values: Float[np.ndarray, "S"],
    actions: Bool[np.ndarray, "S A"],
    shown: Bool[np.ndarray, "S"],
    probabilities: Float[np.ndarray, "S"] | None = None,
    middle: float | None = None,
) -> None:
    """An arrow for each of the actions, white on dark cells, and the probability of the arrow below it. Where actions
    have names and more than `NAMES` of them are chosen, only the first is written."""
    if middle is None:
        middle = float(values[shown].min() + values[shown].max()) / 2 if shown.any() else 0.0
    separator = "" if isinstance(grid.arrows, str) else ","
    for state in np.flatnonzero(shown):
        row, column = grid.positions[state]
        names = [arrow for arrow, chosen in zip(grid.arrows, actions[state], strict=True) if chosen]
        text = separator.join(names[:1] if separator and len(names) > NAMES else names)
        colour = "white" if values[state] < middle else "black"
        size = 12 if len(text) == 1 else 8 if len(text) == 2 else 5
        ax.text(column, row, text, ha="center", va="center", color=colour, fontsize=size)
        if probabilities is not None:
            probability = f"{probabilities[state]:.2f}".removeprefix("0")
            ax.text(column, row + 0.36, probability, ha="center", va="center", color=colour, fontsize=6)
