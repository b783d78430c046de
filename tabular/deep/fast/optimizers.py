"""Adam and RMSProp on all weights of a module as one vector [P], with the interface of `torch.optim`.

The arithmetic is that of `torch.optim`; what is left out is the bookkeeping per parameter, which takes longer than the
update itself in a network of two small layers.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam


class FlatAdam:
    """`w -= lr m' / (sqrt(v') + eps)`, `m'` and `v'` the bias-corrected moments. Kingma & Ba (2015), algorithm 1."""

    def __init__(
        self, module: nn.Module, lr: float | int, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        self.weights = flatten_parameters(module)
        self.param_groups: list[dict[str, Any]] = [{"params": [self.weights], "lr": lr}]
        self.betas = betas
        self.eps = eps
        self.mean = torch.zeros_like(self.weights.data)
        self.square = torch.zeros_like(self.weights.data)
        self.n_steps = torch.zeros(())

    def zero_grad(self) -> None:
        gradient_of(self.weights).zero_()

    @torch.no_grad()
    def step(self) -> None:
        beta1, beta2 = self.betas
        adam(
            [self.weights],
            [gradient_of(self.weights)],
            exp_avgs=[self.mean],
            exp_avg_sqs=[self.square],
            max_exp_avg_sqs=[],
            state_steps=[self.n_steps],
            fused=True,
            lr=self.param_groups[0]["lr"],
            beta1=beta1,
            beta2=beta2,
            eps=self.eps,
            weight_decay=0.0,
            amsgrad=False,
            maximize=False,
        )

    def state_dict(self) -> dict[str, Any]:
        lr = self.param_groups[0]["lr"]
        return {"mean": self.mean, "square": self.square, "n_steps": self.n_steps, "lr": lr}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean.copy_(state["mean"])
        self.square.copy_(state["square"])
        self.n_steps.copy_(state["n_steps"])
        self.param_groups[0]["lr"] = state["lr"]


class FlatRMSProp:
    """`w -= lr g / (sqrt(s) + eps)`, `s` the running mean of `g^2`. Tieleman & Hinton (2012); as in A3C."""

    def __init__(self, module: nn.Module, lr: float | int, alpha: float = 0.99, eps: float = 1e-8) -> None:
        self.weights = flatten_parameters(module)
        self.param_groups: list[dict[str, Any]] = [{"params": [self.weights], "lr": lr}]
        self.alpha = alpha
        self.eps = eps
        self.square = torch.zeros_like(self.weights.data)

    def zero_grad(self) -> None:
        gradient_of(self.weights).zero_()

    @torch.no_grad()
    def step(self) -> None:
        gradient = gradient_of(self.weights)
        self.square.mul_(self.alpha).addcmul_(gradient, gradient, value=1 - self.alpha)
        self.weights.addcdiv_(gradient, self.square.sqrt().add_(self.eps), value=-self.param_groups[0]["lr"])

    def state_dict(self) -> dict[str, Any]:
        return {"square": self.square, "lr": self.param_groups[0]["lr"]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.square.copy_(state["square"])
        self.param_groups[0]["lr"] = state["lr"]


def flatten_parameters(module: nn.Module) -> nn.Parameter:
    """Move all weights of a module, and their gradients, into one vector [P]; the module's parameters become views.

    Clear gradients with `vector.grad.zero_()`: setting them to None would detach the views.
    """
    parameters = list(module.parameters())
    sizes = [parameter.numel() for parameter in parameters]
    vector = nn.Parameter(torch.cat([parameter.detach().flatten() for parameter in parameters]))
    vector.grad = torch.zeros_like(vector)
    views = zip(parameters, vector.data.split(sizes), vector.grad.split(sizes), strict=True)
    for parameter, weights, gradient in views:
        parameter.data = weights.view_as(parameter)
        parameter.grad = gradient.view_as(parameter)
    return vector


def gradient_of(weights: nn.Parameter) -> Tensor:
    """The gradient of weights that come from `flatten_parameters`."""
    assert weights.grad is not None, "flatten_parameters creates the gradient"
    return weights.grad
