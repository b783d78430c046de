import numpy as np
import pytest

from tabular.planning.policies import checked_policy, epsilon_greedy, greedy_actions


def test_greedy_actions_include_ties_within_the_tolerance():
    q_values = np.array([[1, 1 - 1e-12, 1 - 1e-6], [-100, -100.1, -99.9]])
    assert greedy_actions(q_values).tolist() == [[True, True, False], [False, False, True]]
    assert greedy_actions(q_values, tolerance=0.0).tolist() == [[True, False, False], [False, False, True]]


def test_a_policy_must_be_integers_or_probabilities():
    for policy in ([0.0, 1.0], ["left", "left"], [[True, False], [True, False]]):
        with pytest.raises(ValueError, match="a policy must be whole numbers"):
            checked_policy(policy, 2, 2)
    assert checked_policy([1, 0], 2, 2).tolist() == [1, 0]


def test_epsilon_greedy_splits_ties_and_explores_with_greedy_actions_too():
    policy = epsilon_greedy(np.array([[1.0, 1, 0], [0, 0, 5]]), 0.3)
    assert policy == pytest.approx(np.array([[0.45, 0.45, 0.1], [0.1, 0.1, 0.8]]))


def test_an_epsilon_outside_0_to_1_is_refused():
    with pytest.raises(ValueError, match="epsilon is 2, but must be between 0 and 1"):
        epsilon_greedy(np.zeros((1, 2)), 2)
