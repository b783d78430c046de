import gymnasium as gym
import numpy as np
import pytest

from tabular.mdp import MDP
from tabular.offline import Transitions, learn_from_log, record
from tabular.planning import action_values, value_iteration


def cliff():
    return gym.make("CliffWalking-v1")


def uniformly(observation, generator):
    return int(generator.integers(4))


def test_a_log_of_a_random_walk_teaches_the_optimal_values():
    """Off-policy: the behaviour never comes near the goal on purpose; in deterministic worlds Q* is exact."""
    log = record(lambda: gym.make("FrozenLake-v1", is_slippery=False), uniformly, 8000, seed=0)
    q, history = learn_from_log(log, 16, 4, gamma=0.9, alpha=0.5, epochs=20)
    mdp = MDP.from_gym(gym.make("FrozenLake-v1", is_slippery=False), 0.9)
    exact = action_values(mdp, value_iteration(mdp).values)
    acts = [0, 1, 2, 3, 4, 6, 8, 9, 10, 13, 14]
    assert q[acts] == pytest.approx(exact[acts], abs=1e-6)
    errors = [error for _, error in history.metrics["td_error"]]
    assert errors[-1] < 1e-4 < errors[0]
    assert [step for step, _ in history.metrics["q_change"]] == [8000 * (i + 1) for i in range(20)]


@pytest.mark.parametrize("method", ["q_learning", "double_q_learning"])
def test_the_end_is_an_end_in_a_log_too(method):
    log = record(cliff, lambda s, g: 0 if s == 36 else 2 if s == 35 else 1, 200, seed=0)
    assert log.terminated.sum() == 200 // 13
    q, _ = learn_from_log(log, 48, 4, gamma=1.0, alpha=1.0, epochs=60, method=method)
    assert q[35, 2] == -1
    assert q[36, 0] == pytest.approx(-1)  # the other actions are not in the log and stay at 0, which is better


def test_what_was_recorded_is_what_happened():
    limited = gym.make("CliffWalking-v1", max_episode_steps=3)
    log = record(lambda: limited, lambda s, g: 0, 7, seed=0)
    assert log.states.tolist() == [36, 24, 12, 36, 24, 12, 36]
    assert log.next_states.tolist() == [24, 12, 0, 24, 12, 0, 24]
    assert not log.terminated.any()  # cut is not ended
    assert log.rewards.tolist() == [-1] * 7


def test_logs_that_do_not_fit():
    one = np.array([5])
    log = Transitions(one, one, np.array([1.0]), one, np.array([True]))
    with pytest.raises(ValueError, match=r"outside \[S, A\] = \[5, 6\]"):
        learn_from_log(log, 5, 6)
    with pytest.raises(ValueError, match="method must be one of q_learning, double_q_learning, got 'sarsa'"):
        learn_from_log(log, 6, 6, method="sarsa")
