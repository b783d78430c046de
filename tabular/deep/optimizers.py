"""Gradient steps on all weights of a network as one vector [P], with their gradients in `weights.grad`.

The same arithmetic as `torch.optim`'s, without what surrounds it there: that takes longer than the update of a network
of two small layers.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam


class Adam:
    """`w -= lr m' / (sqrt(v') + eps)`, `m'` and `v'` the bias-corrected moments. Kingma & Ba (2015), algorithm 1."""

    def __init__(
        self, weights: nn.Parameter, lr: float | int, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-5
    ) -> None:
        self.weights, self.lr, self.betas, self.eps = weights, lr, betas, eps
        self.mean, self.square, self.n_steps = (
            torch.zeros_like(weights.data),
            torch.zeros_like(weights.data),
            torch.zeros(()),
        )

    @torch.no_grad()
    def step(self) -> None:
        (beta_1, beta_2), gradient = self.betas, _gradient(self.weights)
        adam(
            [self.weights], [gradient], [self.mean], [self.square], [], [self.n_steps],
            fused=True, lr=self.lr, beta1=beta_1, beta2=beta_2, eps=self.eps, weight_decay=0.0, amsgrad=False,
            maximize=False,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "square": self.square, "n_steps": self.n_steps, "lr": self.lr}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("mean", "square", "n_steps"):
            getattr(self, name).copy_(state[name])
        self.lr = state["lr"]


class RMSProp:
    """`w -= lr g / (sqrt(s) + eps)`, `s` the running mean of `g^2`. Tieleman & Hinton (2012); A2C's since A3C."""

    def __init__(self, weights: nn.Parameter, lr: float | int, decay: float = 0.99, eps: float = 1e-5) -> None:
        self.weights, self.lr, self.decay, self.eps = weights, lr, decay, eps
        self.square = torch.zeros_like(weights.data)

    @torch.no_grad()
    def step(self) -> None:
        gradient = _gradient(self.weights)
        self.square.mul_(self.decay).addcmul_(gradient, gradient, value=1 - self.decay)
        self.weights.addcdiv_(gradient, self.square.sqrt().add_(self.eps), value=-self.lr)

    def state_dict(self) -> dict[str, Any]:
        return {"square": self.square, "lr": self.lr}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.square.copy_(state["square"])
        self.lr = state["lr"]


def flatten_parameters(module: nn.Module) -> nn.Parameter:
    """Moves all weights of a module, and their gradients, into one vector [P], of which they become views.

    Clear gradients with `vector.grad.zero_()`: setting them to None would cut the views off.
    """
    parameters = list(module.parameters())
    sizes = [parameter.numel() for parameter in parameters]
    vector = nn.Parameter(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    vector.grad = torch.zeros_like(vector)
    views = zip(parameters, vector.data.split(sizes), vector.grad.split(sizes), strict=True)
    for parameter, weights, gradient in views:
        parameter.data, parameter.grad = weights.view_as(parameter), gradient.view_as(parameter)
    return vector


def descend(loss: Tensor, weights: nn.Parameter, optimizer: Adam | RMSProp, max_norm: float | int) -> float:
    """One step down a loss, its gradient scaled to a norm of at most `max_norm`; returns the norm it had.

    Pascanu et al. (2013), arXiv 1211.5063.
    """
    _gradient(weights).zero_()
    loss.backward()
    return take_step(weights, optimizer, max_norm)


def take_step(weights: nn.Parameter, optimizer: Adam | RMSProp, max_norm: float | int) -> float:
    """`descend`, once the gradient is there. Raises ValueError, and changes nothing, for one that is not finite."""
    gradient = _gradient(weights)
    norm = float(gradient.norm())
    if not norm < float("inf"):
        raise ValueError(f"learning has diverged: the gradient's norm is {norm}; take a smaller learning rate")
    if norm > max_norm:
        gradient.mul_(max_norm / norm)
    optimizer.step()
    return norm


def _gradient(weights: nn.Parameter) -> Tensor:
    assert weights.grad is not None, "weights come from flatten_parameters, which gives them a gradient"
    return weights.grad
