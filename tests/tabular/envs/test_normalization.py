"""Running statistics equal those of the whole data; rewards are scaled but not shifted."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from tabular.envs.normalization import NormalizedEnvs, RunningMoments, make_envs
from tabular.envs.vector import VectorEnv


class Ramp(gym.Env):
    """Observations 10, 12, 14, ...; rewards of 3; a time limit of 4 steps."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.array([10.0]), {}

    def step(self, action):
        self.t += 1
        return np.array([10.0 + 2 * self.t]), 3.0, False, self.t == 4, {}


def test_moments_updated_by_batches_equal_those_of_the_whole():
    rows = np.random.default_rng(0).normal(5, 3, (60, 2))
    moments = RunningMoments((2,))
    for batch in np.split(rows, [1, 2, 17]):
        moments.update(batch)
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.var, rows.var(axis=0), rtol=1e-12)
    again = RunningMoments((2,))
    again.load_state_dict(moments.state_dict())
    assert np.array_equal(again.var, moments.var)
    assert again.count == 60


def test_final_observations_are_normalised_and_rewards_are_not_shifted():
    envs = NormalizedEnvs(VectorEnv(Ramp, 1, seed=0), gamma=0.5)
    observed, returns, running = [10.0], [], 0.0
    for t in range(1, 10):
        step = envs.step(np.array([0]))
        truncated = t % 4 == 0
        final = 10.0 + 2 * (4 if truncated else t % 4)
        observed.append(10.0 if truncated else final)
        mean, std = np.mean(observed), np.std(observed)
        np.testing.assert_allclose(step.next_obs[0, 0], np.clip((final - mean) / std, -10, 10), rtol=1e-4)
        np.testing.assert_allclose(envs.obs[0, 0], (observed[-1] - mean) / std, rtol=1e-4)
        running = 0.5 * running + 3.0
        returns.append(running)
        expected = 10.0 if t == 1 else min(3.0 / np.sqrt(np.var(returns) + 1e-8), 10.0)
        np.testing.assert_allclose(step.rewards[0], expected, rtol=1e-6)
        running = 0.0 if truncated else running
        assert step.episodes == ([(12.0, 4)] if truncated else [])
        assert step.truncated[0] == truncated


def test_scaling_for_evaluation_does_not_update_the_statistics():
    envs = NormalizedEnvs(VectorEnv(Ramp, 1, seed=0), gamma=0.5)
    envs.step(np.array([0]))
    before = envs.obs_moments.count
    assert np.array_equal(envs.scale_obs(np.array([[12.0]])), envs.obs)
    assert envs.obs_moments.count == before


def test_a_restored_state_continues_identically():
    envs = NormalizedEnvs(VectorEnv(Ramp, 2, seed=0), gamma=0.5)
    for _ in range(5):
        envs.step(np.zeros(2, dtype=int))
    other = NormalizedEnvs(VectorEnv(Ramp, 2, seed=0), gamma=0.5)
    other.load_state_dict(envs.state_dict())
    a, b = envs.step(np.zeros(2, dtype=int)), other.step(np.zeros(2, dtype=int))
    assert np.array_equal(a.next_obs, b.next_obs)
    assert np.array_equal(a.rewards, b.rewards)
    assert np.array_equal(envs.obs, other.obs)


def test_only_the_requested_parts_and_only_floats_are_normalised():
    assert isinstance(make_envs(Ramp, 1, 0, 0.9, False, False), VectorEnv)
    only_rewards = make_envs(Ramp, 1, 0, 0.9, False, True)
    assert only_rewards.obs.tolist() == [[10.0]]
    with pytest.raises(ValueError, match="must be floats for normalize_observations"):
        make_envs(lambda: gym.make("FrozenLake-v1"), 1, 0, 0.9, True, False)
