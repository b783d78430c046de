"""The backward passes written out are autograd's; heads, features and initial weights are what they say."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.autograd import forward_ad

from tabular.deep.networks import (
    CNN,
    MLP,
    ActorCritic,
    DuelingHead,
    linear,
    q_network,
    torso,
    values_and_pullback,
    values_of,
)
from tabular.deep.optimizers import Adam, RMSProp, descend, flatten_parameters
from tabular.deep.policies import make_policy


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def plain(mlp, x):
    """The same layers by PyTorch's own operations."""
    functions = {"tanh": torch.tanh, "relu": torch.relu, "none": lambda x: x}
    start = 0
    for name, n_in, n_out in zip(mlp.plan.activations, mlp.plan.sizes, mlp.plan.sizes[1:], strict=False):
        weight, start = mlp.weights[start : start + n_out * n_in].view(n_out, n_in), start + n_out * n_in
        bias, start = mlp.weights[start : start + n_out], start + n_out
        x = functions[name](x @ weight.T + bias)
    assert start == len(mlp.weights)
    return x


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("batch", [(5,), (2, 3)])
@pytest.mark.parametrize("n_outputs", [None, 6])
def test_mlp_and_its_gradients_are_autograds(activation, batch, n_outputs):
    """With and without a linear layer at the end."""
    mlp = MLP([4, 7, 6], activation, generator(), n_outputs)
    for parameter in mlp.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator(1))
    x = torch.randn(*batch, 4, generator=generator(2)).requires_grad_()
    weights = torch.randn(*batch, 6, generator=generator(3))
    inputs = [x, *mlp.parameters()]
    torch.testing.assert_close(mlp(x), plain(mlp, x), atol=1e-6, rtol=0)
    actual = torch.autograd.grad((mlp(x) * weights).sum(), inputs)
    expected = torch.autograd.grad((plain(mlp, x) * weights).sum(), inputs)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, atol=1e-6, rtol=1e-6)
    with torch.no_grad():
        assert torch.equal(mlp(x), mlp(x.detach()))


def test_mlp_in_double_passes_gradcheck():
    mlp = MLP([3, 5, 4], "tanh", generator()).double()
    x = torch.randn(6, 3, generator=generator(1), dtype=torch.float64, requires_grad=True)
    torch.autograd.gradcheck(lambda x, *_: mlp(x), (x, *mlp.parameters()))


def test_mlp_forward_mode_is_a_difference_quotient():
    mlp = MLP([3, 5, 4], "tanh", generator()).double()
    x = torch.randn(6, 3, generator=generator(1), dtype=torch.float64)
    old = {name: p.detach().clone() for name, p in mlp.named_parameters()}
    tangents = {name: torch.randn(p.shape, generator=generator(2), dtype=torch.float64) for name, p in old.items()}
    d_x = torch.randn(6, 3, generator=generator(3), dtype=torch.float64)

    def moved(h):
        return torch.func.functional_call(mlp, {k: old[k] + h * tangents[k] for k in old}, (x + h * d_x,))

    with forward_ad.dual_level():
        duals = {k: forward_ad.make_dual(p, tangents[k]) for k, p in mlp.named_parameters()}
        y = torch.func.functional_call(mlp, duals, (forward_ad.make_dual(x, d_x),))
        actual = forward_ad.unpack_dual(y).tangent
    torch.testing.assert_close(actual, (moved(1e-6) - moved(-1e-6)) / 2e-6, atol=1e-8, rtol=1e-6)


def test_a_second_derivative_is_refused():
    mlp = MLP([3, 4], "tanh", generator())
    (gradient,) = torch.autograd.grad(mlp(torch.ones(2, 3)).sum(), [mlp.weights], create_graph=True)
    with pytest.raises(RuntimeError, match=r"does not require grad|once_differentiable"):
        gradient.sum().backward()


def test_weights_are_orthogonal_and_belong_to_the_seed():
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
def test_features_of_every_space(space, obs):
    trunk, n_features = torso(space, (6, 5), "tanh", generator())
    assert trunk(obs).shape == (2, 5, n_features) == (2, 5, 5)


def test_one_hot_counts_from_the_start_of_the_space():
    trunk, _ = torso(spaces.Discrete(3, start=5), (4,), "relu", generator())
    torch.testing.assert_close(trunk[0](torch.tensor([5, 7])), torch.tensor([[1.0, 0, 0], [0, 0, 1]]))


def test_cnn_tells_places_apart_and_passes_gradients():
    cnn = CNN((5, 5, 3), 8, generator())
    images = torch.zeros(2, 5, 5, 3, dtype=torch.uint8)
    images[0, 0, 0], images[1, 4, 4] = 255, 255
    features = cnn(images)
    assert not torch.equal(features[0], features[1])
    features.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in cnn.parameters())


def test_spaces_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="FlattenObservation"):
        torso(spaces.Tuple([spaces.Discrete(2)]), (4,), "tanh", generator())
    with pytest.raises(ValueError, match="hidden must name"):
        torso(spaces.Discrete(2), (), "tanh", generator())


def test_trunks_are_separate_unless_shared():
    space = gym.spaces.Box(-1, 1, (3,))
    heads = {"policy": make_policy(spaces.Discrete(2)), "hidden": (4,), "generator": generator()}
    separate, shared = ActorCritic(space, **heads), ActorCritic(space, **heads, shared=True)
    assert {id(p) for p in separate.actor.parameters()}.isdisjoint(id(p) for p in separate.critic.parameters())
    assert shared.actor[0] is shared.critic[0]
    assert separate.critic(torch.zeros(2, 5, 3)).shape == (2, 5)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda w: Adam(w, 0.01), lambda p: torch.optim.Adam(p, lr=0.01, eps=1e-5)),
        (lambda w: RMSProp(w, 0.01), lambda p: torch.optim.RMSprop(p, lr=0.01, alpha=0.99, eps=1e-5)),
    ],
)
def test_optimizers_are_pytorchs(ours, theirs):
    flat, usual = linear(3, 2, 1, generator()), linear(3, 2, 1, generator())
    weights = flatten_parameters(flat)
    mine, reference = ours(weights), theirs(usual.parameters())
    x = torch.randn(4, 3, generator=generator(1))
    for _ in range(20):
        norm = descend((flat(x) ** 2).sum(), weights, mine, max_norm=1.0)
        reference.zero_grad()
        (usual(x) ** 2).sum().backward()
        expected_norm = torch.nn.utils.clip_grad_norm_(usual.parameters(), 1.0)
        reference.step()
        assert norm == pytest.approx(float(expected_norm), rel=1e-4)
    torch.testing.assert_close(flat.weight, usual.weight, atol=1e-6, rtol=1e-5)


def test_flat_weights_are_the_modules_own():
    layer = linear(3, 2, 1, generator())
    weights = flatten_parameters(layer)
    weights.data.zero_()
    assert not layer.weight.any()
    layer(torch.ones(1, 3)).sum().backward()
    assert torch.equal(weights.grad, torch.ones(8))
    layer.load_state_dict({"weight": torch.ones(2, 3), "bias": torch.ones(2)})
    assert torch.equal(weights.data, torch.ones(8))


@pytest.mark.parametrize("dueling", [False, True])
def test_values_and_their_gradients_without_a_graph_are_those_with_one(dueling):
    """Of an MLP alone, and of a head that PyTorch differentiates."""
    network = q_network(spaces.Box(-1, 1, (3,)), 4, (5, 6), dueling, generator())
    weights = flatten_parameters(network)
    obs, grad = (torch.randn(7, n, generator=generator(n)) for n in (3, 4))
    values, pull_back = values_and_pullback(network, obs.numpy())
    np.testing.assert_array_equal(values, values_of(network, obs.numpy()))
    pull_back(grad.numpy())
    found = weights.grad.clone()
    weights.grad.zero_()
    plain_values = network(obs)
    (plain_values * grad).sum().backward()
    torch.testing.assert_close(torch.from_numpy(values), plain_values.detach(), atol=1e-6, rtol=0)
    torch.testing.assert_close(found, weights.grad, atol=1e-6, rtol=1e-6)
