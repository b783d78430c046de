"""What an actor's outputs mean: one class for each kind of action space, all with the same methods.

A policy turns the parameters [..., P] that a network computes (`n_outputs` of it, and what the modules of `make_tail`
add to them) into samples, log-probabilities, entropies and KL divergences, by the functions of `tabular.core`. What it
samples is what a trajectory stores and what log-probabilities are taken of; `to_env` makes of it what the environment
executes. The two differ where actions are continuous: the clipped or squashed action does not have the sample's
density.

`mask` [..., A] is True on legal actions, None where all are; only categorical policies take one.
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
from tabular.core.kl import categorical_kl

Mask = Bool[Tensor, "*batch A"] | None


def make_policy(space: gym.Space, squash: bool = False) -> Any:
    """The policy for an action space: Discrete, MultiDiscrete or a Box; `squash` makes a bounded Box's Gaussian end in
    a tanh.

    Raises ValueError for other spaces, for `squash` without finite bounds and for `squash` of discrete actions.
    """
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating) and len(space.shape) == 1:
        if not squash:
            return Gaussian(space)
        if not space.is_bounded():
            raise ValueError(f"squash needs actions with finite bounds, got {space}")
        return TanhGaussian(space)
    if squash:
        raise ValueError(f"squash is for continuous actions, the actions are {space}")
    if isinstance(space, spaces.Discrete):
        return Categorical(space)
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        return MultiCategorical(space)
    raise ValueError(f"actions must be Discrete, MultiDiscrete or a Box of one dimension, got {space}")


class Categorical:
    """One of A actions. Parameters: logits [..., A]."""

    def __init__(self, space: spaces.Discrete) -> None:
        self.n_outputs, self.start = int(space.n), int(space.start)

    def make_tail(self) -> list[nn.Module]:
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
    """D independent choices of `nvec[d]` actions each. Parameters: the logits of all, one after the other."""

    def __init__(self, space: spaces.MultiDiscrete) -> None:
        self.nvec: list[int] = space.nvec.tolist()
        self.n_outputs = sum(self.nvec)
        self.start: np.ndarray = space.start

    def make_tail(self) -> list[nn.Module]:
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

    The sample is stored as it was drawn; only the environment sees it clipped to the bounds.
    """

    def __init__(self, space: spaces.Box) -> None:
        self.n = self.n_outputs = int(np.prod(space.shape))
        self.low, self.high = space.low, space.high

    def make_tail(self) -> list[nn.Module]:
        return [AndLogStd(self.n)]

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
            raise ValueError("info['action_mask'] is for discrete actions; these are continuous")
        return params[..., : self.n], params[..., self.n :]


class TanhGaussian(Gaussian):
    """D normals squashed to the bounds: `a = tanh(u)`, scaled. Parameters as the Gaussian's; the sample stored is `u`.

    The KL between two of them is that of the Gaussians, since both are squashed alike. The entropy is not.
    """

    def sample(self, params: Tensor, mask: Mask, generator: torch.Generator) -> Float[Tensor, "*batch D"]:
        return tanh_gaussian_sample(*self._parts(params, mask), generator)[1]

    def logprob(self, params: Tensor, actions: Float[Tensor, "*batch D"], mask: Mask) -> Float[Tensor, "*batch"]:
        return tanh_gaussian_logprob(*self._parts(params, mask), actions)

    def entropy(self, params: Tensor, mask: Mask, generator: torch.Generator) -> Float[Tensor, "*batch"]:
        """`-log pi` of a fresh sample, through which the gradient flows: there is no closed form."""
        mean, log_std = self._parts(params, mask)
        _, pre_tanh = tanh_gaussian_sample(mean, log_std, generator)
        return -tanh_gaussian_logprob(mean, log_std, pre_tanh)

    def to_env(self, actions: Float[Tensor, "*batch D"]) -> np.ndarray:
        """From (-1, 1) to [low, high]."""
        share = 0.5 * (np.tanh(actions.numpy()) + 1)
        return self.low + share * (self.high - self.low)


class AndLogStd(nn.Module):
    """Means -> means, and log standard deviations that are the same in every state, 0 to begin with."""

    def __init__(self, n_actions: int) -> None:
        super().__init__()
        self.log_std = nn.Parameter(torch.zeros(n_actions))

    def forward(self, mean: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch P"]:
        return torch.cat([mean, self.log_std.expand_as(mean)], -1)


def gaussian_kl(
    p_mean: Float[Tensor, "*batch D"],
    p_log_std: Float[Tensor, "*batch D"],
    q_mean: Float[Tensor, "*batch D"],
    q_log_std: Float[Tensor, "*batch D"],
) -> Float[Tensor, "*batch"]:
    """Exact `KL(p || q) = sum_d log(s_q / s_p) + (s_p^2 + (m_p - m_q)^2) / (2 s_q^2) - 1/2` of independent normals."""
    variance_ratio = torch.exp(2 * (p_log_std - q_log_std))
    z = (p_mean - q_mean) * torch.exp(-q_log_std)
    return (q_log_std - p_log_std + 0.5 * (variance_ratio + z**2 - 1)).sum(-1)


def _legal(logits: Tensor, mask: Mask) -> Tensor:
    """Logits with -inf for illegal actions. Raises ValueError where no action is legal."""
    if mask is None:
        return logits
    if not mask.any(-1).all():
        raise ValueError("action_mask allows no action in some state")
    return torch.where(mask, logits, -torch.inf)
