"""Products with the Fisher matrix of a policy, and conjugate gradients: what a natural gradient is computed from."""

from collections.abc import Callable
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call

MatrixProduct = Callable[[Float[Tensor, "P"]], Float[Tensor, "P"]]
"""`v -> A v` for a matrix A."""


def flat_gradient(y: Float[Tensor, ""], module: nn.Module) -> Float[Tensor, "P"]:
    """The gradient of a scalar in all weights of a module, as one vector. The graph is kept."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(y, list(module.parameters()), retain_graph=True)])


def fisher_product(
    actor: nn.Module,
    policy: Any,
    obs: Shaped[Tensor, "N T ..."],
    params: Float[Tensor, "N T D"],
    masks: Bool[Tensor, "N T A"] | None,
    damping: float | int,
) -> MatrixProduct:
    """`v -> (F + damping I) v`, `F` the mean Fisher matrix of the policy over a batch, which is never built.

    `F = J^T H J`, where `J` is the Jacobian of the policy's parameters `params = actor(obs)` in the weights, and `H`
    the Hessian of the mean `KL(old || new)` in these parameters at new = old, where the gradient of the KL is 0. `J v`
    is one forward-mode derivative, `J^T` one backward pass. Martens (2020), arXiv 1412.1193, section 9.
    """
    named = dict(actor.named_parameters())
    sizes = [parameter.numel() for parameter in named.values()]
    output = params.detach().requires_grad_()
    kl = policy.kl(params.detach(), output, masks).mean()
    (kl_gradient,) = torch.autograd.grad(kl, output, create_graph=True)

    def product(v: Float[Tensor, "P"]) -> Float[Tensor, "P"]:
        with forward_ad.dual_level():
            tangents = zip(named.items(), v.split(sizes), strict=True)
            duals = {name: forward_ad.make_dual(p, t.view_as(p)) for (name, p), t in tangents}
            jacobian_v = forward_ad.unpack_dual(functional_call(actor, duals, (obs,))).tangent
        (hessian_jacobian_v,) = torch.autograd.grad(kl_gradient, output, jacobian_v, retain_graph=True)
        parts = torch.autograd.grad(params, list(named.values()), hessian_jacobian_v, retain_graph=True)
        return torch.cat([part.flatten() for part in parts]) + damping * v

    return product


def conjugate_gradient(
    product: MatrixProduct, b: Float[Tensor, "P"], iterations: int, tolerance: float = 1e-10
) -> tuple[Float[Tensor, "P"], Float[Tensor, "P"]]:
    """An approximate solution of `A x = b` for a positive definite `A`. Hestenes & Stiefel (1952).

    Args:
        product: `v -> A v`.
        iterations: at most.
        tolerance: stop when the squared norm of the residual is at most this.

    Returns:
        `x` and its residual `b - A x`. The iteration starts at `x = 0`.
    """
    x = torch.zeros_like(b)
    residual = b.clone()
    direction = residual.clone()
    square = residual @ residual
    for _ in range(iterations):
        if square <= tolerance:
            break
        image = product(direction)
        step = square / (direction @ image)
        x += step * direction
        residual -= step * image
        old_square = square
        square = residual @ residual
        direction = residual + (square / old_square) * direction
    return x, residual
