"""Small networks in plain PyTorch: layers for every observation space, and heads for policies and values.

Weights are drawn from the `generator` argument, so that the same seed gives the same network whatever else draws random
numbers. Initialisation as in Andrychowicz et al. (2020), arXiv 2006.05990: orthogonal with gain sqrt 2 in hidden
layers, 0.01 in a policy's head (which begins almost uniform) and 1 in a value's head. Q-networks use PyTorch's own.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor, nn

HIDDEN_GAIN = math.sqrt(2)
POLICY_GAIN = 0.01
VALUE_GAIN = 1.0

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


def linear(n_in: int, n_out: int, gain: float | None, generator: torch.Generator) -> nn.Linear:
    """A linear layer with orthogonal weights times `gain` and zero biases.

    Args:
        gain: None for PyTorch's default, uniform in +-1 / sqrt(n_in). Values that are learned by bootstrapping do
            better from these smaller weights: a large initial value becomes its own target.
    """
    layer: Any = nn.utils.skip_init(nn.Linear, n_in, n_out)
    if gain is None:
        for parameter in (layer.weight, layer.bias):
            nn.init.uniform_(parameter, -(n_in**-0.5), n_in**-0.5, generator=generator)
        return layer
    nn.init.orthogonal_(layer.weight, gain, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def hidden_layers(
    sizes: Sequence[int], activation: str, gain: float | None, generator: torch.Generator
) -> list[nn.Module]:
    """The hidden layers of an MLP, `[..., sizes[0]] -> [..., sizes[-1]]`: an activation after each linear layer."""
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(sizes):
        layers += [linear(n_in, n_out, gain, generator), ACTIVATIONS[activation]()]
    return layers


class CNN(nn.Module):
    """Features of images: bytes `[..., H, W, C]` -> `[..., n_features]`.

    From 36 pixels a side the three convolutions of Mnih et al. (2015); for smaller images, such as mazes of a few
    cells, two convolutions of 3 x 3 that keep the size.
    """

    def __init__(self, shape: tuple[int, int, int], n_features: int, generator: torch.Generator) -> None:
        super().__init__()
        height, width, channels = shape
        # (filters, kernel, stride, padding)
        atari = [(32, 8, 4, 0), (64, 4, 2, 0), (64, 3, 1, 0)]
        small = [(16, 3, 1, 1), (32, 3, 1, 1)]
        layers: list[nn.Module] = []
        n_in = channels
        for filters, kernel, stride, padding in atari if min(height, width) >= 36 else small:
            layer: Any = nn.utils.skip_init(nn.Conv2d, n_in, filters, kernel, stride=stride, padding=padding)
            nn.init.orthogonal_(layer.weight, HIDDEN_GAIN, generator=generator)
            nn.init.zeros_(layer.bias)
            layers += [layer, nn.ReLU()]
            n_in = filters
        layers.append(nn.Flatten())
        with torch.no_grad():
            n_flat = nn.Sequential(*layers)(torch.zeros(1, channels, height, width)).shape[1]
        self.layers = nn.Sequential(*layers, linear(n_flat, n_features, HIDDEN_GAIN, generator), nn.ReLU())

    def forward(self, images: Tensor) -> Float[Tensor, "*batch F"]:
        *batch, height, width, channels = images.shape
        pixels = images.reshape(-1, height, width, channels).movedim(-1, 1).float() / 255
        return self.layers(pixels).view(*batch, -1)


class FlattenObservation(nn.Module):
    """The last `n_axes` axes flattened to one, as floats."""

    def __init__(self, n_axes: int) -> None:
        super().__init__()
        self.n_axes = n_axes

    def forward(self, x: Tensor) -> Float[Tensor, "*batch D"]:
        return x.float().flatten(-self.n_axes) if self.n_axes else x.float()[..., None]


class OneHot(nn.Module):
    """Indices `[...]`, counted from `start`, as one-hot rows `[..., n]`."""

    def __init__(self, n: int, start: int) -> None:
        super().__init__()
        self.n = n
        self.start = start

    def forward(self, indices: Tensor) -> Float[Tensor, "*batch n"]:
        return F.one_hot(indices - self.start, self.n).float()


def feature_layers(
    space: gym.Space,
    hidden: Sequence[int],
    activation: str,
    generator: torch.Generator,
    gain: float | None = HIDDEN_GAIN,
) -> list[nn.Module]:
    """The layers from observations `[..., obs]` of a space to features `[..., hidden[-1]]`.

    Vectors and indices (as one-hot rows) go through an MLP; images `[H, W, C]` of bytes through a CNN with `hidden[0]`
    features and then an MLP.

    Raises:
        ValueError: for other spaces, and if `hidden` names no layer.
    """
    if not hidden or min(hidden) < 1:
        raise ValueError(f"hidden is {tuple(hidden)}, but must name at least one layer of at least 1 unit")
    if isinstance(space, spaces.Box) and len(space.shape) == 3 and space.dtype == "uint8":
        height, width, channels = space.shape
        cnn = CNN((height, width, channels), hidden[0], generator)
        return [cnn, *hidden_layers(hidden, activation, gain, generator)]
    if isinstance(space, spaces.Box | spaces.MultiBinary):
        is_vector = len(space.shape) == 1 and np.issubdtype(space.dtype, np.floating)
        to_vector = [] if is_vector else [FlattenObservation(len(space.shape))]
        sizes = [math.prod(space.shape), *hidden]
        return [*to_vector, *hidden_layers(sizes, activation, gain, generator)]
    if isinstance(space, spaces.Discrete):
        n = int(space.n)
        return [OneHot(n, int(space.start)), *hidden_layers([n, *hidden], activation, gain, generator)]
    raise ValueError(
        f"the observation space is {space}, but must be Box, MultiBinary or Discrete; "
        "gymnasium.wrappers.FlattenObservation converts most others to a Box"
    )


class ActorCriticNetwork(nn.Module):
    """`actor`: observations [..., obs] -> parameters [..., P] of a policy of `policies.py`; `critic`: -> values [...].

    Args:
        policy: knows the number of its parameters, and the layers that complete them.
        shared: False gives the actor and the critic separate networks. True gives both heads the same hidden layers,
            so that a gradient step on the value loss changes the policy too.
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
        actor_layers = feature_layers(space, hidden, "tanh", generator)
        if shared:
            actor_layers = [nn.Sequential(*actor_layers)]
        policy_head = linear(hidden[-1], policy.n_outputs, POLICY_GAIN, generator)
        critic_layers = actor_layers if shared else feature_layers(space, hidden, "tanh", generator)
        value_head = linear(hidden[-1], 1, VALUE_GAIN, generator)
        self.actor = nn.Sequential(*actor_layers, policy_head, *policy.extra_layers())
        self.critic = nn.Sequential(*critic_layers, value_head, nn.Flatten(-2))  # [..., 1] -> [...]


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
    layers = feature_layers(space, hidden, "relu", generator, gain=None)
    if dueling:
        return nn.Sequential(*layers, DuelingHead(hidden[-1], n_actions, generator))
    return nn.Sequential(*layers, linear(hidden[-1], n_actions, None, generator))
