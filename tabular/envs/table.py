"""A gymnasium environment whose dynamics are a table, drawn as a grid: what all small worlds of this package are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from tabular.planning.mdp import Outcome

Number = float | int
Table = Mapping[int, Mapping[int, Sequence[Outcome]]]

MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))
"""Up, right, down, left: the actions 0 to 3 of every grid here, and of gymnasium's CliffWalking."""

COLOURS = {
    "#": (52, 58, 70),
    "G": (88, 170, 98),
    "S": (214, 226, 244),
    "C": (196, 78, 82),
    "H": (110, 150, 190),
}
"""Of the cells in pictures; any other cell is nearly white."""

FLOOR, AGENT = (244, 244, 240), (221, 132, 82)
CELL_PIXELS = 24


@dataclass(frozen=True)
class Grid:
    """Where the states of an environment lie, for text and pictures."""

    cells: tuple[str, ...]
    "rows of characters: # wall, S start, G goal, C cliff, H hole, anything else floor"
    positions: tuple[tuple[int, int], ...]
    "[S] row and column of each state"
    arrows: str = "↑→↓←"
    "one character an action; empty where actions are no directions"

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.cells), len(self.cells[0])

    def text(self, state: int) -> str:
        """The grid with the agent as `@`."""
        row, column = self.positions[state]
        return "\n".join(
            line if r != row else line[:column] + "@" + line[column + 1 :] for r, line in enumerate(self.cells)
        )

    def pixels(self, state: int | None) -> np.ndarray:
        """The same as a picture [rows * 24, columns * 24, 3], uint8; None draws no agent."""
        colours = np.array([[COLOURS.get(cell, FLOOR) for cell in line] for line in self.cells], dtype=np.uint8)
        image = colours.repeat(CELL_PIXELS, axis=0).repeat(CELL_PIXELS, axis=1)
        image[::CELL_PIXELS] = image[:, ::CELL_PIXELS] = (200, 200, 200)
        if state is not None:
            top, left = (CELL_PIXELS * place for place in self.positions[state])
            image[top + 6 : top + CELL_PIXELS - 5, left + 6 : left + CELL_PIXELS - 5] = AGENT
        return image


class TableEnv(gym.Env):
    """Plays `table[state][action] = [(probability, next state, reward, terminated), ...]`.

    `P` and `initial_state_distrib` are named as in gymnasium's toy-text worlds, so that planning and the fast learners
    treat both alike. An episode that terminates with the best reward of the whole table is a success, which
    `info["success"]` says.
    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 8}  # noqa: RUF012  (gymnasium's way)

    def __init__(self, table: Table, start: np.ndarray, grid: Grid, render_mode: str | None = None) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode must be ansi, rgb_array or None, got {render_mode!r}")
        self.P = table
        self.initial_state_distrib = start
        self.grid = grid
        self.render_mode = render_mode
        self.observation_space: gym.Space[Any] = gym.spaces.Discrete(len(table))
        self.action_space = gym.spaces.Discrete(len(table[0]))
        self.best_reward = max(o[2] for actions in table.values() for outcomes in actions.values() for o in outcomes)
        self.s = int(start.argmax())

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.s = int(self.np_random.choice(len(self.P), p=self.initial_state_distrib))
        return self.observe(), self.info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        outcomes = self.P[self.s][action]
        _, state, reward, terminated = outcomes[0] if len(outcomes) == 1 else self._draw(outcomes)
        self.s = int(state)
        info = {**self.info(), "success": bool(terminated and reward == self.best_reward)}
        return self.observe(), float(reward), bool(terminated), False, info

    def _draw(self, outcomes: Sequence[Outcome]) -> Any:
        chance = self.np_random.random()
        for outcome in outcomes:
            chance -= outcome[0]
            if chance < 0:
                return outcome
        return outcomes[-1]

    def observe(self) -> Any:
        """What the agent sees of state `s`: the state itself."""
        return self.s

    def info(self) -> dict[str, Any]:
        return {}

    def render(self) -> Any:
        if self.render_mode == "ansi":
            return self.grid.text(self.s)
        return self.grid.pixels(self.s) if self.render_mode == "rgb_array" else None


def check_option(name: str, value: Any, kind: type, least: Number = -np.inf, most: Number = np.inf) -> None:
    """Raises ValueError, naming the option, unless it is of a kind (bool, int or float) and from `least` to `most`.

    A float may be any finite number; neither number may be a bool, which counts as one in Python.
    """
    wanted = {bool: "true or false", int: "a whole number", float: "a finite number"}[kind]
    if kind is bool:
        good = isinstance(value, bool | np.bool_)
    else:
        numeric = int | np.integer if kind is int else int | float | np.integer | np.floating
        good = isinstance(value, numeric) and not isinstance(value, bool)
        good = good and least <= value <= most and abs(value) < np.inf
    if least > -np.inf:
        wanted += f" in [{least}, {most}]" if most < np.inf else f" from {least}"
    if not good:
        raise ValueError(f"{name} must be {wanted}, got {value!r}")


def grid_of(env: Any) -> Grid | None:
    """The grid of an environment, also of gymnasium's FrozenLake and CliffWalking; None for one that has none."""
    env = env.unwrapped
    if isinstance(getattr(env, "grid", None), Grid):
        return env.grid
    name = type(env).__name__
    if name == "FrozenLakeEnv":
        cells, arrows = ["".join(cell.decode() for cell in row) for row in env.desc], "←↓→↑"
    elif name == "CliffWalkingEnv":
        cells, arrows = ["·" * 12] * 3 + ["S" + "C" * 10 + "G"], "↑→↓←"
    else:
        return None
    positions = tuple((row, column) for row in range(len(cells)) for column in range(len(cells[0])))
    return Grid(tuple(cells), positions, arrows)
