"""A gymnasium environment whose dynamics are a table and whose states are drawn on a grid; base of the small worlds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np

from tabular.planning.mdp import Outcome

Number = float | int
Table = Mapping[int, Mapping[int, Sequence[Outcome]]]

MOVES = ((-1, 0), (0, 1), (1, 0), (0, -1))
"""Row and column offsets of the actions up, right, down, left (0 to 3), in the order of gymnasium's CliffWalking."""

COLOURS = {
    "#": (52, 58, 70),
    "G": (88, 170, 98),
    "S": (214, 226, 244),
    "C": (196, 78, 82),
    "H": (110, 150, 190),
}
"""Colour (red, green, blue) of a cell in pictures; other cells have `FLOOR`."""

FLOOR = (244, 244, 240)
AGENT = (221, 132, 82)
CELL_PIXELS = 24


@dataclass(frozen=True)
class Grid:
    """The positions of an environment's states, for text and pictures."""

    cells: tuple[str, ...]
    "rows of characters: # wall, S start, G goal, C cliff, H hole, anything else floor"
    positions: tuple[tuple[int, int], ...]
    "[S] row and column of each state"
    arrows: str | tuple[str, ...] = "↑→↓←"
    "one character for each action, or a name where actions are not directions; empty if they have no names"

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
        """The grid as an image [rows * 24, columns * 24, 3], uint8; with `state` None the agent is not drawn."""
        colours = np.array([[COLOURS.get(cell, FLOOR) for cell in line] for line in self.cells], dtype=np.uint8)
        image = colours.repeat(CELL_PIXELS, axis=0).repeat(CELL_PIXELS, axis=1)
        image[::CELL_PIXELS] = image[:, ::CELL_PIXELS] = (200, 200, 200)
        if state is not None:
            row, column = self.positions[state]
            top, left = CELL_PIXELS * row, CELL_PIXELS * column
            image[top + 6 : top + CELL_PIXELS - 5, left + 6 : left + CELL_PIXELS - 5] = AGENT
        return image


class TableEnv(gym.Env):
    """An environment with the dynamics `table[state][action] = [(probability, next state, reward, terminated), ...]`.

    `P` and `initial_state_distrib` are named as in gymnasium's toy-text environments, so that planning and the compiled
    learners treat both alike. `info["success"]` is True when an episode terminates with the largest reward of the
    table.
    """

    metadata = {"render_modes": ["ansi", "rgb_array"], "render_fps": 8}  # noqa: RUF012  (gymnasium's convention)

    def __init__(self, table: Table, start: np.ndarray, grid: Grid, render_mode: str | None = None) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode is {render_mode!r}, but must be ansi, rgb_array or None")
        self.P = table
        self.initial_state_distrib = start
        self.grid = grid
        self.render_mode = render_mode
        self.observation_space: gym.Space[Any] = gym.spaces.Discrete(len(table))
        self.action_space = gym.spaces.Discrete(len(table[0]))
        # Many actions of a large table share their list of outcomes.
        lists = {id(outcomes): outcomes for actions in table.values() for outcomes in actions.values()}
        self.best_reward = max(outcome[2] for outcomes in lists.values() for outcome in outcomes)
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
        remaining = self.np_random.random()
        for outcome in outcomes:
            remaining -= outcome[0]
            if remaining < 0:
                return outcome
        return outcomes[-1]

    def observe(self) -> Any:
        """The observation of the current state `s`: the state itself."""
        return self.s

    def info(self) -> dict[str, Any]:
        return {}

    def render(self) -> Any:
        if self.render_mode == "ansi":
            return self.grid.text(self.s)
        return self.grid.pixels(self.s) if self.render_mode == "rgb_array" else None


def check_option(name: str, value: Any, kind: type, minimum: Number = -np.inf, maximum: Number = np.inf) -> None:
    """Checks the type and range of an environment's option.

    Args:
        name: the option, for the message.
        value: its value; a bool is not accepted as a number, although it is one in Python.
        kind: bool, int, or float for any finite number.
        minimum: smallest number allowed.
        maximum: largest number allowed.

    Raises:
        ValueError: if the value has another type or is out of range.
    """
    requirement = {bool: "true or false", int: "a whole number", float: "a finite number"}[kind]
    if kind is bool:
        valid = isinstance(value, bool | np.bool_)
    else:
        numeric = int | np.integer if kind is int else int | float | np.integer | np.floating
        valid = isinstance(value, numeric) and not isinstance(value, bool)
        valid = valid and minimum <= value <= maximum and abs(value) < np.inf
    if minimum > -np.inf:
        requirement += f" in [{minimum}, {maximum}]" if maximum < np.inf else f" from {minimum}"
    if not valid:
        raise ValueError(f"{name} is {value!r}, but must be {requirement}")


def grid_of(env: Any) -> Grid | None:
    """The grid of an environment, also of gymnasium's FrozenLake and CliffWalking; None for one without a grid."""
    env = env.unwrapped
    if isinstance(getattr(env, "grid", None), Grid):
        return env.grid
    name = type(env).__name__
    if name == "FrozenLakeEnv":
        cells = ["".join(cell.decode() for cell in row) for row in env.desc]
        arrows = "←↓→↑"
    elif name == "CliffWalkingEnv":
        cells = ["·" * 12] * 3 + ["S" + "C" * 10 + "G"]
        arrows = "↑→↓←"
    else:
        return None
    positions = tuple((row, column) for row in range(len(cells)) for column in range(len(cells[0])))
    return Grid(tuple(cells), positions, arrows)
