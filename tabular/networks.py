"""Small networks: features of an observation, then heads for policies, values and action values.

Weights are orthogonal and drawn from a generator of their own, so that the same seed gives the same network whatever
else draws numbers. Gains as in Andrychowicz et al. (2020), arXiv 2006.05990: sqrt 2 inside, 0.01 for a policy's head
(which begins almost uniform), 1 for a value's.
"""

import math
from collections.abc import Callable, Sequence

import gymnasium as gym
import torch
import torch.nn.functional as F
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor, nn

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU}


def linear(n_in: int, n_out: int, gain: float | int, generator: torch.Generator) -> nn.Linear:
    """A layer with orthogonal weights times `gain` and no bias to begin with."""
    layer = nn.utils.skip_init(nn.Linear, n_in, n_out)
    nn.init.orthogonal_(layer.weight, gain, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def MLP(sizes: Sequence[int], activation: str, generator: torch.Generator) -> nn.Sequential:
    """`[..., sizes[0]] -> [..., sizes[-1]]`, with the activation after each layer, the last one included."""
    layers: list[nn.Module] = []
    for n_in, n_out in zip(sizes[:-1], sizes[1:], strict=True):
        layers += [linear(n_in, n_out, math.sqrt(2), generator), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)


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
            layer = nn.utils.skip_init(nn.Conv2d, channels, width, kernel, stride=stride, padding=padding)
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


class OneHot(nn.Module):
    """Indices `[...]`, counted from `start`, as rows `[..., n]` with a single 1."""

    def __init__(self, n: int, start: int) -> None:
        super().__init__()
        self.n, self.start = n, start

    def forward(self, indices: Tensor) -> Float[Tensor, "*batch n"]:
        return F.one_hot(indices - self.start, self.n).float()


def torso(
    space: gym.Space, hidden: Sequence[int], activation: str, generator: torch.Generator
) -> tuple[nn.Module, int]:
    """A network from observations of a space to features, and their number.

    Vectors and indices (as one-hot rows) go through an MLP, images `[H, W, C]` of bytes through a CNN. Raises
    ValueError for other spaces.
    """
    if not hidden or min(hidden) < 1:
        raise ValueError(f"hidden must name at least one layer of at least 1 unit, got {tuple(hidden)}")
    if isinstance(space, spaces.Box) and len(space.shape) == 3 and space.dtype == "uint8":
        cnn = CNN((space.shape[0], space.shape[1], space.shape[2]), hidden[0], generator)
        return nn.Sequential(cnn, *MLP(hidden, activation, generator)), hidden[-1]
    if isinstance(space, spaces.Box | spaces.MultiBinary):
        n_in = math.prod(space.shape)
        flatten = [] if len(space.shape) == 1 else [nn.Flatten(-len(space.shape)) if space.shape else nn.Unflatten(-1, (-1, 1))]
        return nn.Sequential(*flatten, *MLP([n_in, *hidden], activation, generator)), hidden[-1]
    if isinstance(space, spaces.Discrete):
        n = int(space.n)
        return nn.Sequential(OneHot(n, int(space.start)), *MLP([n, *hidden], activation, generator)), hidden[-1]
    raise ValueError(
        f"observations must be a Box, MultiBinary or Discrete space, got {space}; "
        "gymnasium.wrappers.FlattenObservation makes a Box of most others"
    )


class ActorCritic(nn.Module):
    """`actor`: observations [..., obs] -> the policy's parameters [..., P]; `critic`: -> values [...].

    Two separate trunks, unless `shared`: then both heads stand on the same features, and a step of the critic moves
    the policy too.
    """

    def __init__(
        self,
        space: gym.Space,
        make_head: Callable[[int, torch.Generator], nn.Module],
        hidden: Sequence[int],
        generator: torch.Generator,
        shared: bool = False,
    ) -> None:
        super().__init__()
        trunk, n_features = torso(space, hidden, "tanh", generator)
        self.actor = nn.Sequential(trunk, make_head(n_features, generator))
        if not shared:
            trunk, _ = torso(space, hidden, "tanh", generator)
        self.critic = nn.Sequential(trunk, linear(n_features, 1, 1, generator), nn.Flatten(-2))


class DuelingHead(nn.Module):
    """`Q(s, a) = V(s) + A(s, a) - mean_a A(s, a)`. Wang et al. (2016), arXiv 1511.06581, eq. 9."""

    def __init__(self, n_features: int, n_actions: int, generator: torch.Generator) -> None:
        super().__init__()
        self.value = linear(n_features, 1, 1, generator)
        self.advantages = linear(n_features, n_actions, 1, generator)

    def forward(self, features: Float[Tensor, "*batch F"]) -> Float[Tensor, "*batch A"]:
        advantages = self.advantages(features)
        return self.value(features) + advantages - advantages.mean(-1, keepdim=True)


def q_network(
    space: gym.Space, n_actions: int, hidden: Sequence[int], dueling: bool, generator: torch.Generator
) -> nn.Sequential:
    """Observations [..., obs] -> action values [..., A], with one linear head or a dueling one."""
    trunk, n_features = torso(space, hidden, "relu", generator)
    head = DuelingHead(n_features, n_actions, generator) if dueling else linear(n_features, n_actions, 1, generator)
    return nn.Sequential(trunk, head)
