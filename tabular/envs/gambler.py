"""The gambler's problem: stake capital on biased coin flips until it reaches the goal or is lost."""

import numpy as np

from tabular.envs.table import Grid, Number, TableEnv, check_option
from tabular.planning.mdp import Outcome

COLUMNS = 10


class Gambler(TableEnv):
    """Capital 0 to `goal` is the state; a stake is won with probability `p_heads`, else lost. Gamma 1.

    Reaching the goal pays 1, everything else 0, so that a value is the probability of reaching it. Action `a` stakes
    `a + 1`, or less if that is more than the capital or more than is missing. Sutton & Barto (2018), example 4.3: for
    `p_heads` 0.4 the value of 50 is 0.4 (stake everything), and many policies are optimal. For `p_heads` below 1/2 bold
    play is optimal, Dubins & Savage (1965).

    Args:
        p_heads: probability of winning a flip.
        goal: capital at which the gambler stops.
        start: capital at the start of an episode; None is half of the goal.
        render_mode: ansi, rgb_array or None.

    Raises:
        ValueError: for options out of range.
    """

    def __init__(
        self, p_heads: Number = 0.4, goal: int = 100, start: int | None = None, render_mode: str | None = None
    ) -> None:
        check_option("p_heads", p_heads, float, 0, 1)
        check_option("goal", goal, int, 2)
        start = goal // 2 if start is None else start
        check_option("start", start, int, 1, goal - 1)
        stakes = range(1, goal // 2 + 1)
        table: dict[int, dict[int, list[Outcome]]] = {}
        for capital in range(goal + 1):
            table[capital] = {}
            for action, stake in enumerate(stakes):
                if capital in (0, goal):  # never acted in, because the episode has ended; but the table needs a row
                    table[capital][action] = [(1.0, capital, 0.0, True)]
                    continue
                stake = min(stake, capital, goal - capital)
                won, lost = capital + stake, capital - stake
                table[capital][action] = [
                    (float(p_heads), won, float(won == goal), won == goal),
                    (1.0 - p_heads, lost, 0.0, lost == 0),
                ]
        super().__init__(table, np.eye(goal + 1)[start], _grid(goal, start, stakes), render_mode)


def _grid(goal: int, start: int, stakes: range) -> Grid:
    """Capital in rows of ten."""
    positions = tuple(divmod(capital, COLUMNS) for capital in range(goal + 1))
    cells = [["#"] * COLUMNS for _ in range(goal // COLUMNS + 1)]
    for capital, (row, column) in enumerate(positions):
        cells[row][column] = "S" if capital == start else "G" if capital == goal else "."
    return Grid(tuple("".join(row) for row in cells), positions, tuple(str(stake) for stake in stakes))
