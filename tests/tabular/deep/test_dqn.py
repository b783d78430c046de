"""DQN's targets by hand, its target network, its exploration, and a chain whose values it must find."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from tabular.deep.dqn import DQN, DQNConfig, best_action, target_values
from tabular.deep.replay import Transitions


class Chain(gym.Env):
    """States 0 to 3; action 1 goes right, 0 left; reaching 3 pays 1 and ends."""

    observation_space = spaces.Discrete(4)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = int(self.np_random.integers(3))
        return self.state, {}

    def step(self, action):
        self.state = max(0, self.state + (1 if action == 1 else -1))
        return self.state, float(self.state == 3), self.state == 3, False, {}


class Picture(Chain):
    """The same, seen as a row of pixels."""

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


def transitions(discounts, masks=None):
    n = len(discounts)
    return Transitions(
        obs=np.zeros((n, 1), np.float32),
        actions=np.zeros(n, np.int64),
        rewards=np.ones(n, np.float32),
        discounts=np.array(discounts, np.float32),
        next_obs=np.zeros((n, 1), np.float32),
        next_masks=np.ones((n, 2), bool) if masks is None else np.array(masks),
    )


def test_targets_by_hand():
    target_q = np.array([[1.0, 3.0], [1.0, 3.0]], np.float32)
    batch = transitions([0.5, 0.0])
    assert target_values(target_q, target_q, batch).tolist() == [2.5, 1.0]
    # Double: the network prefers the first action, the target network says what it is worth.
    assert target_values(np.array([[9.0, 0.0], [9.0, 0.0]], np.float32), target_q, batch).tolist() == [1.5, 1.0]


def test_targets_know_legal_actions_and_ask_for_none_at_an_end():
    target_q = np.array([[1.0, 3.0], [1.0, 3.0]], np.float32)
    batch = transitions([0.5, 0.0], [[True, False], [False, False]])
    assert target_values(target_q, target_q, batch).tolist() == [1.5, 1.0]
    with pytest.raises(ValueError, match="allows no action"):
        target_values(target_q, target_q, transitions([0.5, 0.5], [[True, False], [False, False]]))


def test_best_action_is_the_first_of_the_legal():
    q = np.array([[1.0, 2.0, 2.0]], np.float32)
    assert best_action(q, np.ones((1, 3), bool)).tolist() == [1]
    assert best_action(q, np.array([[True, False, False]])).tolist() == [0]


@pytest.mark.parametrize(("tau", "share"), [(1.0, 1.0), (0.1, 1 - 0.9**4)])
def test_target_network_follows_hard_or_softly(tau, share):
    config = DQNConfig(learning_starts=0, train_freq=8, gradient_steps=3, target_every=2, tau=tau, hidden=(4,))
    learner = DQN(Chain, config, seed=0)
    assert torch.equal(learner.weights, learner.target_weights)
    learner.advance(8)
    old_target, online = learner.target_weights.detach().clone(), learner.weights.detach().clone()
    assert not torch.equal(old_target, online)
    learner.advance(8)
    expected = old_target + share * (online - old_target)
    torch.testing.assert_close(learner.target_weights.detach(), expected, atol=1e-7, rtol=1e-6)
    if tau == 1:
        assert torch.equal(learner.target_weights, online)


def test_the_random_part_includes_the_greedy_action():
    config = DQNConfig(learning_starts=0, epsilon_start=0.3, epsilon_end=0.3, n_envs=50, hidden=(4,))
    learner = DQN(lambda: gym.make("CartPole-v1", disable_env_checker=True), config, seed=0)
    greedy = np.array([learner.act(obs) for obs in learner.envs.obs])
    share = np.mean([(learner._explore() == greedy).mean() for _ in range(400)])
    assert share == pytest.approx(1 - 0.3 / 2, abs=0.01)


@pytest.mark.parametrize(
    ("make_env", "settings"),
    [
        (Chain, {}),
        (Chain, {"double": True, "dueling": True, "n_step": 3, "tau": 0.05, "target_every": 1}),
        (Picture, {"hidden": (32,)}),
    ],
)
def test_values_of_a_chain(make_env, settings):
    """Q(s, right) = .9^(2 - s). n-step returns of a wandering policy are biased: of them only the order is asked."""
    config = {"gamma": 0.9, "lr": 5e-3, "learning_starts": 100, "train_freq": 16, "gradient_steps": 8, "hidden": (32,)}
    config |= {"epsilon_steps": 500, "epsilon_end": 0.3, "target_every": 32}
    learner = DQN(make_env, DQNConfig(**(config | settings)), seed=0)
    learner.advance(1600)
    env = make_env()
    observations = []
    for state in range(3):
        env.reset()
        env.state = state
        observations.append(env._image() if make_env is Picture else state)
    with torch.no_grad():
        q_values = learner.network(torch.as_tensor(np.array(observations)))
    assert [learner.act(obs) for obs in observations] == [1, 1, 1]
    if settings.get("n_step", 1) == 1:
        torch.testing.assert_close(q_values[:, 1], torch.tensor([0.81, 0.9, 1.0]), atol=0.03, rtol=0)
        torch.testing.assert_close(q_values[:, 0], torch.tensor([0.729, 0.729, 0.81]), atol=0.05, rtol=0)


def test_nothing_is_learned_before_learning_starts():
    learner = DQN(Chain, DQNConfig(learning_starts=64, train_freq=32, gradient_steps=1, hidden=(4,)), seed=0)
    before = learner.weights.detach().clone()
    learner.advance(64)
    assert torch.equal(before, learner.weights)
    learner.advance(32)
    assert not torch.equal(before, learner.weights)


@pytest.mark.parametrize(("field", "value"), [("tau", 0.0), ("epsilon_end", 1.5), ("n_step", 0), ("buffer_size", 0)])
def test_settings_out_of_range(field, value):
    with pytest.raises(ValueError, match=field):
        DQNConfig(**{field: value})
