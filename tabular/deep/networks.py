"""Small networks: features of an observation, then heads for policies, values and action values.

Weights are orthogonal and drawn from a generator of their own, so that the same seed gives the same network whatever
else draws numbers. Gains as in Andrychowicz et al. (2020), arXiv 2006.05990: sqrt 2 inside, 0.01 for a policy's head
(which begins almost uniform), 1 for a value's. Q-networks begin with PyTorch's own.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Array = np.ndarray

POLICY_GAIN = 0.01

ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "tanh": (lambda x: np.tanh(x, out=x), lambda y: 1 - y * y),
    "relu": (lambda x: np.maximum(x, 0, out=x), lambda y: y > 0),
}
"""Name -> the function, in place, and its derivative as a function of its value."""


def linear(n_in: int, n_out: int, gain: float | int | None, generator: torch.Generator) -> nn.Linear:
    """A layer with orthogonal weights times `gain` and no bias to begin with; None: PyTorch's own small uniform ones.

    Values that are learnt by bootstrapping do better from small ones: a large first guess is its own target.
    """
    layer: Any = nn.utils.skip_init(nn.Linear, n_in, n_out)
    if gain is None:
        for parameter in (layer.weight, layer.bias):
            nn.init.uniform_(parameter, -(n_in**-0.5), n_in**-0.5, generator=generator)
        return layer
    nn.init.orthogonal_(layer.weight, gain, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


class MLP(nn.Module):
    """Hidden layers `[..., sizes[0]] -> [..., sizes[-1]]`: `y = f(x W^T + b)`, with the activation after each of them,
    and after them a linear one of `n_outputs` where that is given.

    All weights are one vector, and the whole is one node of PyTorch's graph, computed by numpy with the backward pass
    written out: in a small network on a CPU more than half the time of both passes is otherwise spent between the
    operations, and numpy's tanh is ten times as quick. First derivatives only, backwards or (for Fisher-vector
    products) forwards.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        activation: str,
        generator: torch.Generator,
        n_outputs: int | None = None,
        gain: float | None = math.sqrt(2),
        output_gain: float | int | None = 1,
    ) -> None:
        super().__init__()
        kinds = [(activation, gain)] * (len(sizes) - 1)
        if n_outputs is not None:
            sizes, kinds = [*sizes, n_outputs], [*kinds, ("none", output_gain)]
        pairs = zip(itertools.pairwise(sizes), kinds, strict=True)
        layers: list[Any] = [linear(n_in, n_out, gain, generator) for (n_in, n_out), (_, gain) in pairs]
        self.plan = LayerPlan([name for name, _ in kinds], sizes)
        self.weights = nn.Parameter(nn.utils.parameters_to_vector([p for x in layers for p in (x.weight, x.bias)]))

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch F"]:
        if torch.is_grad_enabled():
            return _Layers.apply(x, self.plan, self.weights)  # pyright: ignore[reportReturnType]
        return torch.from_numpy(self.layers(x.numpy())[-1])

    def layers(self, x: Array) -> list[Array]:
        """The input, and what each layer makes of it."""
        return self.plan.forward(x, self.weights.detach().numpy())

    def write_gradients(self, outputs: list[Array], grad: Array) -> None:
        """What a loss with the gradient `grad` in the last of `outputs` means for the weights, into their `.grad`."""
        found: Any = self.weights.grad
        self.plan.backward(outputs, self.weights.detach().numpy(), grad, found.numpy())


class LayerPlan:
    """The layers of an MLP as functions of its input and of the vector of its weights: W and b of each in turn."""

    def __init__(self, activations: Sequence[str], sizes: Sequence[int]) -> None:
        self.activations, self.sizes = list(activations), list(sizes)
        self.places: list[tuple[slice, slice, tuple[int, int]]] = []
        start = 0
        for n_in, n_out in itertools.pairwise(sizes):
            middle, end = start + n_out * n_in, start + n_out * n_in + n_out
            self.places.append((slice(start, middle), slice(middle, end), (n_out, n_in)))
            start = end

    def split(self, vector: Array) -> list[tuple[Array, Array]]:
        """W [out, in] and b [out] of each layer, as views of the vector."""
        return [(vector[weight].reshape(shape), vector[bias]) for weight, bias, shape in self.places]

    def forward(self, x: Array, weights: Array) -> list[Array]:
        """The input, and what each layer makes of it."""
        outputs = [x]
        for name, (weight, bias) in zip(self.activations, self.split(weights), strict=True):
            x = x @ weight.T
            x += bias
            outputs.append(ACTIVATIONS[name][0](x) if name != "none" else x)
        return outputs

    def backward(
        self, outputs: Sequence[Array], weights: Array, grad: Array, found: Array, of_input: bool = False
    ) -> Array | None:
        """From the gradient in the last layer's output that in all weights, written to `found`, and that in the input
        where it is asked for."""
        layers, gradients = self.split(weights), self.split(found)
        for i in reversed(range(len(layers))):
            x, y = outputs[i], outputs[i + 1]
            if self.activations[i] != "none":
                grad = grad * ACTIVATIONS[self.activations[i]][1](y)
            grad = grad.reshape(-1, y.shape[-1])
            np.matmul(grad.T, x.reshape(-1, x.shape[-1]), out=gradients[i][0])
            np.matmul(np.ones(len(grad), grad.dtype), grad, out=gradients[i][1])  # quicker than a sum over rows
            if i > 0 or of_input:
                weight = layers[i][0]
                grad = (grad @ weight if len(weight) > 1 else grad * weight).reshape(x.shape)
        return grad if of_input else None

    def tangent(self, outputs: Sequence[Array], weights: Array, d_x: Array | None, d_weights: Array) -> Array:
        """What a small step of the input (None: no step) and one of the weights do to the last layer's output."""
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


class _Layers(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, plan: LayerPlan, weights: Tensor) -> Tensor:
        ctx.plan, ctx.weights = plan, weights.numpy()
        ctx.outputs = plan.forward(x.numpy(), ctx.weights)
        return torch.from_numpy(ctx.outputs[-1])

    @staticmethod
    @once_differentiable
    def backward(ctx, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        found, of_input = np.empty_like(ctx.weights), ctx.needs_input_grad[0]
        grad = ctx.plan.backward(ctx.outputs, ctx.weights, grad_outputs[0].numpy(), found, of_input)
        return None if grad is None else torch.from_numpy(grad), None, torch.from_numpy(found)

    @staticmethod
    def jvp(ctx, *tangents: Any) -> Tensor:
        d_x, _, d_weights = tangents
        d_x = None if d_x is None else d_x.numpy()
        return torch.from_numpy(ctx.plan.tangent(ctx.outputs, ctx.weights, d_x, d_weights.numpy()))


class CNN(nn.Module):
    """Features of images `[..., H, W, C]` of bytes.

    From 36 pixels a side the three layers of Mnih et al. (2015); below it two layers of 3 x 3 that keep the size, for
    mazes of a few cells.
    """

    def __init__(self, shape: tuple[int, int, int], n_features: int, generator: torch.Generator) -> None:
        super().__init__()
        large = min(shape[:2]) >= 36
        # (channels, kernel, stride, padding)
        plan = [(32, 8, 4, 0), (64, 4, 2, 0), (64, 3, 1, 0)] if large else [(16, 3, 1, 1), (32, 3, 1, 1)]
        layers, channels = [], shape[2]
        for width, kernel, stride, padding in plan:
            layer: Any = nn.utils.skip_init(nn.Conv2d, channels, width, kernel, stride=stride, padding=padding)
            nn.init.orthogonal_(layer.weight, math.sqrt(2), generator=generator)
            nn.init.zeros_(layer.bias)
            layers += [layer, nn.ReLU()]
            channels = width
        self.layers = nn.Sequential(*layers, nn.Flatten())
        with torch.no_grad():
            n_flat = self.layers(torch.zeros(1, shape[2], *shape[:2])).shape[1]
        self.head = MLP([n_flat, n_features], "relu", generator)

    def forward(self, images: Tensor) -> Float[Tensor, "*batch F"]:
        *batch, height, width, channels = images.shape
        pixels = images.reshape(-1, height, width, channels).movedim(-1, 1).float() / 255
        return self.head(self.layers(pixels)).view(*batch, -1)


class AsVector(nn.Module):
    """The last `n_axes` axes as one, in floats."""

    def __init__(self, n_axes: int) -> None:
        super().__init__()
        self.n_axes = n_axes

    def forward(self, x: Tensor) -> Float[Tensor, "*batch D"]:
        return x.float().flatten(-self.n_axes) if self.n_axes else x.float()[..., None]


class OneHot(nn.Module):
    """Indices `[...]`, counted from `start`, as rows `[..., n]` with a single 1."""

    def __init__(self, n: int, start: int) -> None:
        super().__init__()
        self.n, self.start = n, start

    def forward(self, indices: Tensor) -> Float[Tensor, "*batch n"]:
        return F.one_hot(indices - self.start, self.n).float()


def torso(
    space: gym.Space,
    hidden: Sequence[int],
    activation: str,
    generator: torch.Generator,
    n_outputs: int | None = None,
    gain: float | None = math.sqrt(2),
    output_gain: float | int | None = 1,
) -> tuple[nn.Sequential, int]:
    """A network from observations of a space to features (or to `n_outputs` linear functions of them), and the
    features' number.

    Vectors and indices (as one-hot rows) go through an MLP, images `[H, W, C]` of bytes through a CNN. Raises
    ValueError for other spaces.
    """
    if not hidden or min(hidden) < 1:
        raise ValueError(f"hidden must name at least one layer of at least 1 unit, got {tuple(hidden)}")
    rest: Any = activation, generator, n_outputs, gain, output_gain
    if isinstance(space, spaces.Box) and len(space.shape) == 3 and space.dtype == "uint8":
        cnn = CNN((space.shape[0], space.shape[1], space.shape[2]), hidden[0], generator)
        return nn.Sequential(cnn, MLP(hidden, *rest)), hidden[-1]
    if isinstance(space, spaces.Box | spaces.MultiBinary):
        is_vector = len(space.shape) == 1 and np.issubdtype(space.dtype, np.floating)
        vector = [] if is_vector else [AsVector(len(space.shape))]
        sizes = [math.prod(space.shape), *hidden]
        return nn.Sequential(*vector, MLP(sizes, *rest)), hidden[-1]
    if isinstance(space, spaces.Discrete):
        n = int(space.n)
        return nn.Sequential(OneHot(n, int(space.start)), MLP([n, *hidden], *rest)), hidden[-1]
    raise ValueError(
        f"observations must be a Box, MultiBinary or Discrete space, got {space}; "
        "gymnasium.wrappers.FlattenObservation makes a Box of most others"
    )


class ActorCritic(nn.Module):
    """`actor`: observations [..., obs] -> the parameters [..., P] of a policy of `policies`; `critic`: -> values [...].

    Two separate trunks, unless `shared`: then both heads stand on the same features, and a step of the critic moves
    the policy too.
    """

    def __init__(
        self,
        space: gym.Space,
        policy: Any,
        hidden: Sequence[int],
        generator: torch.Generator,
        shared: bool = False,
    ) -> None:
        super().__init__()
        heads = {"n_outputs": policy.n_outputs, "output_gain": POLICY_GAIN}, {"n_outputs": 1, "output_gain": 1}
        if shared:
            trunk, n_features = torso(space, hidden, "tanh", generator)
            actor, critic = ([*trunk, MLP([n_features], "tanh", generator, **head)] for head in heads)
        else:
            actor, critic = (torso(space, hidden, "tanh", generator, **head)[0] for head in heads)
        self.actor = nn.Sequential(*actor, *policy.make_tail())
        self.critic = nn.Sequential(*critic, nn.Flatten(-2))


class DuelingHead(nn.Module):
    """`Q(s, a) = V(s) + A(s, a) - mean_a A(s, a)`. Wang et al. (2016), arXiv 1511.06581, eq. 9."""

    def __init__(self, n_features: int, n_actions: int, generator: torch.Generator) -> None:
        super().__init__()
        self.value = linear(n_features, 1, None, generator)
        self.advantages = linear(n_features, n_actions, None, generator)

    def forward(self, features: Float[Tensor, "*batch F"]) -> Float[Tensor, "*batch A"]:
        advantages = self.advantages(features)
        return self.value(features) + advantages - advantages.mean(-1, keepdim=True)


def q_network(
    space: gym.Space, n_actions: int, hidden: Sequence[int], dueling: bool, generator: torch.Generator
) -> nn.Sequential:
    """Observations [..., obs] -> action values [..., A], with one linear head or a dueling one."""
    n_outputs = None if dueling else n_actions
    trunk, n_features = torso(space, hidden, "relu", generator, n_outputs, gain=None, output_gain=None)
    return nn.Sequential(*trunk, DuelingHead(n_features, n_actions, generator)) if dueling else trunk


def values_of(network: nn.Sequential, obs: Array) -> Array:
    """A Q-network's values, without a graph: [..., A]. Of an MLP alone at numpy's cost, without PyTorch's."""
    if len(network) == 1 and isinstance(mlp := network[0], MLP):
        return mlp.layers(obs)[-1]
    with torch.no_grad():
        return network(torch.from_numpy(obs)).numpy()


def values_and_pullback(network: nn.Sequential, obs: Array) -> tuple[Array, Callable[[Array], None]]:
    """A Q-network's values, and what puts the gradients of its weights into their `.grad`, given the one in the values.

    The gradients must be 0 before. Of an MLP alone without PyTorch's graph, which takes as long as small layers.
    """
    if len(network) == 1 and isinstance(mlp := network[0], MLP):
        outputs = mlp.layers(obs)
        return outputs[-1], lambda grad: mlp.write_gradients(outputs, grad)
    values = network(torch.from_numpy(obs))
    return values.detach().numpy(), lambda grad: values.backward(torch.from_numpy(grad))
