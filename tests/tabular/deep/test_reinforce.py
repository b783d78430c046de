"""REINFORCE: weights by hand; a baseline keeps the mean of the gradient and lowers its variance."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from tabular.core.losses import policy_gradient_loss
from tabular.deep.reinforce import REINFORCE, REINFORCEConfig, episode_of


class Countdown(gym.Env):
    """Episodes of 2, 3, 2, 3, ... steps with the rewards 1, 2, 3."""

    observation_space = spaces.Box(-10, 10, (1,), np.float32)
    action_space = spaces.Discrete(2)
    truncates = False

    def __init__(self):
        self.episode = -1

    def reset(self, *, seed=None, options=None):
        self.episode, self.t = self.episode + 1, 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        end = self.t == 2 + self.episode % 2
        return np.full(1, self.t, np.float32), float(self.t), end and not self.truncates, end and self.truncates, {}


class TruncatedCountdown(Countdown):
    truncates = True


def cart_pole():
    return gym.make("CartPole-v1", max_episode_steps=100, disable_env_checker=True)


def weights(make_env=Countdown, critic=None, **settings):
    learner = REINFORCE(make_env, REINFORCEConfig(n_episodes=2, hidden=(4,), **settings), seed=0)
    if critic is not None:
        learner.network.critic = critic
    trajectory = learner._collect()
    assert episode_of(trajectory).tolist() == [[0, 0, 1, 1, 1]]
    return [x[0].tolist() for x in learner._weights_and_returns(trajectory)]


class ConstantTen(torch.nn.Module):
    def forward(self, obs):
        return torch.full(obs.shape[:-1], 10.0)


def test_weights_by_hand():
    returns = [1 + 0.5 * 2, 2.0, 1 + 0.5 * (2 + 0.5 * 3), 2 + 0.5 * 3, 3.0]
    total = [2.0, 2.0, 2.75, 2.75, 2.75]
    assert weights(weight="to_go", baseline="none", gamma=0.5) == [returns, returns]
    assert weights(weight="total", baseline="none", gamma=0.5) == [total, returns]
    mean = sum(returns) / 5
    assert weights(weight="to_go", baseline="mean", gamma=0.5)[0] == pytest.approx([r - mean for r in returns])
    assert weights(baseline="learned", critic=ConstantTen(), gamma=0.5)[0] == pytest.approx([r - 10 for r in returns])


def test_gamma_0_gives_each_step_its_own_reward_and_keeps_episodes_apart():
    assert weights(weight="to_go", baseline="none", gamma=0)[0] == [1, 2, 1, 2, 3]
    assert weights(weight="total", baseline="none", gamma=0)[0] == [1, 1, 1, 1, 1]


def test_truncated_episodes_are_bootstrapped_only_with_a_learned_baseline():
    assert weights(make_env=TruncatedCountdown, weight="to_go", baseline="none", gamma=0.5)[0] == [2, 2, 2.75, 3.5, 3]
    expected = [2 + 2.5, 2 + 5, 2.75 + 1.25, 3.5 + 2.5, 3 + 5]
    assert weights(make_env=TruncatedCountdown, baseline="learned", critic=ConstantTen(), gamma=0.5)[1] == expected


def test_normalised_weights_keep_their_signs():
    plain = weights(weight="to_go", baseline="mean", gamma=0.5)[0]
    scaled = weights(weight="to_go", baseline="mean", gamma=0.5, normalize_weights=True)[0]
    assert np.std(scaled) == pytest.approx(1, rel=1e-4)
    np.testing.assert_allclose(np.array(scaled) / np.array(plain), scaled[0] / plain[0], rtol=1e-5)


class ActionReward(Countdown):
    """A reward of 5 per step, and 1 more for action 1."""

    def step(self, action):
        obs, _, *rest = super().step(action)
        return obs, 5.0 + action, *rest


class ExpectedReturn(torch.nn.Module):
    """The expected return in `ActionReward`, to half a step: episodes have 2 or 3 steps, half of the actions are 1."""

    def forward(self, obs):
        return 5.5 * (2.5 - obs[..., 0])


def gradients(n_batches, **settings):
    """Gradient estimates [n_batches, P] of the untrained policy, and the recorded variance of each."""
    learner = REINFORCE(ActionReward, REINFORCEConfig(n_episodes=4, gamma=1, hidden=(4,), **settings), seed=0)
    learner.network.critic = ExpectedReturn()
    parameters, rows, variances = list(learner.network.actor.parameters()), [], []
    for _ in range(n_batches):
        trajectory = learner._collect()
        weight, _ = learner._weights_and_returns(trajectory)
        logprobs = learner.policy.logprob(learner.network.actor(trajectory.obs), trajectory.actions, None)
        variances.append(learner._gradient_variance(logprobs, weight, episode_of(trajectory)))
        loss, _ = policy_gradient_loss(logprobs, weight, torch.ones_like(weight, dtype=torch.bool), 4)
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)]))
    return torch.stack(rows), np.array(variances)


def test_a_baseline_lowers_the_variance_of_the_gradient_and_keeps_its_mean():
    total, _ = gradients(150, weight="total", baseline="none")
    to_go, recorded = gradients(150, weight="to_go", baseline="none")
    learned, _ = gradients(150, weight="to_go", baseline="learned")
    spread = [float(rows.var(dim=0).sum()) for rows in (total, to_go, learned)]
    assert spread[0] > 1.4 * spread[1]
    assert spread[1] > 5 * spread[2]
    # The variance recorded from one batch estimates the variance between batches.
    assert recorded.mean() == pytest.approx(spread[1], rel=0.3)
    for rows in (to_go, learned):
        error = (rows.mean(0) - total.mean(0)).norm()
        noise = ((total.var(0) + rows.var(0)).sum() / 150).sqrt()
        assert error < 3 * noise


def test_episodes_that_never_end_raise():
    class Endless(Countdown):
        def step(self, action):
            obs, reward, *_, info = super().step(action)
            return obs % 5, reward, False, False, info

    learner = REINFORCE(Endless, REINFORCEConfig(max_steps=50, hidden=(4,)), seed=0)
    with pytest.raises(
        ValueError, match=r"max_steps is 50, but 10 episodes did not end within it: put a gymnasium.wrappers.TimeLimit"
    ):
        learner.advance(10)


def test_gradient_variance_and_baseline_metrics_are_recorded():
    learner = REINFORCE(cart_pole, REINFORCEConfig(n_episodes=3, measure_variance=True, hidden=(4,)), seed=0)
    learner.advance(1)
    assert {"gradient_variance", "value_loss", "explained_variance", "entropy"} <= set(learner.history.metrics)
    assert len(learner.history.ends) == 3
    assert learner.history.ends[-1] == learner.steps == sum(learner.history.lengths)


@pytest.mark.parametrize(("field", "value"), [("weight", "future"), ("baseline", "median"), ("n_episodes", 0)])
def test_settings_out_of_range_are_rejected(field, value):
    with pytest.raises(ValueError, match=field):
        REINFORCEConfig(**{field: value})
