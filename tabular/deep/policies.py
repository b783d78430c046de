"""Policies: action distributions as functions of a network's outputs, one class per kind of action space.

All classes have the same methods. The network computes parameters [..., P] (`n_outputs` of them, completed by the
layers of `extra_layers`); the policy turns them into samples, log-probabilities, entropies and KL divergences, with the
functions of `tabular.core`. A trajectory stores the samples, and log-probabilities are those of the samples; `to_env`
converts them to the environment's actions. For continuous actions the two differ: clipping or squashing changes the
density.

`mask` [..., A] is True on legal actions, None if all are legal; only categorical policies take one.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tabular.core.distributions import (
    categorical_entropy,
    categorical_logprob,
    categorical_sample,
    gaussian_entropy,
    gaussian_logprob,
    gaussian_sample,
    tanh_gaussian_logprob,
    tanh_gaussian_sample,
)
from tabular.core.kl import categorical_kl, gaussian_kl

Mask = Bool[Tensor, "*batch A"] | None


def make_policy(space: gym.Space, squash: bool = False) -> Any:
    """The policy for an action space: Discrete, MultiDiscrete, or a Box of one dimension.

    Args:
        squash: for a Box, pass the Gaussian's samples through a tanh instead of clipping them to the bounds.

    Raises:
        ValueError: for other spaces, and for `squash` with discrete actions or without finite bounds.
    """
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating) and len(space.shape) == 1:
        if not squash:
            return Gaussian(space)
        if not space.is_bounded():
            raise ValueError(f"squash is set, but the actions have no finite bounds: {space}")
        return TanhGaussian(space)
    if squash:
        raise ValueError(f"squash is for continuous actions, but the action space is {space}")
    if isinstance(space, spaces.Discrete):
        return Categorical(space)
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return MultiCategorical(space)
    raise ValueError(f"the action space is {space}, but must be Discrete, MultiDiscrete or a Box of one dimension")


class Categorical:
    """One of A actions. Parameters: logits [..., A]."""

    def __init__(self, space: spaces.Discrete) -> None:
        self.n_outputs = int(space.n)
        self.start = int(space.start)

    def extra_layers(self) -> list[nn.Module]:
        return []

    def sample(self, params: Tensor, mask: Mask, generator: torch.Generator) -> Int[Tensor, "*batch"]:
        return categorical_sample(params, mask, generator=generator)

    def mode(self, params: Tensor, mask: Mask) -> Int[Tensor, "*batch"]:
        return _legal(params, mask).argmax(-1)

    def logprob(self, params: Tensor, actions: Int[Tensor, "*batch"], mask: Mask) -> Float[Tensor, "*batch"]:
        return categorical_logprob(params, actions, mask)

    def entropy(self, params: Tensor, mask: Mask, generator: torch.Generator) -> Float[Tensor, "*batch"]:
        return categorical_entropy(params, mask)

    def kl(self, old_params: Tensor, params: Tensor, mask: Mask) -> Float[Tensor, "*batch"]:
        """Exact `KL(old || new)` over the legal actions."""
        return categorical_kl(_legal(old_params, mask), _legal(params, mask))

    def to_env(self, actions: Int[Tensor, "*batch"]) -> np.ndarray:
        return actions.numpy() + self.start


class MultiCategorical:
    """D independent choices among `nvec[d]` actions each. Parameters: the logits of all, concatenated."""

    def __init__(self, space: spaces.MultiDiscrete) -> None:
        self.nvec: list[int] = space.nvec.tolist()
        self.n_outputs = sum(self.nvec)
        self.start: np.ndarray = space.start

    def extra_layers(self) -> list[nn.Module]:
        return []

    def sample(self, params: Tensor, mask: Mask, generator: torch.Generator) -> Int[Tensor, "*batch D"]:
        return torch.stack([categorical_sample(x, m, generator=generator) for x, m in self._parts(params, mask)], -1)

    def mode(self, params: Tensor, mask: Mask) -> Int[Tensor, "*batch D"]:
        return torch.stack([_legal(x, m).argmax(-1) for x, m in self._parts(params, mask)], -1)

    def logprob(self, params: Tensor, actions: Int[Tensor, "*batch D"], mask: Mask) -> Float[Tensor, "*batch"]:
        parts = zip(self._parts(params, mask), actions.unbind(-1), strict=True)
        return torch.stack([categorical_logprob(x, a, m) for (x, m), a in parts]).sum(0)

    def entropy(self, params: Tensor, mask: Mask, generator: torch.Generator) -> Float[Tensor, "*batch"]:
        return torch.stack([categorical_entropy(x, m) for x, m in self._parts(params, mask)]).sum(0)

    def kl(self, old_params: Tensor, params: Tensor, mask: Mask) -> Float[Tensor, "*batch"]:
        pairs = zip(self._parts(old_params, mask), self._parts(params, mask), strict=True)
        return torch.stack([categorical_kl(_legal(p, m), _legal(q, m)) for (p, m), (q, _) in pairs]).sum(0)

    def to_env(self, actions: Int[Tensor, "*batch D"]) -> np.ndarray:
        return actions.numpy() + self.start

    def _parts(self, params: Tensor, mask: Mask) -> list[tuple[Tensor, Tensor | None]]:
        masks = [None] * len(self.nvec) if mask is None else mask.split(self.nvec, -1)
        return list(zip(params.split(self.nvec, -1), masks, strict=True))


class Gaussian:
    """D independent normals. Parameters: means [..., D], then log standard deviations [..., D].

    Samples are stored as drawn; only `to_env` clips them to the bounds.
    """

    def __init__(self, space: spaces.Box) -> None:
        self.n = self.n_outputs = int(np.prod(space.shape))
        self.low = space.low
        self.high = space.high

    def extra_layers(self) -> list[nn.Module]:
        return [WithLogStd(self.n)]

    def sample(self, params: Tensor, mask: Mask, generator: torch.Generator) -> Float[Tensor, "*batch D"]:
        return gaussian_sample(*self._parts(params, mask), generator)

    def mode(self, params: Tensor, mask: Mask) -> Float[Tensor, "*batch D"]:
        return self._parts(params, mask)[0]

    def logprob(self, params: Tensor, actions: Float[Tensor, "*batch D"], mask: Mask) -> Float[Tensor, "*batch"]:
        return gaussian_logprob(*self._parts(params, mask), actions)

    def entropy(self, params: Tensor, mask: Mask, generator: torch.Generator) -> Float[Tensor, "*batch"]:
        return gaussian_entropy(*self._parts(params, mask))

    def kl(self, old_params: Tensor, params: Tensor, mask: Mask) -> Float[Tensor, "*batch"]:
        return gaussian_kl(*self._parts(old_params, mask), *self._parts(params, mask))

    def to_env(self, actions: Float[Tensor, "*batch D"]) -> np.ndarray:
        return np.clip(actions.numpy(), self.low, self.high)

    def _parts(self, params: Tensor, mask: Mask) -> tuple[Tensor, Tensor]:
        if mask is not None:
            raise ValueError("info['action_mask'] is for discrete actions, but these are continuous")
        return params[..., : self.n], params[..., self.n :]


class TanhGaussian(Gaussian):
    """D normals squashed to the bounds: `a = tanh(u)`, scaled. Parameters as of `Gaussian`; the sample is `u`.

    The KL divergence is that of the Gaussians, because squashing is the same bijection for both. The entropy is not.
    """

    def sample(self, params: Tensor, mask: Mask, generator: torch.Generator) -> Float[Tensor, "*batch D"]:
        return tanh_gaussian_sample(*self._parts(params, mask), generator)[1]

    def logprob(self, params: Tensor, actions: Float[Tensor, "*batch D"], mask: Mask) -> Float[Tensor, "*batch"]:
        return tanh_gaussian_logprob(*self._parts(params, mask), actions)

    def entropy(self, params: Tensor, mask: Mask, generator: torch.Generator) -> Float[Tensor, "*batch"]:
        """An estimate, `-log pi` of one reparameterised sample: there is no closed form."""
        mean, log_std = self._parts(params, mask)
        _, pre_tanh = tanh_gaussian_sample(mean, log_std, generator)
        return -tanh_gaussian_logprob(mean, log_std, pre_tanh)

    def to_env(self, actions: Float[Tensor, "*batch D"]) -> np.ndarray:
        """`tanh(u)` in (-1, 1), scaled to [low, high]."""
        fraction = 0.5 * (np.tanh(actions.numpy()) + 1)
        return self.low + fraction * (self.high - self.low)


class WithLogStd(nn.Module):
    """Means [..., D] -> means and log standard deviations [..., 2 D]; the latter do not depend on the state, and are
    initialised to 0."""

    def __init__(self, n_actions: int) -> None:
        super().__init__()
        self.log_std = nn.Parameter(torch.zeros(n_actions))

    def forward(self, mean: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch P"]:
        return torch.cat([mean, self.log_std.expand_as(mean)], -1)


def _legal(logits: Tensor, mask: Mask) -> Tensor:
    """The logits, with -inf for illegal actions. Raises ValueError where no action is legal."""
    if mask is None:
        return logits
    if not mask.any(-1).all():
        raise ValueError("action_mask allows no action in some state")
    return torch.where(mask, logits, -torch.inf)
