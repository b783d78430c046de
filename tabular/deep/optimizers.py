"""Gradient clipping and learning rates, for PyTorch's optimizers and for those of `tabular.deep.fast`."""

import math
from typing import Any, Protocol, runtime_checkable


@runtime_checkable
class Optimizer(Protocol):
    """The part of `torch.optim.Optimizer` that is used here."""

    param_groups: list[dict[str, Any]]


def clip_gradients(optimizer: Optimizer, max_norm: float | int) -> float:
    """Scale the gradient of all of an optimizer's parameters down to a norm of at most `max_norm`.

    Pascanu et al. (2013), arXiv 1211.5063.

    Returns:
        The norm before clipping.

    Raises:
        ValueError: for a norm that is not finite: learning has diverged.
    """
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = math.hypot(*(float(gradient.norm()) for gradient in gradients))
    if not norm < math.inf:
        raise ValueError(f"learning has diverged: the gradient's norm is {norm}; use a smaller learning rate")
    if norm > max_norm:
        for gradient in gradients:
            gradient.mul_(max_norm / norm)
    return norm


def set_learning_rate(optimizer: Optimizer, lr: float) -> None:
    """Set the learning rate of all of an optimizer's parameters."""
    for group in optimizer.param_groups:
        group["lr"] = lr
