"""The numpy passes of `FusedMLP` equal those of the plain PyTorch layers, in outputs, gradients and tangents."""

import copy

import pytest
import torch
from gymnasium import spaces
from torch import nn
from torch.autograd import forward_ad

from tabular.deep.fast.mlp import FusedMLP, fuse
from tabular.deep.networks import ActorCriticNetwork, hidden_layers, linear, q_network
from tabular.deep.policies import make_policy


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def plain_mlp(sizes, activation, n_outputs=None):
    """Layers in float64 with random biases, and a linear one at the end if `n_outputs` is set."""
    layers = hidden_layers(sizes, activation, 1.0, generator())
    if n_outputs is not None:
        layers.append(linear(sizes[-1], n_outputs, 1.0, generator()))
    network = nn.Sequential(*layers).double()
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator(1), dtype=torch.float64)
    return network


def random(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("batch", [(5,), (2, 3)])
@pytest.mark.parametrize("n_outputs", [None, 1, 6])
def test_outputs_and_gradients_equal_plain_pytorch(activation, batch, n_outputs):
    plain = plain_mlp([4, 7, 5], activation, n_outputs)
    fused = FusedMLP(list(plain))
    x = random(*batch, 4, seed=2).requires_grad_()
    loss_weights = random(*batch, n_outputs or 5, seed=3)
    torch.testing.assert_close(fused(x), plain(x), atol=1e-12, rtol=0)
    with torch.no_grad():
        assert torch.equal(fused(x), fused(x.detach()))

    grad_x, grad_weights = torch.autograd.grad((fused(x) * loss_weights).sum(), [x, fused.weights])
    plain_grad_x, *plain_grads = torch.autograd.grad((plain(x) * loss_weights).sum(), [x, *plain.parameters()])
    torch.testing.assert_close(grad_x, plain_grad_x, atol=1e-12, rtol=0)
    torch.testing.assert_close(grad_weights, torch.cat([g.flatten() for g in plain_grads]), atol=1e-12, rtol=0)


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("with_input_tangent", [False, True])
def test_forward_mode_equals_plain_pytorch(activation, with_input_tangent):
    plain = plain_mlp([3, 5, 4], activation, 2)
    fused = FusedMLP(list(plain))
    x, d_x, d_weights = random(6, 3), random(6, 3, seed=1), random(len(fused.weights), seed=2)

    def tangent(network):
        named = dict(network.named_parameters())
        parts = d_weights.split([p.numel() for p in named.values()])
        with forward_ad.dual_level():
            duals = {
                name: forward_ad.make_dual(p, part.view_as(p))
                for (name, p), part in zip(named.items(), parts, strict=True)
            }
            dual_x = forward_ad.make_dual(x, d_x) if with_input_tangent else x
            return forward_ad.unpack_dual(torch.func.functional_call(network, duals, (dual_x,))).tangent

    torch.testing.assert_close(tangent(fused), tangent(plain), atol=1e-12, rtol=0)


def test_gradcheck():
    fused = FusedMLP(list(plain_mlp([3, 5, 4], "tanh")))
    torch.autograd.gradcheck(lambda x, *_: fused(x), (random(6, 3).requires_grad_(), fused.weights))


def test_second_derivatives_are_rejected():
    fused = FusedMLP(list(plain_mlp([3, 4], "tanh")))
    (gradient,) = torch.autograd.grad(fused(random(2, 3)).sum(), [fused.weights], create_graph=True)
    with pytest.raises(RuntimeError, match=r"does not require grad|once_differentiable"):
        gradient.sum().backward()


def networks():
    vector, image = spaces.Box(-1, 1, (3,)), spaces.Box(0, 255, (5, 5, 3), "uint8")
    policy = make_policy(spaces.Box(-1, 1, (2,)))
    return {
        "actor-critic": (ActorCriticNetwork(vector, policy, (4, 5), generator()), vector),
        "shared": (ActorCriticNetwork(vector, policy, (4, 5), generator(), shared=True), vector),
        "image": (ActorCriticNetwork(image, policy, (4, 5), generator()), image),
        "q": (q_network(vector, 3, (4,), False, generator()), vector),
        "dueling": (q_network(vector, 3, (4,), True, generator()), vector),
        "index": (q_network(spaces.Discrete(3), 3, (4,), False, generator()), spaces.Discrete(3)),
    }


@pytest.mark.parametrize("name", networks())
def test_fuse_keeps_the_function_and_the_order_of_the_weights(name):
    network, space = networks()[name]
    fused = copy.deepcopy(network)
    fuse(fused)
    assert any(isinstance(module, FusedMLP) for module in fused.modules())
    assert not any(isinstance(module, nn.Tanh) for module in fused.modules())
    space.seed(0)
    obs = torch.stack([torch.as_tensor(space.sample()) for _ in range(7)])
    for part in ("actor", "critic") if isinstance(network, ActorCriticNetwork) else ("forward",):
        torch.testing.assert_close(getattr(fused, part)(obs), getattr(network, part)(obs), atol=1e-6, rtol=0)
    weights, fused_weights = (nn.utils.parameters_to_vector(n.parameters()) for n in (network, fused))
    assert torch.equal(weights, fused_weights)


def test_fuse_keeps_shared_layers_shared():
    network = ActorCriticNetwork(spaces.Box(-1, 1, (3,)), make_policy(spaces.Discrete(2)), (4,), generator(), True)
    fuse(network)
    assert network.actor[0] is network.critic[0]
    assert isinstance(network.actor[0][0], FusedMLP)
