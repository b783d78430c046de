"""Rollouts from elsewhere: text that a loop of one's own put together, made into what `PPOTrainer.step` learns from."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlhf.config.ppo import PPOConfig
from rlhf.data.encoding import pad
from rlhf.data.prompts import make_prompts
from rlhf.errors import UserError
from rlhf.records import Rollout, pad_to_width, to_device
from rlhf.rollouts.rollout import decode, unscored_rollout


def make_rollout(
    trainer: Any,
    prompts: Sequence[Any],
    responses: Sequence[Sequence[int]],
    masks: Sequence[Sequence[bool]] | None = None,
    scores: Sequence[float] | None = None,
    token_scores: Sequence[Sequence[float]] | None = None,
    truncated: Sequence[bool] | None = None,
    columns: dict[str, list[Any]] | None = None,
) -> Rollout:
    """A rollout of token ids that one brings, read by policy and reference; every process gives the same one.

    Args:
        trainer: the PPOTrainer that will learn from it.
        prompts: texts, lists of messages or lists of token ids, one for each response.
        responses: token ids after the prompt: the policy's own, and between them what an environment answered.
        masks: True on the policy's tokens; None: all of them are.
        scores: one for each response, paid on its last token of the policy's; None leaves them to `trainer.score`.
        token_scores: paid on each token besides; 0 on the environment's.
        truncated: True where a response was cut off before its end; None: nowhere.

    Raises:
        UserError: the lists do not fit each other, or a response has no token of the policy's.
    """
    given = {"responses": responses, "masks": masks, "scores": scores, "token_scores": token_scores}
    for name, rows in (given | {"truncated": truncated}).items():
        if rows is not None and len(rows) != len(prompts):
            raise UserError(f"make_rollout: {len(prompts)} prompts, but {len(rows)} {name}")
    for name, rows in (("masks", masks), ("token_scores", token_scores)):
        for i, (row, ids) in enumerate(zip(rows or [], responses, strict=False)):
            if len(row) != len(ids):
                raise UserError(f"make_rollout: response {i} has {len(ids)} tokens, but its {name} {len(row)}")
    ids, real = pad(responses, 0, "right")
    mask = real if masks is None else _matrix(masks, ids.shape[1], torch.bool)
    check_mask(mask)
    batch = make_prompts(trainer.tokenizer, prompts, columns)
    trainer.check_context_length(batch.prompt_ids.shape[1], ids.shape[1])
    cut = torch.zeros(len(ids), dtype=torch.bool) if truncated is None else torch.tensor(list(truncated))
    rollout = unscored_rollout(batch, ids, mask, cut, decode(trainer.sampler, ids, mask))
    paid: dict[str, Tensor] = {}
    if scores is not None:
        paid["scores"] = torch.tensor([float(x) for x in scores])
    if token_scores is not None:
        paid["token_scores"] = _matrix(token_scores, ids.shape[1], torch.float32)
    return trainer.read(to_device(replace(rollout, **paid), trainer.accelerator.device))


def _matrix(rows: Sequence[Sequence[Any]], width: int, dtype: torch.dtype) -> Tensor:
    return torch.cat([pad_to_width(torch.tensor([list(row)], dtype=dtype), width) for row in rows])


def check_mask(mask: Tensor) -> None:
    if not bool(mask.any(-1).all()):
        raise UserError(f"response {int((~mask.any(-1)).nonzero()[0])} of the rollout has no token of the policy's")


def check_rollout(rollout: Rollout, config: PPOConfig) -> None:
    """What a rollout from elsewhere can have wrong.

    Raises:
        UserError: it cannot be cut into minibatches, is not scored, or pays for tokens that are not the policy's.
    """
    mask = rollout.response_mask
    for name in ("minibatch_size", "samples_per_prompt"):
        if len(rollout) % getattr(config, name):
            raise UserError(
                f"the rollout has {len(rollout)} responses, no multiple of ppo.{name} = {getattr(config, name)}"
            )
    check_mask(mask)
    if not bool(rollout.scores.isfinite().all()):
        bad = int((~rollout.scores.isfinite()).nonzero()[0])
        raise UserError(f"response {bad} has the score {float(rollout.scores[bad])}; call score(), or fill in scores")
    paid = rollout.token_scores
    if paid is not None and not bool(paid[mask].isfinite().all()):
        raise UserError("token_scores are not finite everywhere")
    if paid is not None and bool((paid[~mask] != 0).any()):
        row, place = (~mask & (paid != 0)).nonzero()[0].tolist()
        raise UserError(
            f"token_scores pay {float(paid[row, place]):g} at place {place} of response {row}, which is no token of "
            "the policy's; pay it on the last token before"
        )
    size, ids = config.samples_per_prompt, rollout.prompts.prompt_ids
    if bool((ids.view(-1, size, ids.shape[1]) != ids[::size].unsqueeze(1)).any()):
        raise UserError(
            f"ppo.samples_per_prompt is {size}, but not every {size} rows in a row have the same prompt; "
            "repeat each prompt as often, side by side"
        )
    if config.estimator == "remax" and rollout.baseline_scores is None:
        raise UserError(
            "ppo.estimator remax needs baseline_scores, the scores of greedy responses; trainer.score() finds them"
        )
