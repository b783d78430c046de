import math

import gymnasium as gym
import numpy as np
import pytest

import tabular.envs  # noqa: F401
from tabular.experiments import evaluation as judging
from tabular.experiments.evaluation import (
    NEVER,
    area_under_curve,
    evaluate,
    interval,
    iqm,
    learning_curve,
    steps_to_threshold,
)
from tabular.history import History
from tabular.planning.mdp import MDP
from tabular.td.control import ControlConfig, QLearning


def history(returns, lengths):
    made = History()
    for end, total, length in zip(np.cumsum(lengths), returns, lengths, strict=True):
        made.add_episode(int(end), total, length)
    return made


class Agent:
    """Acts by a function of the observation."""

    def __init__(self, act):
        self.policy = act

    def act(self, observation, mask=None):
        return self.policy(observation)


def maker(env_id, **options):
    return lambda: gym.make(env_id, **options)


# Statistics


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, 2, 3, 4], 2.5),
        ([4, 100, 2, 3, -50, 1, 5, 6], 3.5),  # the middle four of eight: 2, 3, 4, 5
        ([7], 7),
        ([0, 10], 5),
        ([0, 3, 9], (0 * 1 + 3 * 4 + 9 * 1) / 6),  # a third each: a twelfth of the outer ones lies inside
        ([1, 2, 3, 4, 5], (0.05 * 0 + 0.15 * 2 + 0.2 * 3 + 0.15 * 4) / 0.5),
    ],
)
def test_interquartile_mean(values, expected):
    assert iqm(values) == pytest.approx(expected)


def test_never_is_a_value():
    assert judging.median([100, NEVER, 200]) == 200
    assert judging.median([100, NEVER, NEVER]) == NEVER
    assert judging.median([100, NEVER]) == NEVER
    assert judging.median([NEVER, NEVER]) == NEVER  # not inf - inf
    assert iqm([1, 2, 3, NEVER]) == 2.5
    figure = interval([100, 200, NEVER, NEVER, 150], judging.median)
    assert figure.value == 200
    assert figure.high == NEVER
    assert str(figure).endswith("never]")
    assert str(interval([NEVER] * 5, judging.median)) == "never"


def test_bootstrap_intervals_cover():
    """Of 200 samples of 20 from a normal distribution, the 90% interval holds the mean in about 90% (a little fewer:
    percentile intervals of small samples are too narrow)."""
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        figure = interval(generator.normal(3, 2, 20), confidence=0.9, resamples=300)
        held += figure.low <= 3 <= figure.high
    assert 0.8 <= held / 200 <= 0.95


def test_intervals():
    assert interval([2, 2, 2]) == judging.Interval(2.0, 2.0, 2.0)
    assert interval([1, 2, 3], seed=1) == interval([1, 2, 3], seed=1)
    narrow, wide = (interval(range(20), confidence=c) for c in (0.5, 0.99))
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high
    for bad in ([], [1, math.nan]):
        with pytest.raises(ValueError, match="an interval needs numbers"):
            interval(bad)
    with pytest.raises(ValueError, match=r"confidence must be in \(0, 1\), got 95"):
        interval([1, 2], confidence=95)


# Curves


def test_steps_to_a_threshold():
    made = history([0, 0, 10, 10, 10, 0], [5, 5, 10, 10, 10, 10])
    assert steps_to_threshold(made, 10, window=1) == 20
    assert steps_to_threshold(made, 10, window=3) == 40
    assert steps_to_threshold(made, 5, window=4) == 30
    assert steps_to_threshold(made, 11, window=1) == NEVER
    assert steps_to_threshold(made, 0, window=100) == NEVER  # too few episodes to say


def test_learning_curves():
    made = history([1, 2, 6], [10, 10, 20])
    curve = learning_curve(made, np.array([5.0, 10, 20, 39, 40, 100]), window=2)
    assert curve == pytest.approx([math.nan, 1, 1.5, 1.5, 4, 4], nan_ok=True)
    curve = learning_curve(made, np.array([5.0, 10, 40]), 2, "lengths")
    assert curve == pytest.approx([math.nan, 10, 15], nan_ok=True)
    assert judging.final_length(made, window=2) == 15
    assert math.isnan(judging.final_length(History()))


def test_the_area_is_over_steps_and_not_over_episodes():
    """90 steps at return 0 and ten episodes of one step at return 1: a tenth, not the ten elevenths of a mean."""
    made = history([0] + [1] * 10, [90] + [1] * 10)
    assert area_under_curve(made, 100) == pytest.approx(0.1)
    assert area_under_curve(made, 200) == pytest.approx(0.55)  # the last one holds on
    assert area_under_curve(made, 45) == 0
    assert math.isnan(area_under_curve(History(), 10))
    assert judging.final_return(made, window=2) == 1
    assert math.isnan(judging.final_return(History()))


# Evaluation


def test_evaluation_plays_greedily_and_leaves_training_alone():
    learner = QLearning(maker("CliffWalking-v1"), ControlConfig(), 0)
    learner.advance(20_000)
    before = learner.state_dict()
    result = evaluate(learner, maker("CliffWalking-v1"), 3, seed=0)
    assert result.returns.tolist() == [-13] * 3
    assert result.lengths.tolist() == [13] * 3
    assert result.success_rate == 1
    assert len(result.states) == 13
    assert learner.state_dict() == before


def test_walking_in_circles_is_given_up():
    result = evaluate(Agent(lambda s: 0), maker("CliffWalking-v1"), 1, seed=0)
    assert result.lengths.tolist() == [judging.PATIENCE]
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


def test_the_same_seed_gives_the_same_evaluation():
    def once(seed):
        return evaluate(Agent(lambda s: 2), maker("FrozenLake-v1"), 20, seed).lengths.tolist()

    assert once(1) == once(1)
    assert once(1) != once(2)


# What an agent has seen, and what it stands


def test_coverage_counts_states_in_which_one_can_act():
    mdp = MDP.from_gym(gym.make("CliffWalking-v1"), 1)
    visits = np.zeros(48)
    visits[[36, 24]] = 5
    assert judging.state_coverage(visits, mdp) == pytest.approx(2 / 37)  # not the cliff, not the goal
    visits[:37] = 1
    assert judging.state_coverage(visits, mdp) == 1


def test_noise_hurts_on_the_cliffs_edge():
    learner = QLearning(maker("CliffWalking-v1"), ControlConfig(), 0)
    learner.advance(20_000)
    results = judging.robustness(learner, maker("CliffWalking-v1"), [0.1, 0.3], 60, seed=0)
    means = [results[p].mean_return for p in (0.0, 0.1, 0.3)]
    assert means[0] == -13
    assert means[0] > means[1] > means[2]
    # Exactly: with probability .1 any of four actions, on the edge (ties of Q* aside) -50.8
    spread = results[0.1].returns.std() / 60**0.5
    assert abs(means[1] - -50.8) < 4 * spread + 5


def test_noise_is_seeded_and_obeys_masks():
    for env_id in ("FrozenLake-v1", "tabular/MaskedMaze-v0"):
        noisy = lambda env_id=env_id: judging.ActionNoise(gym.make(env_id, max_episode_steps=50), 1.0)  # noqa: E731
        runs = [evaluate(Agent(lambda s: 0), noisy, 10, seed=3) for _ in range(2)]
        assert (runs[0].returns == runs[1].returns).all()
        assert (runs[0].lengths == runs[1].lengths).all()
        assert runs[0].returns.min() >= 0  # a masked action would cost 1
    with pytest.raises(ValueError, match=r"probability must be in \[0, 1\], got 2"):
        judging.ActionNoise(gym.make("FrozenLake-v1"), 2)


def test_observation_noise():
    env = judging.ObservationNoise(gym.make("CartPole-v1"), 0.5)
    plain = gym.make("CartPole-v1")
    differences = [env.reset(seed=s)[0] - plain.reset(seed=s)[0] for s in range(300)]
    assert np.std(differences) == pytest.approx(0.5, rel=0.1)
    assert env.reset(seed=1)[0].dtype == np.float32
    with pytest.raises(ValueError, match=r"not to Discrete\(48\)"):
        judging.ObservationNoise(gym.make("CliffWalking-v1"), 1)


def test_changed_dynamics():
    """Trained on firm ice, judged on slippery ice."""
    learner = QLearning(maker("FrozenLake-v1", is_slippery=False), ControlConfig(), 0)
    learner.advance(20_000)
    assert evaluate(learner, maker("FrozenLake-v1", is_slippery=False), 5, seed=0).success_rate == 1
    assert evaluate(learner, maker("FrozenLake-v1"), 100, seed=0).success_rate < 0.5


def test_generalisation_to_other_mazes():
    """A rule that knows the way in one maze only, against mazes of other seeds."""
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

    result = judging.generalisation(Agent(act), trained, others, 20, seed=0)
    assert result.trained.success_rate == 1
    assert result.held_out.success_rate < 1
    assert result.gap == pytest.approx(1 - result.held_out.mean_return)
