"""Jack's car rental: move cars between two locations overnight, with Poisson requests and returns."""

from itertools import repeat
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy.stats import poisson

from tabular.envs.table import Grid, Number, TableEnv, check_option
from tabular.planning.mdp import Outcome

RENTAL_REWARD = 10.0
MOVE_COST = 2.0
MEAN_REQUESTS = (3, 4)
MEAN_RETURNS = (3, 2)


class CarRental(TableEnv):
    """The state is the number of cars at both locations in the evening, `first * (max_cars + 1) + second`. Gamma 0.9.

    Action `a` moves `a - max_moves` cars from the first location to the second overnight (negative: the other way).
    Each costs 2, also one that is not there and so does not move. The next day each location gets Poisson requests
    (means 3 and 4), rents for 10 each as long as it has cars, then gets Poisson returns (means 3 and 2), which can be
    rented from the following day on. Cars above `max_cars` leave the problem. Sutton & Barto (2018), example 4.2.
    Episodes never end. The reward of an outcome is its expectation given the next state.

    Args:
        max_cars: capacity of a location; 20 in the book.
        max_moves: cars that can be moved; 5 in the book.
        render_mode: ansi, rgb_array or None.

    Raises:
        ValueError: for options out of range.
    """

    def __init__(self, max_cars: int = 20, max_moves: int = 5, render_mode: str | None = None) -> None:
        check_option("max_cars", max_cars, int, 1, 30)
        check_option("max_moves", max_moves, int, 1, max_cars)
        self.max_cars = max_cars
        first, second = (_day(max_cars, *means) for means in zip(MEAN_REQUESTS, MEAN_RETURNS, strict=True))
        moves = range(-max_moves, max_moves + 1)
        outcomes: dict[tuple[int, int, int], list[Outcome]] = {}
        "of a day, by the cars at both locations in the morning and the paid moves; many actions lead to the same day"
        table: dict[int, dict[int, list[Outcome]]] = {}
        for cars in np.ndindex(max_cars + 1, max_cars + 1):
            state = cars[0] * (max_cars + 1) + cars[1]
            table[state] = {}
            for action, move in enumerate(moves):
                moved = max(min(move, cars[0]), -cars[1])
                day = (min(cars[0] - moved, max_cars), min(cars[1] + moved, max_cars), abs(move))
                if day not in outcomes:
                    outcomes[day] = _outcomes(first, second, *day)
                table[state][action] = outcomes[day]
        rows = max_cars + 1
        positions = tuple(np.ndindex(rows, rows))
        names = tuple(f"{move:+d}" if move else "0" for move in moves)
        start = np.eye(rows * rows)[rows * rows // 2]
        super().__init__(table, start, Grid(("." * rows,) * rows, positions, names), render_mode)


def _day(
    max_cars: int, mean_requests: Number, mean_returns: Number
) -> tuple[Float[np.ndarray, "C C"], Float[np.ndarray, "C C"]]:
    """One location's day, given the cars in the morning (rows) and in the evening (columns).

    Returns:
        The probability of the evening given the morning, and the expected rentals given both.
    """
    size = max_cars + 1
    probabilities, rentals = np.zeros((size, size)), np.zeros((size, size))
    for morning in range(size):
        for rented in range(morning + 1):
            p_rented = _at_most(rented, morning, mean_requests)
            remaining = morning - rented
            for evening in range(remaining, size):
                p = p_rented * _at_most(evening - remaining, max_cars - remaining, mean_returns)
                probabilities[morning, evening] += p
                rentals[morning, evening] += p * rented
    return probabilities, np.divide(rentals, probabilities, out=np.zeros_like(rentals), where=probabilities > 0)


def _at_most(n: int, limit: int, mean: Number) -> Any:
    """Probability that min(Poisson(mean), limit) is n."""
    return poisson.pmf(n, mean) if n < limit else poisson.sf(limit - 1, mean)


def _outcomes(first: Any, second: Any, cars_first: int, cars_second: int, paid_moves: int) -> list[Outcome]:
    """All evenings after a morning with so many cars at both locations."""
    probabilities = np.outer(first[0][cars_first], second[0][cars_second]).ravel()
    rentals = np.add.outer(first[1][cars_first], second[1][cars_second]).ravel()
    rewards = RENTAL_REWARD * rentals - MOVE_COST * paid_moves
    evenings = np.flatnonzero(probabilities)
    columns = (probabilities[evenings].tolist(), evenings.tolist(), rewards[evenings].tolist())
    return list(zip(*columns, repeat(False, len(evenings)), strict=True))
