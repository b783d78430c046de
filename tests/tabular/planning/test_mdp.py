import gymnasium as gym
import numpy as np
import pytest
from scipy.sparse import csr_array

from tabular.planning.mdp import MDP, line_world


def test_from_table_equals_a_worked_example():
    table = {
        0: {0: [(0.25, 0, 4.0, False), (0.25, 0, 8.0, False), (0.5, 1, 2.0, True)]},
        1: {0: [(1.0, 0, -1.0, False)]},
    }
    mdp = MDP.from_table(table, 0.9, np.array([1.0, 0.0]))
    assert (mdp.n_states, mdp.n_actions) == (2, 1)
    assert mdp.transitions.toarray().tolist() == [[0.5, 0], [1, 0]]  # nothing follows the outcome that terminates
    assert mdp.rewards.tolist() == [[1 + 2 + 1], [-1]]
    assert mdp.end_probability.tolist() == [[0.5], [0]]


def test_from_gym_reads_wrapped_environments():
    mdp = MDP.from_gym(gym.make("CliffWalking-v1"), 0.9)
    assert mdp.rewards.shape == (48, 4)
    assert mdp.start[36] == 1
    goes_down_into_the_goal = 35 * 4 + 2
    assert mdp.transitions[[goes_down_into_the_goal]].sum() == 0
    assert mdp.end_probability.reshape(-1)[goes_down_into_the_goal] == 1


def test_from_gym_needs_a_table():
    with pytest.raises(ValueError, match="CartPole-v1 has no transition table `P`"):
        MDP.from_gym(gym.make("CartPole-v1"), 0.9)


def test_rounding_of_probabilities_is_not_an_end_of_the_episode():
    outcomes = [(p, state, 0.0, False) for state, p in enumerate((0.1, 0.1, 0.1, 0.7))]
    mdp = MDP.from_table({state: {0: outcomes} for state in range(4)}, 0.9, np.eye(4)[0])
    assert (mdp.transitions.sum(axis=1) < 1).any()
    assert not mdp.end_probability.any()


def test_end_probabilities_of_frozen_lake():
    mdp = MDP.from_gym(gym.make("FrozenLake-v1"), 0.9)
    assert set(np.round(mdp.end_probability.ravel() * 3, 12)) == {0, 1, 2, 3}


def table_of(*outcomes):
    return {0: {0: list(outcomes)}}


ONE, TWO = np.ones(1), np.array([0.5, 0.5])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MDP.from_table(table_of((0.5, 0, 0.0, False)), 0.9, ONE), "action 0 in state 0 have probability 0.5"),
        (
            lambda: MDP.from_table({**table_of((1.0, 0, 0.0, True)), 1: {}}, 0.9, TWO),
            "state 1 has 0 actions, state 0 has 1",
        ),
        (lambda: MDP.from_table(table_of((1.0, 0, 0.0, True)), 1.5, ONE), "gamma is 1.5, but must be between 0 and 1"),
        (lambda: MDP.from_table(table_of((1.0, 0, np.inf, True)), 0.9, ONE), "rewards must be finite"),
        (lambda: MDP.from_table(table_of((1.0, 0, 0.0, True)), 0.9, 0.5 * ONE), "sum to 1, got the sum 0.5"),
        (lambda: MDP(csr_array(2 * np.eye(1)), np.zeros((1, 1)), 0.9, ONE), "each row of transitions"),
        (lambda: MDP(csr_array(-np.eye(1)), np.zeros((1, 1)), 0.9, ONE), "each row of transitions"),
        (lambda: MDP(csr_array(np.eye(2)), np.zeros((2, 3)), 0.9, TWO), r"\[6, 2\] to fit .* got \(2, 2\)"),
        (lambda: line_world(1), "n_states is 1, but must be at least 2"),
        (lambda: line_world(success=1.2), "success is 1.2, but must be between 0 and 1"),
    ],
)
def test_invalid_processes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
