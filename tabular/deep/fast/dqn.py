"""DQN's gradient steps in numpy: no graph for an MLP, and the target network evaluated once for a whole round.

The same steps as `tabular.deep.dqn.gradient_step`, which is the version to read.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import nn

from tabular.deep.fast.mlp import FusedMLP
from tabular.deep.fast.optimizers import FlatAdam
from tabular.deep.optimizers import clip_gradients
from tabular.deep.replay import Transitions

Array = np.ndarray


def gradient_steps(
    network: nn.Sequential,
    target: nn.Sequential,
    optimizer: FlatAdam,
    batches: Transitions,
    *,
    double: bool,
    loss: str,
    max_grad_norm: float | int,
) -> tuple[list[float], list[float]]:
    """One gradient step on each of K batches [K, B, ...], with the target network fixed.

    Returns:
        The loss and the mean size of the TD errors of each batch.
    """
    obs = batches.obs.numpy()
    next_obs = batches.next_obs.numpy()
    actions = batches.actions.numpy()
    rewards = batches.rewards.numpy()
    discounts = batches.discounts.numpy()
    # After the last step of an episode no action needs to be legal.
    legal = batches.next_masks.numpy() | (discounts == 0)[..., None]
    # The target network does not change in between: its values of all batches at once, in pieces that fit the cache.
    pieces = np.array_split(next_obs, -(-len(next_obs) // 8))
    target_q = np.concatenate([q_values_of(target, piece) for piece in pieces])
    targets = target_values(target_q, target_q, rewards, discounts, legal)
    rows = np.arange(obs.shape[1])
    losses, sizes = [], []
    for k in range(len(obs)):
        if double:
            online_q = q_values_of(network, next_obs[k])
            targets[k] = target_values(online_q, target_q[k], rewards[k], discounts[k], legal[k])
        optimizer.zero_grad()
        q_values, backward = forward(network, obs[k])
        errors = q_values[rows, actions[k]] - targets[k]
        # The derivative of the loss: of error^2 / 2 the error, of Huber's loss the error clipped to [-1, 1].
        slopes = np.clip(errors, -1, 1) if loss == "huber" else errors
        gradient = np.zeros_like(q_values)
        gradient[rows, actions[k]] = slopes / len(rows)
        backward(gradient)
        clip_gradients(optimizer, max_grad_norm)
        optimizer.step()
        losses.append(float((slopes * (errors - 0.5 * slopes)).mean()))
        sizes.append(float(np.abs(errors).mean()))
    return losses, sizes


def target_values(
    chooser_q: Float[Array, "*batch A"],
    target_q: Float[Array, "*batch A"],
    rewards: Float[Array, "*batch"],
    discounts: Float[Array, "*batch"],
    legal: Bool[Array, "*batch A"],
) -> Float[Array, "*batch"]:
    """`r + discount Q_target(s', argmax_a chooser_q(s', a))` over legal actions."""
    actions = best_action(chooser_q, legal)
    next_q = np.take_along_axis(target_q, actions[..., None], -1)[..., 0]
    return rewards + discounts * next_q


def best_action(q_values: Float[Array, "*batch A"], legal: Bool[Array, "*batch A"] | None) -> Int[Array, "*batch"]:
    """The first legal action of the highest value; `legal` is None if all are. Raises ValueError where none is."""
    if legal is None:
        return q_values.argmax(-1)
    if not legal.any(-1).all():
        raise ValueError("action_mask allows no action in some state")
    return np.where(legal, q_values, -np.inf).argmax(-1)


def q_values_of(network: nn.Sequential, obs: Array) -> Array:
    """A Q-network's values, without a graph: [..., A]. Of a single `FusedMLP` without PyTorch's overhead."""
    if len(network) == 1 and isinstance(mlp := network[0], FusedMLP):
        return mlp.outputs(obs)[-1]
    with torch.no_grad():
        return network(torch.from_numpy(obs)).numpy()


def forward(network: nn.Sequential, obs: Array) -> tuple[Array, Callable[[Array], None]]:
    """A Q-network's values [B, A], and the backward pass: a function from the gradient in the values that writes the
    gradients of the weights to their `.grad`, which must be 0 before.

    Of a single `FusedMLP` without PyTorch's graph, which takes as long as small layers.
    """
    if len(network) == 1 and isinstance(mlp := network[0], FusedMLP):
        outputs = mlp.outputs(obs)
        return outputs[-1], lambda grad: mlp.write_gradients(outputs, grad)
    values = network(torch.from_numpy(obs))
    return values.detach().numpy(), lambda grad: values.backward(torch.from_numpy(grad))
