"""From prompts to a batch that PPO can learn from: sample, score, pay per token, estimate advantages."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhf.config import GenerationConfig, PPOConfig, RewardConfig
from rlhf.generation import sample
from rlhf.metrics import Clock
from rlhf.models import ActorCritic, Reference
from rlhf.rewards import RewardSource, apply_rules
from rlhf.types import PPOBatch, Prompts, Rollout, microbatches, select, trim
from tabular.core.kl import kl_estimate
from tabular.core.masked import masked_whiten
from tabular.core.returns import gae


@dataclass(frozen=True)
class Sampler:
    """What `respond` needs besides the models: the settings of a run, fixed when it starts."""

    tokenizer: Any
    stops: Sequence[int]
    config: GenerationConfig


def respond(
    policy: ActorCritic,
    reference: Reference,
    sampler: Sampler,
    prompts: Prompts,
    noise: Float[Tensor, "B R"],
    groups: Sequence[Int[Tensor, "M"]],
    clock: Clock,
) -> Rollout:
    """Sample a response to every prompt and have policy and reference read it; the scores are still nan.

    `groups` are the microbatches in which the responses are read. With those of the first epoch the old
    log-probabilities come from the very forward that the update repeats, so that the first ratio is exactly 1.
    """
    temperature = sampler.config.temperature
    with clock("generate"):
        ids, mask, truncated = sample(
            policy.lm,
            prompts.prompt_ids,
            prompts.prompt_mask,
            noise,
            sampler.stops,
            temperature,
            sampler.config.max_rows,
        )
    unknown = torch.full(ids.shape, torch.nan, device=ids.device)
    completions = decode(sampler.tokenizer, ids, mask)
    rollout = Rollout(prompts, ids, mask, truncated, completions, unknown, unknown, unknown, unknown[:, 0])
    with clock("score"):
        return read(policy, reference, rollout, groups, temperature)


def score(rollout: Rollout, source: RewardSource, config: RewardConfig) -> Rollout:
    """The rollout with what the source says of each response, penalties in their place."""
    said = source(rollout.prompts.prompts, rollout.completions, rollout.prompts.columns)
    scores = torch.tensor(said, dtype=torch.float32, device=rollout.response_ids.device)
    return replace(rollout, scores=apply_rules(scores, rollout.response_mask, rollout.truncated, config))


def decode(tokenizer: Any, ids: Int[Tensor, "B R"], mask: Tensor) -> list[str]:
    """The responses as text, without special tokens."""
    rows = [row[keep].tolist() for row, keep in zip(ids.cpu(), mask.cpu(), strict=True)]
    return tokenizer.batch_decode(rows, skip_special_tokens=True)


@torch.no_grad()
def read(
    policy: ActorCritic,
    reference: Reference,
    rollout: Rollout,
    groups: Sequence[Int[Tensor, "M"]],
    temperature: float,
) -> Rollout:
    """The rollout with the policy's log-probabilities and values, and the reference's log-probabilities."""
    old_logprobs, ref_logprobs, old_values = (torch.zeros_like(rollout.old_logprobs) for _ in range(3))
    for rows in groups:
        group = trim(select(rollout, rows))
        width = group.response_ids.shape[1]
        out = policy(*tokens(group), temperature)
        old_logprobs[rows, :width], old_values[rows, :width] = out.logprobs, out.values
        ref_logprobs[rows, :width] = reference.logprobs(*tokens(group), temperature)
    return replace(rollout, old_logprobs=old_logprobs, ref_logprobs=ref_logprobs, old_values=old_values)


def tokens(rollout: Rollout) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What a forward needs of a rollout: prompt ids and mask, response ids and mask."""
    return (
        rollout.prompts.prompt_ids,
        rollout.prompts.prompt_mask,
        rollout.response_ids,
        rollout.response_mask,
    )


def forward_groups(count: int, minibatch: int, microbatch: int) -> list[Int[Tensor, "M"]]:
    """Rows 0 to count - 1 cut first into minibatches, then each into microbatches."""
    return [rows for part in torch.arange(count).split(minibatch) for rows in microbatches(part, microbatch)]


def token_rewards(rollout: Rollout, kl_coef: float) -> Float[Tensor, "B R"]:
    """`-kl_coef * (log pi - log pi_ref)` on every response token, and the score on the last one.

    The last True of `response_mask` is the end token where there is one: ending is an action, and is paid as one.
    Ziegler et al. (2019), section 2.
    """
    kl = kl_estimate(rollout.old_logprobs, rollout.ref_logprobs, "k1")
    rewards = torch.where(rollout.response_mask, -kl_coef * kl, 0.0)
    last = rollout.response_mask.sum(-1, keepdim=True) - 1
    return rewards.scatter_add(1, last, rollout.scores.unsqueeze(-1))


def make_batch(rollout: Rollout, config: PPOConfig, kl_coef: float) -> PPOBatch:
    """Rewards, advantages and returns of a whole rollout batch."""
    rewards = token_rewards(rollout, kl_coef)
    has_next = torch.nn.functional.pad(rollout.response_mask[:, 1:], (0, 1))
    advantages = gae(rewards, rollout.old_values, config.gamma * has_next, config.lam)
    returns = advantages + rollout.old_values
    if config.whiten_advantages:
        advantages = masked_whiten(advantages, rollout.response_mask)
    return PPOBatch(rollout, rewards, advantages, returns)
