"""Responses to held-out prompts, with their scores and their divergence from the reference.

Every evaluation of a run uses the same prompts and the same random numbers, so two of them differ by the weights alone,
and a win rate compares responses pair by pair.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor

from rlhf.config.scores import RewardConfig
from rlhf.config.shared import EvalConfig
from rlhf.data.encoding import render_chat
from rlhf.data.prompts import DATA_SET, PromptSet
from rlhf.models.actor_critic import ActorCritic, Reference
from rlhf.records import Rollout, mask_up_to_last, to_device
from rlhf.rewards.failures import check_errors
from rlhf.rewards.mixes import numbers_where_it_applies, score_texts
from rlhf.rewards.penalties import apply_penalties
from rlhf.rewards.results import Context
from rlhf.rewards.sources import RewardSource
from rlhf.rollouts.episodes import Player, check_episodes
from rlhf.rollouts.sampling import uniform_noise
from rlhf.rollouts.stages import (
    RequestedOutputs,
    Sampler,
    compute_logprobs_and_values,
    sample_responses,
    scoring_context,
)
from rlhf.run.distributed import raise_on_all_ranks
from rlhf.run.metrics import repetition

_NOISE_KEY = 7_777_777
"""Separates the random numbers of evaluations from those of training steps."""


@dataclass(frozen=True)
class EvaluatedResponse:
    """A policy's response to one held-out prompt."""

    index: int
    """Of the prompt, among all held-out prompts."""
    prompt: str
    """As text; messages as the chat template renders them."""
    response: str
    tokens: list[str]
    """The response's tokens, each as text, with those of an environment between the policy's turns."""
    token_kl: list[float | None] | None
    """log policy - log reference of each token, in nats, and None for the environment's; None without a reference."""
    token_logprobs: list[float]
    """log policy of each of the policy's tokens."""
    scores: dict[str, float | None]
    """By the source's name: `score`, `reward/NAME` of each source in a mix, `judge` and `judge/NAME` where there are
    any. None where the source does not apply, or failed and failures are skipped."""
    truncated: bool
    """Whether the length limit cut the response off."""
    repetition: float
    """Share of token pairs that occurred before in the response."""
    from_environment: list[bool] | None = None
    """True on the tokens that an environment wrote; None where it wrote none."""
    penalised_score: float | None = None
    """The `score` after the penalties of training; None where there are none, or no score."""
    data_set: str | None = None
    """The name of the prompt's data set, where there are several."""
    token_values: list[float | None] | None = None
    """The critic's value of the state before each token, as in `token_kl`; None where it was not asked for."""
    token_advantages: list[float | None] | None = None
    """The advantage of each token, likewise."""


def held_out_indices(count: int, config: EvalConfig) -> list[int]:
    """Which of `count` held-out prompts are used: the same in every run on the same data."""
    return sorted(np.random.default_rng(0).permutation(count)[: config.prompts].tolist())


@dataclass(frozen=True)
class TokenDetails:
    """Values and advantages of the first responses' tokens, which cost a forward pass of a critic of its own."""

    count: int
    """Of the responses, in the order of the prompts."""
    advantages: Callable[[Rollout], Tensor | None]
    """[B, R] from a rollout with values and scores after penalties; None where they cannot be computed."""


@torch.no_grad()
def evaluate_responses(
    policy: ActorCritic,
    reference: Reference | None,
    sampler: Sampler,
    *,
    prompts: PromptSet,
    indices: Sequence[int],
    sources: Mapping[str, RewardSource],
    reward: RewardConfig,
    batch_size: int,
    seed: int,
    accelerator: Any,
    step: int = 0,
    noise_key: Sequence[int] = (),
    player: Player | None = None,
    details: TokenDetails | None = None,
) -> list[EvaluatedResponse]:
    """Sample and score a response to each of the prompts `indices`, in their order.

    Called on every rank: each samples its share, and all ranks return all responses.

    Args:
        sources: score the responses, by name.
        reward: the penalties of training, which apply to the penalised score alone, and whether failures are skipped.
        batch_size: responses of one forward pass on one device.
        step: finished training steps, for sources that depend on it.
        noise_key: numbers that give further samples of the same prompts random numbers of their own.
        player: plays an episode of the environment for each prompt instead, whose rewards are the `score`.
        details: what to add to the first responses.

    Raises:
        UserError: on all ranks, where a source fails on one.
    """
    policy.eval()
    ranks = accelerator.num_processes
    key = None if sampler.is_greedy else [seed, _NOISE_KEY, *noise_key]
    max_tokens = sampler.config.max_new_tokens if player is None else player.config.max_tokens
    responses: list[EvaluatedResponse] = []
    errors: list[str | None] = []
    with raise_on_all_ranks(accelerator):
        share = range(accelerator.process_index, len(indices), ranks)
        for rows in (share[i : i + batch_size] for i in range(0, len(share), batch_size)):
            batch_indices = [indices[i] for i in rows]
            batch = to_device(prompts.batch(batch_indices), accelerator.device)
            together = [torch.arange(len(rows))]
            with accelerator.autocast():
                if player is not None:
                    rollout = player.play(policy, batch, key, rows, len(indices))
                    rollout = check_episodes(rollout, skip=reward.on_error == "skip")
                else:
                    length = sampler.config.max_new_tokens
                    noise = None if key is None else uniform_noise(key, rows, len(indices), length)
                    rollout = sample_responses(policy, sampler, batch, noise)
                shown = details if details is not None and rows[0] < details.count else None
                outputs = RequestedOutputs(values=shown is not None)
                rollout = compute_logprobs_and_values(policy, reference, rollout, together, sampler.transform, outputs)
            context = scoring_context(rollout, sampler.tokenizer, step)
            scores, failures = _score(rollout, sources, context, reward.on_error == "skip")
            if player is not None:
                failures = rollout.errors or []
                scores = {"score": _present(rollout.scores.tolist(), failures)} | scores
            errors += failures
            penalised = _penalised(rollout, scores, reward, max_tokens)
            evaluated = _evaluated(rollout, sampler.tokenizer, batch_indices, scores, penalised)
            if shown is not None:
                evaluated = _with_details(evaluated, rollout, penalised or scores.get("score"), rows, shown)
            if prompts.counts:
                evaluated = [replace(r, data_set=prompts.columns[DATA_SET][r.index]) for r in evaluated]
            responses += evaluated
    if ranks > 1:
        responses, errors = gather_object(responses), gather_object(errors)
    check_errors(errors, reward)
    return sorted(responses, key=lambda response: response.index)


def _with_details(
    evaluated: list[EvaluatedResponse],
    rollout: Rollout,
    scores: Sequence[float | None] | None,
    rows: Sequence[int],
    details: TokenDetails,
) -> list[EvaluatedResponse]:
    """The responses with values and advantages, as far as `details` asks for them."""
    numbers = [math.nan if score is None else score for score in scores or [None] * len(rows)]
    rollout = replace(rollout, scores=torch.tensor(numbers, device=rollout.scores.device))
    advantages = details.advantages(rollout)
    detailed = []
    for i, (response, row) in enumerate(zip(evaluated, rows, strict=True)):
        if row < details.count:
            text = mask_up_to_last(rollout.response_mask[i : i + 1])[0]
            own = rollout.response_mask[i][text]
            response = replace(
                response,
                token_values=_where(own, rollout.old_values[i][text]),
                token_advantages=None if advantages is None else _where(own, advantages[i][text]),
            )
        detailed.append(response)
    return detailed


def _where(own: Tensor, values: Tensor) -> list[float | None]:
    """Finite values of the policy's own tokens, and None for the others."""
    pairs = zip(values.tolist(), own.tolist(), strict=True)
    return [value if is_own and math.isfinite(value) else None for value, is_own in pairs]


def _score(
    rollout: Rollout, sources: Mapping[str, RewardSource], context: Context, skip: bool
) -> tuple[dict[str, list[float | None]], list[str | None]]:
    """The scores by each source, and why a response has no `score`."""
    batch = rollout.prompts
    scores: dict[str, list[float | None]] = {}
    failures: list[str | None] = []
    texts = (batch.prompts, rollout.completions, batch.columns)
    for name, source in sources.items():
        if name != "score":
            scores[name] = numbers_where_it_applies(source, *texts, context, skip)
            continue
        mixed = score_texts(source, *texts, context, skip)
        failures = mixed.errors
        pairs = zip(mixed.totals, mixed.errors, strict=True)
        scores[name] = [total if error is None else None for total, error in pairs]
        for part, values in mixed.by_source.items():
            scores[f"reward/{part}"] = [None if math.isnan(value) else value for value in values]
    return scores, failures


def _present(scores: list[float], errors: Sequence[str | None]) -> list[float | None]:
    """The scores of the episodes that did not fail."""
    if not errors:
        return list(scores)
    return [score if error is None else None for score, error in zip(scores, errors, strict=True)]


def _penalised(
    rollout: Rollout, scores: Mapping[str, list[float | None]], reward: RewardConfig, max_new_tokens: int
) -> list[float | None] | None:
    """The scores after the penalties; None without scores or without penalties."""
    if "score" not in scores or not reward.has_penalties:
        return None
    lengths, truncated = rollout.response_mask.sum(-1).cpu(), rollout.truncated.cpu()
    numbers = torch.tensor([score or 0.0 for score in scores["score"]])
    penalised = apply_penalties(numbers, lengths, truncated, reward, max_new_tokens).tolist()
    pairs = zip(penalised, scores["score"], strict=True)
    return [None if score is None else value for value, score in pairs]


def _evaluated(
    rollout: Rollout,
    tokenizer: Any,
    indices: Sequence[int],
    scores: Mapping[str, list[float | None]],
    penalised: list[float | None] | None,
) -> list[EvaluatedResponse]:
    batch = rollout.prompts
    repeated = repetition(rollout.response_ids, rollout.response_mask)
    log_ratios = None if rollout.ref_logprobs is None else rollout.old_logprobs - rollout.ref_logprobs
    responses = []
    for i, index in enumerate(indices):
        mask = rollout.response_mask[i]
        text = mask_up_to_last(rollout.response_mask[i : i + 1])[0]  # with the environment's turns
        prompt = batch.prompts[i]
        responses.append(
            EvaluatedResponse(
                index=index,
                prompt=prompt if isinstance(prompt, str) else render_chat(tokenizer, prompt, True),
                response=rollout.completions[i],
                tokens=[tokenizer.decode([token]) for token in rollout.response_ids[i][text].tolist()],
                token_kl=None if log_ratios is None else _where(mask[text], log_ratios[i][text]),
                token_logprobs=rollout.old_logprobs[i][mask].tolist(),
                from_environment=None if bool(mask[text].all()) else (~mask[text]).tolist(),
                scores={name: values[i] for name, values in scores.items()},
                truncated=bool(rollout.truncated[i]),
                repetition=float(repeated[i]),
                penalised_score=None if penalised is None else penalised[i],
            )
        )
    return responses
