"""A2C and one-step actor-critic: their gradients equal those of loops over single steps."""

import gymnasium as gym
import pytest
import torch

import tabular.deep.a2c
import tabular.deep.actor_critic
from tabular.deep.a2c import A2C, A2CConfig
from tabular.deep.actor_critic import ActorCritic, ActorCriticConfig


def short_cart_pole():
    """Ends by falling and by a time limit, often."""
    return gym.make("CartPole-v1", max_episode_steps=12, disable_env_checker=True)


def first_gradient(learner, module, monkeypatch):
    """The gradient of the first iteration's loss, which is then not applied."""
    gradients = []

    def record(optimizer, max_norm):
        gradients.append(optimizer.weights.grad.clone())
        return 0.0

    monkeypatch.setattr(module, "clip_gradients", record)
    monkeypatch.setattr(learner.optimizer, "step", lambda: None)
    learner._iterate()
    return gradients[0]


def first_trajectory(learner):
    """The trajectory that the first iteration learns from."""
    return learner._collect()


def by_hand(learner, trajectory, gamma, vf_coef, advantage):
    """`-mean(A log pi) + vf_coef mean((V - R)^2) / 2` step by step, with `A = R - V`."""
    critic, total = learner.network.critic, 0.0
    finals = dict(zip(trajectory.truncated_at.tolist(), trajectory.final_obs, strict=True))
    n_envs, n_steps = trajectory.rewards.shape
    for i in range(n_envs):
        for t in range(n_steps):
            value = critic(trajectory.obs[i, t][None])[0]
            target = advantage(critic, trajectory, finals, i, t, gamma)
            logprob = learner.network.actor(trajectory.obs[i, t]).log_softmax(-1)[trajectory.actions[i, t]]
            total = total - (target - value).detach() * logprob + vf_coef * 0.5 * (value - target) ** 2
    learner.optimizer.zero_grad()
    (total / (n_envs * n_steps)).backward()
    return learner.optimizer.weights.grad


@torch.no_grad()
def monte_carlo(critic, trajectory, finals, i, t, gamma):
    """The discounted rewards up to the end of the episode or row, and the value of the state after a truncation."""
    n_steps, total, weight = trajectory.rewards.shape[1], 0.0, 1.0
    for k in range(t, n_steps):
        total += weight * float(trajectory.rewards[i, k])
        weight *= gamma
        if trajectory.ends[i, k]:
            final = finals.get(i * n_steps + k)
            return total + (0.0 if final is None else weight * critic(final[None])[0])
    return total + weight * critic(trajectory.next_obs[i][None])[0]


@torch.no_grad()
def one_step(critic, trajectory, finals, i, t, gamma):
    del finals
    follows = 0.0 if trajectory.ends[i, t] else critic(trajectory.next_obs[i][None])[0]
    return float(trajectory.rewards[i, t]) + gamma * follows


def test_a2c_with_lambda_1_has_the_monte_carlo_policy_gradient(monkeypatch):
    config = A2CConfig(n_envs=3, n_steps=40, lam=1, hidden=(8,))
    actual = first_gradient(A2C(short_cart_pole, config, seed=0), tabular.deep.a2c, monkeypatch)
    other = A2C(short_cart_pole, config, seed=0)
    trajectory = first_trajectory(other)
    assert len(trajectory.truncated_at) > 2
    assert int(trajectory.ends.sum()) > len(trajectory.truncated_at)
    torch.testing.assert_close(
        actual, by_hand(other, trajectory, config.gamma, config.vf_coef, monte_carlo), atol=1e-5, rtol=1e-4
    )


def test_one_step_actor_critic_weights_log_probabilities_by_the_td_error(monkeypatch):
    config = ActorCriticConfig(n_envs=4, ent_coef=0.0, hidden=(8,))
    actual = first_gradient(ActorCritic(short_cart_pole, config, seed=0), tabular.deep.actor_critic, monkeypatch)
    other = ActorCritic(short_cart_pole, config, seed=0)
    trajectory = first_trajectory(other)
    torch.testing.assert_close(
        actual, by_hand(other, trajectory, config.gamma, config.vf_coef, one_step), atol=1e-6, rtol=1e-5
    )


def test_one_step_actor_critic_equals_a2c_with_one_step_and_lambda_0(monkeypatch):
    a = first_gradient(
        ActorCritic(short_cart_pole, ActorCriticConfig(n_envs=4, ent_coef=0.0, hidden=(8,)), seed=0),
        tabular.deep.actor_critic,
        monkeypatch,
    )
    b = first_gradient(
        A2C(short_cart_pole, A2CConfig(n_envs=4, n_steps=1, lam=0, hidden=(8,)), seed=0), tabular.deep.a2c, monkeypatch
    )
    torch.testing.assert_close(a, b)


def test_normalised_advantages_make_the_policy_gradient_independent_of_the_reward_scale():
    config = A2CConfig(n_envs=2, n_steps=20, vf_coef=0.0, normalize_advantages=True, gamma=0.9, hidden=(8,))

    def scaled(factor):
        return lambda: gym.wrappers.TransformReward(short_cart_pole(), lambda r: factor * r)

    learners = []
    for factor in (1.0, 100.0):
        learner = A2C(scaled(factor), config, seed=0)
        for parameter in learner.network.critic.parameters():
            parameter.data.zero_()
        learner._iterate()
        learners.append(learner)
    one, hundred = (torch.cat([p.flatten() for p in learner.network.actor.parameters()]) for learner in learners)
    torch.testing.assert_close(one, hundred, atol=1e-5, rtol=1e-4)


def test_constant_returns_have_an_explained_variance_of_nan():
    class Nothing(gym.Env):
        observation_space, action_space = gym.spaces.Discrete(1), gym.spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return 0, {}

        def step(self, action):
            return 0, 0.0, True, False, {}

    learner = A2C(Nothing, A2CConfig(hidden=(4,), log_every=1), seed=0)
    learner.advance(80)
    explained = [value for _, value in learner.history.metrics["explained_variance"]]
    assert all(value != value for value in explained)
    assert torch.isfinite(learner.optimizer.weights).all()


def test_settings_out_of_range_are_rejected():
    with pytest.raises(ValueError, match="normalize_advantages"):
        A2CConfig(n_envs=1, n_steps=1, normalize_advantages=True)
    with pytest.raises(ValueError, match="log_every"):
        ActorCriticConfig(log_every=0)
