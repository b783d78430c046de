"""Log-probabilities, entropies and samples of action distributions, as functions of their parameters.

Categorical: over the last axis of `logits`, with an optional `action_mask` that is True on legal actions. Illegal
actions get probability exactly 0 and no gradient; a row without a legal action raises ValueError.

Gaussian: independent in each of the D components of the last axis, over which log-probabilities and entropies sum.
`log_std` broadcasts to `mean`.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def categorical_logprob(
    logits: Float[Tensor, "*batch A"],
    actions: Int[Tensor, "*batch"],
    action_mask: Bool[Tensor, "*batch A"] | None = None,
) -> Float[Tensor, "*batch"]:
    """`log pi(a) = logit_a - logsumexp(logits)`; an illegal action has -inf."""
    return _log_softmax(logits, action_mask).gather(-1, actions[..., None])[..., 0]


def categorical_entropy(
    logits: Float[Tensor, "*batch A"], action_mask: Bool[Tensor, "*batch A"] | None = None
) -> Float[Tensor, "*batch"]:
    """`H = -sum_a pi(a) log pi(a)` over the legal actions."""
    logprobs = _log_softmax(logits, action_mask)
    return -(logprobs.exp() * torch.where(torch.isneginf(logprobs), 0, logprobs)).sum(-1)


def categorical_sample(
    logits: Float[Tensor, "*batch A"],
    action_mask: Bool[Tensor, "*batch A"] | None = None,
    *,
    uniforms: Float[Tensor, "*batch"] | None = None,
    generator: torch.Generator | None = None,
) -> Int[Tensor, "*batch"]:
    """One action per row, by inverting the cumulative distribution at `uniforms` in [0, 1).

    One uniform per row makes the draw of a row independent of the rest of the batch. An action of probability 0 is
    never returned. A row of nan gives the last action, whose log-probability is nan too.

    Args:
        uniforms: the uniforms to use, for callers with one random stream per row; None draws them from `generator`.
        generator: None is torch's global generator.

    Raises:
        ValueError: if a row has no legal action.
    """
    # In double: over a large vocabulary a float32 sum loses the probability of rare tokens.
    cumulative = _log_softmax(logits, action_mask).exp().double().cumsum(-1)
    if uniforms is None:
        uniforms = torch.rand(logits.shape[:-1], generator=generator, dtype=torch.float64, device=logits.device)
    # The probabilities do not sum to exactly 1 in floats: scaled by their sum, a uniform below 1 selects an action.
    actions = torch.searchsorted(cumulative, uniforms[..., None] * cumulative[..., -1:], right=True)[..., 0]
    return actions.clamp(max=logits.shape[-1] - 1)


def _log_softmax(logits: Tensor, action_mask: Tensor | None) -> Tensor:
    if action_mask is None:
        return logits.log_softmax(-1)
    legal = action_mask.any(-1)
    if not legal.all():
        row = [int(index) for index in (~legal).nonzero()[0]]
        raise ValueError(f"action_mask allows no action in row {row}")
    return torch.where(action_mask, logits, -torch.inf).log_softmax(-1)


def gaussian_logprob(
    mean: Float[Tensor, "*batch D"], log_std: Float[Tensor, "..."], actions: Float[Tensor, "*batch D"]
) -> Float[Tensor, "*batch"]:
    """`sum_d -z_d^2 / 2 - log_std_d - log(2 pi) / 2`, `z = (a - mean) / std`.

    `actions` must be the samples before any clipping to the action bounds, which would change their density.
    """
    z = (actions - mean) * torch.exp(-log_std)
    return (-0.5 * z**2 - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)


def gaussian_entropy(mean: Float[Tensor, "*batch D"], log_std: Float[Tensor, "..."]) -> Float[Tensor, "*batch"]:
    """`sum_d log_std_d + log(2 pi e) / 2`; of `mean` only the shape is used."""
    return (log_std.expand_as(mean) + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)


def gaussian_sample(
    mean: Float[Tensor, "*batch D"], log_std: Float[Tensor, "..."], generator: torch.Generator | None = None
) -> Float[Tensor, "*batch D"]:
    """`mean + std * noise`: differentiable in both parameters."""
    noise = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device)
    return mean + torch.exp(log_std) * noise


def tanh_gaussian_logprob(
    mean: Float[Tensor, "*batch D"], log_std: Float[Tensor, "..."], pre_tanh: Float[Tensor, "*batch D"]
) -> Float[Tensor, "*batch"]:
    """Log-density of `a = tanh(u)`, `u` Gaussian, as a function of the *pre-tanh* sample `u`.

    `log N(u) - sum_d log(1 - tanh(u_d)^2)`, computed as `log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u))`, which is
    accurate at every `u`; from `a` alone, where tanh saturates, `u` cannot be recovered. Haarnoja et al. (2018), arXiv
    1801.01290, appendix C. The entropy of the squashed distribution has no closed form: estimate it by `-log pi` of
    samples.
    """
    squash = 2 * (math.log(2) - pre_tanh - F.softplus(-2 * pre_tanh))
    return gaussian_logprob(mean, log_std, pre_tanh) - squash.sum(-1)


def tanh_gaussian_sample(
    mean: Float[Tensor, "*batch D"], log_std: Float[Tensor, "..."], generator: torch.Generator | None = None
) -> tuple[Float[Tensor, "*batch D"], Float[Tensor, "*batch D"]]:
    """`(a, u)`: the action `a = tanh(u)` in (-1, 1) for the environment, and `u` for its log-probability."""
    pre_tanh = gaussian_sample(mean, log_std, generator)
    return torch.tanh(pre_tanh), pre_tanh
