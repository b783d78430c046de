"""Losses over padded batches. Each is `sum over real tokens / denom` and comes back as `(loss, metrics)`.

`denom` is the number of real tokens of the *whole* minibatch, over all microbatches and ranks. Losses, gradients and
metrics of the parts therefore add up to those of the whole, however it was cut. The one exception are metrics named
`*_max`, which are joined by a maximum. Metrics are detached scalars.

Gradients flow into `logprobs`, `values` and `kl`, never into what was stored when sampling (`old_logprobs`,
`advantages`, `old_values`, `returns`). An entropy bonus needs no function of its own: it is `masked_mean(entropy)`.

`mask` may be None where everything is real. `weights` aggregates otherwise: the loss becomes `sum over real tokens of
weights * x`, as where each response shall count alike however long it is. Metrics stay means over tokens.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tabular.core.masked import Denom, masked_mean, masked_sum

Loss = tuple[Float[Tensor, ""], dict[str, Tensor]]

LOG_RATIO_CLAMP = 20.0
"""Bound on `|log_ratio|` before the exponential: e^20 is finite in float32 and far outside every clip interval."""


def policy_gradient_loss(
    logprobs: Float[Tensor, "*batch T"],
    advantages: Float[Tensor, "*batch T"],
    mask: Bool[Tensor, "*batch T"] | None,
    denom: Denom,
    weights: Float[Tensor, "..."] | None = None,
) -> Loss:
    """REINFORCE and actor-critic: `-mean(A_t log pi(a_t))`. No metrics.

    Williams (1992); Sutton & Barto (2018), eq. 13.8.
    """
    logprobs, advantages = _real(mask, logprobs, advantages.detach())
    return -aggregate(logprobs * advantages, mask, denom, weights), {}


def clipped_surrogate_loss(
    logprobs: Float[Tensor, "*batch T"],
    old_logprobs: Float[Tensor, "*batch T"],
    advantages: Float[Tensor, "*batch T"],
    mask: Bool[Tensor, "*batch T"] | None,
    denom: Denom,
    clip_range: float | int = 0.2,
    clip_range_high: float | int | None = None,
    dual_clip: float | int | None = None,
    log_ratio_clamp: float | int = LOG_RATIO_CLAMP,
    weights: Float[Tensor, "..."] | None = None,
) -> Loss:
    """PPO: `-mean(min(ratio A, clip(ratio, 1 - clip_range, 1 + clip_range_high) A))`, `ratio = pi / pi_old`.

    Schulman et al. (2017), arXiv 1707.06347, eq. 7. `clip_range_high=None` is the symmetric interval; a wider upper
    half is DAPO's "clip-higher" (arXiv 2503.14476). `dual_clip=c > 1` bounds the objective from below by `c A` where
    `A < 0` (Ye et al. 2020, arXiv 1912.09729). `log_ratio_clamp` keeps the exponential finite.

    Metrics: `approx_kl = mean(log_ratio^2) / 2`, the form of OpenAI's lm-human-preferences, never negative;
    `clip_fraction`, the share of tokens whose ratio lies outside the interval, whether or not the minimum chose the
    clipped branch there; `ratio_mean`, `ratio_max`.

    The loss is that of TRL, verl, OpenRLHF, torchtune, TorchRL, RLax and Stable-Baselines3, of which verl and OpenRLHF
    alone clamp the log-ratio. Metrics differ, and each means something: TRL, verl, OpenRLHF and torchtune count as
    clipped only where the minimum chose the clipped branch (no gradient there), TorchRL and Stable-Baselines3 as here.
    `approx_kl` is k3 in Stable-Baselines3, and k1, which can be negative, in verl, OpenRLHF and TorchRL; TRL has ours
    but averages over padding too and so reports too little.

    Raises ValueError for a negative clip range or clamp, or `dual_clip <= 1`.
    """
    clip_range_high = clip_range if clip_range_high is None else clip_range_high
    _check_not_negative(clip_range=clip_range, clip_range_high=clip_range_high, log_ratio_clamp=log_ratio_clamp)
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"dual_clip must be greater than 1, got {dual_clip}")
    low, high = 1 - clip_range, 1 + clip_range_high

    logprobs, old_logprobs, advantages = _real(mask, logprobs, old_logprobs.detach(), advantages.detach())
    log_ratio = logprobs - old_logprobs
    ratio = log_ratio.clamp(-log_ratio_clamp, log_ratio_clamp).exp()
    objective = torch.minimum(ratio * advantages, ratio.clamp(low, high) * advantages)
    if dual_clip is not None:
        objective = torch.where(advantages < 0, torch.maximum(objective, dual_clip * advantages), objective)

    outside = (ratio < low) | (ratio > high)
    metrics = _ratio_metrics(log_ratio, ratio, mask, denom)
    metrics["clip_fraction"] = masked_mean(outside.to(ratio.dtype), mask, denom)
    return -aggregate(objective, mask, denom, weights), metrics


def kl_penalty_surrogate_loss(
    logprobs: Float[Tensor, "*batch T"],
    old_logprobs: Float[Tensor, "*batch T"],
    advantages: Float[Tensor, "*batch T"],
    kl: Float[Tensor, "*batch T"],
    beta: float | int,
    mask: Bool[Tensor, "*batch T"] | None,
    denom: Denom,
    log_ratio_clamp: float | int = LOG_RATIO_CLAMP,
    weights: Float[Tensor, "..."] | None = None,
) -> Loss:
    """PPO with a penalty instead of a clip: `-mean(ratio A - beta kl)`. Schulman et al. (2017), eq. 8.

    `kl` is the exact `KL(pi_old || pi)` of each step's distribution, with its gradient (`kl.categorical_kl`); `beta`
    comes from `kl.PenaltyBeta`. Metrics: `approx_kl` (as above), `exact_kl = mean(kl)`, `ratio_mean`, `ratio_max`.

    TorchRL computes the same loss but changes beta in place before its backward pass, so that the penalty's gradient is
    twice or half of what the loss says; ours is the gradient of the loss.

    Raises ValueError for a negative `beta` or clamp.
    """
    _check_not_negative(beta=beta, log_ratio_clamp=log_ratio_clamp)
    logprobs, old_logprobs, advantages, kl = _real(mask, logprobs, old_logprobs.detach(), advantages.detach(), kl)
    log_ratio = logprobs - old_logprobs
    ratio = log_ratio.clamp(-log_ratio_clamp, log_ratio_clamp).exp()
    metrics = _ratio_metrics(log_ratio, ratio, mask, denom)
    metrics["exact_kl"] = masked_mean(kl.detach(), mask, denom)
    return -aggregate(ratio * advantages - beta * kl, mask, denom, weights), metrics


def value_loss(
    values: Float[Tensor, "*batch T"],
    old_values: Float[Tensor, "*batch T"],
    returns: Float[Tensor, "*batch T"],
    mask: Bool[Tensor, "*batch T"] | None,
    denom: Denom,
    clip_range: float | int | None = None,
    weights: Float[Tensor, "..."] | None = None,
) -> Loss:
    """Critic: `mean(max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2)) / 2`; `c = clip_range`, None: no clipping.

    Schulman et al. (2017), as in OpenAI's baselines and lm-human-preferences. Metric: `clip_fraction`, the share of
    tokens where the clipped error is the larger one, so that their gradient is 0.

    TRL, verl, OpenRLHF and torchtune compute the same. TorchRL and Stable-Baselines3 leave out the half, a matter of
    the coefficient; the latter takes the clipped error alone, which gives a value that left the interval in the wrong
    direction no gradient back: the larger of the two, as in baselines, is right.

    Raises ValueError for a negative `clip_range`.
    """
    values, old_values, returns = _real(mask, values, old_values.detach(), returns.detach())
    errors = (values - returns) ** 2
    clip_fraction = values.new_zeros(())
    if clip_range is not None:
        _check_not_negative(clip_range=clip_range)
        clipped_errors = (old_values + (values - old_values).clamp(-clip_range, clip_range) - returns) ** 2
        # Adding up what was taken apart rounds: a value that moved little is not clipped, whatever its last bit says.
        active = (clipped_errors > errors) & ((values - old_values).abs() > clip_range)
        clip_fraction = masked_mean(active.to(values.dtype), mask, denom)
        errors = torch.maximum(errors, clipped_errors)
    return 0.5 * aggregate(errors, mask, denom, weights), {"clip_fraction": clip_fraction}


def aggregate(
    x: Float[Tensor, "*batch T"],
    mask: Bool[Tensor, "*batch T"] | None,
    denom: Denom,
    weights: Float[Tensor, "..."] | None = None,
) -> Float[Tensor, ""]:
    """`sum_t x_t / denom` over real tokens, or `sum_t weights_t x_t` where weights are given; they broadcast to `x`."""
    return masked_mean(x, mask, denom) if weights is None else masked_sum(x * weights, mask)


def _real(mask: Tensor | None, *tensors: Tensor) -> Sequence[Tensor]:
    """The tensors with 0 in masked places. Done first: 0 * NaN in a later product's gradient would still be NaN."""
    return tensors if mask is None else [torch.where(mask, x, 0) for x in tensors]


def _ratio_metrics(log_ratio: Tensor, ratio: Tensor, mask: Tensor | None, denom: Denom) -> dict[str, Tensor]:
    log_ratio, ratio = log_ratio.detach(), ratio.detach()
    return {
        "approx_kl": 0.5 * masked_mean(log_ratio**2, mask, denom),
        "ratio_mean": masked_mean(ratio, mask, denom),
        "ratio_max": (ratio if mask is None else torch.where(mask, ratio, 0)).amax(),
    }


def _check_not_negative(**numbers: float | int) -> None:
    for name, number in numbers.items():
        if not number >= 0:
            raise ValueError(f"{name} must not be negative, got {number}")
