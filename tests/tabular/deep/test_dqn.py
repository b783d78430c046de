"""DQN: targets and losses by hand, the target network, exploration, and a chain whose values are known exactly."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from tabular.deep.dqn import DQN, DQNConfig, best_action, target_values
from tabular.deep.replay import Transitions


class Chain(gym.Env):
    """States 0 to 3; action 1 moves right, 0 left; reaching 3 has the reward 1 and ends the episode."""

    observation_space = spaces.Discrete(4)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = int(self.np_random.integers(3))
        return self.state, {}

    def step(self, action):
        self.state = max(0, self.state + (1 if action == 1 else -1))
        return self.state, float(self.state == 3), self.state == 3, False, {}


class ImageChain(Chain):
    """The same, observed as a row of pixels."""

    observation_space = spaces.Box(0, 255, (1, 4, 3), np.uint8)

    def reset(self, **kwargs):
        super().reset(**kwargs)
        return self._image(), {}

    def step(self, action):
        _, *rest = super().step(action)
        return self._image(), *rest

    def _image(self):
        image = np.zeros((1, 4, 3), np.uint8)
        image[0, self.state] = 255
        return image


def weights(network):
    return torch.nn.utils.parameters_to_vector(network.parameters()).detach().clone()


def transitions(discounts, masks=None):
    n = len(discounts)
    return Transitions(
        obs=torch.zeros(n, 1),
        actions=torch.zeros(n, dtype=torch.int64),
        rewards=torch.ones(n),
        discounts=torch.tensor(discounts),
        next_obs=torch.zeros(n, 1),
        next_masks=torch.ones(n, 2, dtype=torch.bool) if masks is None else torch.tensor(masks),
    )


def test_targets_by_hand():
    target_q = torch.tensor([[1.0, 3.0], [1.0, 3.0]])
    batch = transitions([0.5, 0.0])
    assert target_values(target_q, target_q, batch).tolist() == [2.5, 1.0]
    # Double: the network chooses the first action, the target network evaluates it.
    assert target_values(torch.tensor([[9.0, 0.0], [9.0, 0.0]]), target_q, batch).tolist() == [1.5, 1.0]


def test_targets_use_legal_actions_only_and_need_none_after_the_last_step():
    target_q = torch.tensor([[1.0, 3.0], [1.0, 3.0]])
    batch = transitions([0.5, 0.0], [[True, False], [False, False]])
    assert target_values(target_q, target_q, batch).tolist() == [1.5, 1.0]
    with pytest.raises(ValueError, match="allows no action"):
        target_values(target_q, target_q, transitions([0.5, 0.5], [[True, False], [False, False]]))


def test_best_action_is_the_first_legal_maximum():
    q = torch.tensor([[1.0, 2.0, 2.0]])
    assert best_action(q, torch.ones(1, 3, dtype=torch.bool)).tolist() == [1]
    assert best_action(q, torch.tensor([[True, False, False]])).tolist() == [0]


@pytest.mark.parametrize(("tau", "share"), [(1.0, 1.0), (0.1, 1 - 0.9**4)])
def test_hard_and_soft_updates_of_the_target_network(tau, share):
    config = DQNConfig(learning_starts=0, train_freq=8, gradient_steps=3, target_every=2, tau=tau, hidden=(4,))
    learner = DQN(Chain, config, seed=0)
    assert torch.equal(weights(learner.network), weights(learner.target))
    learner.advance(8)
    old_target, online = weights(learner.target), weights(learner.network)
    assert not torch.equal(old_target, online)
    learner.advance(8)
    expected = old_target + share * (online - old_target)
    torch.testing.assert_close(weights(learner.target), expected, atol=1e-7, rtol=1e-6)
    if tau == 1:
        assert torch.equal(weights(learner.target), online)


@pytest.mark.parametrize(("loss", "expected"), [("huber", (0.125 + 2.5) / 2), ("mse", (0.125 + 4.5) / 2)])
@pytest.mark.parametrize("fast", [False, True])
def test_loss_by_hand(loss, expected, fast):
    """TD errors of -0.5 and 3: both losses are e^2 / 2 up to 1, beyond it Huber's is |e| - 1 / 2."""
    learner = DQN(Chain, DQNConfig(loss=loss, fast=fast, batch_size=2, gradient_steps=1, hidden=(4,)), seed=0)
    for parameter in learner.network.parameters():
        parameter.data.zero_()
    batch = transitions([0.0, 0.0])
    batch.rewards.copy_(torch.tensor([0.5, -3.0]))
    batch = Transitions(**{**vars(batch), "obs": torch.tensor([0, 1]), "next_obs": torch.tensor([1, 2])})
    learner.buffer.sample = lambda shape, generator: (
        Transitions(**{name: column[None] for name, column in vars(batch).items()}) if len(shape) == 2 else batch
    )
    metrics = learner._update()
    assert metrics == pytest.approx({"loss": expected, "td_error": 1.75})


def test_random_actions_include_the_greedy_action():
    config = DQNConfig(learning_starts=0, epsilon_start=0.3, epsilon_end=0.3, n_envs=50, hidden=(4,))
    learner = DQN(lambda: gym.make("CartPole-v1", disable_env_checker=True), config, seed=0)
    greedy = np.array([learner.act(obs) for obs in learner.envs.obs])
    share = np.mean([(learner._explore() == greedy).mean() for _ in range(400)])
    assert share == pytest.approx(1 - 0.3 / 2, abs=0.01)


@pytest.mark.parametrize(
    ("make_env", "settings"),
    [
        (Chain, {}),
        (Chain, {"loss": "mse"}),
        (Chain, {"fast": False}),
        (Chain, {"double": True, "dueling": True, "n_step": 3, "tau": 0.05, "target_every": 1}),
        (ImageChain, {"hidden": (32,)}),
    ],
)
def test_values_of_a_chain_are_exact(make_env, settings):
    """Q(s, right) = .9^(2 - s). n-step returns of an exploring policy are biased: for them only the order is tested."""
    config = {"gamma": 0.9, "lr": 5e-3, "learning_starts": 100, "train_freq": 16, "gradient_steps": 8, "hidden": (32,)}
    config |= {"epsilon_steps": 500, "epsilon_end": 0.3, "target_every": 32}
    learner = DQN(make_env, DQNConfig(**(config | settings)), seed=0)
    learner.advance(1600)
    env = make_env()
    observations = []
    for state in range(3):
        env.reset()
        env.state = state
        observations.append(env._image() if make_env is ImageChain else state)
    with torch.no_grad():
        q_values = learner.network(torch.as_tensor(np.array(observations)))
    assert [learner.act(obs) for obs in observations] == [1, 1, 1]
    if settings.get("n_step", 1) == 1:
        torch.testing.assert_close(q_values[:, 1], torch.tensor([0.81, 0.9, 1.0]), atol=0.03, rtol=0)
        torch.testing.assert_close(q_values[:, 0], torch.tensor([0.729, 0.729, 0.81]), atol=0.05, rtol=0)


def test_no_gradient_steps_before_learning_starts():
    learner = DQN(Chain, DQNConfig(learning_starts=64, train_freq=32, gradient_steps=1, hidden=(4,)), seed=0)
    before = weights(learner.network)
    learner.advance(64)
    assert torch.equal(before, weights(learner.network))
    learner.advance(32)
    assert not torch.equal(before, weights(learner.network))


@pytest.mark.parametrize(
    ("field", "value"), [("tau", 0.0), ("epsilon_end", 1.5), ("n_step", 0), ("buffer_size", 0), ("loss", "mae")]
)
def test_settings_out_of_range_are_rejected(field, value):
    with pytest.raises(ValueError, match=field):
        DQNConfig(**{field: value})
