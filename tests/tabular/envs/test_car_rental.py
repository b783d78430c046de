"""Compared with values from an enumeration of all requests and returns, written without the table."""

import math

import numpy as np
import pytest

from tabular.envs.car_rental import CarRental
from tabular.planning.dynamic_programming import policy_iteration
from tabular.planning.mdp import MDP

GAMMA = 0.9


def day(max_cars, requests, returns):
    """Probabilities [morning, evening] and expected rentals [morning] of a location, up to 40 requests and returns."""

    def poisson(mean):
        return [math.exp(-mean) * mean**n / math.factorial(n) for n in range(40)]

    evening = np.zeros((max_cars + 1, max_cars + 1))
    rentals = np.zeros(max_cars + 1)
    for morning in range(max_cars + 1):
        for requested, p_requested in enumerate(poisson(requests)):
            rented = min(requested, morning)
            rentals[morning] += p_requested * rented
            for returned, p_returned in enumerate(poisson(returns)):
                evening[morning, min(morning - rented + returned, max_cars)] += p_requested * p_returned
    return evening, rentals


def enumerated_values(max_cars, max_moves):
    """Value iteration on [first, second], and the best moves."""
    (p1, rentals1), (p2, rentals2) = day(max_cars, 3, 3), day(max_cars, 4, 2)
    size = max_cars + 1
    values = np.zeros((size, size))
    while True:
        mornings = 10 * np.add.outer(rentals1, rentals2) + GAMMA * p1 @ values @ p2.T
        q_values = np.full((size, size, 2 * max_moves + 1), -np.inf)
        for first, second in np.ndindex(size, size):
            for move in range(-min(max_moves, second), min(max_moves, first) + 1):
                after = min(first - move, max_cars), min(second + move, max_cars)
                q_values[first, second, move + max_moves] = mornings[after] - 2 * abs(move)
        new_values = q_values.max(axis=2)
        if np.abs(new_values - values).max() < 1e-10:
            return new_values, q_values.argmax(axis=2) - max_moves
        values = new_values


@pytest.mark.parametrize(("max_cars", "max_moves"), [(1, 1), (6, 2), (20, 5)])
def test_values_and_policy_equal_those_of_an_enumeration(max_cars, max_moves):
    solution = policy_iteration(MDP.from_gym(CarRental(max_cars, max_moves), GAMMA))
    values, moves = enumerated_values(max_cars, max_moves)
    shape = (max_cars + 1, max_cars + 1)
    assert solution.values.reshape(shape) == pytest.approx(values, abs=1e-7)
    assert (solution.policy.reshape(shape) - max_moves == moves).all()
    if max_cars == 20:
        check_figure_4_2(values, moves)


def check_figure_4_2(values, moves):
    """Sutton & Barto: five cars at most, four in the other direction; values from 420 to 612 in the figure's window."""
    assert (moves.max(), moves.min()) == (5, -4)
    assert moves[0].tolist() == [0] * 8 + [-1] * 2 + [-2] * 3 + [-3] * 5 + [-4] * 3
    assert moves[:, 0].tolist() == [0] * 5 + [1, 2, 3, 3, 4, 4] + [5] * 10
    assert values[0, 0] == pytest.approx(421.4, abs=0.1)
    assert values[10, 10] == pytest.approx(574.9, abs=0.1)


def test_cars_that_are_not_there_cost_as_well_but_do_not_move():
    env = CarRental(3, 2)
    nothing, one, two = (env.P[4 * 1 + 0][move + 2] for move in (0, 1, 2))  # one car at the first location
    assert sum(p * r for p, _, r, _ in one) == pytest.approx(sum(p * r for p, _, r, _ in two) + 2)
    assert [o[:2] for o in one] == [o[:2] for o in two]
    assert sum(p for p, *_ in nothing) == pytest.approx(1)
