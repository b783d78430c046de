"""Small worlds of the literature: line, random walk, short corridor, windy grid."""

from typing import Any

import gymnasium as gym
import numpy as np

from tabular.envs.table import MOVES, Grid, Number, Table, TableEnv, check_option
from tabular.planning.mdp import Outcome, line_table


class LineWorld(TableEnv):
    """The MDP of `mdp.line_world`: states 0 to n-1, actions left (0) and right (1), goal at the right end.

    Any action in the goal pays `goal_value` and ends the episode.

    Raises:
        ValueError: for options out of range.
    """

    def __init__(
        self,
        n_states: int = 4,
        success: Number = 1.0,
        goal_value: Number = 10.0,
        step_reward: Number = 0.0,
        render_mode: str | None = None,
    ) -> None:
        check_option("n_states", n_states, int, 2)
        check_option("success", success, float, 0, 1)
        check_option("goal_value", goal_value, float)
        check_option("step_reward", step_reward, float)
        table = line_table(n_states, success, goal_value, step_reward)
        grid = _line_grid("S" + "." * (n_states - 2) + "G", n_states)
        super().__init__(table, np.eye(n_states)[0], grid, render_mode)


class RandomWalk(TableEnv):
    """States in a line with an end on either side, start in the middle, actions left (0) and right (1).

    Stepping over the right end pays 1, over the left end `left_reward`. Sutton & Barto (2018), example 6.2 with 5
    states and 0; example 7.1 with 19 states and -1.

    Raises:
        ValueError: for an even number of states.
    """

    def __init__(self, n_states: int = 5, left_reward: Number = 0.0, render_mode: str | None = None) -> None:
        check_option("n_states", n_states, int, 1)
        check_option("left_reward", left_reward, float)
        if n_states % 2 == 0:
            raise ValueError(f"n_states is {n_states}, but must be odd")
        table: Table = {
            s: {
                0: [(1.0, max(s - 1, 0), float(left_reward) if s == 0 else 0.0, s == 0)],
                1: [(1.0, min(s + 1, n_states - 1), float(s == n_states - 1), s == n_states - 1)],
            }
            for s in range(n_states)
        }
        grid = _line_grid("." * (n_states // 2) + "S" + "." * (n_states // 2), n_states)
        super().__init__(table, np.eye(n_states)[n_states // 2], grid, render_mode)


class ShortCorridor(TableEnv):
    """Three cells and a goal, -1 a step; in the second cell the actions left and right are swapped.

    With `aliased` all cells have the same observation, so that no deterministic policy gets from the start to the goal:
    going right with probability 2 - sqrt 2 is optimal and returns -(6 + 4 sqrt 2). Sutton & Barto (2018), example 13.1.
    """

    def __init__(self, aliased: bool = True, render_mode: str | None = None) -> None:
        check_option("aliased", aliased, bool)
        neighbours = ((0, 1), (2, 0), (1, 3))
        table: dict[int, dict[int, list[Outcome]]] = {
            s: {action: [(1.0, min(s2, 2), -1.0, s2 == 3)] for action, s2 in enumerate(next_states)}
            for s, next_states in enumerate(neighbours)
        }
        super().__init__(table, np.eye(3)[0], _line_grid("S..G", 3), render_mode)
        self.aliased = aliased
        if aliased:
            self.observation_space = gym.spaces.Discrete(1)

    def observe(self) -> Any:
        return 0 if self.aliased else self.s


class WindyGrid(TableEnv):
    """7 x 10 cells with an upward wind of 0 to 2 cells in each column; -1 a step until the goal.

    Sutton & Barto (2018), example 6.5: the shortest path takes 15 steps, and 7 with `kings_moves` (8 directions). With
    `stochastic`, wind that blows is one cell stronger or weaker, with probability 1/3 each (exercise 6.10).
    """

    WIND = (0, 0, 0, 1, 1, 1, 2, 2, 1, 0)

    def __init__(self, kings_moves: bool = False, stochastic: bool = False, render_mode: str | None = None) -> None:
        check_option("kings_moves", kings_moves, bool)
        check_option("stochastic", stochastic, bool)
        rows, columns, goal = 7, 10, (3, 7)
        moves = (*MOVES, (-1, 1), (1, 1), (1, -1), (-1, -1)) if kings_moves else MOVES
        table: dict[int, dict[int, list[Outcome]]] = {}
        for state in range(rows * columns):
            row, column = divmod(state, columns)
            gusts = (-1, 0, 1) if stochastic and self.WIND[column] else (0,)
            table[state] = {}
            for action, (dr, dc) in enumerate(moves):
                next_cells = [
                    (
                        min(max(row + dr - self.WIND[column] - gust, 0), rows - 1),
                        min(max(column + dc, 0), columns - 1),
                    )
                    for gust in gusts
                ]
                table[state][action] = [(1 / len(gusts), r * columns + c, -1.0, (r, c) == goal) for r, c in next_cells]
        cells = tuple(
            "".join("S" if (r, c) == (3, 0) else "G" if (r, c) == goal else "." for c in range(columns))
            for r in range(rows)
        )
        positions = tuple(divmod(state, columns) for state in range(rows * columns))
        arrows = "↑→↓←" + ("↗↘↙↖" if kings_moves else "")
        super().__init__(table, np.eye(rows * columns)[30], Grid(cells, positions, arrows), render_mode)


def _line_grid(cells: str, n_states: int) -> Grid:
    return Grid((cells,), tuple((0, state) for state in range(n_states)), "←→")
