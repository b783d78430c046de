"""The stages of a rollout on one process: sample responses, compute log-probabilities and values, score.

`rlhf.trainers.advantages` continues with token rewards and advantages.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf.config.scores import RewardConfig
from rlhf.config.shared import GenerationConfig
from rlhf.errors import UserError
from rlhf.models.actor_critic import ActorCritic, Reference
from rlhf.models.compiled_layers import uncompiled
from rlhf.models.distribution import FixedDistribution, LogitTransform, scatter_to_mask
from rlhf.models.offload import on_device
from rlhf.records import PolicyOutput, Prompts, Rollout, Tokens, select, trim
from rlhf.rewards.mixes import score_texts
from rlhf.rewards.penalties import apply_penalties, is_replaced
from rlhf.rewards.results import Context
from rlhf.rewards.sources import RewardSource
from rlhf.rollouts.engines import check_engine
from rlhf.rollouts.sampling import sample
from rlhf.rollouts.stopping import StopStrings, make_logit_transform, resolve_stop_ids
from rlhf.rollouts.token_ends import token_ends

FirstForward = Callable[[Tokens], PolicyOutput]
"""Computes the policy's output of a rollout's first group."""


@dataclass(frozen=True)
class Sampler:
    """How a run samples: tokenizer, distribution and limits, fixed when it starts."""

    tokenizer: Any
    transform: LogitTransform
    config: GenerationConfig

    @classmethod
    def of(cls, tokenizer: Any, lm: Any, config: GenerationConfig) -> "Sampler":
        """The sampler of a model.

        Raises:
            UserError: the settings name token ids that the model does not have, or an engine that does not support it.
        """
        check_engine(config.engine, lm)
        stop_ids = resolve_stop_ids(tokenizer, lm.config, config, lm.generation_config)
        return cls(
            tokenizer=tokenizer,
            transform=make_logit_transform(config, stop_ids, lm.config.get_text_config().vocab_size),
            config=config,
        )

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is taken each time, without random numbers."""
        return self.config.temperature == 0

    @property
    def stop_strings(self) -> StopStrings | None:
        return StopStrings(self.tokenizer, tuple(self.config.stop_strings)) if self.config.stop_strings else None


@dataclass(frozen=True)
class RequestedOutputs:
    """What is computed of a rollout besides log-probabilities."""

    policy_forward: bool = True
    """Compute the policy's log-probabilities; False where the rollout has those of the sampler as its old ones."""
    values: bool = True
    exact_kl: bool = False
    old_states: bool = False
    ref_states: bool = False
    bootstrap_values: bool = False


def sample_responses(
    policy: ActorCritic,
    sampler: Sampler,
    prompts: Prompts,
    noise: Float[Tensor, "B R"] | None,
    as_old: bool = False,
    on_token: Callable[[Int[Tensor, "N"]], None] | None = None,
) -> Rollout:
    """A response to every prompt, greedy without noise; log-probabilities, values and scores are still nan.

    Args:
        as_old: the sampler's log-probabilities are the rollout's old ones, and the values of a shared critic are
            computed while sampling; without a critic they are 0, and those of any other critic are still nan.
        on_token: called with new tokens as soon as they are drawn; see `sample`.
    """
    with uncompiled(policy.lm):
        sampled = sample(
            policy.lm,
            prompts.prompt_ids,
            prompts.prompt_mask,
            noise,
            transform=sampler.transform,
            max_new_tokens=sampler.config.max_new_tokens,
            stop_strings=sampler.stop_strings,
            max_rows=sampler.config.max_rows,
            engine=sampler.config.engine,
            value_head=policy.value_of if as_old and policy.critic == "shared" else None,
            on_token=on_token,
        )
    if not bool(sampled.logprobs.isfinite().all()):
        raise UserError(
            "the model gives tokens probabilities that are not finite: its weights are damaged, or training moved them "
            "too far; resume from the newest checkpoint with a lower ppo.lr, or name another model"
        )
    completions = decode(sampler, sampled.ids, sampled.mask)
    rollout = unscored_rollout(prompts, sampled.ids, sampled.mask, sampled.truncated, completions)
    rollout = replace(rollout, sampler_logprobs=sampled.logprobs)
    if not as_old:
        return rollout
    values = sampled.values
    if policy.critic is None:
        values = torch.zeros_like(sampled.logprobs)
    return replace(
        rollout,
        old_logprobs=sampled.logprobs,
        old_values=rollout.old_values if values is None else values,
    )


def unscored_rollout(
    prompts: Prompts,
    response_ids: Int[Tensor, "B R"],
    response_mask: Bool[Tensor, "B R"],
    truncated: Bool[Tensor, "B"],
    completions: list[str],
) -> Rollout:
    """A rollout of text alone: log-probabilities, values and scores are nan until they are computed."""
    missing = torch.full(response_ids.shape, torch.nan, device=response_ids.device)
    return Rollout(
        prompts=prompts,
        response_ids=response_ids,
        response_mask=response_mask,
        truncated=truncated,
        completions=completions,
        old_logprobs=missing,
        ref_logprobs=missing,
        old_values=missing,
        scores=missing[:, 0],
    )


@torch.no_grad()
def compute_logprobs_and_values(
    policy: ActorCritic,
    reference: Reference | None,
    rollout: Rollout,
    groups: Sequence[Int[Tensor, "_"]],
    transform: LogitTransform,
    requested: RequestedOutputs | None = None,
    first_forward: FirstForward | None = None,
) -> Rollout:
    """The rollout with the policy's log-probabilities and values, and the reference's log-probabilities.

    Args:
        reference: None leaves its log-probabilities out.
        groups: the rows of each forward pass. With the microbatches of the first epoch the old log-probabilities come
            from the same forward that the update repeats, so that the first ratio is exactly 1.
        requested: further outputs to store in the rollout.
        first_forward: computes the policy's output of the first group, and may store it with its graph.
    """
    requested = requested or RequestedOutputs()
    outputs: dict[str, Tensor] = {}

    def store(name: str, rows: Tensor, values: Tensor) -> None:
        """Put the values [M, r, ...] of some rows into the field [B, R, ...]."""
        if name not in outputs:
            shape = (*rollout.response_ids.shape, *values.shape[2:])
            outputs[name] = torch.zeros(shape, dtype=values.dtype, device=values.device)
        outputs[name][rows, : values.shape[1]] = values

    with on_device(reference):
        for i, rows in enumerate(groups):
            group = trim(select(rollout, rows))
            mask = group.response_mask
            fixed_reference = None
            if reference is not None:
                fixed_reference = FixedDistribution(reference.states(group.tokens), reference.head)
                store("ref_logprobs", rows, reference.logprobs(fixed_reference.states, group.tokens, transform))
                if requested.ref_states:
                    store("ref_states", rows, scatter_to_mask(fixed_reference.states, mask))
            if not requested.policy_forward:
                if requested.values and policy.critic in ("separate", "adapter"):
                    store("old_values", rows, policy.separate_values(group.tokens))
                continue
            if i == 0 and first_forward is not None:
                out = first_forward(group.tokens)
            else:
                out = policy(
                    group.tokens,
                    transform,
                    reference=fixed_reference if requested.exact_kl else None,
                    with_entropy=False,
                    with_values=requested.values,
                    with_states=requested.old_states,
                )
            if out.states is not None:
                store("old_states", rows, scatter_to_mask(out.states, mask))
            store("old_logprobs", rows, out.logprobs)
            store("old_values", rows, out.values)
            if out.ref_kl is not None:
                store("exact_kl", rows, out.ref_kl)
    if requested.bootstrap_values:
        outputs["bootstrap_values"] = bootstrap_values(policy, rollout, groups)
    return replace(rollout, **({"ref_logprobs": None} | outputs))


def bootstrap_values(policy: ActorCritic, rollout: Rollout, groups: Sequence[Int[Tensor, "_"]]) -> Float[Tensor, "B"]:
    """The critic's value of the state after each truncated response; 0 for the others."""
    values = torch.zeros(len(rollout), device=rollout.response_ids.device)
    for rows in groups:
        truncated = rows[rollout.truncated[rows].to(rows.device)]
        if len(truncated):
            values[truncated] = policy.values_after(trim(select(rollout, truncated)).tokens)
    return values


def score_rollout(
    rollout: Rollout,
    source: RewardSource,
    config: RewardConfig,
    max_new_tokens: int,
    tokenizer: Any = None,
    step: int = 0,
) -> Rollout:
    """The rollout with the source's score of each response, penalties applied.

    Args:
        tokenizer: decoded the responses; None where rewards by token need not be aligned.
        step: finished training steps.

    Raises:
        UserError: the source fails, unless `reward.on_error` skips the rows that it fails on.
    """
    prompts, completions = rollout.prompts, rollout.completions
    skip = config.on_error == "skip"
    context = scoring_context(rollout, tokenizer, step)
    mixed = score_texts(source, prompts.prompts, completions, prompts.columns, context, skip)
    device, mask = rollout.response_ids.device, rollout.response_mask
    scores = torch.tensor(mixed.totals, dtype=torch.float32, device=device)
    by_token = torch.zeros(mask.shape, device=device)
    for row, rewards in enumerate(mixed.by_token):
        if rewards is not None:
            by_token[row, mask[row]] = torch.tensor(rewards, device=device)
    by_source = {name: torch.tensor(values, device=device) for name, values in mixed.by_source.items()}
    scored = replace(
        rollout,
        scores=scores,
        score_by_token=by_token,
        source_scores=by_source or None,
        errors=mixed.errors if skip else None,
        task_scores=scores,
    )
    return penalise(scored, config, max_new_tokens)


def penalise(rollout: Rollout, config: RewardConfig, max_new_tokens: int) -> Rollout:
    """The rollout with its scores after the penalties."""
    assert rollout.score_by_token is not None
    lengths = rollout.response_mask.sum(-1)
    replaced = is_replaced(lengths, rollout.truncated, config).unsqueeze(-1)
    return replace(
        rollout,
        scores=apply_penalties(rollout.scores, lengths, rollout.truncated, config, max_new_tokens),
        score_by_token=torch.where(replaced, 0, rollout.score_by_token),
    )


def scoring_context(rollout: Rollout, tokenizer: Any, step: int) -> Context:
    """What sources may use of a rollout besides texts and columns."""
    ids = rollout.token_ids()

    def ends(row: int) -> list[int]:
        return token_ends(tokenizer, ids[row], rollout.completions[row])

    return Context(step, ids, None if tokenizer is None else ends)


def decode(sampler: Sampler, ids: Int[Tensor, "B R"], mask: Bool[Tensor, "B R"]) -> list[str]:
    """The responses as text, without special tokens and stop strings."""
    rows = [row[is_token].tolist() for row, is_token in zip(ids.cpu(), mask.cpu(), strict=True)]
    texts = sampler.tokenizer.batch_decode(rows, skip_special_tokens=True)
    stop_strings = sampler.stop_strings
    if stop_strings is None:
        return texts
    return [stop_strings.cut(row, text) for row, text in zip(rows, texts, strict=True)]
