"""Which rows share a forward pass of scoring and update: rows of similar length within a minibatch."""

from jaxtyping import Int
from torch import Tensor, arange, tensor

from rlhf.config.ppo import PPOConfig
from rlhf.data.batching import group_by_length
from rlhf.records import Rollout, text_lengths


def microbatches(lengths: Int[Tensor, "B"], config: PPOConfig, packed: bool = False) -> list[Int[Tensor, "_"]]:
    """Rows in groups of `ppo.microbatch_size` rows, or of `ppo.microbatch_tokens` tokens.

    Args:
        lengths: tokens of each row, prompt and response together.
        packed: forward passes read rows without padding.
    """
    groups = group_by_length(lengths.tolist(), config.microbatch_size, config.microbatch_tokens, packed)
    return [tensor(group) for group in groups]


def first_epoch_microbatches(
    rollout: Rollout, minibatch_size: int, config: PPOConfig, packed: bool
) -> list[Int[Tensor, "_"]]:
    """The microbatches of all minibatches of the first epoch, which takes the rows in the order of the rollout."""
    lengths = text_lengths(rollout.tokens)
    minibatches = arange(len(rollout)).split(minibatch_size)
    return [rows[group] for rows in minibatches for group in microbatches(lengths[rows], config, packed)]
