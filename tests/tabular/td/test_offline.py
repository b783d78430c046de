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
def test_terminated_transitions_of_a_log_do_not_bootstrap(method):
    log = record(cliff, lambda s, g: 0 if s == 36 else 2 if s == 35 else 1, 200, seed=0)
    assert log.terminated.sum() == 200 // 13
    q, _ = learn_from_log(log, 48, 4, gamma=1.0, alpha=1.0, epochs=60, method=method)
    assert q[35, 2] == -1
    assert q[36, 0] == pytest.approx(-1)  # the other actions are not in the log and stay at 0, which is better


def test_recorded_transitions_equal_the_steps():
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


def test_columns_may_be_lists():
    q, _ = learn_from_log(log_of(GOOD), 2, 2, gamma=0.5, alpha=1.0, epochs=2)
    assert q.tolist() == [[0.5, 0], [0, 1]]


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("next_states", [1], "there are 1 next_states, but must be as many as states: 2"),
        ("actions", [0, 1, 0], "there are 3 actions, but must be as many as states: 2"),
        ("states", [0.0, 1.0], r"states is \[2\] of float64, but must be whole numbers \[N\]"),
        ("states", [[0], [1]], r"states is \[2, 1\] of int64, but must be whole numbers \[N\]"),
        ("terminated", [0, 1], r"terminated is \[2\] of int64, but must be true or false"),
        ("rewards", ["1", "2"], r"rewards is \[2\] of <U1, but must be numbers"),
        ("rewards", [0.0, float("nan")], r"rewards\[1\] is nan, but must be finite"),
    ],
)
def test_invalid_columns_are_refused(column, values, message):
    with pytest.raises(ValueError, match=message):
        log_of({**GOOD, column: values})


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("states", [0, -1], r"states\[1\] of the log is -1, but must be 0 to 1 for \[S, A\] = \[2, 3\]"),
        ("next_states", [2, 0], r"next_states\[0\] of the log is 2, but must be 0 to 1"),
        ("actions", [0, 3], r"actions\[1\] of the log is 3, but must be 0 to 2"),
        ("actions", [-1, 0], r"actions\[0\] of the log is -1, but must be 0 to 2"),
    ],
)
def test_indices_outside_the_table_are_refused(column, values, message):
    with pytest.raises(ValueError, match=message):
        learn_from_log(log_of({**GOOD, column: values}), 2, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "sarsa"}, "method is 'sarsa', but must be one of q_learning, double_q_learning"),
        ({"alpha": 5}, "alpha is 5, but must be between 0 and 1"),
        ({"alpha": float("nan")}, "alpha is nan, but must be between 0 and 1"),
        ({"gamma": 2}, "gamma is 2, but must be between 0 and 1"),
        ({"epochs": 0}, "epochs is 0, but must be at least 1"),
        ({"masks": np.ones((2, 3), dtype=bool)}, r"masks is \[2, 3\], but must be \[S, A\] = \[2, 2\]"),
        (
            {"masks": np.array([[True, True], [False, False]])},
            "masks allows no action in state 1, but must allow at least one",
        ),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        learn_from_log(log_of(GOOD), 2, 2, **settings)


def test_an_empty_log_is_refused():
    nothing = log_of({name: np.zeros(0, np.asarray(column).dtype) for name, column in GOOD.items()})
    with pytest.raises(ValueError, match="the log is empty"):
        learn_from_log(nothing, 2, 2)
    with pytest.raises(ValueError, match="steps is 0, but must be at least 1"):
        record(cliff, uniformly, 0, seed=0)
