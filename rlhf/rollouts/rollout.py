"""From prompts to scored responses: sample, read, score. What they are worth is `advantages.py`'s."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhf.config.shared import GenerationConfig, RewardConfig
from rlhf.models.actor_critic import (
    ActorCritic,
    FixedDistribution,
    LogitTransform,
    Reference,
    scatter_to_mask,
    token_positions,
)
from rlhf.records import Prompts, Rollout, microbatches, select, trim
from rlhf.rewards.penalties import apply_penalties
from rlhf.rewards.sources import RewardSource
from rlhf.rollouts.sampling import StopStrings, make_logit_transform, sample, stop_ids
from rlhf.run.metrics import PhaseTimer
from tabular.core.distributions import logprob_and_entropy


@dataclass(frozen=True)
class Sampler:
    """What `respond` needs besides the models: the settings of a run, fixed when it starts."""

    tokenizer: Any
    decoding: LogitTransform
    config: GenerationConfig

    @classmethod
    def of(cls, tokenizer: Any, lm: Any, config: GenerationConfig) -> "Sampler":
        """The sampler of a model; `UserError` where the settings name ids that it does not have."""
        stops = stop_ids(tokenizer, lm.config, config, lm.generation_config)
        return cls(tokenizer, make_logit_transform(config, stops, lm.config.get_text_config().vocab_size), config)

    @property
    def strings(self) -> StopStrings | None:
        return StopStrings(self.tokenizer, tuple(self.config.stop_strings)) if self.config.stop_strings else None


@dataclass(frozen=True)
class RequestedOutputs:
    """What a run's objective needs of a rollout beyond log-probabilities and values."""

    exact_kl: bool = False
    old_states: bool = False
    ref_states: bool = False
    bootstrap_values: bool = False


def sample_responses(
    policy: ActorCritic, sampler: Sampler, prompts: Prompts, noise: Float[Tensor, "B R"] | None, clock: PhaseTimer
) -> Rollout:
    """Sample a response to every prompt (greedily without noise); nobody has read or scored it yet."""
    with clock("generate"):
        said = sample(
            policy.lm,
            prompts.prompt_ids,
            prompts.prompt_mask,
            noise,
            sampler.decoding,
            sampler.config.max_new_tokens,
            sampler.strings,
            sampler.config.max_rows,
        )
    rollout = unscored_rollout(prompts, said.ids, said.mask, said.truncated, decode(sampler, said.ids, said.mask))
    return replace(rollout, sampler_logprobs=said.logprobs)


def unscored_rollout(prompts: Prompts, ids: Tensor, mask: Tensor, truncated: Tensor, completions: list[str]) -> Rollout:
    """A rollout of which only the text is known: nan stands for what policy, reference and source have yet to say."""
    unknown = torch.full(ids.shape, torch.nan, device=ids.device)
    return Rollout(prompts, ids, mask, truncated, completions, unknown, unknown, unknown, unknown[:, 0])


@torch.no_grad()
def read(
    policy: ActorCritic,
    reference: Reference,
    rollout: Rollout,
    groups: Sequence[Int[Tensor, "_"]],
    decoding: LogitTransform,
    extras: RequestedOutputs | None = None,
) -> Rollout:
    """The rollout with the policy's log-probabilities and values, and the reference's log-probabilities.

    `groups` are the microbatches in which the responses are read. With those of the first epoch the old
    log-probabilities come from the very forward that the update repeats, so that the first ratio is exactly 1.
    """
    extras = extras or RequestedOutputs()
    found: dict[str, Tensor] = {}

    def keep(name: str, rows: Tensor, value: Tensor) -> None:
        """Put rows [M, r, ...] of a field into its place."""
        if name not in found:
            found[name] = torch.zeros(
                *rollout.response_ids.shape, *value.shape[2:], dtype=value.dtype, device=value.device
            )
        found[name][rows, : value.shape[1]] = value

    for rows in groups:
        group = trim(select(rollout, rows))
        mask, ids = group.response_mask, group.response_ids
        ref_states = reference.states(group.tokens)
        anchor = FixedDistribution(ref_states, reference.head) if extras.exact_kl else None
        out = policy(group.tokens, decoding, reference=anchor, with_states=extras.old_states)
        ref_logits = decoding(reference.head(ref_states), token_positions(mask))
        at_places = {
            "ref_logprobs": logprob_and_entropy(ref_logits, ids[mask])[0],
            "ref_states": ref_states if extras.ref_states else None,
            "old_states": out.states,
        }
        for name, flat in at_places.items():
            if flat is not None:
                keep(name, rows, scatter_to_mask(flat, mask))
        keep("old_logprobs", rows, out.logprobs)
        keep("old_values", rows, out.values)
        if out.ref_kl is not None:
            keep("exact_kl", rows, out.ref_kl)
    if extras.bootstrap_values:
        found["bootstrap_values"] = bootstrap_values(policy, rollout, groups)
    return replace(rollout, **found)


def bootstrap_values(policy: ActorCritic, rollout: Rollout, groups: Sequence[Int[Tensor, "_"]]) -> Float[Tensor, "B"]:
    """What the critic expects after each response that was cut off; 0 for the others."""
    values = torch.zeros(len(rollout), device=rollout.response_ids.device)
    for rows in groups:
        rows = rows[rollout.truncated[rows].to(rows.device)]
        if len(rows):
            values[rows] = policy.values_after(trim(select(rollout, rows)).tokens)
    return values


def score(rollout: Rollout, source: RewardSource, config: RewardConfig, max_new_tokens: int) -> Rollout:
    """The rollout with what the source says of each response, penalties in their place."""
    said = source(rollout.prompts.prompts, rollout.completions, rollout.prompts.columns)
    scores = torch.tensor(said, dtype=torch.float32, device=rollout.response_ids.device)
    lengths = rollout.response_mask.sum(-1)
    return replace(rollout, scores=apply_penalties(scores, lengths, rollout.truncated, config, max_new_tokens))


def decode(sampler: Sampler, ids: Int[Tensor, "B R"], mask: Tensor) -> list[str]:
    """The responses as text, without special tokens and stop strings."""
    rows = [row[keep].tolist() for row, keep in zip(ids.cpu(), mask.cpu(), strict=True)]
    texts = sampler.tokenizer.batch_decode(rows, skip_special_tokens=True)
    strings = sampler.strings
    return texts if strings is None else [strings.cut(row, text) for row, text in zip(rows, texts, strict=True)]


def forward_groups(count: int, minibatch: int, microbatch: int) -> list[Int[Tensor, "_"]]:
    """Rows 0 to count - 1 cut first into minibatches, then each into microbatches."""
    return [rows for part in torch.arange(count).split(minibatch) for rows in microbatches(part, microbatch)]
