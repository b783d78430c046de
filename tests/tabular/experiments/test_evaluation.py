import math

import gymnasium as gym
import numpy as np
import pytest

import tabular.envs  # noqa: F401
from tabular.experiments import evaluation
from tabular.experiments.evaluation import evaluate
from tabular.planning.mdp import MDP
from tabular.td.control import ControlConfig, QLearning


class Agent:
    """Acts by a function of the observation."""

    def __init__(self, act):
        self.policy = act

    def act(self, observation, mask=None):
        return self.policy(observation)


def maker(env_id, **options):
    return lambda: gym.make(env_id, **options)


def test_evaluation_is_greedy_and_does_not_change_the_learner():
    learner = QLearning(maker("CliffWalking-v1"), ControlConfig(), 0)
    learner.advance(20_000)
    before = learner.state_dict()
    result = evaluate(learner, maker("CliffWalking-v1"), 3, seed=0)
    assert result.returns.tolist() == [-13] * 3
    assert result.lengths.tolist() == [13] * 3
    assert result.success_rate == 1
    assert len(result.states) == 13
    assert learner.state_dict() == before


def test_endless_episodes_are_cut():
    result = evaluate(Agent(lambda s: 0), maker("CliffWalking-v1"), 1, seed=0)
    assert result.lengths.tolist() == [evaluation.MAX_EVALUATION_STEPS]
    assert result.success_rate == 0
    with pytest.raises(ValueError, match="episodes must be at least 1, got 0"):
        evaluate(Agent(lambda s: 0), maker("CliffWalking-v1"), 0, seed=0)


@pytest.mark.parametrize(
    ("env_id", "options", "act", "rate"),
    [
        ("FrozenLake-v1", {"is_slippery": False}, lambda s: {0: 2, 1: 2, 2: 1, 6: 1, 10: 1, 14: 2}[s], 1),
        ("FrozenLake-v1", {"is_slippery": False}, lambda s: {0: 2, 1: 1}[s], 0),  # a hole ends it, too
        ("FrozenLake-v1", {"is_slippery": False}, lambda s: 0, 0),  # cut
        ("tabular/LineWorld-v0", {}, lambda s: 1, 1),
        ("tabular/MazePool-v0", {"max_episode_steps": 5}, lambda s: 0, 0),
    ],
)
def test_success(env_id, options, act, rate):
    assert evaluate(Agent(act), maker(env_id, **options), 2, seed=0).success_rate == rate


def test_a_fallen_pole_is_no_success():
    """CartPole pays 1 for the last step as for any other, and terminates because the pole fell."""
    result = evaluate(Agent(lambda s: 0), maker("CartPole-v1"), 2, seed=0)
    assert result.successes is None
    assert math.isnan(result.success_rate)
    assert result.lengths.max() < 20


def test_discounted_returns():
    """Three steps to the goal of the line, and the goal's own: gamma^3 * 10."""
    result = evaluate(Agent(lambda s: 1), maker("tabular/LineWorld-v0"), 2, seed=0, gamma=0.9)
    assert result.returns.tolist() == [10, 10]
    assert result.discounted_returns == pytest.approx([7.29, 7.29])


def test_the_same_seed_gives_the_same_evaluation():
    def once(seed):
        return evaluate(Agent(lambda s: 2), maker("FrozenLake-v1"), 20, seed).lengths.tolist()

    assert once(1) == once(1)
    assert once(1) != once(2)


def test_coverage_counts_states_that_can_be_acted_in():
    mdp = MDP.from_gym(gym.make("CliffWalking-v1"), 1)
    visits = np.zeros(48)
    visits[[36, 24]] = 5
    assert evaluation.state_coverage(visits, mdp) == pytest.approx(2 / 37)  # not the cliff, not the goal
    visits[:37] = 1
    assert evaluation.state_coverage(visits, mdp) == 1


def test_noise_hurts_on_the_cliffs_edge():
    learner = QLearning(maker("CliffWalking-v1"), ControlConfig(), 0)
    learner.advance(20_000)
    results = evaluation.robustness(learner, maker("CliffWalking-v1"), [0.1, 0.3], 60, seed=0)
    means = [results[p].mean_return for p in (0.0, 0.1, 0.3)]
    assert means[0] == -13
    assert means[0] > means[1] > means[2]
    # Exactly: with probability .1 any of four actions, on the edge (ties of Q* aside) -50.8
    spread = results[0.1].returns.std() / 60**0.5
    assert abs(means[1] - -50.8) < 4 * spread + 5


def test_noise_is_seeded_and_obeys_masks():
    for env_id in ("FrozenLake-v1", "tabular/MaskedMaze-v0"):
        noisy = lambda env_id=env_id: evaluation.ActionNoise(gym.make(env_id, max_episode_steps=50), 1.0)  # noqa: E731
        runs = [evaluate(Agent(lambda s: 0), noisy, 10, seed=3) for _ in range(2)]
        assert (runs[0].returns == runs[1].returns).all()
        assert (runs[0].lengths == runs[1].lengths).all()
        assert runs[0].returns.min() >= 0  # a masked action would cost 1
    with pytest.raises(ValueError, match=r"probability must be in \[0, 1\], got 2"):
        evaluation.ActionNoise(gym.make("FrozenLake-v1"), 2)


def test_observation_noise():
    env = evaluation.ObservationNoise(gym.make("CartPole-v1"), 0.5)
    plain = gym.make("CartPole-v1")
    differences = [env.reset(seed=s)[0] - plain.reset(seed=s)[0] for s in range(300)]
    assert np.std(differences) == pytest.approx(0.5, rel=0.1)
    assert env.reset(seed=1)[0].dtype == np.float32
    with pytest.raises(ValueError, match=r"not to Discrete\(48\)"):
        evaluation.ObservationNoise(gym.make("CliffWalking-v1"), 1)


def test_changed_dynamics():
    """Trained on ice that does not slip, evaluated on slippery ice."""
    learner = QLearning(maker("FrozenLake-v1", is_slippery=False), ControlConfig(), 0)
    learner.advance(20_000)
    assert evaluate(learner, maker("FrozenLake-v1", is_slippery=False), 5, seed=0).success_rate == 1
    assert evaluate(learner, maker("FrozenLake-v1"), 100, seed=0).success_rate < 0.5


def test_generalisation_to_other_mazes():
    """A policy that is optimal in one maze, in mazes of other seeds."""
    trained = maker("tabular/MazePool-v0", mazes=1, size=5, max_episode_steps=30)
    others = maker("tabular/MazePool-v0", mazes=8, maze_seed=1, size=5, max_episode_steps=30)
    layouts = {gym.make("tabular/Maze-v0", size=5, maze_seed=seed).unwrapped.grid.cells for seed in range(9)}
    assert len(layouts) > 1
    maze = gym.make("tabular/Maze-v0", size=5).unwrapped
    from tabular.planning.dynamic_programming import value_iteration

    policy = value_iteration(MDP.from_gym(maze, 0.9)).policy

    def act(image):
        place = tuple(int(i) for i in np.argwhere(image[..., 2])[0])
        return int(policy[maze.free[place]]) if place in maze.free else 0

    result = evaluation.generalisation(Agent(act), trained, others, 20, seed=0)
    assert result.trained.success_rate == 1
    assert result.held_out.success_rate < 1
    assert result.gap == pytest.approx(1 - result.held_out.mean_return)
