"""The records that flow between the stages of a PPO step, batch first, time last.

B responses, P prompt tokens, R response tokens. Index t of every [B, R] tensor belongs to response token t: its
log-probability, the value of the state before it, the reward for it. Masks are named for what True means.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Record = TypeVar("Record")


@dataclass(frozen=True)
class Prompts:
    prompt_ids: Int[Tensor, "B P"]
    """Left-padded token ids."""
    prompt_mask: Bool[Tensor, "B P"]
    """True on the prompt's tokens."""
    prompts: list[Any]
    """The prompts as in the dataset: a string, or a list of messages."""
    columns: dict[str, list[Any]]
    """The dataset's other columns, for reward functions; each a list of B."""

    def __len__(self) -> int:
        return len(self.prompt_ids)


@dataclass(frozen=True)
class Tokens:
    """Prompts and responses as the input of a forward pass."""

    prompt_ids: Int[Tensor, "B P"]
    prompt_mask: Bool[Tensor, "B P"]
    response_ids: Int[Tensor, "B R"]
    response_mask: Bool[Tensor, "B R"]


@dataclass(frozen=True)
class Rollout:
    prompts: Prompts
    response_ids: Int[Tensor, "B R"]
    """Sampled token ids, right-padded."""
    response_mask: Bool[Tensor, "B R"]
    """True on the policy's tokens, the stop token included. False on environment tokens between two turns of the
    policy, which are context but neither scored nor trained on, and on padding after the last True."""
    truncated: Bool[Tensor, "B"]
    """True where the length limit came before a stop token."""
    completions: list[str]
    """The responses as text, without special tokens."""
    old_logprobs: Float[Tensor, "B R"]
    """Log-probability of each token under the policy that sampled it."""
    ref_logprobs: Float[Tensor, "B R"] | None
    """Log-probability of each token under the reference; None without one."""
    old_values: Float[Tensor, "B R"]
    """The critic's value of the state before each token, when the response was sampled."""
    scores: Float[Tensor, "B"]
    """The reward source's score of each response, penalties applied; a reward of the last token."""
    token_scores: Float[Tensor, "B R"] | None = None
    """Rewards of single tokens, in addition."""
    sampler_logprobs: Float[Tensor, "B R"] | None = None
    """Log-probability of each token as the sampler computed it; the trainer uses `old_logprobs`, which are these with
    `ppo.old_logprobs: sampler`."""
    exact_kl: Float[Tensor, "B R"] | None = None
    """KL(policy || reference) over the vocabulary before each token, where the objective needs it."""
    old_states: Float[Tensor, "B R H"] | None = None
    """The trunk's states before each token, from which the old distribution can be computed again."""
    ref_states: Float[Tensor, "B R H"] | None = None
    """The reference trunk's states before each token."""
    bootstrap_values: Float[Tensor, "B"] | None = None
    """The critic's value of the state after a truncated response; 0 for the others."""
    baseline_scores: Float[Tensor, "B"] | None = None
    """The score of the greedy response to the same prompt (ReMax)."""
    score_by_token: Float[Tensor, "B R"] | None = None
    """The part of each score that a source gave to single tokens; the rest belongs to the last token. None: all of it
    does."""
    source_scores: dict[str, Float[Tensor, "B"]] | None = None
    """With several reward sources, the raw scores of each; nan where it does not apply or failed."""
    errors: list[str | None] | None = None
    """Why a response has no score, where failures of the reward source are skipped; None for those that have one."""
    task_scores: Float[Tensor, "B"] | None = None
    """The reward source's score of each response before penalties."""

    def __len__(self) -> int:
        return len(self.response_ids)

    @property
    def tokens(self) -> Tokens:
        return Tokens(self.prompts.prompt_ids, self.prompts.prompt_mask, self.response_ids, self.response_mask)

    @property
    def is_scored(self) -> Bool[Tensor, "B"]:
        """True on the responses whose score counts; the others are left out of the loss."""
        if self.errors is None:
            return torch.ones(len(self), dtype=torch.bool, device=self.response_ids.device)
        return torch.tensor([error is None for error in self.errors], device=self.response_ids.device)

    def token_ids(self) -> list[list[int]]:
        """The policy's tokens of each response, stop token included."""
        rows = zip(self.response_ids, self.response_mask, strict=True)
        return [_to_list(ids[mask]) for ids, mask in rows]


@dataclass(frozen=True)
class PPOBatch:
    rollout: Rollout
    rewards: Float[Tensor, "B R"]
    """Reward of each token: the KL penalty, and on the last token the score."""
    advantages: Float[Tensor, "B R"]
    returns: Float[Tensor, "B R"]
    """The critic's targets: advantages before whitening + old values."""
    loss_mask: Bool[Tensor, "B R"]
    """True on the tokens in the loss: response_mask, less the responses that are left out."""

    def __len__(self) -> int:
        return len(self.rewards)


@dataclass(frozen=True)
class PolicyOutput:
    logprobs: Float[Tensor, "B R"]
    values: Float[Tensor, "B R"]
    """0 without a critic."""
    entropy: Float[Tensor, "B R"] | None = None
    """Of the whole distribution at each token, in nats, on request."""
    old_kl: Float[Tensor, "B R"] | None = None
    """KL(old || new) over the vocabulary, on request."""
    ref_kl: Float[Tensor, "B R"] | None = None
    """KL(new || reference) over the vocabulary, on request."""
    states: Float[Tensor, "N H"] | None = None
    """The trunk's states before the N response tokens, on request."""


def mask_up_to_last(mask: Bool[Tensor, "B R"]) -> Bool[Tensor, "B R"]:
    """True up to each row's last True: the response with its environment tokens, without its padding."""
    return mask.flip(-1).cummax(-1).values.flip(-1)


def text_lengths(tokens: Tokens) -> Int[Tensor, "B"]:
    """Tokens of each prompt and its response together, environment tokens included."""
    return tokens.prompt_mask.sum(-1) + mask_up_to_last(tokens.response_mask).sum(-1)


def last_index(mask: Bool[Tensor, "B R"]) -> Int[Tensor, "B"]:
    """The index of each row's last True."""
    return mask.shape[1] - 1 - mask.flip(-1).int().argmax(-1)


def select(record: Record, rows: Int[Tensor, "N"]) -> Record:
    """The given rows of every field of a record."""

    def select_rows(tensor: Tensor) -> Tensor:
        return tensor[rows.to(tensor.device)]

    def select_items(items: list[Any]) -> list[Any]:
        return [items[i] for i in _to_list(rows)]

    return _map_fields(record, select_rows, select_items)


def to_device(record: Record, device: torch.device | str) -> Record:
    """The record with every tensor on `device`."""

    def move(tensor: Tensor) -> Tensor:
        return tensor.to(device)

    return map_tensors(record, move)


def map_tensors(record: Record, function: Callable[[Tensor], Tensor]) -> Record:
    """The record with every tensor in it replaced, in the order of the fields."""
    return _map_fields(record, function, lambda items: items)


def trim(rollout: Rollout) -> Rollout:
    """Drop the columns that are padding in every row, so that a short microbatch is not as wide as the batch."""
    left = int(rollout.prompts.prompt_mask.any(0).int().argmax()) if len(rollout) else 0
    width = int(mask_up_to_last(rollout.response_mask).any(0).sum())
    prompts = replace(
        rollout.prompts,
        prompt_ids=rollout.prompts.prompt_ids[:, left:],
        prompt_mask=rollout.prompts.prompt_mask[:, left:],
    )
    trimmed = {name: value[:, :width] for name, value in _per_token(rollout).items()}
    return replace(rollout, prompts=prompts, **trimmed)


def interleave(parts: list[Rollout]) -> Rollout:
    """One rollout from the ranks' shares: row i of rank r becomes row i * ranks + r.

    Padded to the longest prompt and the longest response: the inverse of taking rows r, r + ranks, ... on rank r.
    """
    return _combine(
        _pad_alike(parts),
        lambda tensors: torch.stack(tensors, dim=1).flatten(0, 1),
        lambda lists: [item for row in zip(*lists, strict=True) for item in row],
    )


def concatenate(parts: list[Rollout]) -> Rollout:
    """The rows of several rollouts one after the other, padded to the longest prompt and the longest response."""
    return _combine(_pad_alike(parts), torch.cat, lambda lists: [item for items in lists for item in items])


def _pad_alike(parts: list[Rollout]) -> list[Rollout]:
    """Rollouts as wide as the longest prompt and the longest response of all of them."""
    width = max(part.response_ids.shape[1] for part in parts)
    prompt_width = max(part.prompts.prompt_ids.shape[1] for part in parts)
    padding = [part.prompts.prompt_ids[~part.prompts.prompt_mask] for part in parts]
    pad_id = next((int(ids[0]) for ids in padding if len(ids)), 0)  # equal prompts of two parts must stay equal
    padded: list[Rollout] = []
    for part in parts:
        left = prompt_width - part.prompts.prompt_ids.shape[1]
        prompts = replace(
            part.prompts,
            prompt_ids=torch.nn.functional.pad(part.prompts.prompt_ids, (left, 0), value=pad_id),
            prompt_mask=torch.nn.functional.pad(part.prompts.prompt_mask, (left, 0)),
        )
        if part.score_by_token is None and any(other.score_by_token is not None for other in parts):
            part = replace(part, score_by_token=torch.zeros_like(part.old_logprobs))
        per_token = {name: pad_to_width(value, width) for name, value in _per_token(part).items()}
        padded.append(replace(part, prompts=prompts, **per_token))
    return padded


def pad_to_width(x: Tensor, width: int) -> Tensor:
    """The tensor [B, R, ...] with zeros up to `width` columns."""
    return torch.nn.functional.pad(x, (0, 0) * (x.dim() - 2) + (0, width - x.shape[1]))


def _per_token(rollout: Rollout) -> dict[str, Tensor]:
    """The fields with a column for each response token that are not None."""
    values = {f.name: getattr(rollout, f.name) for f in fields(rollout)}
    return {name: x for name, x in values.items() if isinstance(x, Tensor) and x.dim() > 1}


def _combine(
    parts: list[Any], on_tensors: Callable[[list[Tensor]], Tensor], on_lists: Callable[[list[list[Any]]], list[Any]]
) -> Any:
    """Records of one kind as one, field by field, those of nested records included."""
    first = parts[0]
    if is_dataclass(first):
        names = [f.name for f in fields(first)]
        values = {name: _combine([getattr(part, name) for part in parts], on_tensors, on_lists) for name in names}
        return type(first)(**values)  # pyright: ignore
    if isinstance(first, Tensor):
        return on_tensors(parts)
    if first is None:
        return None
    if isinstance(first, dict):
        columns = cast(dict[str, Any], first)
        return {key: _combine([part[key] for part in parts], on_tensors, on_lists) for key in columns}
    return on_lists(parts)


def _map_fields(record: Any, on_tensor: Callable[[Tensor], Tensor], on_list: Callable[[list[Any]], list[Any]]) -> Any:
    """The record with every tensor and every list in it replaced, those of nested records included."""
    if isinstance(record, Tensor):
        return on_tensor(record)
    if record is None:
        return None
    if isinstance(record, list):
        return on_list(cast(list[Any], record))
    if isinstance(record, dict):
        columns = cast(dict[str, Any], record)
        return {key: _map_fields(value, on_tensor, on_list) for key, value in columns.items()}
    changed = {f.name: _map_fields(getattr(record, f.name), on_tensor, on_list) for f in fields(record)}
    return replace(record, **changed)


def _to_list(row: Int[Tensor, "N"]) -> list[int]:
    return cast(list[int], row.tolist())  # pyright: ignore[reportUnknownMemberType]
