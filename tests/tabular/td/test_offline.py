import gymnasium as gym
import numpy as np
import pytest

from tabular.planning.dynamic_programming import action_values, value_iteration
from tabular.planning.mdp import MDP
from tabular.td.offline import Transitions, learn_from_log, record


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


GOOD = {"states": [0, 1], "actions": [0, 1], "rewards": [0.0, 1], "next_states": [1, 1], "terminated": [False, True]}


def log_of(columns):
    """As `Transitions(**columns)`, past the tests' type checker, which no user has."""
    log = object.__new__(Transitions)
    for name, column in columns.items():
        object.__setattr__(log, name, column)
    log.__post_init__()
    return log


def test_lists_are_as_good_as_arrays():
    q, _ = learn_from_log(log_of(GOOD), 2, 2, gamma=0.5, alpha=1.0, epochs=2)
    assert q.tolist() == [[0.5, 0], [0, 1]]


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("next_states", [1], "equally long: 2 states, 1 next_states"),
        ("actions", [0, 1, 0], "equally long: 2 states, 3 actions"),
        ("states", [0.0, 1.0], r"states must be whole numbers \[N\], got \[2\] of float64"),
        ("states", [[0], [1]], r"states must be whole numbers \[N\], got \[2, 1\]"),
        ("terminated", [0, 1], "terminated must be true or false"),
        ("rewards", ["1", "2"], "rewards must be numbers"),
        ("rewards", [0.0, float("nan")], "rewards must be finite, number 1 is nan"),
    ],
)
def test_columns_that_are_no_log(column, values, message):
    with pytest.raises(ValueError, match=message):
        log_of({**GOOD, column: values})


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("states", [0, -1], r"states of the log must be 0 to 1 to fit \[S, A\] = \[2, 3\], number 1 is -1"),
        ("next_states", [2, 0], "next_states of the log must be 0 to 1 .* number 0 is 2"),
        ("actions", [0, 3], "actions of the log must be 0 to 2 .* number 1 is 3"),
        ("actions", [-1, 0], "actions of the log must be 0 to 2 .* number 0 is -1"),
    ],
)
def test_logs_outside_the_table(column, values, message):
    with pytest.raises(ValueError, match=message):
        learn_from_log(log_of({**GOOD, column: values}), 2, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "sarsa"}, "method must be one of q_learning, double_q_learning, got 'sarsa'"),
        ({"alpha": 5}, r"alpha must be in \(0, 1\], got 5"),
        ({"alpha": float("nan")}, "alpha must be"),
        ({"gamma": 2}, r"gamma must be in \[0, 1\], got 2"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"masks": np.ones((2, 3), dtype=bool)}, r"masks must be \[S, A\] = \[2, 2\], got \[2, 3\]"),
        ({"masks": np.array([[True, True], [False, False]])}, "the masks allow no action in state 1"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        learn_from_log(log_of(GOOD), 2, 2, **settings)


def test_a_log_of_nothing():
    nothing = log_of({name: np.zeros(0, np.asarray(column).dtype) for name, column in GOOD.items()})
    with pytest.raises(ValueError, match="the log is empty"):
        learn_from_log(nothing, 2, 2)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        record(cliff, uniformly, 0, seed=0)
