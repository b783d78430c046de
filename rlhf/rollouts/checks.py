"""Checks of rollouts before PPO trains on them, whether a run collects them or a custom loop brings them."""

import torch
from jaxtyping import Bool
from torch import Tensor

from rlhf.config.ppo import PPOConfig
from rlhf.errors import UserError
from rlhf.records import Rollout
from tabular.core.masked import masked_mean

MAX_START_DIFFERENCE = 1e-3
"""Nats by which policy and reference may differ on a token before the first update: rounding, and no more."""

MAX_START_MISMATCH = 0.05
"""The same for the mean over tokens where the policy's log-probabilities were computed while sampling: another order of
the same sums, which in bfloat16 differs by up to .02 nats on average, and by more on single tokens."""


def check_reference_matches_policy(rollout: Rollout, from_sampler: bool = False) -> None:
    """Refuse a policy that differs from its reference before the first update: every KL of the run would be wrong.

    Args:
        from_sampler: the old log-probabilities were computed while sampling.

    Raises:
        UserError: they differ by more than rounding.
    """
    if rollout.ref_logprobs is None:
        return
    differences = (rollout.old_logprobs - rollout.ref_logprobs).abs()
    if from_sampler:
        mismatch = float(masked_mean(differences, rollout.response_mask))
        if mismatch > MAX_START_MISMATCH:
            raise UserError(
                "before the first update the log-probabilities computed while sampling differ from the reference's by "
                f"{mismatch:.3g} nats a token, but they must be those of the same model; set ppo.old_logprobs to "
                "recomputed, and see policy/sampler_mismatch"
            )
        return
    difference = float(differences.max())
    if difference > MAX_START_DIFFERENCE:
        raise UserError(
            f"before the first update policy and reference differ by {difference:.3g} nats on a token, but they must "
            "be the same model; is the model's forward pass random, or does it depend on more than its inputs?"
        )


def check_mask(mask: Bool[Tensor, "B R"]) -> None:
    """Refuse a response without a token of the policy's."""
    if not bool(mask.any(-1).all()):
        row = int((~mask.any(-1)).nonzero()[0])
        raise UserError(f"response {row} of the rollout has no token of the policy's")


def check_rollout(rollout: Rollout, config: PPOConfig) -> None:
    """Refuse a rollout that PPO cannot train on.

    Raises:
        UserError: it does not divide into minibatches or groups, is not scored, or rewards environment tokens.
    """
    for name in ("minibatch_size", "samples_per_prompt"):
        if len(rollout) % getattr(config, name):
            raise UserError(
                f"the rollout has {len(rollout)} responses, no multiple of ppo.{name} = {getattr(config, name)}"
            )
    check_mask(rollout.response_mask)
    if not bool(rollout.scores.isfinite().all()):
        row = int((~rollout.scores.isfinite()).nonzero()[0])
        raise UserError(f"response {row} has the score {float(rollout.scores[row])}; call score(), or fill in scores")
    _check_token_scores(rollout)
    _check_groups(rollout, config.samples_per_prompt)
    if config.estimator == "remax" and rollout.baseline_scores is None:
        raise UserError(
            "ppo.estimator remax needs baseline_scores, the scores of greedy responses; trainer.score() computes them"
        )


def _check_token_scores(rollout: Rollout) -> None:
    token_scores = rollout.token_scores
    if token_scores is None:
        return
    mask = rollout.response_mask
    if not bool(token_scores[mask].isfinite().all()):
        raise UserError("token_scores are not finite everywhere")
    if bool((token_scores[~mask] != 0).any()):
        row, position = (~mask & (token_scores != 0)).nonzero()[0].tolist()
        raise UserError(
            f"token_scores holds {float(token_scores[row, position]):g} at position {position} of response {row}, "
            "which is no token of the policy's; put it on the policy's last token before"
        )


def _check_groups(rollout: Rollout, size: int) -> None:
    """Rows i * size to i * size + size - 1 must answer the same prompt."""
    ids = rollout.prompts.prompt_ids
    if bool(torch.any(ids.view(-1, size, ids.shape[1]) != ids[::size].unsqueeze(1))):
        raise UserError(
            f"ppo.samples_per_prompt is {size}, but not every {size} consecutive rows have the same prompt; "
            "repeat each prompt that many times, in consecutive rows"
        )
