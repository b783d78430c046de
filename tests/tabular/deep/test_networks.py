"""Networks: initial weights, features of every observation space, heads, and which layers are shared."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from tabular.deep.networks import CNN, ActorCriticNetwork, DuelingHead, feature_layers, linear, q_network
from tabular.deep.policies import make_policy


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_weights_are_orthogonal_and_determined_by_the_generator():
    torch.manual_seed(0)
    a = linear(8, 8, math.sqrt(2), generator())
    before = torch.random.get_rng_state()
    b = linear(8, 8, math.sqrt(2), generator())
    assert torch.equal(a.weight, b.weight)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.testing.assert_close(a.weight @ a.weight.T, 2 * torch.eye(8), atol=1e-5, rtol=0)
    assert not a.bias.any()


def test_dueling_head_by_hand():
    head = DuelingHead(1, 3, generator())
    for layer in (head.value, head.advantages):
        layer.bias.data.zero_()
    head.value.weight.data.fill_(2.0)
    head.advantages.weight.data = torch.tensor([[1.0], [2.0], [6.0]])
    # V = 2, A = 1, 2, 6 with mean 3
    torch.testing.assert_close(head(torch.ones(1, 1)), torch.tensor([[0.0, 1.0, 5.0]]))
    assert q_network(spaces.Discrete(4), 3, (5,), True, generator())(torch.tensor([2])).shape == (1, 3)


@pytest.mark.parametrize(
    ("space", "obs"),
    [
        (spaces.Box(-1, 1, (3,)), torch.zeros(2, 5, 3)),
        (spaces.Box(-1, 1, (3, 2)), torch.zeros(2, 5, 3, 2)),
        (spaces.Box(0, 255, (7, 9, 3), np.uint8), torch.zeros(2, 5, 7, 9, 3, dtype=torch.uint8)),
        (spaces.Box(0, 255, (36, 40, 1), np.uint8), torch.zeros(2, 5, 36, 40, 1, dtype=torch.uint8)),
        (spaces.Discrete(4, start=3), torch.full((2, 5), 6)),
        (spaces.MultiBinary(4), torch.zeros(2, 5, 4, dtype=torch.int8)),
    ],
)
def test_every_observation_space_has_features(space, obs):
    features = nn.Sequential(*feature_layers(space, (6, 5), "tanh", generator()))
    assert features(obs).shape == (2, 5, 5)


def test_one_hot_counts_from_the_start_of_the_space():
    one_hot, *_ = feature_layers(spaces.Discrete(3, start=5), (4,), "relu", generator())
    torch.testing.assert_close(one_hot(torch.tensor([5, 7])), torch.tensor([[1.0, 0, 0], [0, 0, 1]]))


def test_cnn_distinguishes_positions_and_has_gradients_everywhere():
    cnn = CNN((5, 5, 3), 8, generator())
    images = torch.zeros(2, 5, 5, 3, dtype=torch.uint8)
    images[0, 0, 0], images[1, 4, 4] = 255, 255
    features = cnn(images)
    assert not torch.equal(features[0], features[1])
    features.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in cnn.parameters())


def test_unsupported_observation_spaces_and_empty_hidden_are_rejected():
    with pytest.raises(ValueError, match="FlattenObservation"):
        feature_layers(spaces.Tuple([spaces.Discrete(2)]), (4,), "tanh", generator())
    with pytest.raises(ValueError, match=r"hidden is \(\), but must name"):
        feature_layers(spaces.Discrete(2), (), "tanh", generator())


def test_actor_and_critic_have_separate_layers_unless_shared():
    space = gym.spaces.Box(-1, 1, (3,))
    heads = {"policy": make_policy(spaces.Discrete(2)), "hidden": (4,), "generator": generator()}
    separate, shared = ActorCriticNetwork(space, **heads), ActorCriticNetwork(space, **heads, shared=True)
    assert {id(p) for p in separate.actor.parameters()}.isdisjoint(id(p) for p in separate.critic.parameters())
    assert shared.actor[0] is shared.critic[0]
    assert separate.critic(torch.zeros(2, 5, 3)).shape == (2, 5)
