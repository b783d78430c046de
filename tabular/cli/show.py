"""What the `tabular` command prints: tables, grids, an episode step by step."""

import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from jaxtyping import Float, Int
from rich.console import Console
from rich.table import Column, Table

from tabular.envs.arrays import time_limit
from tabular.envs.table import Grid, grid_of
from tabular.experiments import evaluation as judging
from tabular.planning.dynamic_programming import Solution
from tabular.planning.mdp import MDP, reachable


class Unheard(Console):
    """Goes on in silence where the reader has left (`| head`): a process must not end before its work is done."""

    def on_broken_pipe(self) -> None:
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def console() -> Console:
    """Made anew each time: standard output may have been redirected meanwhile."""
    return Unheard(highlight=False)


def solution(env_id: str, env: gym.Env, mdp: MDP, found: Solution, unit: str) -> None:
    """What planning found, as numbers, and as arrows and values where the environment is a grid."""
    bounded = found.error_bound < float("inf") or not found.converged
    table = Table(title=f"{env_id}, gamma {mdp.gamma:g}", show_header=False)
    table.add_row("states x actions", f"{mdp.n_states} x {mdp.n_actions}")
    table.add_row("value at the start", f"{mdp.start @ found.values:.12f}")
    table.add_row(unit, str(found.iterations))
    table.add_row("error bound", f"{found.error_bound:.3g}" if bounded else "rounding (policy solved exactly)")
    console().print(table)
    grid = grid_of(env)
    if grid is None:
        return
    acts = reachable(mdp)
    cells = {
        "policy": [grid.arrows[action] for action in found.policy],
        "values": [f"{value:.4g}" for value in found.values],
    }
    for title, texts in cells.items():
        console().print(f"\n{title}", style="bold")
        console().print(
            grid_text(grid, [text if act else None for text, act in zip(texts, acts, strict=True)]), soft_wrap=True
        )


def grid_text(grid: Grid, texts: Sequence[str | None]) -> str:
    """One text a state, in the places of the states; None leaves the cell as the grid draws it."""
    places = dict(zip(grid.positions, texts, strict=True))
    rows = [[places.get((r, c)) or cell for c, cell in enumerate(line)] for r, line in enumerate(grid.cells)]
    width = max(len(text) for row in rows for text in row)
    return "\n".join("  ".join(text.rjust(width) for text in row) for row in rows)


def summary(
    title: str, columns: Mapping[str, Mapping[str, judging.Interval]], seeds: int | None = None, note: str = ""
) -> None:
    """A column for each algorithm, a row for each figure, with its interval over the `seeds`; the `note` stands below.

    Where the screen is narrow, intervals stand below their values, and columns that do not fit beside each other follow
    in a table of their own.
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


def _figures(
    columns: Mapping[str, Mapping[str, judging.Interval]], chosen: Sequence[str], narrow: bool = False
) -> Table:
    table = Table(Column(max_width=22 if narrow else None), *chosen)
    for name in dict.fromkeys(name for figures in columns.values() for name in figures):
        cells = [str(columns[column].get(name, "–")) for column in chosen]
        table.add_row(name, *(cell.replace(" [", "\n[") if narrow else cell for cell in cells))
    return table


def _fits(out: Console, table: Table) -> bool:
    return out.measure(table, options=out.options.update(max_width=10_000)).maximum <= out.width


def counted(n: int, noun: str) -> str:
    """1 seed, 2 seeds."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


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


def environments(ids: Mapping[str, str]) -> None:
    """Every environment with a table: id, size, short name. `ids` are this package's own, id -> short name."""
    table = Table("environment", "states", "actions", "short name")
    for env_id, spec in gym.registry.items():
        if env_id in ids or "toy_text" in str(spec.entry_point):
            env: Any = gym.make(env_id).unwrapped
            if hasattr(env, "P") or env_id in ids:
                size = str(len(env.P)) if hasattr(env, "P") else "pictures"
                table.add_row(env_id, size, str(env.action_space.n), ids.get(env_id, ""))
    console().print(table)
    console().print("Others with a transition table `P` can be solved by module:ENV_ID; any can be run.")


def algorithms(rows: Sequence[tuple[str, str, str]]) -> None:
    table = Table("algorithm", "fits", "what it is")
    for row in rows:
        table.add_row(*row)
    console().print(table)
    console().print("`tabular list ALGORITHM` shows its settings.")


def options(name: str, rows: Sequence[tuple[str, str, str]]) -> None:
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
    limit = time_limit(env) or judging.PATIENCE
    observation, info = env.reset(seed=seed)
    total, ended, step = 0.0, False, 0
    while not ended and step < limit:
        action = learner.act(observation, info.get("action_mask"))
        if drawn:
            out.print(str(env.render()), markup=False)
        else:
            out.print(f"observation {np.round(observation, 3)}")
        name = grid.arrows[action] if grid is not None and grid.arrows else action
        observation, reward, terminated, truncated, info = env.step(action)
        total, ended, step = total + float(reward), terminated or truncated, step + 1
        out.print(f"step {step}: action {name}, reward {float(reward):g}, return {total:g}\n")
        time.sleep(delay)
    if drawn:
        out.print(str(env.render()), markup=False)
    how = "it terminated" if ended and terminated else f"cut after {step} steps"
    out.print(f"return {total:g} in {step} steps: {how}")
