"""DQN's gradient steps in numpy equal those in plain PyTorch."""

import numpy as np
import pytest
import torch
from gymnasium import spaces

from tabular.deep import dqn
from tabular.deep.fast import dqn as fast_dqn
from tabular.deep.fast.mlp import fuse
from tabular.deep.fast.optimizers import FlatAdam
from tabular.deep.networks import q_network
from tabular.deep.replay import Transitions


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batches(n_batches, batch_size):
    shape = (n_batches, batch_size)
    random = generator(5)
    masks = torch.rand(*shape, 4, generator=random) < 0.7
    masks[..., 1] = True
    return Transitions(
        obs=torch.randn(*shape, 3, generator=random),
        actions=torch.randint(4, shape, generator=random),
        rewards=3 * torch.randn(*shape, generator=random),
        discounts=torch.where(torch.rand(*shape, generator=random) < 0.2, 0.0, 0.9),
        next_obs=torch.randn(*shape, 3, generator=random),
        next_masks=masks,
    )


def batch_of(transitions, k):
    return Transitions(**{name: column[k] for name, column in vars(transitions).items()})


@pytest.mark.parametrize("double", [False, True])
def test_targets_equal_plain_pytorch(double):
    transitions = batches(2, 50)
    target_q = torch.randn(2, 50, 4, generator=generator(1))
    chooser_q = torch.randn(2, 50, 4, generator=generator(2)) if double else target_q
    legal = (transitions.next_masks | (transitions.discounts == 0)[..., None]).numpy()
    actual = fast_dqn.target_values(
        chooser_q.numpy(), target_q.numpy(), transitions.rewards.numpy(), transitions.discounts.numpy(), legal
    )
    assert torch.equal(torch.from_numpy(actual), dqn.target_values(chooser_q, target_q, transitions))


@pytest.mark.parametrize("loss", ["huber", "mse"])
@pytest.mark.parametrize("dueling", [False, True])
@pytest.mark.parametrize("double", [False, True])
def test_gradient_steps_equal_plain_pytorch(loss, dueling, double):
    """Losses, TD errors and weights after three steps, with errors on both sides of Huber's threshold."""
    transitions = batches(3, 20)
    space = spaces.Box(-1, 1, (3,))
    network, target = (q_network(space, 4, (6, 5), dueling, generator(seed)) for seed in (0, 1))
    fast_network, fast_target = (q_network(space, 4, (6, 5), dueling, generator(seed)) for seed in (0, 1))
    fuse(fast_network)
    fuse(fast_target)
    fast_losses, fast_errors = fast_dqn.gradient_steps(
        fast_network, fast_target, FlatAdam(fast_network, lr=0.01), transitions,
        double=double, loss=loss, max_grad_norm=1.0,
    )  # fmt: skip
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    losses, errors = zip(
        *(
            dqn.gradient_step(
                network, target, optimizer, batch_of(transitions, k), double=double, loss=loss, max_grad_norm=1.0
            )
            for k in range(3)
        ),
        strict=True,
    )
    assert max(losses) > 1
    np.testing.assert_allclose(fast_losses, losses, rtol=1e-5)
    np.testing.assert_allclose(fast_errors, errors, rtol=1e-5)
    weights, fast_weights = (torch.nn.utils.parameters_to_vector(n.parameters()) for n in (network, fast_network))
    torch.testing.assert_close(fast_weights, weights, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dueling", [False, True])
def test_gradients_without_a_graph_equal_those_with_one(dueling):
    network = q_network(spaces.Box(-1, 1, (3,)), 4, (5, 6), dueling, generator())
    fuse(network)
    optimizer = FlatAdam(network, lr=0.01)
    obs, grad = (torch.randn(7, n, generator=generator(n)) for n in (3, 4))
    q_values, backward = fast_dqn.forward(network, obs.numpy())
    np.testing.assert_array_equal(q_values, fast_dqn.q_values_of(network, obs.numpy()))
    backward(grad.numpy())
    gradient = optimizer.weights.grad.clone()
    optimizer.zero_grad()
    graph_values = network(obs)
    (graph_values * grad).sum().backward()
    torch.testing.assert_close(torch.from_numpy(q_values), graph_values.detach(), atol=1e-6, rtol=0)
    torch.testing.assert_close(gradient, optimizer.weights.grad, atol=1e-6, rtol=1e-6)


def test_no_legal_action_raises():
    with pytest.raises(ValueError, match="allows no action"):
        fast_dqn.best_action(np.zeros((1, 2)), np.zeros((1, 2), dtype=bool))
