"""Replay buffer: the most recent transitions, sampled uniformly, with n-step returns summed when they are stored."""

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from tabular.envs.vector import Step


@dataclass(frozen=True)
class Transitions:
    """Transitions over n steps, or fewer where an episode ended; batch axes first."""

    obs: Shaped[Tensor, "..."]
    actions: Int[Tensor, "*batch"]
    "indices from 0"
    rewards: Float[Tensor, "*batch"]
    "`r_1 + gamma r_2 + ...` over the steps"
    discounts: Float[Tensor, "*batch"]
    "weight of the value of `next_obs`: gamma to the number of steps, 0 after a termination"
    next_obs: Shaped[Tensor, "..."]
    "the observation after the last of the steps, the final one where the episode ended there"
    next_masks: Bool[Tensor, "*batch A"]
    "legal actions in `next_obs`"


@dataclass(slots=True)
class PendingStep:
    """A step whose n-step return is not complete yet."""

    obs: Any
    action: int
    reward: float = 0.0
    "the discounted sum of the rewards so far"
    discount: float = 1.0
    "weight of the next reward"


class ReplayBuffer:
    """The last `capacity` transitions of N copies of an environment. Mnih et al. (2015).

    A transition is stored when its n-th step was taken or its episode has ended, so no return crosses the end of an
    episode. One that a time limit truncated bootstraps from its final observation like any other.

    Raises:
        ValueError: if there is not enough memory for `capacity` transitions.
    """

    def __init__(
        self, capacity: int, obs_shape: tuple[int, ...], obs_dtype: Any, n_actions: int, n_step: int, gamma: float | int
    ) -> None:
        self.capacity = capacity
        self.n_step = n_step
        self.gamma = gamma
        columns: dict[str, tuple[Any, tuple[int, ...]]] = {
            "obs": (obs_dtype, obs_shape),
            "actions": (np.int64, ()),
            "rewards": (np.float32, ()),
            "discounts": (np.float32, ()),
            "next_obs": (obs_dtype, obs_shape),
            "next_masks": (bool, (n_actions,)),
        }
        n_bytes = capacity * sum(np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in columns.values())
        try:
            self.data = {name: np.zeros((capacity, *shape), dtype) for name, (dtype, shape) in columns.items()}
        except (MemoryError, OverflowError, ValueError):  # numpy raises ValueError beyond its largest array size
            size = f"{n_bytes / 2**30:,.1f} GiB of memory"
            raise ValueError(f"buffer_size is {capacity}, which needs {size}; use a smaller one") from None
        self.data["next_masks"][:] = True
        self.next_row = 0
        self.size = 0
        self.pending: list[list[PendingStep]] = []
        "for each copy of the environment the steps whose return is not complete"

    def add(self, obs: Shaped[np.ndarray, "N ..."], actions: Int[np.ndarray, "N"], step: Step) -> None:
        """Add one step of each copy: the observations, the actions as indices from 0, and the outcome."""
        if not self.pending:
            self.pending = [[] for _ in obs]
        for i, pending in enumerate(self.pending):
            reward = float(step.rewards[i])
            pending.append(PendingStep(obs[i], int(actions[i])))
            for entry in pending:
                entry.reward += entry.discount * reward
                entry.discount *= self.gamma
            ended = step.terminated[i] or step.truncated[i]
            while pending and (ended or len(pending) == self.n_step):
                mask = None if step.next_masks is None else step.next_masks[i]
                self._store(pending.pop(0), step.next_obs[i], bool(step.terminated[i]), mask)

    def _store(self, entry: PendingStep, next_obs: Any, terminated: bool, next_mask: np.ndarray | None) -> None:
        row = self.next_row
        self.data["obs"][row] = entry.obs
        self.data["actions"][row] = entry.action
        self.data["rewards"][row] = entry.reward
        self.data["discounts"][row] = 0.0 if terminated else entry.discount
        self.data["next_obs"][row] = next_obs
        if next_mask is not None:
            self.data["next_masks"][row] = next_mask
        self.next_row = (row + 1) % self.capacity
        self.size = min(self.size + 1, self.capacity)

    def sample(self, shape: tuple[int, ...], generator: torch.Generator) -> Transitions:
        """Transitions with the batch axes `shape`, drawn uniformly and with replacement."""
        rows = torch.randint(self.size, shape, generator=generator).numpy()
        return Transitions(**{f.name: torch.from_numpy(self.data[f.name][rows]) for f in fields(Transitions)})

    def state_dict(self) -> dict[str, Any]:
        data = {name: torch.from_numpy(column[: self.size].copy()) for name, column in self.data.items()}
        pending = [
            [[torch.from_numpy(np.array(e.obs)), e.action, e.reward, e.discount] for e in entries]
            for entries in self.pending
        ]
        return {"data": data, "next_row": self.next_row, "pending": pending}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state. Raises ValueError if it holds more transitions than the capacity."""
        size = len(state["data"]["actions"])
        if size > self.capacity:
            raise ValueError(f"buffer_size is {self.capacity}, but the saved state has {size} transitions")
        self.next_row = state["next_row"]
        self.size = size
        for name, column in state["data"].items():
            self.data[name][:size] = column.numpy()
        self.pending = [[PendingStep(obs.numpy(), *rest) for obs, *rest in entries] for entries in state["pending"]]
