"""MLPs as one node of PyTorch's graph, with forward, backward and tangent passes in numpy.

`fuse(network)` replaces the `nn.Linear`, `nn.Tanh` and `nn.ReLU` layers of a network by `FusedMLP`s with the same
weights; outputs and gradients agree to rounding. In a small network on a CPU more than half of the time of both passes
is otherwise spent between PyTorch's operations, and numpy's tanh is ten times as fast. Only first derivatives exist:
backward, and forward mode for Fisher-vector products.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Array = np.ndarray

ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "tanh": (lambda x: np.tanh(x, out=x), lambda y: 1 - y * y),
    "relu": (lambda x: np.maximum(x, 0, out=x), lambda y: y > 0),
}
"""Name -> the function, applied in place, and its derivative as a function of its value."""

ACTIVATION_NAMES = {nn.Tanh: "tanh", nn.ReLU: "relu"}


def fuse(network: nn.Module) -> None:
    """Replace each run of linear layers and activations in the `nn.Sequential`s of a network by a `FusedMLP`, in place.

    An `nn.Sequential` that two networks share stays shared. Linear layers outside of `nn.Sequential`s are not changed.
    """
    for sequential in [module for module in network.modules() if isinstance(module, nn.Sequential)]:
        layers = list(sequential)
        sequential._modules.clear()
        for i, layer in enumerate(_fuse_runs(layers)):
            sequential.add_module(str(i), layer)


def _fuse_runs(layers: Sequence[nn.Module]) -> list[nn.Module]:
    fused: list[nn.Module] = []
    run: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, nn.Linear) or (run and type(layer) in ACTIVATION_NAMES):
            run.append(layer)
            continue
        if run:
            fused.append(FusedMLP(run))
            run = []
        fused.append(layer)
    return [*fused, FusedMLP(run)] if run else fused


class FusedMLP(nn.Module):
    """The same function as `nn.Sequential(*layers)` for `nn.Linear`, `nn.Tanh` and `nn.ReLU` layers, beginning with a
    linear one. All weights are one vector [P]: W and b of each layer in turn."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
        following = [ACTIVATION_NAMES.get(type(layer), "none") for layer in [*layers[1:], nn.Identity()]]
        activations = [
            name for layer, name in zip(layers, following, strict=True) if isinstance(layer, nn.Linear)
        ]  # fmt: skip
        sizes = [linears[0].in_features, *(layer.out_features for layer in linears)]
        self.passes = MLPPasses(activations, sizes)
        parameters = [parameter for layer in linears for parameter in (layer.weight, layer.bias)]
        self.weights = nn.Parameter(nn.utils.parameters_to_vector(parameters).detach())

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch F"]:
        if torch.is_grad_enabled():
            return _Node.apply(x, self.passes, self.weights)  # pyright: ignore[reportReturnType]
        return torch.from_numpy(self.outputs(x.numpy())[-1])

    def outputs(self, x: Array) -> list[Array]:
        """The input, and the output of each layer."""
        return self.passes.forward(x, self.weights.detach().numpy())

    def write_gradients(self, outputs: list[Array], grad: Array) -> None:
        """Write the gradient of the weights to their `.grad`, for a loss with the gradient `grad` in the last of
        `outputs`."""
        gradients: Any = self.weights.grad
        self.passes.backward(outputs, self.weights.detach().numpy(), grad, gradients.numpy())


class MLPPasses:
    """Forward, backward and tangent pass of an MLP, as functions of its input and its vector of weights."""

    def __init__(self, activations: Sequence[str], sizes: Sequence[int]) -> None:
        self.activations = list(activations)
        self.sizes = list(sizes)
        self.slices: list[tuple[slice, slice, tuple[int, int]]] = []
        "for each layer the entries of W, those of b, and the shape of W"
        start = 0
        for n_in, n_out in itertools.pairwise(sizes):
            middle = start + n_out * n_in
            end = middle + n_out
            self.slices.append((slice(start, middle), slice(middle, end), (n_out, n_in)))
            start = end

    def split(self, vector: Array) -> list[tuple[Array, Array]]:
        """W [out, in] and b [out] of each layer, as views of the vector."""
        return [(vector[weight].reshape(shape), vector[bias]) for weight, bias, shape in self.slices]

    def forward(self, x: Array, weights: Array) -> list[Array]:
        """The input, and the output of each layer: `y = f(x W^T + b)`."""
        outputs = [x]
        for name, (weight, bias) in zip(self.activations, self.split(weights), strict=True):
            x = x @ weight.T
            x += bias
            outputs.append(ACTIVATIONS[name][0](x) if name != "none" else x)
        return outputs

    def backward(
        self, outputs: Sequence[Array], weights: Array, grad: Array, grad_weights: Array, needs_input_grad: bool = False
    ) -> Array | None:
        """Write the gradient of all weights to `grad_weights`.

        Args:
            outputs: of `forward`.
            grad: the gradient of the loss in the last layer's output.
            needs_input_grad: whether to return the gradient in the input as well; otherwise None is returned.
        """
        layers = self.split(weights)
        gradients = self.split(grad_weights)
        for i in reversed(range(len(layers))):
            x = outputs[i]
            y = outputs[i + 1]
            if self.activations[i] != "none":
                grad = grad * ACTIVATIONS[self.activations[i]][1](y)
            grad = grad.reshape(-1, y.shape[-1])
            np.matmul(grad.T, x.reshape(-1, x.shape[-1]), out=gradients[i][0])
            np.matmul(np.ones(len(grad), grad.dtype), grad, out=gradients[i][1])  # faster than a sum over rows
            if i > 0 or needs_input_grad:
                weight = layers[i][0]
                grad = (grad @ weight if len(weight) > 1 else grad * weight).reshape(x.shape)
        return grad if needs_input_grad else None

    def tangent(self, outputs: Sequence[Array], weights: Array, d_x: Array | None, d_weights: Array) -> Array:
        """The directional derivative of the last layer's output, along `d_x` (None: 0) and `d_weights`."""
        layers = zip(self.split(weights), self.split(d_weights), strict=True)
        for i, ((weight, _), (d_weight, d_bias)) in enumerate(layers):
            d_y = outputs[i] @ d_weight.T
            d_y += d_bias
            if d_x is not None:
                d_y += d_x @ weight.T
            if self.activations[i] != "none":
                d_y *= ACTIVATIONS[self.activations[i]][1](outputs[i + 1])
            d_x = d_y
        assert d_x is not None, "an MLP has a layer"
        return d_x


class _Node(torch.autograd.Function):
    """An MLP as one node of the graph, differentiable in its input and in its vector of weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, passes: MLPPasses, weights: Tensor) -> Tensor:
        ctx.passes = passes
        ctx.weights = weights.numpy()
        ctx.outputs = passes.forward(x.numpy(), ctx.weights)
        return torch.from_numpy(ctx.outputs[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad_weights = np.empty_like(ctx.weights)
        grad_x = ctx.passes.backward(
            ctx.outputs, ctx.weights, grad_outputs[0].numpy(), grad_weights, needs_input_grad=ctx.needs_input_grad[0]
        )
        return None if grad_x is None else torch.from_numpy(grad_x), None, torch.from_numpy(grad_weights)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        d_x, _, d_weights = tangents
        d_x = None if d_x is None else d_x.numpy()
        return torch.from_numpy(ctx.passes.tangent(ctx.outputs, ctx.weights, d_x, d_weights.numpy()))
