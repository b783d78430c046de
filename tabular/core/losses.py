"""Policy and value losses over padded batches: each is `sum over real tokens / denom`, returned as `(loss, metrics)`.

`denom` is the number of real tokens of the *whole* minibatch, over all microbatches and ranks. Losses, gradients and
metrics of microbatches therefore sum to those of the minibatch, however it was split. The only exception are metrics
named `*_max`, which are combined by a maximum. Metrics are detached scalars.

Gradients flow into `logprobs`, `values` and `kl`, never into what was stored at sampling time (`old_logprobs`,
`advantages`, `old_values`, `returns`). The entropy bonus has no function here: it is `masked_mean(entropy)`.

Arguments that all losses share:

- `mask`: True on real tokens; None where every token is real.
- `denom`: the divisor of the sum.
- `weights`: replaces the division by `denom`: the loss becomes `sum over real tokens of weights * x`, for example to
  give each response the same weight whatever its length. Metrics stay means over tokens.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tabular.core.checks import check_at_least
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
    """REINFORCE and actor-critic: `-mean(A_t log pi(a_t))`.

    Williams (1992); Sutton & Barto (2018), eq. 13.8.

    Returns:
        The loss, and no metrics.
    """
    logprobs = _zero_masked(logprobs, mask)
    advantages = _zero_masked(advantages.detach(), mask)
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

    Schulman et al. (2017), arXiv 1707.06347, eq. 7.

    Args:
        clip_range: how far the ratio may fall below 1, and rise above it, before its gradient stops.
        clip_range_high: the upper half of the interval; None for a symmetric one. A wider upper half is DAPO's
            "clip-higher" (arXiv 2503.14476).
        dual_clip: `c > 1` bounds the objective from below by `c A` where `A < 0` (Ye et al. 2020, arXiv 1912.09729).
        log_ratio_clamp: bound on `|log_ratio|`, which keeps the exponential finite.

    Returns:
        The loss, and the metrics `approx_kl = mean(log_ratio^2) / 2` (the form of OpenAI's lm-human-preferences, never
        negative), `clip_fraction` (the fraction of tokens whose ratio lies outside the interval, whether or not the
        minimum chose the clipped branch there), `ratio_mean` and `ratio_max`.

    Raises:
        ValueError: for a negative clip range or clamp, or `dual_clip <= 1`.

    The loss is that of TRL, verl, OpenRLHF, torchtune, TorchRL, RLax and Stable-Baselines3; of these only verl and
    OpenRLHF clamp the log-ratio. Metrics differ: TRL, verl, OpenRLHF and torchtune count a token as clipped only where
    the minimum chose the clipped branch (no gradient there), TorchRL and Stable-Baselines3 count as here. `approx_kl`
    is k3 in Stable-Baselines3, and k1, which can be negative, in verl, OpenRLHF and TorchRL; TRL has the same form but
    also averages over padding, so it reports too little.
    """
    clip_range_high = clip_range if clip_range_high is None else clip_range_high
    check_at_least(0, clip_range=clip_range, clip_range_high=clip_range_high, log_ratio_clamp=log_ratio_clamp)
    if dual_clip is not None and not dual_clip > 1:
        raise ValueError(f"dual_clip is {dual_clip}, but must be above 1")
    low = 1 - clip_range
    high = 1 + clip_range_high

    logprobs = _zero_masked(logprobs, mask)
    old_logprobs = _zero_masked(old_logprobs.detach(), mask)
    advantages = _zero_masked(advantages.detach(), mask)
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
    """PPO with a KL penalty instead of a clip: `-mean(ratio A - beta kl)`. Schulman et al. (2017), eq. 8.

    Args:
        kl: the exact `KL(pi_old || pi)` of each step's distribution, with its gradient (`kl.categorical_kl`).
        beta: the coefficient of the penalty, from `kl.PenaltyBeta`.
        log_ratio_clamp: bound on `|log_ratio|`, which keeps the exponential finite.

    Returns:
        The loss, and the metrics `approx_kl` (as above), `exact_kl = mean(kl)`, `ratio_mean` and `ratio_max`.

    Raises:
        ValueError: for a negative `beta` or clamp.

    TorchRL computes the same loss but changes beta in place before its backward pass, so its penalty's gradient is
    twice or half that of the loss it reports; here it is the gradient of the loss.
    """
    check_at_least(0, beta=beta, log_ratio_clamp=log_ratio_clamp)
    logprobs = _zero_masked(logprobs, mask)
    old_logprobs = _zero_masked(old_logprobs.detach(), mask)
    advantages = _zero_masked(advantages.detach(), mask)
    kl = _zero_masked(kl, mask)
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

    Schulman et al. (2017), as in OpenAI's baselines and lm-human-preferences.

    Args:
        clip_range: how far a value may move from its old one before its gradient stops, in the values' own units.

    Returns:
        The loss, and the metric `clip_fraction`: the fraction of tokens where the clipped error is the larger one, so
        that their gradient is 0.

    Raises:
        ValueError: for a negative `clip_range`.

    TRL, verl, OpenRLHF and torchtune compute the same. TorchRL and Stable-Baselines3 leave out the factor 1/2, which
    the coefficient absorbs. Stable-Baselines3 uses the clipped error alone, so a value that left the interval in the
    wrong direction gets no gradient back; the larger of the two errors, as in baselines, avoids that.
    """
    values = _zero_masked(values, mask)
    old_values = _zero_masked(old_values.detach(), mask)
    returns = _zero_masked(returns.detach(), mask)
    errors = (values - returns) ** 2
    clip_fraction = values.new_zeros(())
    if clip_range is not None:
        check_at_least(0, clip_range=clip_range)
        clipped_errors = (old_values + (values - old_values).clamp(-clip_range, clip_range) - returns) ** 2
        # `old + (new - old)` differs from `new` in the last bit: the second condition keeps that rounding from
        # counting as clipped.
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
    """`sum_t x_t / denom` over real tokens, or `sum_t weights_t x_t` if weights are passed; they broadcast to `x`."""
    return masked_mean(x, mask, denom) if weights is None else masked_sum(x * weights, mask)


def _zero_masked(x: Tensor, mask: Tensor | None) -> Tensor:
    """`x` with 0 where the mask is False. Done first: 0 * NaN in the gradient of a later product would still be NaN."""
    return x if mask is None else torch.where(mask, x, 0)


def _ratio_metrics(log_ratio: Tensor, ratio: Tensor, mask: Tensor | None, denom: Denom) -> dict[str, Tensor]:
    log_ratio = log_ratio.detach()
    ratio = ratio.detach()
    return {
        "approx_kl": 0.5 * masked_mean(log_ratio**2, mask, denom),
        "ratio_mean": masked_mean(ratio, mask, denom),
        "ratio_max": (ratio if mask is None else torch.where(mask, ratio, 0)).amax(),
    }
