"""Which rows share a forward pass of scoring and update: rows of similar length within a minibatch."""

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import torch
from jaxtyping import Int
from torch import Tensor, arange, tensor

from rlhf.config.ppo import PPOConfig
from rlhf.data.batching import group_by_length
from rlhf.errors import UserError
from rlhf.records import Rollout, text_lengths

Result = TypeVar("Result")


class ForwardSize:
    """How large the forward passes of scoring and update are: as the settings say, until memory runs out."""

    def __init__(self, config: PPOConfig):
        self.config = config

    def halve(self, error: BaseException, processes: int) -> None:
        """Halve the passes after an error of memory, with a line on standard error.

        The losses' denominators count the whole minibatch, so the result is the same up to rounding.

        Raises:
            UserError: a pass has a single row already, or other processes take part in it.
        """
        name = "microbatch_size" if self.config.microbatch_tokens is None else "microbatch_tokens"
        size = getattr(self.config, name)
        if processes > 1:
            raise UserError(
                f"out of memory with ppo.{name} = {size}, on one of {processes} processes; resume with half of it"
            ) from error
        if size == 1:
            raise UserError(f"out of memory with ppo.{name} = 1; use shorter responses or a smaller model") from error
        self.config = replace(self.config, **{name: size // 2})
        print(
            f"warning: out of memory; ppo.{name} is {size // 2} from here on, not {size}", file=sys.stderr, flush=True
        )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def with_less_memory(compute: Callable[[], Result], shrink: Callable[[BaseException], None]) -> Result:
    """The result of `compute`, which is called again after `shrink` as long as memory runs out."""
    while True:
        try:
            return compute()
        except (RuntimeError, MemoryError) as error:
            if not _is_out_of_memory(error):
                raise
            failure = error.with_traceback(None)  # its frames hold the tensors of the failed pass
        shrink(failure)


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or on a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


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
