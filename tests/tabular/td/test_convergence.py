"""Q-learning's action values converge to the exact ones, given schedules that satisfy the theorem's conditions."""

import gymnasium as gym
import numpy as np
import pytest

import tabular.envs  # noqa: F401
from tabular.planning.dynamic_programming import action_values, policy_iteration
from tabular.planning.mdp import MDP, reachable
from tabular.td.control import ControlConfig, QLearning

STEPS = 100_000
EXPLORING = {"epsilon": 1.0, "exploration_schedule": "linear", "exploration_steps": STEPS}


def train(config, seeds, **options):
    """The learners, and each one's largest error of an action value that an episode can use."""

    def make_env():
        return gym.make("tabular/Maze-v0", **options)

    mdp = MDP.from_gym(make_env(), config.gamma)
    exact = action_values(mdp, policy_iteration(mdp).values)[reachable(mdp)]
    learners = [QLearning(make_env, config, seed) for seed in range(seeds)]
    for learner in learners:
        learner.advance(STEPS)
    return learners, [np.abs(learner.q[0][reachable(mdp)] - exact).max() for learner in learners]


def last_changes(learners):
    """The largest change of an action value in the last 3000 steps of each learner."""
    return [max(change for _, change in learner.history.metrics["q_change"][-3:]) for learner in learners]


def test_q_learning_converges_to_the_exact_action_values_of_the_maze():
    learners, errors = train(ControlConfig(alpha=0.5, **EXPLORING), seeds=100)
    assert max(last_changes(learners)) < 1e-12
    assert max(errors) < 1e-12


def test_with_little_exploration_the_action_values_still_change_at_the_end():
    """Actions that are tried every few thousand steps still carry their initial values, and each try changes them."""
    learners, errors = train(ControlConfig(), seeds=10)
    assert min(last_changes(learners)) > 1e-4
    assert min(errors) > 1e-2


@pytest.mark.parametrize(
    ("alpha", "change", "error"),
    [
        ({"alpha": 0.5}, (1e-2, 4e-2), (2e-2, 6e-2)),
        ({"alpha": 0.5, "alpha_schedule": "cosine", "alpha_end": 1e-4, "alpha_steps": STEPS}, (0, 1e-4), (0, 1.2e-2)),
    ],
)
def test_where_outcomes_are_random_the_step_size_must_decay(alpha, change, error):
    learners, errors = train(ControlConfig(**alpha, **EXPLORING), seeds=10, slip=0.2)
    assert change[0] <= min(last_changes(learners)) <= max(last_changes(learners)) <= change[1]
    assert error[0] <= min(errors) <= max(errors) <= error[1]
