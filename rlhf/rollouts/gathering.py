"""Rollouts of all processes as one: their numbers travel as one tensor, and only texts as Python objects."""

from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import gather_object
from jaxtyping import Int
from torch import Tensor

from rlhf.errors import UserError
from rlhf.records import Rollout, interleave, map_tensors, pad_to_width, select
from rlhf.run.distributed import raise_on_all_ranks

STATES = ("old_states", "ref_states")
_ALIGNMENT = 8
"""Bytes at whose multiples each tensor begins, so that a number of any type may be read there."""


def gather_rollout(rollout: Rollout, rows: Int[Tensor, "N"], accelerator: Any) -> Rollout:
    """The rows of all processes, on each of them and on its device.

    The trunk's states stay where they are: they are large, and a process reads those of its own rows alone. Those of
    the others are 0.

    Args:
        rollout: this process's rows.
        rows: their places in the whole rollout, which are every so many from the process's number on.
    """
    ranks = accelerator.num_processes
    if ranks == 1:
        return rollout
    whole = interleave(_gather(replace(rollout, old_states=None, ref_states=None), accelerator))
    states = {name: getattr(rollout, name) for name in STATES}
    width = whole.response_ids.shape[1]
    return replace(whole, **{name: _in_place(x, rows, len(whole), width) for name, x in states.items()})


def _in_place(states: Tensor | None, rows: Tensor, count: int, width: int) -> Tensor | None:
    """States [N, r, H] of some rows of a batch as [B, R, H]."""
    if states is None:
        return None
    placed = states.new_zeros(count, width, states.shape[-1])
    placed[rows.to(states.device)] = pad_to_width(states, width)
    return placed


def sum_states(rollout: Rollout, accelerator: Any) -> Rollout:
    """A rollout with the trunk's states of all rows. All processes call it, with the same rows."""
    if accelerator.num_processes == 1:
        return rollout
    states = {name: getattr(rollout, name) for name in STATES}
    summed = {name: None if x is None else accelerator.reduce(x, "sum") for name, x in states.items()}
    return replace(rollout, **summed)


def check_own_states(rollout: Rollout, accelerator: Any) -> None:
    """Refuse a rollout whose rows have moved to other places, so that a process lacks the states of some of its own.

    Raises:
        UserError: on all processes.
    """
    if accelerator.num_processes == 1:
        return
    with raise_on_all_ranks(accelerator):
        own = select(rollout, torch.arange(accelerator.process_index, len(rollout), accelerator.num_processes))
        for states in (own.old_states, own.ref_states):
            if states is not None and bool((own.response_mask & (states == 0).all(-1)).any()):
                raise UserError(
                    "a process lacks the trunk's states of a row that it is to train on, because rows of the rollout "
                    "were moved or left out; pass it to compute_logprobs_and_values() first"
                )


def _gather(rollout: Rollout, accelerator: Any) -> list[Rollout]:
    """The rollouts of all processes: texts and the shapes of tensors as objects, then all numbers as one tensor."""
    numbers: list[Tensor] = []

    def take(tensor: Tensor) -> Tensor:
        numbers.append(_bytes_of(tensor.to(accelerator.device)))
        return torch.empty_like(tensor, device="meta")

    shapes: list[Rollout] = gather_object([map_tensors(rollout, take)])
    own = torch.cat(numbers)
    longest = max(_size_of(part) for part in shapes)
    sent = torch.nn.functional.pad(own, (0, longest - len(own)))
    received = [torch.empty_like(sent) for _ in shapes]
    torch.distributed.all_gather(received, sent)
    return [_filled(part, content) for part, content in zip(shapes, received, strict=True)]


def _bytes_of(tensor: Tensor) -> Tensor:
    """A tensor's bytes, padded with zeros."""
    content = tensor.contiguous().flatten().view(torch.uint8)
    return torch.nn.functional.pad(content, (0, -len(content) % _ALIGNMENT))


def _size_of(shapes: Rollout) -> int:
    """Bytes of all of a rollout's tensors, each padded."""
    sizes: list[int] = []

    def measure(tensor: Tensor) -> Tensor:
        sizes.append(-(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT)
        return tensor

    map_tensors(shapes, measure)
    return sum(sizes)


def _filled(shapes: Rollout, content: Tensor) -> Rollout:
    """The rollout whose tensors' bytes follow one another in `content`."""
    position = 0

    def read(tensor: Tensor) -> Tensor:
        nonlocal position
        begin, position = position, position + -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
        return content[begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape).clone()

    return map_tensors(shapes, read)
