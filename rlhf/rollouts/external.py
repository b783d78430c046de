"""Rollouts of a custom loop: text from several turns or from elsewhere, ready for `PPOTrainer.learn`."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from rlhf.data.encoding import pad
from rlhf.data.prompts import make_prompts
from rlhf.errors import UserError
from rlhf.records import Rollout, pad_to_width, to_device
from rlhf.rollouts.checks import check_mask
from rlhf.rollouts.stages import Sampler, decode, unscored_rollout


@runtime_checkable
class RolloutTrainer(Protocol):
    """The parts of a PPOTrainer that `make_rollout` needs."""

    tokenizer: Any
    sampler: Sampler
    accelerator: Any

    def check_context_length(self, prompt: int, response: int) -> None: ...

    def compute_logprobs_and_values(self, rollout: Rollout) -> Rollout: ...


def make_rollout(
    trainer: RolloutTrainer,
    prompts: Sequence[Any],
    responses: Sequence[Sequence[int]],
    masks: Sequence[Sequence[bool]] | None = None,
    scores: Sequence[float] | None = None,
    token_scores: Sequence[Sequence[float]] | None = None,
    truncated: Sequence[bool] | None = None,
    columns: dict[str, list[Any]] | None = None,
) -> Rollout:
    """A rollout from token ids, with log-probabilities and values computed; every process passes the same arguments.

    Args:
        trainer: the PPOTrainer that will train on it.
        prompts: texts, lists of messages or lists of token ids, one for each response.
        responses: token ids after the prompt: the policy's, and between them those of an environment.
        masks: True on the policy's tokens; None: all of them are.
        scores: one for each response, a reward of the policy's last token; None leaves them to `trainer.score`.
        token_scores: a reward for each token, in addition; 0 on environment tokens.
        truncated: True where a response was cut off before its end; None: nowhere.
        columns: further data of each prompt, for reward functions.

    Raises:
        UserError: the lists differ in length, or a response has no token of the policy's.
    """
    lists = {
        "responses": responses,
        "masks": masks,
        "scores": scores,
        "token_scores": token_scores,
        "truncated": truncated,
    }
    for name, rows in lists.items():
        if rows is not None and len(rows) != len(prompts):
            raise UserError(f"make_rollout: {len(prompts)} prompts, but {len(rows)} {name}")
    for name, rows in (("masks", masks), ("token_scores", token_scores)):
        for i, (row, ids) in enumerate(zip(rows or [], responses, strict=False)):
            if len(row) != len(ids):
                raise UserError(f"make_rollout: response {i} has {len(ids)} tokens, but its {name} {len(row)}")
    response_ids, is_token = pad(responses, 0, "right")
    width = response_ids.shape[1]
    mask = is_token if masks is None else _matrix(masks, width, torch.bool)
    check_mask(mask)
    batch = make_prompts(trainer.tokenizer, prompts, columns)
    trainer.check_context_length(batch.prompt_ids.shape[1], width)
    is_truncated = torch.zeros(len(mask), dtype=torch.bool) if truncated is None else torch.tensor(list(truncated))
    completions = decode(trainer.sampler, response_ids, mask)
    rollout = unscored_rollout(batch, response_ids, mask, is_truncated, completions)
    if scores is not None:
        rollout = replace(rollout, scores=torch.tensor([float(x) for x in scores]))
    if token_scores is not None:
        rollout = replace(rollout, token_scores=_matrix(token_scores, width, torch.float32))
    return trainer.compute_logprobs_and_values(to_device(rollout, trainer.accelerator.device))


def _matrix(rows: Sequence[Sequence[Any]], width: int, dtype: torch.dtype) -> Tensor:
    return torch.cat([pad_to_width(torch.tensor([list(row)], dtype=dtype), width) for row in rows])
