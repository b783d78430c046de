"""The maze: walls, a start and a goal, read from a text file or generated from a seed."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from tabular.core.checks import check_fraction
from tabular.envs.table import MOVES, Grid, Number, TableEnv, check_option
from tabular.planning.mdp import Outcome

LAYOUTS = Path(__file__).parent / "layouts"
CELLS = "#SG. "


class Maze(TableEnv):
    """A maze from S to G; a step into a wall or over the edge leaves the state unchanged.

    Actions are up, right, down, left. States are the free cells, numbered row by row. Reaching the goal pays
    `goal_reward` and ends the episode, any other step pays `step_reward`. There is no time limit unless `gym.make` gets
    `max_episode_steps`.

    Args:
        layout: the name of a file in `envs/layouts` ("dyna": Sutton & Barto (2018), example 8.1), the path of a text
            file, or the rows themselves with line breaks: `#` wall, `S` start, `G` goal, `.` or space free.
        size: a generated maze of size x size cells instead of the layout, see `generate`.
        maze_seed: seed of the generated maze.
        step_reward: reward of a step that does not reach the goal.
        goal_reward: reward of the step that does.
        slip: probability that an action is replaced by a random one (which may be the same).
        masked: `info["action_mask"]` is 1 for the actions that move; a masked action costs 1 and does not move.
        observation: "state", or "image": [rows, columns, 3] uint8, 255 where there is a wall, the goal, the agent.
        render_mode: ansi, rgb_array or None.

    Raises:
        ValueError: for an invalid layout, one without a path from S to G, and for options out of range.
    """

    def __init__(
        self,
        layout: str = "dyna",
        size: int | None = None,
        maze_seed: int = 0,
        step_reward: Number = 0.0,
        goal_reward: Number = 1.0,
        slip: Number = 0.0,
        masked: bool = False,
        observation: str = "state",
        render_mode: str | None = None,
    ) -> None:
        for name, value in (("step_reward", step_reward), ("goal_reward", goal_reward)):
            check_option(name, value, float)
        check_option("slip", slip, float, 0, 1)
        check_option("masked", masked, bool)
        check_option("maze_seed", maze_seed, int, 0)
        if size is not None:
            check_option("size", size, int, 5)
        if observation not in ("state", "image"):
            raise ValueError(f"observation is {observation!r}, but must be 'state' or 'image'")
        cells = read_layout(layout) if size is None else generate(size, size, maze_seed)
        positions = tuple((r, c) for r, line in enumerate(cells) for c, cell in enumerate(line) if cell != "#")
        self.free = {position: state for state, position in enumerate(positions)}
        self.goal = next(state for (r, c), state in self.free.items() if cells[r][c] == "G")
        start = np.array([float(cells[r][c] == "S") for r, c in positions])
        self.masks = np.array([[(r + dr, c + dc) in self.free for dr, dc in MOVES] for r, c in positions], np.int8)
        penalty = 1.0 if masked else 0.0
        table = {
            state: self._actions(state, positions, slip, step_reward, goal_reward, penalty)
            for state in range(len(positions))
        }
        self.masked, self.observation = masked, observation
        super().__init__(table, start, Grid(cells, positions), render_mode)
        self.best_reward = goal_reward
        if observation == "image":
            self.observation_space = gym.spaces.Box(0, 255, (*self.grid.shape, 3), np.uint8)
            self.image = np.zeros((*self.grid.shape, 3), np.uint8)
            self.image[..., 0] = [[255 * (cell == "#") for cell in line] for line in cells]
            self.image[positions[self.goal]][1] = 255

    def _actions(
        self, state: int, positions: Any, slip: Number, step_reward: Number, goal_reward: Number, penalty: float
    ) -> dict[int, list[Outcome]]:
        if state == self.goal:  # never acted in, because the episode ends on arrival; but the table needs a row
            return {action: [(1.0, state, 0.0, True)] for action in range(4)}
        row, column = positions[state]
        moves: list[Outcome] = []
        for action, (dr, dc) in enumerate(MOVES):
            next_state = self.free.get((row + dr, column + dc), state)
            reward = goal_reward if next_state == self.goal else step_reward - penalty * (1 - self.masks[state, action])
            moves.append((1.0, next_state, float(reward), next_state == self.goal))
        if slip == 0:
            return {action: [move] for action, move in enumerate(moves)}
        return {
            action: [(slip / 4 + (1 - slip) * (other == action), *move[1:]) for other, move in enumerate(moves)]
            for action in range(4)
        }

    def action_mask(self, state: int) -> np.ndarray:
        """1 for each action [4] that moves from `state`, 0 for those into a wall. The goal allows all."""
        return self.masks[state].copy() if state != self.goal else np.ones(4, np.int8)

    def info(self) -> dict[str, Any]:
        return {"action_mask": self.action_mask(self.s)} if self.masked else {}

    def observe(self) -> Any:
        if self.observation == "state":
            return self.s
        image = self.image.copy()
        image[self.grid.positions[self.s]][2] = 255
        return image


class MazePool(gym.Env):
    """A generated maze that changes every episode, drawn from the seeds `maze_seed` to `maze_seed + mazes - 1`.

    Observations are images, because the number of a state means nothing in another maze. Train on one range of seeds
    and evaluate on another to measure generalisation.

    Raises:
        ValueError: for options out of range.
    """

    metadata = Maze.metadata

    def __init__(
        self, mazes: int = 16, maze_seed: int = 0, size: int = 9, render_mode: str | None = None, **options: Any
    ) -> None:
        for name, value, minimum in (("mazes", mazes, 1), ("maze_seed", maze_seed, 0), ("size", size, 5)):
            check_option(name, value, int, minimum)
        self.mazes = [
            Maze(size=size, maze_seed=seed, observation="image", render_mode=render_mode, **options)
            for seed in range(maze_seed, maze_seed + mazes)
        ]
        self.maze = self.mazes[0]
        self.render_mode = render_mode
        self.observation_space, self.action_space = self.maze.observation_space, self.maze.action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.maze = self.mazes[self.np_random.integers(len(self.mazes))]
        return self.maze.reset(seed=int(self.np_random.integers(2**31)))

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.maze.step(action)

    def render(self) -> Any:
        return self.maze.render()


def read_layout(layout: str) -> tuple[str, ...]:
    """The rows of a maze from a layout name, a file or text.

    Raises:
        ValueError: for an invalid maze, with the reason.
    """
    if not isinstance(layout, str):
        raise ValueError(f"layout is {layout!r}, but must be a name, a file or the rows of a maze")
    if "\n" in layout:
        text = layout
        name = "the maze"
    else:
        path = LAYOUTS / f"{layout}.txt" if (LAYOUTS / f"{layout}.txt").is_file() else Path(layout)
        if not path.is_file():
            names = ", ".join(sorted(file.stem for file in LAYOUTS.glob("*.txt")))
            raise ValueError(f"layout is {layout!r}, but must be a text file or one of {names}")
        try:
            text, name = path.read_text(encoding="utf-8"), str(path)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not a text file: {error}") from error
    cells = tuple(text.strip("\r\n").splitlines()) or ("",)
    if len({len(line) for line in cells}) != 1:  # then trailing spaces are not cells
        cells = tuple(line.rstrip() for line in cells)
    if len({len(line) for line in cells}) != 1:
        raise ValueError(f"{name}: all rows must be equally long, got {[len(line) for line in cells]}")
    for row, line in enumerate(cells, start=1):
        invalid = next((cell for cell in line if cell not in CELLS), "")
        if invalid:
            raise ValueError(
                f"{name}: {invalid!r} in row {row}, column {line.index(invalid) + 1} is not a cell: # is a wall, S "
                "start, G goal, . or space free"
            )
    for mark in "SG":
        count = sum(line.count(mark) for line in cells)
        if count != 1:
            raise ValueError(f"{name}: there must be exactly one {mark}, but there are {count}")
    if shortest_path(cells) is None:
        raise ValueError(f"{name}: there is no path from S to G")
    return cells


def generate(rows: int, columns: int, seed: int, openness: Number = 0.1) -> tuple[str, ...]:
    """A maze surrounded by walls, S in the top left corner and G in the bottom right one.

    A random walk with backtracking carves corridors until every second cell is part of one, so every free cell is
    reachable; then each remaining wall between corridors is removed with probability `openness`, which makes loops.

    Raises:
        ValueError: for sides that are not odd and at least 5, or an `openness` outside [0, 1].
    """
    if min(rows, columns) < 5 or rows % 2 == 0 or columns % 2 == 0:
        raise ValueError(f"the maze is {rows} x {columns}, but its sides must be odd and at least 5")
    check_fraction(openness=openness)
    generator = np.random.default_rng(seed)
    free = np.zeros((rows, columns), dtype=bool)
    free[1, 1] = True
    trail = [(1, 1)]
    while trail:
        r, c = trail[-1]
        options = [
            (r + 2 * dr, c + 2 * dc)
            for dr, dc in MOVES
            if 0 < r + 2 * dr < rows and 0 < c + 2 * dc < columns and not free[r + 2 * dr, c + 2 * dc]
        ]
        if not options:
            trail.pop()
            continue
        r2, c2 = options[int(generator.integers(len(options)))]
        free[(r + r2) // 2, (c + c2) // 2] = free[r2, c2] = True
        trail.append((r2, c2))
    between = np.add.outer(np.arange(rows), np.arange(columns)) % 2 == 1
    between[[0, -1]] = between[:, [0, -1]] = False
    free |= between & (generator.random(free.shape) < openness)
    cells = np.where(free, ".", "#")
    cells[1, 1], cells[-2, -2] = "S", "G"
    return tuple("".join(line) for line in cells)


def shortest_path(cells: tuple[str, ...]) -> int | None:
    """Steps from S to G by breadth-first search; None if there is no path."""
    positions = {cell: (r, c) for r, line in enumerate(cells) for c, cell in enumerate(line) if cell in "SG"}
    seen = {positions["S"]}
    frontier = [positions["S"]]
    steps = 0
    while frontier:
        if positions["G"] in seen:
            return steps
        neighbours = [(r + dr, c + dc) for r, c in frontier for dr, dc in MOVES]
        inside = [
            (r, c) for r, c in neighbours if 0 <= r < len(cells) and 0 <= c < len(cells[0]) and cells[r][c] != "#"
        ]
        frontier = list(set(inside) - seen)
        seen.update(frontier)
        steps += 1
    return None
