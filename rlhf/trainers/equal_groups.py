"""Groups of equal reward: prompts whose responses all have the same score, of which a group estimator learns nothing.

Yu et al. (2025), DAPO, section 3.2. A group is equal by the score of the task, not by the reward that is learned from:
KL and length penalties differ between responses, and would hide that the task does not tell them apart.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf.records import Rollout, concatenate, select


def task_scores(rollout: Rollout) -> Float[Tensor, "B"]:
    """The source's scores before penalties, with the rewards of single tokens where there are any."""
    scores = rollout.scores if rollout.task_scores is None else rollout.task_scores
    if rollout.token_scores is None:
        return scores
    return scores + torch.where(rollout.response_mask, rollout.token_scores, 0.0).sum(-1)


def equal_groups(rollout: Rollout, size: int) -> Bool[Tensor, "G"]:
    """Whether the deviation of a group's scores is 0; rows i * size to i * size + size - 1 answer the same prompt.

    Responses without a score, which `reward.on_error` skips, do not count; fewer than two others are equal.
    """
    scores, is_scored = task_scores(rollout).view(-1, size), rollout.is_scored.view(-1, size)
    highest = torch.where(is_scored, scores, -torch.inf).amax(-1)
    return highest <= torch.where(is_scored, scores, torch.inf).amin(-1)


@dataclass(frozen=True)
class Refilled:
    """A rollout whose equal groups were replaced, as far as the rounds went, and what that took."""

    rollout: Rollout
    prompts: int
    """Prompts drawn, those of the first rollout included."""
    equal: int
    """How many of their groups were equal."""


def refill(rollout: Rollout, size: int, rounds: int, ranks: int, collect: Callable[[int, int], Rollout]) -> Refilled:
    """Replace the equal groups of a rollout by groups of further prompts that are not equal.

    Args:
        size: responses to each prompt.
        rounds: how many times further prompts are drawn at most.
        ranks: processes, which share the responses evenly: a few more prompts may be drawn than are needed.
        collect: a scored rollout of so many prompts, from so many behind those of the first rollout on.
    """
    equal = equal_groups(rollout, size)
    prompts, equal_drawn = len(equal), int(equal.sum())
    for _ in range(rounds):
        missing = int(equal.sum())
        if missing == 0:
            break
        count = missing
        while count * size % ranks:
            count += 1
        fresh = collect(prompts - len(equal), count)
        fresh_is_equal = equal_groups(fresh, size)
        prompts += count
        equal_drawn += int(fresh_is_equal.sum())
        rollout = _replace_groups(rollout, fresh, equal, ~fresh_is_equal, size)
        equal = equal_groups(rollout, size)
    return Refilled(rollout, prompts, equal_drawn)


def _replace_groups(
    rollout: Rollout, fresh: Rollout, replaced: Bool[Tensor, "G"], usable: Bool[Tensor, "F"], size: int
) -> Rollout:
    """The rollout with as many of the `replaced` groups as there are `usable` fresh ones, in their order."""
    places, sources = replaced.nonzero()[:, 0], usable.nonzero()[:, 0]
    count = min(len(places), len(sources))
    groups = torch.arange(len(replaced), device=places.device)
    groups[places[:count]] = len(replaced) + sources[:count]
    rows = (groups.unsqueeze(-1) * size + torch.arange(size, device=groups.device)).flatten()
    return select(concatenate([rollout, fresh]), rows)
