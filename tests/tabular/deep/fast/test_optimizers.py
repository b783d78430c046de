"""The flat optimizers make the same steps as `torch.optim`, on weights that stay the module's own."""

import pytest
import torch

from tabular.deep.fast.optimizers import FlatAdam, FlatRMSProp, flatten_parameters
from tabular.deep.networks import linear
from tabular.deep.optimizers import clip_gradients, set_learning_rate


def layer():
    return linear(3, 2, 1.0, torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("make_flat", "make_plain"),
    [
        (
            lambda module: FlatAdam(module, lr=0.01, eps=1e-5),
            lambda module: torch.optim.Adam(module.parameters(), lr=0.01, eps=1e-5),
        ),
        (
            lambda module: FlatRMSProp(module, lr=0.01, alpha=0.99, eps=1e-5),
            lambda module: torch.optim.RMSprop(module.parameters(), lr=0.01, alpha=0.99, eps=1e-5),
        ),
    ],
)
def test_steps_equal_those_of_torch_optim(make_flat, make_plain):
    flat_module, plain_module = layer(), layer()
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
    flat, plain = make_flat(flat_module), make_plain(plain_module)
    for step in range(20):
        norms = []
        for module, optimizer in ((flat_module, flat), (plain_module, plain)):
            set_learning_rate(optimizer, 0.01 / (1 + step))
            optimizer.zero_grad()
            (module(x) ** 2).sum().backward()
            norms.append(clip_gradients(optimizer, 1.0))
            optimizer.step()
        assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    torch.testing.assert_close(flat_module.weight, plain_module.weight, atol=1e-6, rtol=1e-5)
    assert not torch.allclose(flat_module.weight, layer().weight, atol=1e-3)


@pytest.mark.parametrize("make", [lambda m: FlatAdam(m, lr=0.1), lambda m: FlatRMSProp(m, lr=0.1)])
def test_state_dict_round_trip(make):
    first, second = make(layer()), make(layer())
    for optimizer in (first, second):
        optimizer.weights.grad.fill_(1.0)
    first.step()
    set_learning_rate(first, 0.05)
    second.weights.data.copy_(first.weights.data)
    second.load_state_dict(first.state_dict())
    for optimizer in (first, second):
        optimizer.step()
    assert torch.equal(first.weights, second.weights)


def test_flat_weights_and_gradients_are_the_modules_own():
    module = layer()
    weights = flatten_parameters(module)
    weights.data.zero_()
    assert not module.weight.any()
    module(torch.ones(1, 3)).sum().backward()
    assert torch.equal(weights.grad, torch.ones(8))
    module.load_state_dict({"weight": torch.ones(2, 3), "bias": torch.ones(2)})
    assert torch.equal(weights.data, torch.ones(8))
