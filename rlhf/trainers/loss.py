"""PPO's loss on one microbatch: policy surrogate, entropy bonus, KL term and value loss."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf.config.ppo import PPOConfig
from rlhf.records import PolicyOutput, PPOBatch, Rollout
from rlhf.run.metrics import Metrics
from tabular.core.kl import kl_estimate
from tabular.core.losses import aggregate, clipped_surrogate_loss, kl_penalty_surrogate_loss, value_loss
from tabular.core.masked import masked_mean


@dataclass(frozen=True)
class Normalizers:
    """What the losses of a minibatch are divided by: counted before its first microbatch, over all processes."""

    tokens: Tensor
    """Tokens in the loss, at least 1."""
    responses: Tensor
    """Responses with a token in the loss, at least 1."""
    rows: int
    """All responses of the minibatch but those without a score, at least 1."""

    @classmethod
    def of(cls, minibatch: PPOBatch) -> "Normalizers":
        mask = minibatch.loss_mask
        rows = max(1, int(minibatch.rollout.is_scored.sum()))
        return cls(tokens=mask.sum().clamp(min=1), responses=mask.any(-1).sum().clamp(min=1), rows=rows)


@dataclass(frozen=True)
class MinibatchLoss:
    """A microbatch's part of its minibatch's loss."""

    total: Tensor
    """Policy loss + value loss - entropy bonus + KL term."""
    critic: Tensor
    """The value loss alone, with its coefficient; 0 without a critic."""
    metrics: Metrics


def ppo_loss(
    out: PolicyOutput,
    rollout: Rollout,
    *,
    loss_mask: Bool[Tensor, "B R"],
    advantages: Float[Tensor, "B R"],
    returns: Float[Tensor, "B R"] | None,
    normalizers: Normalizers,
    config: PPOConfig,
    max_new_tokens: int,
    kl_coef: float,
    kl_penalty_beta: float,
) -> MinibatchLoss:
    """A microbatch's part of its minibatch's loss; the parts of all microbatches and ranks sum to the whole.

    Args:
        out: the policy's present output at the rollout's tokens, with gradient.
        rollout: what was stored when the responses were sampled.
        loss_mask: True on the tokens in the loss.
        returns: the critic's targets; None without a critic.
        normalizers: counts over the whole minibatch.
        max_new_tokens: the length limit, by which `ppo.loss_aggregation: fixed` divides.
        kl_coef: coefficient of the KL to the reference, where it is a term of the loss.
        kl_penalty_beta: coefficient of KL(old || new), where the policy loss has that penalty.
    """
    weights = loss_weights(
        loss_mask,
        config.loss_aggregation,
        responses=normalizers.rows if config.loss_aggregation == "fixed" else int(normalizers.responses),
        max_new_tokens=max_new_tokens,
    )
    policy_loss, details = _surrogate_loss(
        out, rollout, advantages, loss_mask, normalizers.tokens, weights, config=config, beta=kl_penalty_beta
    )
    assert out.entropy is not None
    metrics = {
        "policy/loss": policy_loss.detach(),
        "policy/entropy": masked_mean(out.entropy, loss_mask, normalizers.tokens).detach(),
        "policy/approx_kl": details["approx_kl"],
        "policy/ratio_max": details["ratio_max"],
    }
    if "clip_fraction" in details:
        metrics["policy/clip_fraction"] = details["clip_fraction"]
    if config.old_logprobs == "sampler" and rollout.sampler_logprobs is not None:
        mismatch = (out.logprobs - rollout.sampler_logprobs).abs()
        metrics["policy/sampler_mismatch"] = masked_mean(mismatch, loss_mask, normalizers.tokens).detach()

    loss = policy_loss
    if config.ent_coef > 0:  # at 0 its backward pass over the vocabulary would be wasted
        loss = loss - config.ent_coef * aggregate(out.entropy, loss_mask, normalizers.tokens, weights)
    if config.kl_placement == "loss":
        kl = out.ref_kl
        if kl is None:
            assert rollout.ref_logprobs is not None
            kl = kl_estimate(out.logprobs, rollout.ref_logprobs, config.kl_estimator)
        kl_loss = aggregate(torch.where(loss_mask, kl, 0), loss_mask, normalizers.tokens, weights)
        loss = loss + kl_coef * kl_loss
        metrics["policy/kl_loss"] = kl_loss.detach()
    if returns is None:
        return MinibatchLoss(total=loss, critic=torch.zeros_like(loss), metrics=metrics)

    critic_loss, details = value_loss(
        out.values,
        rollout.old_values,
        returns,
        mask=loss_mask,
        denom=normalizers.tokens,
        clip_range=config.clip_range_value,
        weights=weights,
    )
    metrics["value/loss"] = critic_loss.detach()
    metrics["value/clip_fraction"] = details["clip_fraction"]
    critic_loss = config.vf_coef * critic_loss
    return MinibatchLoss(total=loss + critic_loss, critic=critic_loss, metrics=metrics)


def _surrogate_loss(
    out: PolicyOutput,
    rollout: Rollout,
    advantages: Float[Tensor, "B R"],
    mask: Bool[Tensor, "B R"],
    denom: Tensor,
    weights: Float[Tensor, "B 1"] | None,
    *,
    config: PPOConfig,
    beta: float,
) -> tuple[Tensor, Metrics]:
    """The policy's objective: clipped, or with a penalty on the exact KL(old || new) (Schulman et al., 2017)."""
    if config.policy_loss == "clip":
        return clipped_surrogate_loss(
            out.logprobs,
            rollout.old_logprobs,
            advantages,
            mask,
            denom,
            clip_range=config.clip_range,
            clip_range_high=config.clip_range_high,
            dual_clip=config.dual_clip,
            log_ratio_clamp=config.log_ratio_clamp,
            weights=weights,
        )
    assert out.old_kl is not None
    return kl_penalty_surrogate_loss(
        out.logprobs,
        rollout.old_logprobs,
        advantages,
        kl=out.old_kl,
        beta=beta,
        mask=mask,
        denom=denom,
        log_ratio_clamp=config.log_ratio_clamp,
        weights=weights,
    )


def loss_weights(
    mask: Bool[Tensor, "B R"], aggregation: str, responses: int, max_new_tokens: int
) -> Float[Tensor, "B 1"] | None:
    """The weight of each token in a minibatch's losses; None: one over the number of its tokens.

    `sequence`: every response has the same weight. `fixed`: every token has the same weight in every minibatch,
    `1 / (responses * max_new_tokens)`, so that a batch of short responses makes no larger update (Liu et al., 2025).
    """
    if aggregation == "token":
        return None
    if aggregation == "sequence":
        return 1.0 / (responses * mask.sum(-1, keepdim=True).clamp(min=1))
    return torch.full_like(mask[:, :1], 1.0 / (responses * max_new_tokens), dtype=torch.float32)
