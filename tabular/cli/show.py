"""Terminal output of the `tabular` command: tables, grids, an episode step by step."""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from jaxtyping import Bool, Float, Int
from rich.console import Console
from rich.table import Column, Table

from tabular.core.statistics import Interval
from tabular.envs.arrays import time_limit
from tabular.envs.table import Grid, grid_of
from tabular.experiments.evaluation import MAX_EVALUATION_STEPS
from tabular.experiments.statistics import format_interval
from tabular.planning.dynamic_programming import Solution
from tabular.planning.mdp import MDP, reachable


class _QuietConsole(Console):
    """Prints nothing more once the reader has closed the pipe (`| head`), so that the work is completed."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def console() -> Console:
    """A new console, since standard output may have been redirected."""
    return _QuietConsole(highlight=False)


def counted(n: int, noun: str) -> str:
    """1 seed, 2 seeds."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def solution(subject: str, env: gym.Env, mdp: MDP, solved: Solution, unit: str) -> None:
    """A solution as numbers, and as arrows and values where the environment is a grid.

    Args:
        subject: environment and policy, for the title.
        env: the environment.
        mdp: its table.
        solved: the solution.
        unit: what its iterations are.
    """
    bounded = solved.error_bound < float("inf") or not solved.converged
    table = Table(title=f"{subject}, gamma {mdp.gamma:g}", show_header=False)
    table.add_row("states x actions", f"{mdp.n_states} x {mdp.n_actions}")
    table.add_row("value at the start", f"{mdp.start @ solved.values:.12f}")
    table.add_row(unit, str(solved.iterations))
    unbounded = "rounding (policy solved exactly)" if solved.policy.ndim == 1 else "unknown (gamma 1)"
    table.add_row("error bound", f"{solved.error_bound:.3g}" if bounded else unbounded)
    console().print(table)
    grid = grid_of(env)
    if grid is None:
        return
    shown = reachable(mdp)
    if solved.policy.ndim == 1:
        _print_grid("policy", grid, [grid.arrows[action] for action in solved.policy], shown)
    _print_grid("values", grid, [f"{value:.4g}" for value in solved.values], shown)


def _print_grid(title: str, grid: Grid, texts: Sequence[str], shown: Bool[np.ndarray, "S"]) -> None:
    console().print(f"\n{title}", style="bold")
    cells = [text if visible else None for text, visible in zip(texts, shown, strict=True)]
    console().print(grid_text(grid, cells), soft_wrap=True)


def grid_text(grid: Grid, texts: Sequence[str | None]) -> str:
    """One text per state, at the state's place; None leaves the cell as the grid draws it."""
    places = dict(zip(grid.positions, texts, strict=True))
    rows = [[places.get((r, c)) or cell for c, cell in enumerate(line)] for r, line in enumerate(grid.cells)]
    width = max(len(text) for row in rows for text in row)
    return "\n".join("  ".join(text.rjust(width) for text in row) for row in rows)


def sweeps(
    title: str, grid: Grid | None, shown: Bool[np.ndarray, "S"], values: Mapping[int, Float[np.ndarray, "S"]]
) -> None:
    """The values after some numbers of sweeps: a row for each where the states are in one line, else a grid for each,
    else a column for each.

    Args:
        title: above all of them.
        grid: of the environment; None: it has none.
        shown: the states that can be acted in.
        values: number of sweeps -> values.
    """
    if grid is not None and grid.shape[0] > 1:
        console().print(title, style="bold")
        for k, row in values.items():
            _print_grid(f"k = {k}", grid, [f"{value:.3g}" for value in row], shown)
        console().print()
        return
    table = Table("k", title=title)
    states = np.flatnonzero(shown)
    for state in states:
        table.add_column(f"V({state})", justify="right")
    for k, row in values.items():
        table.add_row(str(k), *(f"{value:.4g}" for value in row[states]))
    console().print(table)


def summary(
    title: str, columns: Mapping[str, Mapping[str, Interval]], seeds: int | None = None, note: str = ""
) -> None:
    """A column for each algorithm and a row for each figure, with its interval over the seeds.

    On a narrow screen intervals are printed below their values, and columns that do not fit beside each other follow in
    a table of their own.

    Args:
        title: above the table.
        columns: name -> its figures.
        seeds: number of seeds; with 1 there is no interval.
        note: below the table.
    """
    out, rest = console(), list(columns)
    caption = "one seed: no interval" if seeds == 1 else "95% bootstrap intervals over seeds"
    narrow = not _fits(out, _figures(columns, rest))
    while rest:
        count = len(rest)
        while count > 1 and not _fits(out, _figures(columns, rest[:count], narrow)):
            count -= 1
        table = _figures(columns, rest[:count], narrow)
        rest = rest[count:]
        table.title, table.min_width = title, min(out.width, len(title))
        table.caption = None if rest else "\n".join(text for text in (caption, note) if text)
        out.print(table)


def _figures(columns: Mapping[str, Mapping[str, Interval]], chosen: Sequence[str], narrow: bool = False) -> Table:
    table = Table(Column(max_width=22 if narrow else None), *chosen)
    for name in dict.fromkeys(name for figures in columns.values() for name in figures):
        figures = [columns[column].get(name) for column in chosen]
        cells = ["–" if figure is None else format_interval(figure) for figure in figures]
        table.add_row(name, *(cell.replace(" [", "\n[") if narrow else cell for cell in cells))
    return table


def _fits(out: Console, table: Table) -> bool:
    return out.measure(table, options=out.options.update(max_width=10_000)).maximum <= out.width


def values(title: str, states: Int[np.ndarray, "S"], columns: Mapping[str, Float[np.ndarray, "S"]]) -> None:
    """A row for each state, a column for each way to its value."""
    largest = max(float(np.abs(column).max()) for column in columns.values())
    digits = max(0, 4 - int(np.log10(max(largest, 1))))
    table = Table("state", title=title)
    for name in columns:
        table.add_column(name, justify="right")
    for i, state in enumerate(states):
        table.add_row(str(state), *(f"{column[i]:.{digits}f}" for column in columns.values()))
    console().print(table)


def environments(short_names: Mapping[str, str]) -> None:
    """This package's environments and gymnasium's: id, spaces, whether they can be solved, short name.

    Args:
        short_names: id -> short name of this package's environments.
    """
    table = Table("environment", "observations", "actions", "table", "short name")
    for env_id in _environment_ids(short_names):
        env: Any = gym.make(env_id, disable_env_checker=True).unwrapped
        has_table = hasattr(env, "P") and hasattr(env, "initial_state_distrib")
        size = str(len(env.P)) if has_table else _describe_space(env.observation_space)
        table.add_row(env_id, size, _describe_space(env.action_space), "yes" if has_table else "",
                      short_names.get(env_id, ""))  # fmt: skip
    console().print(table)
    console().print(
        "`solve`, `predict` and `offline` need a table. Any gymnasium environment can be run: by its id, or module:ID."
    )


def _environment_ids(short_names: Mapping[str, str]) -> list[str]:
    """This package's ids, and the newest version of gymnasium's toy-text and classic-control environments."""
    newest = {}
    for env_id, spec in gym.registry.items():
        if any(part in str(spec.entry_point) for part in ("toy_text", "classic_control")):
            newest[env_id.split("-v")[0]] = env_id
    return [*short_names, *(env_id for env_id in newest.values() if "/" not in env_id)]


def _describe_space(space: gym.Space[Any]) -> str:
    """`4`, `3 numbers`, `11x11x3 picture`, `32 x 11 x 2`."""
    if isinstance(space, gym.spaces.Discrete):
        return str(space.n)
    if isinstance(space, gym.spaces.Tuple):
        return " x ".join(_describe_space(part) for part in space.spaces)
    shape = space.shape or ()
    if len(shape) == 1:
        return f"{shape[0]} number{'s' if shape[0] > 1 else ''}"
    return "x".join(map(str, shape)) + " picture"


def algorithms(rows: Sequence[tuple[str, str, str, str]]) -> None:
    """A table of algorithms: the command that takes them, name, what they are, what they need."""
    table = Table("command", "algorithm", "what it is", "needs")
    for row in rows:
        table.add_row(*row)
    console().print(table)
    console().print("`tabular list ALGORITHM` shows the settings of those that `run` and `compare` train.")


def options(name: str, rows: Sequence[tuple[str, str, str]]) -> None:
    """A table of settings: name, default, meaning."""
    explained = any(meaning for _, _, meaning in rows)
    table = Table("setting", "default", *(["meaning"] if explained else []), title=name)
    for option, default, meaning in rows:
        table.add_row(f"--{option}", default, *([meaning] if explained else []))
    console().print(table)


def episode(learner: Any, make_env: Callable[..., gym.Env], seed: int, delay: float) -> None:
    """The greedy policy step by step, drawn where the environment can be drawn as text."""
    env = make_env()
    drawn = "ansi" in env.metadata.get("render_modes", [])
    env = make_env(render_mode="ansi") if drawn else env
    grid, out = grid_of(env), console()
    limit = time_limit(env) or MAX_EVALUATION_STEPS
    observation, info = env.reset(seed=seed)
    total, ended, terminated, step = 0.0, False, False, 0
    while not ended and step < limit:
        action = learner.act(observation, info.get("action_mask"))
        if drawn:
            out.print(str(env.render()), markup=False)
        else:
            out.print(f"observation {np.round(observation, 3)}")
        name = grid.arrows[action] if grid is not None and grid.arrows else action
        observation, reward, terminated, truncated, info = env.step(action)
        total += float(reward)
        ended = terminated or truncated
        step += 1
        out.print(f"step {step}: action {name}, reward {float(reward):g}, return {total:g}\n")
        time.sleep(delay)
    if drawn:
        out.print(str(env.render()), markup=False)
    end = "terminated" if terminated else f"cut after {step} steps"
    out.print(f"return {total:g} in {step} steps: {end}")
