from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch

import tabular.envs  # noqa: F401
from tabular.planning.dynamic_programming import (
    action_values,
    finite_horizon_values,
    policy_evaluation,
    value_iteration,
)
from tabular.planning.mdp import MDP, with_random_actions
from tabular.td.control import Control, ControlConfig, DoubleQLearning, ExpectedSarsa, QLearning, Sarsa
from tabular.td.dyna import DynaQ
from tabular.td.multistep import MonteCarlo, NStepSarsa
from tabular.td.traces import SarsaLambda

ALGORITHMS = [QLearning, Sarsa, ExpectedSarsa, DoubleQLearning, NStepSarsa, MonteCarlo, SarsaLambda, DynaQ]
TEXTBOOK = ControlConfig(alpha=0.5, gamma=1.0, initial_q=0.0, epsilon=0.1)


def maker(env_id, **options):
    return lambda: gym.make(env_id, **options)


CLIFF, LAKE, MAZE = maker("CliffWalking-v1"), maker("FrozenLake-v1"), maker("tabular/Maze-v0")


def make(cls, make_env, seed=0, on_table=True, **settings) -> Control:
    learner = cls(make_env, cls.Config(**settings), seed)
    if not on_table:
        learner.table = None
    return learner


def greedy_steps(learner, make_env, limit=100):
    env = make_env()
    observation, _ = env.reset(seed=0)
    for step in range(1, limit + 1):
        observation, _, terminated, _, _ = env.step(learner.act(observation))
        if terminated:
            return step
    return limit


def trained(cls, make_env, config, seeds, steps=None, episodes=None):
    learners = [cls(make_env, config, seed) for seed in range(seeds)]
    for learner in learners:
        learner.advance(steps or 500)
        while episodes and len(learner.history.returns) < episodes:
            learner.advance(500)
    return learners


# The two loops are the same


@pytest.mark.parametrize("cls", ALGORITHMS)
@pytest.mark.parametrize(
    "make_env", [maker("CliffWalking-v1", max_episode_steps=30), MAZE, maker("tabular/MaskedMaze-v0")]
)
def test_the_compiled_loop_equals_the_plain_one(cls, make_env):
    """Bit for bit, where the environment is deterministic: on a table it has a separate stream of random numbers."""
    fast, slow = make(cls, make_env), make(cls, make_env, on_table=False)
    fast.advance(5000)
    slow.advance(5000)
    assert fast.table is not None
    assert (fast.q == slow.q).all()
    assert (fast.visits == slow.visits).all()
    assert fast.history.state_dict() == slow.history.state_dict()
    assert fast.history.returns


def test_both_loops_learn_equally_well_where_outcomes_are_random():
    """Mean return of the last 200 episodes on the slippery lake, ten seeds each, within three standard errors."""
    means = []
    for on_table in (True, False):
        learners = [make(QLearning, LAKE, seed, on_table) for seed in range(10)]
        for learner in learners:
            learner.advance(8000)
        means.append([np.mean(learner.history.returns[-200:]) for learner in learners])
    spread = (np.var(means[0], ddof=1) / 10 + np.var(means[1], ddof=1) / 10) ** 0.5
    assert abs(np.mean(means[0]) - np.mean(means[1])) < 3 * spread


@pytest.mark.parametrize("make_env", [maker("FrozenLake-v1", max_episode_steps=7), maker("Taxi-v4")])
@pytest.mark.parametrize("on_table", [True, False])
def test_episodes_are_recorded(make_env, on_table):
    learner = make(Sarsa, make_env, on_table=on_table)
    learner.advance(1500)
    history, limit = learner.history, make_env().spec.max_episode_steps
    assert np.diff([0, *history.ends]).tolist() == history.lengths
    assert max(history.lengths) == limit
    assert learner.steps == 1500
    assert learner.visits.sum() == 1500
    assert [step for step, _ in history.metrics["td_error"]] == [1000]


# Traps


class Endless(gym.Env):
    """One state that pays 1 a step and never terminates."""

    observation_space, action_space = gym.spaces.Discrete(1), gym.spaces.Discrete(1)
    P = {0: {0: [(1.0, 0, 1.0, False)]}}  # noqa: RUF012
    initial_state_distrib = np.ones(1)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return 0, {}

    def step(self, action):
        return 0, 1.0, False, False, {}


@pytest.mark.parametrize("cls", ALGORITHMS)
@pytest.mark.parametrize("on_table", [True, False])
def test_truncation_is_not_termination(cls, on_table):
    """V = 1 / (1 - .9) = 10 although each episode is truncated after one step; as a termination it would be 1."""
    learner = make(
        cls, lambda: gym.wrappers.TimeLimit(Endless(), 1), on_table=on_table, gamma=0.9, alpha=0.5, initial_q=0.0
    )
    learner.advance(2000)
    assert learner.limit == 1
    assert learner.action_values[0, 0] == pytest.approx(10, rel=1e-3)


@pytest.mark.parametrize("on_table", [True, False])
def test_cliff_walking_ends_at_the_goal_although_the_table_continues(on_table):
    """The goal's own row, never acted in, stays at 5: the step that ends there must not bootstrap from it."""
    learner = make(QLearning, CLIFF, on_table=on_table, alpha=1.0, gamma=1.0, initial_q=5.0)
    learner.advance(20_000)
    assert learner.q[0, 35, 2] == -1
    assert learner.q[0, 36].max() == -13
    assert (learner.q[0, 47] == 5).all()


@pytest.mark.parametrize("cls", ALGORITHMS)
@pytest.mark.parametrize("on_table", [True, False])
def test_a_seed_determines_the_run(cls, on_table):
    make_env = maker("FrozenLake-v1")
    runs = [make(cls, make_env, seed, on_table) for seed in (3, 3, 4)]
    for learner in runs:
        learner.advance(3000)
    assert (runs[0].q == runs[1].q).all()
    assert runs[0].history.state_dict() == runs[1].history.state_dict()
    assert runs[0].history.ends != runs[2].history.ends
    assert runs[0].env.action_space.sample() == runs[1].env.action_space.sample()


def test_behaviour_and_environment_have_separate_random_streams():
    learner = make(QLearning, LAKE)
    assert (learner.rngs[0] != learner.rngs[1]).all()
    again = make(QLearning, LAKE, seed=1)
    assert len({*learner.rngs.ravel().tolist(), *again.rngs.ravel().tolist()}) == 16


def test_evaluation_takes_the_first_of_the_best_actions():
    learner = make(QLearning, CLIFF, initial_q=0.0)
    learner.q[0, 0] = [0, 2, 1, 2]
    assert {learner.act(0) for _ in range(20)} == {1}
    assert learner.act(0, np.array([1, 0, 1, 1], dtype=np.int8)) == 3
    double = make(DoubleQLearning, CLIFF, initial_q=0.0)
    double.q[:, 0] = [[0, 2, 0, 0], [0, 0, 3, 0]]
    assert double.act(0) == 2  # the means are 0, 1, 1.5, 0


class NoLegalAction(Endless):
    def reset(self, *, seed=None, options=None):
        return 0, {"action_mask": np.zeros(1, dtype=np.int8)}

    def action_mask(self, state):
        return np.zeros(1, dtype=np.int8)


def test_a_mask_that_allows_nothing_is_an_error():
    with pytest.raises(ValueError, match="the action mask of state 0 allows no action"):
        make(QLearning, NoLegalAction)
    learner = make(QLearning, lambda: gym.wrappers.TransformReward(NoLegalAction(), float))
    with pytest.raises(ValueError, match="allows no action in state 0, but must allow at least one"):
        learner.advance(1)


@pytest.mark.parametrize("on_table", [True, False])
def test_masked_actions_are_never_taken(on_table):
    learner = make(QLearning, maker("tabular/MaskedMaze-v0"), on_table=on_table, epsilon=1.0)
    learner.advance(3000)
    masks = learner.env.unwrapped.masks.astype(bool)
    assert (learner.q[0][~masks] == 1).all()  # the initial values
    assert min(learner.history.returns) >= 0  # a masked action would have cost 1


# Spaces


def test_observation_tuples_and_spaces_that_do_not_start_at_0():
    """Blackjack's tuples become state indices; offsets of spaces are subtracted and added."""
    learner = make(MonteCarlo, maker("Blackjack-v1"), epsilon=0.1, gamma=1.0)
    learner.advance(10_000)
    assert learner.q.shape == (1, 32 * 11 * 2, 2)
    assert learner.act((20, 5, 0)) == 0
    assert np.mean(learner.history.returns[-3000:]) > -0.3  # -0.39 at random

    shifted = gym.wrappers.TransformAction(
        gym.wrappers.TransformObservation(CLIFF(), lambda s: s + 5, gym.spaces.Discrete(48, start=5)),
        lambda a: a - 2,
        gym.spaces.Discrete(4, start=2),
    )
    learner, plain = make(QLearning, lambda: shifted), make(QLearning, CLIFF)
    learner.advance(2000)
    plain.advance(2000)
    assert learner.table is None
    assert (learner.q == plain.q).all()
    assert learner.act(5 + 36) == plain.act(36) + 2


@pytest.mark.parametrize(("env_id", "what"), [("CartPole-v1", "observations"), ("Pendulum-v1", "observations")])
def test_spaces_that_are_not_discrete_are_refused(env_id, what):
    with pytest.raises(ValueError, match=f"QLearning needs discrete observations and actions, but the {what}"):
        make(QLearning, maker(env_id))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda env: gym.wrappers.TransformReward(env, lambda r: 2 * r),
        lambda env: gym.wrappers.TransformObservation(env, lambda s: 47 - s, env.observation_space),
    ],
)
def test_a_wrapped_environment_does_not_use_its_table(wrap):
    assert make(QLearning, lambda: wrap(CLIFF())).table is None
    assert make(QLearning, CLIFF).table is not None


def test_environments_that_their_table_does_not_describe():
    assert make(QLearning, maker("Taxi-v4", fickle_passenger=True)).table is None
    assert make(QLearning, maker("tabular/ShortCorridor-v0")).table is None  # the agent does not see the state
    assert make(QLearning, maker("tabular/ShortCorridor-v0", aliased=False)).table is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": 0}, "alpha is 0, but must be positive"),
        ({"alpha": 1.5}, "alpha is 1.5, but must be between 0 and 1"),
        ({"gamma": -0.1}, "gamma is -0.1, but must be between 0 and 1"),
        ({"gamma": float("nan")}, "gamma"),
        ({"epsilon": 2}, "epsilon is 2, but must be between 0 and 1"),
        ({"behaviour": "greedy"}, "behaviour is 'greedy', but must be one of epsilon_greedy, softmax"),
        ({"temperature": 0}, "temperature is 0, but must be positive"),
        ({"initial_q": float("inf")}, "initial_q is inf, but must be finite"),
        ({"exploration_schedule": "step"}, "is 'step', but must be one of constant, linear, cosine"),
        ({"alpha_schedule": "x"}, "alpha_schedule is 'x', but must be one of constant, linear, cosine"),
        ({"alpha_end": 0}, "alpha_end is 0, but must be positive"),
        ({"alpha_steps": 0}, "alpha_steps is 0, but must be at least 1"),
        ({"log_every": 0}, "log_every is 0, but must be at least 1"),
        (
            {"behaviour": "softmax", "exploration_schedule": "linear", "exploration_end": 0},
            "exploration_end is 0, but must be positive",
        ),
        ({"exploration_end": 5}, "exploration_end is 5, but must be between 0 and 1"),
        ({"exploration_end": float("nan")}, "exploration_end is nan, but must be between 0 and 1"),
        ({"behaviour": "softmax", "exploration_end": float("inf")}, "exploration_end is inf, but must be finite"),
        ({"behaviour": "softmax", "temperature": float("inf")}, "temperature is inf, but must be finite"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ControlConfig(**settings)


def test_settings_of_n_step_sarsa_and_monte_carlo():
    with pytest.raises(ValueError, match="n is 0, but must be at least 1"):
        NStepSarsa.Config(n=0)
    assert MonteCarlo.Config(alpha=0).alpha == 0  # plain averages
    with pytest.raises(ValueError, match="gamma"):
        MonteCarlo.Config(alpha=0, gamma=2)
    for cls in (NStepSarsa, MonteCarlo):
        with pytest.raises(ValueError, match=r"exploration_end is 1\.5, but must be between 0 and 1"):
            cls.Config(exploration_end=1.5)
    assert NStepSarsa.Config(behaviour="softmax", exploration_end=5).exploration_end == 5  # a temperature


@pytest.mark.parametrize("n", [10**14, 10**30])
def test_an_n_that_exceeds_the_memory_is_refused(n):
    with pytest.raises(ValueError, match=rf"n is {n}, which needs [\d,.]+ GiB of memory: use a smaller n"):
        make(NStepSarsa, MAZE, n=n)


@pytest.mark.parametrize("cls", ALGORITHMS)
@pytest.mark.parametrize("reward", [float("nan"), float("inf")])
def test_rewards_that_are_not_finite_are_refused(cls, reward):
    def broken():
        env = gym.make("FrozenLake-v1")
        env.unwrapped.P[14][2][0] = (*env.unwrapped.P[14][2][0][:2], reward, True)  # pyright: ignore
        return env

    message = f"FrozenLake-v1 returned the reward {reward}, but rewards must be finite"
    with pytest.raises(ValueError, match=message):
        make(cls, broken)
    with pytest.raises(ValueError, match=message):
        make(cls, lambda: gym.wrappers.TransformReward(LAKE(), lambda _: reward)).advance(10)


# Saving


@pytest.mark.parametrize("cls", ALGORITHMS)
@pytest.mark.parametrize("chunks", [(4321, 5679), (1, 9999), (100, 900, 9000)])
def test_chunks_and_resumes_on_a_table_change_nothing(cls, chunks, tmp_path):
    settings = {"epsilon": 0.5, "exploration_schedule": "linear", "exploration_steps": 8000}
    whole = make(cls, LAKE, **settings)
    whole.advance(10_000)
    parts = make(cls, LAKE, **settings)
    for chunk in chunks:
        parts.advance(chunk)
        torch.save(parts.state_dict(), tmp_path / "state.pt")
        parts = make(cls, LAKE, seed=99, **settings)  # the seed, too, comes from the state
        parts.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert (whole.q == parts.q).all()
    assert (whole.visits == parts.visits).all()
    assert whole.history.state_dict() == parts.history.state_dict()


def wrapped_lake():
    return gym.wrappers.TransformReward(LAKE(), float)


def wrapped_masked_maze():
    return gym.wrappers.TransformReward(gym.make("tabular/MaskedMaze-v0", slip=0.3), float)


@pytest.mark.parametrize("cls", ALGORITHMS)
@pytest.mark.parametrize("make_env", [maker("Blackjack-v1"), wrapped_lake, wrapped_masked_maze])
@pytest.mark.parametrize("chunks", [(777, 723), (1, 100, 1399)])
def test_chunks_and_resumes_without_a_table_change_nothing(cls, make_env, chunks, tmp_path):
    """The current episode is replayed; the masks seen so far are restored."""
    whole = make(cls, make_env)
    whole.advance(1500)
    parts = make(cls, make_env)
    for chunk in chunks:
        parts.advance(chunk)
        torch.save(parts.state_dict(), tmp_path / "state.pt")
        parts = make(cls, make_env, seed=99)
        parts.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert (whole.q == parts.q).all()
    assert (whole.visits == parts.visits).all()
    assert (whole.masks == parts.masks).all()
    assert whole.history.state_dict() == parts.history.state_dict()


class Unrepeatable(gym.Env):
    """Starts in state 0, 1, 2, ... of its process, whatever the seed is."""

    observation_space, action_space = gym.spaces.Discrete(1000), gym.spaces.Discrete(2)
    starts = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        Unrepeatable.starts += 1
        self.t = 0
        return Unrepeatable.starts, {}

    def step(self, action):
        self.t += 1
        return Unrepeatable.starts, 1.0, self.t == 300, False, {}


@pytest.mark.parametrize("cls", ALGORITHMS)
def test_where_an_episode_cannot_be_replayed_a_resume_starts_a_new_one_with_a_warning(cls):
    learner = make(cls, Unrepeatable)
    learner.advance(700)
    again = make(cls, Unrepeatable)
    with pytest.warns(UserWarning, match="did not repeat its episode, so a new one starts"):
        again.load_state_dict(learner.state_dict())
    assert (again.q == learner.q).all()
    again.advance(500)
    assert again.history.ends == [300, 600, 1000]


def test_a_saved_state_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"\[1, 48, 4\], but this environment has \[1, 16, 4\]"):
        make(QLearning, LAKE).load_state_dict(make(QLearning, CLIFF).state_dict())


# Schedules and the record of changes


def test_exploration_follows_its_schedule():
    learner = make(
        QLearning, LAKE, epsilon=1.0, exploration_schedule="linear", exploration_end=0.0, exploration_steps=10_000
    )
    learner.advance(12_000)
    logged = dict(learner.history.metrics["epsilon"])
    assert logged[5000] == pytest.approx(1 - 0.49, abs=1e-9)  # of the block that step 5000 belongs to
    assert logged[12_000] == 0
    warm = make(QLearning, LAKE, behaviour="softmax", temperature=2.0)
    warm.advance(1000)
    assert warm.history.metrics["temperature"] == [(1000, 2.0)]


@pytest.mark.parametrize("on_table", [True, False])
def test_the_step_size_follows_its_schedule(on_table):
    settings = {"alpha": 0.5, "alpha_schedule": "linear", "alpha_end": 0.1, "alpha_steps": 4000}
    learner, pieces = (make(QLearning, LAKE, on_table=on_table, **settings) for _ in range(2))
    learner.advance(6000)
    logged = [alpha for _, alpha in learner.history.metrics["alpha"]]
    assert logged == pytest.approx([0.5, 0.4, 0.3, 0.2, 0.1, 0.1])  # of the thousand steps before
    for steps in (300, 1200, 4500):
        pieces.advance(steps)
    assert (pieces.q == learner.q).all()
    constant = make(QLearning, LAKE, on_table=on_table, alpha=0.5)
    constant.advance(6000)
    assert "alpha" not in constant.history.metrics
    assert (constant.q != learner.q).any()
    with pytest.raises(ValueError, match="alpha_schedule is 'linear', but must be constant with alpha 0"):
        MonteCarlo.Config(alpha=0, alpha_schedule="linear")


def test_q_changes_are_summarised():
    learner = make(QLearning, CLIFF, alpha=0.5, gamma=1.0, initial_q=0.0, log_every=250)
    learner.advance(30_000)
    steps, changes = zip(*learner.history.metrics["q_change"], strict=True)
    assert steps == tuple(range(250, 30_001, 250))
    assert changes[0] > 40  # the first falls: half of -100
    errors = [error for _, error in learner.history.metrics["td_error"]]
    assert np.mean(errors[-10:]) < 0.1 * np.mean(errors[:10])


# Identities


@pytest.mark.parametrize("cls", [QLearning, Sarsa, ExpectedSarsa, SarsaLambda, DynaQ])
def test_scaling_rewards_scales_values(cls):
    """Powers of two scale floats exactly, so that the same actions are taken."""
    plain = make(cls, maker("tabular/Maze-v0", goal_reward=1.0), initial_q=1.0)
    scaled = make(cls, maker("tabular/Maze-v0", goal_reward=8.0), initial_q=8.0)
    for learner in (plain, scaled):
        learner.advance(5000)
    assert (8 * plain.q == scaled.q).all()


@pytest.mark.parametrize("cls", [QLearning, Sarsa, ExpectedSarsa, NStepSarsa, MonteCarlo, SarsaLambda, DynaQ])
def test_gamma_0_learns_rewards(cls):
    learner = make(cls, CLIFF, gamma=0.0, alpha=1.0, initial_q=0.0, epsilon=1.0)
    learner.advance(30_000)
    rewards = MDP.from_gym(CLIFF(), 0).rewards
    tried = learner.q[0] != 0
    assert tried.sum() > 100
    assert (learner.q[0][tried] == rewards[tried]).all()


def test_one_step_of_n_step_sarsa_is_sarsa():
    one, sarsa = make(NStepSarsa, CLIFF, n=1), make(Sarsa, CLIFF)
    for learner in (one, sarsa):
        learner.advance(5000)
    assert (one.q == sarsa.q).all()


def test_episodes_longer_than_the_memory():
    """Monte Carlo's memory grows with the episode: the random walk of the first one is thousands of steps long."""
    learner = make(MonteCarlo, maker("tabular/Maze-v0", size=21), epsilon=1.0)
    learner.advance(60_000)
    assert max(learner.history.lengths) > 1024
    assert len(learner.memory.episode.states) >= max(learner.history.lengths)


# Reference statistics: 500 episodes of CliffWalking, eps .1, mean return of episodes 401 to 500


@pytest.mark.parametrize(
    ("cls", "alpha", "reference"),
    [
        (QLearning, 0.1, -49.0),
        (QLearning, 0.5, -49.8),
        (Sarsa, 0.1, -22.8),
        (Sarsa, 0.5, -27.1),
        (ExpectedSarsa, 0.1, -22.0),
        (ExpectedSarsa, 0.5, -20.8),
    ],
)
def test_cliff_walking(cls, alpha, reference):
    learners = trained(cls, CLIFF, replace(TEXTBOOK, alpha=alpha), seeds=100, episodes=500)
    returns = np.array([np.mean(learner.history.returns[400:500]) for learner in learners])
    assert abs(returns.mean() - reference) < 3 * returns.std(ddof=1) / 10 + 0.1
    paths = np.array([greedy_steps(learner, CLIFF) for learner in learners])
    if cls is QLearning:
        assert (paths == 13).all()
    elif cls is ExpectedSarsa and alpha == 0.5:
        assert (paths == 15).all()
    elif cls is Sarsa and alpha == 0.5:
        assert (paths == 17).mean() == pytest.approx(0.75, abs=0.15)
        assert (paths == 100).mean() == pytest.approx(0.18, abs=0.12)  # never arrives


def test_on_policy_learning_tends_to_the_best_exploring_policy():
    """The best exploring policy returns -20.7077, exploring around Q* -50.8; the estimate of expected SARSA agrees."""
    best = with_random_actions(MDP.from_gym(CLIFF(), 1), 0.1)
    solution = value_iteration(best)
    assert best.start @ solution.values == pytest.approx(-20.707677398667, abs=1e-9)
    learners = trained(ExpectedSarsa, CLIFF, replace(TEXTBOOK, alpha=0.1), seeds=3, steps=1_000_000)
    greedy = action_values(MDP.from_gym(CLIFF(), 1), solution.values)[36].max()
    assert np.mean([learner.q[0, 36].max() for learner in learners]) == pytest.approx(greedy, abs=2)
    for learner in learners:
        assert greedy_steps(learner, CLIFF) == 15


@pytest.mark.parametrize(
    ("config", "steps", "low", "high"),
    [
        (ControlConfig(alpha=0.1, gamma=0.95, initial_q=0.0), 20_000, 0.27, 0.59),  # 42%
        (ControlConfig(alpha=0.5, gamma=0.95, initial_q=1.0), 20_000, 1.0, 1.0),
    ],
)
def test_the_dyna_maze_with_settings_of_the_literature(config, steps, low, high):
    learners = trained(QLearning, MAZE, config, seeds=100, steps=steps)
    assert low <= np.mean([greedy_steps(learner, MAZE) == 14 for learner in learners]) <= high


@pytest.mark.parametrize("cls", [QLearning, Sarsa, ExpectedSarsa, DoubleQLearning])
def test_the_defaults_solve_the_maze(cls):
    """Optimal in nine of ten seeds within 50k steps."""
    learners = trained(cls, MAZE, ControlConfig(), seeds=10, steps=50_000)
    assert sum(greedy_steps(learner, MAZE) == 14 for learner in learners) >= 9


@pytest.mark.parametrize(
    ("alpha", "gamma", "low", "high"),
    [(0.1, 0.99, 0.67, 0.744190287829 + 1e-9), (0.8, 0.95, 0.3, 0.6)],  # .726; a popular tutorial's setting: .44
)
def test_frozen_lake(alpha, gamma, low, high):
    """Exact success within 100 steps of the greedy policy after 100k steps, eps 1 to .05."""
    config = ControlConfig(
        alpha, gamma, 0.0, epsilon=1.0, exploration_schedule="linear", exploration_end=0.05, exploration_steps=100_000
    )
    mdp = MDP.from_gym(LAKE(), 1)
    success = [
        mdp.start @ finite_horizon_values(mdp, 100, learner.action_values.argmax(axis=1))
        for learner in trained(QLearning, LAKE, config, seeds=30, steps=100_000)
    ]
    assert low <= np.mean(success) <= high


def test_softmax_learns_the_cliff():
    config = ControlConfig(gamma=1.0, initial_q=0.0, behaviour="softmax", temperature=1.0)
    learners = trained(QLearning, CLIFF, config, seeds=5, steps=50_000)
    assert all(greedy_steps(learner, CLIFF) == 13 for learner in learners)
    assert np.mean([learner.history.returns[-100:] for learner in learners]) > -40  # it avoids the edge


def test_monte_carlo_and_n_steps_learn_the_lake():
    mdp = MDP.from_gym(LAKE(), 1)
    for cls in (MonteCarlo, NStepSarsa):
        config = cls.Config(
            alpha=0.01,
            initial_q=0.0,
            epsilon=1.0,
            exploration_schedule="linear",
            exploration_end=0.05,
            exploration_steps=200_000,
        )
        learners = trained(cls, LAKE, config, seeds=10, steps=200_000)
        success = [mdp.start @ finite_horizon_values(mdp, 100, x.action_values.argmax(axis=1)) for x in learners]
        assert np.mean(success) > 0.6


def test_plain_averages_approach_the_policys_values():
    """First-visit Monte Carlo with epsilon 1: the values of the random policy, by solving and by sampling."""
    learner = make(
        MonteCarlo, maker("FrozenLake-v1", max_episode_steps=10_000), alpha=0, epsilon=1.0, gamma=1.0, first_visit=True
    )
    learner.advance(300_000)
    mdp = MDP.from_gym(LAKE(), 1)
    exact = policy_evaluation(mdp, np.full((16, 4), 0.25))
    assert learner.action_values[0].mean() == pytest.approx(exact[0], abs=0.003)
    assert learner.action_values[10].mean() == pytest.approx(exact[10], abs=0.03)
