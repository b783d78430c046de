"""Which rows share a forward pass: rows of similar length, up to a number of rows or of tokens."""

from jaxtyping import Int
from torch import Tensor, arange

from rlhf.config.ppo import PPOConfig
from rlhf.records import Rollout, text_lengths


def microbatches(lengths: Int[Tensor, "B"], config: PPOConfig, packed: bool = False) -> list[Int[Tensor, "_"]]:
    """Rows in groups for one forward pass each, longest first, so that running out of memory shows at once.

    A group has at most `ppo.microbatch_size` rows, or with `ppo.microbatch_tokens` at most so many tokens, padding
    included. A row that is longer than that has a group of its own.

    Args:
        lengths: tokens of each row, prompt and response together.
        packed: forward passes read rows without padding.
    """
    order = lengths.cpu().argsort(descending=True, stable=True)
    if config.microbatch_tokens is None:
        return list(order.split(config.microbatch_size))
    sizes = []
    tokens = longest = 0
    for length in lengths.cpu()[order].tolist():
        tokens += length if packed else longest
        if not sizes or tokens > config.microbatch_tokens:
            sizes.append(0)
            tokens = longest = length
        sizes[-1] += 1
    return list(order.split(sizes))


def first_epoch_microbatches(
    rollout: Rollout, minibatch_size: int, config: PPOConfig, packed: bool
) -> list[Int[Tensor, "_"]]:
    """The microbatches of all minibatches of the first epoch, which takes the rows in the order of the rollout."""
    lengths = text_lengths(rollout.tokens)
    minibatches = arange(len(rollout)).split(minibatch_size)
    return [rows[group] for rows in minibatches for group in microbatches(lengths[rows], config, packed)]
