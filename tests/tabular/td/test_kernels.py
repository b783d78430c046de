import numpy as np
import pytest

from tabular.td import kernels
from tabular.td.kernels import DOUBLE_Q_LEARNING, EXPECTED_SARSA, MONTE_CARLO, N_STEP_SARSA, Q_LEARNING, SARSA, Rule
from tabular.td.rng import make_rng

ALL = np.ones((2, 3), dtype=bool)


def rng(seed=0):
    return make_rng(np.random.SeedSequence(seed))


def frequencies_of(q, masks=ALL, softmax=False, exploration=0.0, n=20_000):
    """How often each action of state 0 is chosen."""
    stream = rng()
    q = np.array(q, dtype=float)
    chosen = [kernels.choose(q, 0, masks, softmax, exploration, stream) for _ in range(n)]
    return np.bincount(chosen, minlength=3) / n


def test_ties_are_broken_at_random():
    """The first of the best would run into the same wall forever on a table of zeros."""
    assert frequencies_of([[[0, 0, 0], [0, 0, 0]]]) == pytest.approx([1 / 3] * 3, abs=0.02)
    assert frequencies_of([[[1, 0, 1], [0, 0, 0]]]) == pytest.approx([0.5, 0, 0.5], abs=0.02)


def test_random_actions_include_the_greedy_one():
    """eps / |A| each: with eps .3 the two others get .1 each, not .15."""
    assert frequencies_of([[[0, 1, 0], [0, 0, 0]]], exploration=0.3) == pytest.approx([0.1, 0.8, 0.1], abs=0.01)
    assert frequencies_of([[[0, 1, 0], [0, 0, 0]]], exploration=1.0) == pytest.approx([1 / 3] * 3, abs=0.02)


def test_softmax_probabilities():
    odds = np.exp(np.array([1.0, 2.0, 0.0]) / 0.5)
    assert frequencies_of([[[1, 2, 0], [0, 0, 0]]], softmax=True, exploration=0.5) == pytest.approx(
        odds / odds.sum(), abs=0.015
    )
    assert frequencies_of([[[1e4, 0, -1e4], [0, 0, 0]]], softmax=True, exploration=1.0).tolist() == [
        1,
        0,
        0,
    ]  # no overflow


@pytest.mark.parametrize("softmax", [False, True])
def test_masked_actions_are_never_taken(softmax):
    masks = np.array([[True, False, True], [True, True, True]])
    frequencies = frequencies_of([[[0, 9, 0], [0, 0, 0]]], masks, softmax, 0.5)
    assert frequencies == pytest.approx([0.5, 0, 0.5], abs=0.02)
    assert kernels.choose(np.zeros((1, 2, 3)), 0, ~np.ones((2, 3), dtype=bool), softmax, 0.5, rng()) == -1


def q_after_update(method, terminated=False, q=None, masks=ALL, softmax=False, exploration=0.3, a2=2):
    """q(0, 1) after one update with reward 1, gamma .5, alpha .1 towards state 1."""
    q = np.array([[[0, 2, 0], [1, 5, 3]]] if q is None else q, dtype=float)
    stats = np.zeros(4)
    rule = Rule(method, softmax, 0.5, 0.1)
    kernels.update(q, 0, 1, 1.0, 1, a2, masks, terminated, rule, exploration, rng(), stats)
    assert stats[kernels.UPDATES] == 1
    assert stats[kernels.ERROR_SUM] == pytest.approx(10 * stats[kernels.LARGEST_CHANGE])
    return q


@pytest.mark.parametrize(
    ("method", "next_value"),
    [
        (Q_LEARNING, 5.0),
        (SARSA, 3.0),
        (EXPECTED_SARSA, 0.7 * 5 + 0.3 * 3),  # the mean of 1, 5, 3 is 3
    ],
)
def test_targets_equal_worked_examples(method, next_value):
    q = q_after_update(method)
    assert q[0, 0, 1] == pytest.approx(2 + 0.1 * (1 + 0.5 * next_value - 2))
    assert q[0, 1].tolist() == [1, 5, 3]
    q = q_after_update(method, terminated=True)  # no bootstrapping after the end, whatever the table holds there
    assert q[0, 0, 1] == pytest.approx(2 + 0.1 * (1 - 2))


def test_targets_leave_masked_actions_out():
    masks = np.array([[True, True, True], [True, False, True]])
    assert q_after_update(Q_LEARNING, masks=masks)[0, 0, 1] == pytest.approx(2 + 0.1 * (1 + 0.5 * 3 - 2))
    expected = 0.7 * 3 + 0.3 * 2
    assert q_after_update(EXPECTED_SARSA, masks=masks)[0, 0, 1] == pytest.approx(2 + 0.1 * (1 + 0.5 * expected - 2))


def test_expected_sarsa_under_softmax():
    odds = np.exp(np.array([1.0, 5.0, 3.0]) / 2)
    expected = odds @ [1, 5, 3] / odds.sum()
    q = q_after_update(EXPECTED_SARSA, softmax=True, exploration=2.0)
    assert q[0, 0, 1] == pytest.approx(2 + 0.1 * (1 + 0.5 * expected - 2))


def test_double_q_learning_evaluates_with_the_other_table():
    tables = [[[0, 2, 0], [1, 5, 3]], [[0, 4, 0], [7, 6, 8]]]
    q = q_after_update(DOUBLE_Q_LEARNING, q=tables)
    if q[0, 0, 1] != 2:  # the first table is updated: its best action is 1, which the second values 6
        assert q[0, 0, 1] == pytest.approx(2 + 0.1 * (1 + 0.5 * 6 - 2))
        assert q[1, 0, 1] == 4
    else:  # the second is updated: its best action is 2, which the first values 3
        assert q[1, 0, 1] == pytest.approx(4 + 0.1 * (1 + 0.5 * 3 - 4))
    stream, firsts = rng(), 0
    for _ in range(2000):
        q = np.array(tables, dtype=float)
        kernels.update(
            q, 0, 1, 1.0, 1, 0, ALL, False, Rule(DOUBLE_Q_LEARNING, False, 0.5, 0.1), 0.0, stream, np.zeros(4)
        )
        firsts += q[0, 0, 1] != 2
    assert firsts / 2000 == pytest.approx(0.5, abs=0.05)


def values_after_episode(rule, states, rewards, terminated, capacity=16, q=None):
    """Values of four states with one action after an episode."""
    q = np.array([[[10.0], [20.0], [30.0], [40.0]]]) if q is None else q
    memory, stats = kernels.make_memory(4, 1, capacity).episode, np.zeros(4)
    masks = np.ones((4, 1), dtype=bool)
    for t, reward in enumerate(rewards):
        last = t == len(rewards) - 1
        a2 = 0 if rule.method == N_STEP_SARSA and not (last and terminated) else -1
        ends = last and terminated, last and not terminated
        kernels.delayed_update(q, t, states[t], 0, reward, states[t + 1], a2, masks, *ends, rule, 0.0, memory, stats)
    return q[0, :, 0]


def test_n_step_targets_equal_a_worked_example():
    """Two steps, gamma .5, alpha 1: V0 = 1 + .5 * 2 + .25 * V2; then, at the end, V1 = 2 + .5 * 4 and V2 = 4."""
    rule = Rule(N_STEP_SARSA, False, 0.5, 1.0, 2)
    assert values_after_episode(rule, [0, 1, 2, 3], [1, 2, 4], True).tolist() == [1 + 1 + 7.5, 4, 4, 40]
    assert values_after_episode(rule, [0, 1, 2, 3], [1, 2, 4], True, capacity=2).tolist() == [
        9.5,
        4,
        4,
        40,
    ]  # a ring is enough
    # truncated: the target bootstraps from the value of the last state
    assert values_after_episode(rule, [0, 1, 2, 3], [1, 2, 4], False).tolist() == [9.5, 2 + 2 + 10, 4 + 20, 40]


def test_monte_carlo_returns_equal_a_worked_example():
    every = Rule(MONTE_CARLO, False, 1.0, 0.0)
    first = every._replace(first_visit=True)
    # 0 -> 1 -> 0 -> end with rewards 1, 2, 4: returns 7, 6, 4
    states, rewards = [0, 1, 0, 3], [1.0, 2.0, 4.0]
    assert values_after_episode(every, states, rewards, True).tolist() == [(4 + 7) / 2, 6, 30, 40]
    assert values_after_episode(first, states, rewards, True).tolist() == [7, 6, 30, 40]
    assert values_after_episode(every, states, rewards, False).tolist() == [(44 + 47) / 2, 46, 30, 40]
    steps = every._replace(alpha=0.5)
    assert values_after_episode(steps, states, rewards, True)[1] == 20 + 0.5 * (6 - 20)
