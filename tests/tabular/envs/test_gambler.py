import gymnasium as gym
import numpy as np
import pytest

import tabular.envs  # noqa: F401
from tabular.envs.gambler import Gambler
from tabular.planning.dynamic_programming import action_values, policy_iteration, value_iteration
from tabular.planning.mdp import MDP
from tabular.planning.policies import greedy_actions


def solved(**options):
    mdp = MDP.from_gym(Gambler(**options), 1)
    return mdp, value_iteration(mdp).values


@pytest.mark.parametrize("p", [0.1, 0.25, 0.4])
def test_bold_play_is_optimal_where_the_coin_is_unfavourable(p):
    """Sutton & Barto, example 4.3: V(50) = p, V(25) = p^2, V(75) = p + (1 - p) p; V(s) = p V(2s) below 50."""
    mdp, values = solved(p_heads=p)
    assert values[[25, 50, 75]] == pytest.approx([p**2, p, p + (1 - p) * p], abs=1e-12)
    assert values[1:50] == pytest.approx(p * values[2:99:2], abs=1e-12)
    best = greedy_actions(action_values(mdp, values))
    assert np.flatnonzero(best[50]).tolist() == [49]  # stakes everything
    assert best[25, 24]
    assert best[75, 24]


def test_the_smallest_optimal_stakes_are_the_policy_of_figure_4_3():
    mdp, values = solved()
    stakes = greedy_actions(action_values(mdp, values)).argmax(axis=1) + 1
    for capital in range(1, 100):
        bold = {25: 25, 50: 50, 75: 25}  # the peaks; elsewhere the distance to the next quarter of the goal
        assert stakes[capital] == bold.get(capital, min(capital % 25, 25 - capital % 25)), capital


def test_several_stakes_are_optimal_with_51():
    """The spikes of figure 4.3: with 51 both 1 (back to the bold line) and 49 reach V(51)."""
    mdp, values = solved()
    best = greedy_actions(action_values(mdp, values))
    assert best[51, [0, 48]].all()


@pytest.mark.parametrize("p", [0.55, 0.7])
def test_timid_play_is_optimal_where_the_coin_is_favourable(p):
    """The gambler's ruin: staking 1 each time reaches the goal with (1 - r^s) / (1 - r^100), r = (1 - p) / p."""
    _, values = solved(p_heads=p)
    r = (1 - p) / p
    assert values[1:100] == pytest.approx((1 - r ** np.arange(1, 100)) / (1 - r**100), abs=1e-9)


def test_a_fair_coin_makes_every_policy_a_martingale():
    _, values = solved(p_heads=0.5)
    assert values[1:100] == pytest.approx(np.arange(1, 100) / 100, abs=1e-9)


def test_stakes_are_limited_by_the_capital_and_the_goal():
    env = Gambler(goal=10, start=3)
    assert env.P[3][4] == [(0.4, 6, 0.0, False), (0.6, 0, 0.0, True)]  # 5 is more than 3
    assert env.P[8][4] == [(0.4, 10, 1.0, True), (0.6, 6, 0.0, False)]  # 2 are missing
    assert policy_iteration(MDP.from_gym(gym.make("tabular/Gambler-v0"), 1)).values[50] == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p_heads": 1.5}, r"p_heads is 1.5, but must be a finite number in \[0, 1\]"),
        ({"goal": 1}, "goal is 1, but must be a whole number from 2"),
        ({"start": 100}, r"start is 100, but must be a whole number in \[1, 99\]"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Gambler(**options)
