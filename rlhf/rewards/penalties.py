"""Penalties for responses that are too short, cut off or overlong, applied to the scores of any source."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf.config.scores import RewardConfig


def apply_penalties(
    scores: Float[Tensor, "B"],
    lengths: Int[Tensor, "B"],
    truncated: Bool[Tensor, "B"],
    config: RewardConfig,
    max_new_tokens: int,
) -> Float[Tensor, "B"]:
    """Scores after the penalties.

    A penalty for a short or cut response replaces the score, so that no score can outweigh it (Ziegler et al., 2019;
    Huang et al., 2024), unless it is to be subtracted, as in TRL. The overlong penalty is subtracted: it grows over the
    last tokens before the limit, so that responses learn to end before they are cut (Yu et al., 2025, DAPO, eq. 13).

    Args:
        lengths: of the responses, in tokens.
        truncated: True where a response was cut off at `max_new_tokens`.
    """
    if config.min_length > 0:
        scores = torch.where(lengths < config.min_length, -config.short_penalty, scores)
    if config.truncated == "replace" and config.missing_eos_penalty is not None:
        scores = torch.where(truncated, -config.missing_eos_penalty, scores)
    if config.truncated == "subtract" and config.missing_eos_penalty is not None:
        scores = scores - config.missing_eos_penalty * truncated
    if config.truncated == "overlong":
        free = max_new_tokens - config.overlong_buffer
        scores = scores - config.overlong_penalty * ((lengths - free) / config.overlong_buffer).clamp(0, 1)
    return scores


def is_replaced(lengths: Int[Tensor, "B"], truncated: Bool[Tensor, "B"], config: RewardConfig) -> Bool[Tensor, "B"]:
    """True on the responses whose score a penalty replaces, with all that single tokens earned."""
    replaces = config.truncated == "replace" and config.missing_eos_penalty is not None
    return (lengths < config.min_length) | (truncated & replaces)
