"""Transitions are real steps, termination differs from truncation, and a saved state is restored exactly."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from tabular.deep.networks import ActorCriticNetwork
from tabular.deep.policies import make_policy
from tabular.deep.trajectories import bootstrap, collect
from tabular.envs import cartpole, vector
from tabular.envs.vector import VectorEnv
from tabular.history import History


class StepRecorder(gym.Env):
    """Observations say which episode and step they belong to; rewards repeat the action."""

    observation_space = spaces.Box(-1e6, 1e6, (2,), np.float32)
    action_space = spaces.Discrete(10)

    def __init__(self, length=3, truncates=False):
        self.length, self.truncates, self.episode, self.log = length, truncates, -1, []

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return self._obs(), {}

    def step(self, action):
        self.log.append((self.episode, self.t, action))
        self.t += 1
        end = self.t == self.length
        return self._obs(), float(action), end and not self.truncates, end and self.truncates, {}

    def _obs(self):
        return np.array([self.episode, self.t], np.float32)


def cart_pole():
    return gym.make("CartPole-v1", disable_env_checker=True)


def gymnasium_rows(envs, actions):
    """Transitions of a loop over gymnasium's vector environment: (observation, action, next observation)."""
    obs, _ = envs.reset(seed=0)
    rows = []
    for action in actions:
        next_obs, *_ = envs.step(action)
        rows.append((obs[0].tolist(), int(action[0]), next_obs[0].tolist()))
        obs = next_obs
    return rows


def test_every_transition_is_a_real_step():
    actions = np.arange(8)[:, None] % 10
    envs = VectorEnv(lambda: StepRecorder(length=3), 1, seed=0)
    rows = []
    for action in actions:
        obs = envs.obs
        step = envs.step(action)
        rows.append((obs[0].tolist(), int(action[0]), step.next_obs[0].tolist()))
    real = [([episode, t], a, [episode, t + 1]) for episode, t, a in envs.envs[0].log]
    assert rows == real
    assert len(real) == len(actions)
    # Gymnasium's default: the step after an end ignores its action and leads from one episode into the next.
    naive = gym.vector.SyncVectorEnv([lambda: StepRecorder(length=3)])
    transitions = gymnasium_rows(naive, actions)
    assert ([0.0, 3.0], 3, [1.0, 0.0]) in transitions
    assert len(naive.envs[0].log) < len(actions)
    # SAME_STEP really steps, but what it returns at an end is the next episode's first observation.
    same = gym.vector.SyncVectorEnv([lambda: StepRecorder(length=3)], autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)
    assert ([0.0, 2.0], 2, [1.0, 0.0]) in gymnasium_rows(same, actions)


def test_episodes_are_reported_once_with_their_return_and_length():
    envs = VectorEnv(lambda: StepRecorder(length=2), 2, seed=0)
    assert envs.step(np.array([1, 5])).episodes == []
    assert envs.step(np.array([2, 6])).episodes == [(3.0, 2), (11.0, 2)]
    assert envs.obs.tolist() == [[1, 0], [1, 0]]


def policy_and_network(envs):
    policy = make_policy(envs.action_space)
    network = ActorCriticNetwork(envs.observation_space, policy, (4,), torch.Generator().manual_seed(0))
    return policy, network


@pytest.mark.parametrize("truncates", [True, False])
def test_truncation_bootstraps_from_the_final_observation_and_termination_does_not(truncates):
    envs = VectorEnv(lambda: StepRecorder(length=3, truncates=truncates), 2, seed=0)
    policy, network = policy_and_network(envs)
    generator = torch.Generator().manual_seed(0)
    trajectory = collect(
        envs=envs,
        actor=network.actor,
        policy=policy,
        n_steps=4,
        gamma=0.5,
        generator=generator,
        history=History(),
        steps=0,
    )
    critic = torch.nn.Sequential(StepNumber())
    rewards, last = bootstrap(critic, trajectory, 0.5)
    expected = trajectory.actions.float()
    # V is the step's number: 3 at the final observation, where the next episode's first has 0; 1 after the last step.
    if truncates:
        expected[:, 2] += 0.5 * 3
    torch.testing.assert_close(rewards, expected)
    assert trajectory.discounts.tolist() == [[0.5, 0.5, 0.0, 0.5]] * 2
    assert last.tolist() == [1.0, 1.0]
    assert trajectory.final_obs.tolist() == ([[0, 3], [0, 3]] if truncates else [])


class StepNumber(torch.nn.Module):
    def forward(self, obs):
        return obs[..., 1]


def test_terminated_and_truncated_counts_as_terminated():
    class Both(StepRecorder):
        def step(self, action):
            obs, reward, end, _, info = super().step(action)
            return obs, reward, end, end, info

    envs = VectorEnv(lambda: Both(length=1), 1, seed=0)
    step = envs.step(np.array([0]))
    assert step.terminated.tolist() == [True]
    assert step.truncated.tolist() == [False]


def test_copies_and_episodes_have_different_seeds_and_a_run_is_reproducible():
    def first_obs(seed):
        return VectorEnv(cart_pole, 4, seed).obs

    a, b, c = first_obs(0), first_obs(0), first_obs(1)
    assert np.array_equal(a, b)
    assert len(np.unique(np.concatenate([a, c])[:, 0])) == 8
    envs = VectorEnv(lambda: StepRecorder(length=1), 1, seed=0)
    seeds = {envs._episode_seed(0)}
    for _ in range(3):
        envs.step(np.array([0]))
        seeds.add(envs._episode_seed(0))
    assert len(seeds) == 4


def test_batched_cart_poles_equal_gymnasiums(monkeypatch):
    batched = VectorEnv(cart_pole, 5, seed=0)
    monkeypatch.setattr(vector, "batched", lambda envs: None)
    one_by_one = VectorEnv(cart_pole, 5, seed=0)
    assert batched.cart_poles is not None
    assert one_by_one.cart_poles is None
    generator, lengths = np.random.default_rng(0), []
    for t in range(3000):
        # Random actions at first, then a controller that lives up to the time limit.
        steer = (one_by_one.obs[:, 2] + 0.5 * one_by_one.obs[:, 3] > 0).astype(int)
        actions = generator.integers(0, 2, 5) if t < 1000 else steer
        a, b = batched.step(actions), one_by_one.step(actions)
        for name in ("next_obs", "rewards", "terminated", "truncated"):
            assert np.array_equal(getattr(a, name), getattr(b, name)), name
        assert a.episodes == b.episodes
        assert np.array_equal(batched.obs, one_by_one.obs)
        lengths += [length for _, length in a.episodes]
    assert max(lengths) == 500
    assert len(lengths) > 150


@pytest.mark.parametrize(
    "make_env",
    [
        lambda: gym.make("CartPole-v1", sutton_barto_reward=True),
        lambda: gym.wrappers.TransformReward(cart_pole(), lambda r: 2 * r),
        lambda: gym.make("Acrobot-v1"),
    ],
)
def test_modified_cart_poles_are_not_batched(make_env):
    assert cartpole.batched([make_env() for _ in range(4)]) is None


@pytest.mark.parametrize("n_envs", [2, 5])
def test_a_restored_state_continues_bit_identically(n_envs):
    generator = np.random.default_rng(0)
    envs = VectorEnv(cart_pole, n_envs, seed=3)
    for _ in range(50):
        envs.step(generator.integers(0, 2, n_envs))
    state = envs.state_dict()
    other = VectorEnv(cart_pole, n_envs, seed=99)
    other.load_state_dict(state)
    for _ in range(100):
        actions = generator.integers(0, 2, n_envs)
        a, b = envs.step(actions), other.step(actions)
        assert np.array_equal(a.next_obs, b.next_obs)
        assert a.episodes == b.episodes
        assert np.array_equal(envs.obs, other.obs)


def test_an_environment_that_is_not_reproducible_starts_a_new_episode_with_a_warning():
    envs = VectorEnv(StepRecorder, 1, seed=0)
    for _ in range(7):
        envs.step(np.array([0]))
    other = VectorEnv(StepRecorder, 1, seed=0)
    with pytest.warns(UserWarning, match="a new one starts"):
        other.load_state_dict(envs.state_dict())
    assert other.obs[0, 1] == 0


def test_action_masks_are_recorded():
    class Masked(StepRecorder):
        def reset(self, **kwargs):
            obs, _ = super().reset(**kwargs)
            return obs, {"action_mask": np.arange(10) == self.t}

        def step(self, action):
            assert action == self.t
            obs, reward, terminated, truncated, _ = super().step(action)
            return obs, reward, terminated, truncated, {"action_mask": np.arange(10) == self.t}

    envs = VectorEnv(lambda: Masked(length=3), 2, seed=0)
    policy, network = policy_and_network(envs)
    trajectory = collect(
        envs=envs,
        actor=network.actor,
        policy=policy,
        n_steps=7,
        gamma=0.9,
        generator=torch.Generator().manual_seed(0),
        history=History(),
        steps=0,
    )
    assert trajectory.actions.tolist() == [[0, 1, 2, 0, 1, 2, 0]] * 2
    assert trajectory.masks.shape == (2, 7, 10)
    assert torch.equal(trajectory.masks.int().argmax(-1), trajectory.actions)


def test_fewer_than_one_copy_is_refused():
    with pytest.raises(ValueError, match="n_envs is 0, but must be at least 1"):
        VectorEnv(StepRecorder, 0, seed=0)


def test_rewards_that_are_not_finite_are_refused():
    envs = VectorEnv(lambda: gym.wrappers.TransformReward(cart_pole(), lambda reward: float("nan")), 2, seed=0)
    with pytest.raises(ValueError, match="CartPole-v1 returned the reward nan, but rewards must be finite"):
        envs.step(np.array([0, 1]))
