import gymnasium as gym
import numpy as np
import pytest

import tabular.envs  # noqa: F401
from tabular.td import kernels
from tabular.td.control import QLearning
from tabular.td.dyna import DynaQ
from tabular.td.rng import make_rng

TEXTBOOK = {"alpha": 0.1, "gamma": 0.95, "epsilon": 0.1, "initial_q": 0.0}
"""Of example 8.1 in Sutton & Barto (2018)."""


def maze():
    return gym.make("tabular/Maze-v0")


def mean_episode_lengths(planning_steps, episodes=50, seeds=30):
    """Mean steps of each of the first episodes over the seeds."""
    lengths = []
    for seed in range(seeds):
        learner = DynaQ(maze, DynaQ.Config(**TEXTBOOK, planning_steps=planning_steps), seed)
        while len(learner.history.lengths) < episodes:
            learner.advance(1000)
        lengths.append(learner.history.lengths[:episodes])
    return np.mean(lengths, axis=0)


def test_planning_shortens_learning_as_in_figure_8_2():
    """Episodes until the mean length stays near that of the epsilon-greedy optimum (about 16 steps)."""

    def episodes_until_short(planning_steps):
        lengths = mean_episode_lengths(planning_steps)
        return int(np.argmax(lengths < 20)) + 1

    counts = {n: episodes_until_short(n) for n in (0, 5, 50)}
    assert 15 <= counts[0] <= 35  # "about 25 episodes"
    assert 4 <= counts[5] <= 8  # "about five"
    assert 2 <= counts[50] <= 4  # "only three"


def test_without_planning_it_is_q_learning():
    dyna = DynaQ(maze, DynaQ.Config(planning_steps=0), 0)
    q_learning = QLearning(maze, QLearning.Config(), 0)
    for learner in (dyna, q_learning):
        learner.advance(5000)
    assert (dyna.q == q_learning.q).all()


def test_the_model_equals_the_table_of_a_deterministic_world():
    learner = DynaQ(maze, DynaQ.Config(epsilon=1.0), 0)
    learner.advance(20_000)
    model, table = learner.memory.model, learner.env.unwrapped.P
    taken = [(s, a) for s in range(47) for a in range(4) if model.next_states[s, a] >= 0]
    assert len(taken) == 46 * 4  # all but the goal's
    for s, a in taken:
        ((_, next_state, reward, terminated),) = table[s][a]
        assert (model.next_states[s, a], model.rewards[s, a], model.terminated[s, a]) == (
            next_state,
            reward,
            terminated,
        )
    assert sorted(model.states[: model.n_states[0]]) == [s for s in range(47) if s != learner.env.unwrapped.goal]


def test_planning_updates_random_pairs_among_those_taken_before():
    """Two states, one action taken in the first and two in the second: 1/2, 1/4, 1/4 of the updates."""
    model = kernels.make_memory(3, 2, planning_steps=1).model
    for s, a, reward in ((2, 1, 5.0), (0, 0, 1.0), (0, 1, 2.0), (2, 1, 7.0)):
        kernels.update_model(s, a, reward, 1, True, model)
    assert model.n_states[0] == 2
    rule = kernels.Rule(kernels.Q_LEARNING, False, 0.9, 1.0)
    rng, counts = make_rng(np.random.SeedSequence(0)), np.zeros((3, 2))
    for _ in range(4000):
        q = np.zeros((1, 3, 2))
        kernels.plan(q, np.ones((3, 2), dtype=bool), rule, 0.0, model, rng, np.zeros(4))
        counts += q[0] != 0
    assert q.max() in (7, 1, 2)  # the last outcome of an action counts
    assert counts / 4000 == pytest.approx(np.array([[0.25, 0.25], [0, 0], [0, 0.5]]), abs=0.03)


def test_planning_steps_out_of_range_are_refused():
    with pytest.raises(ValueError, match="planning_steps is -1, but must be at least 0"):
        DynaQ.Config(planning_steps=-1)
