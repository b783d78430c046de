"""Replay memory: the last transitions, sampled uniformly, with n-step returns gathered on the way in."""

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped

from tabular.envs.vector import Step


@dataclass(frozen=True)
class Transitions:
    """B transitions over n steps, or fewer where an episode ended. A batch of them may have more leading axes."""

    obs: Shaped[np.ndarray, "..."]
    actions: Int[np.ndarray, "*batch"]
    rewards: Float[np.ndarray, "*batch"]
    "`r_1 + gamma r_2 + ...` over the steps"
    discounts: Float[np.ndarray, "*batch"]
    "weight of the value of `next_obs`: gamma to the number of steps, 0 after a termination"
    next_obs: Shaped[np.ndarray, "..."]
    "the observation after the last of these steps, the final one where the episode ended there"
    next_masks: Bool[np.ndarray, "*batch A"]
    "legal actions in `next_obs`"

    def __getitem__(self, k: int) -> "Transitions":
        return Transitions(**{f.name: getattr(self, f.name)[k] for f in fields(self)})


class ReplayBuffer:
    """Holds the last `capacity` transitions of N copies of an environment.

    A transition enters when its n-th step is there or its episode has ended, so no return crosses an end. One that a
    time limit cut is bootstrapped from its final observation like any other. Mnih et al.
    (2015). Raises ValueError if there is not the memory for so many.
    """

    def __init__(
        self, capacity: int, obs_shape: tuple[int, ...], obs_dtype: Any, n_actions: int, n_step: int, gamma: float | int
    ) -> None:
        self.capacity, self.n_step, self.gamma = capacity, n_step, gamma
        columns: dict[str, tuple[Any, tuple[int, ...]]] = {
            "obs": (obs_dtype, obs_shape),
            "actions": (np.int64, ()),
            "rewards": (np.float32, ()),
            "discounts": (np.float32, ()),
            "next_obs": (obs_dtype, obs_shape),
            "next_masks": (bool, (n_actions,)),
        }
        size = capacity * sum(np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in columns.values())
        try:
            self.data = {name: np.zeros((capacity, *shape), dtype) for name, (dtype, shape) in columns.items()}
        except (MemoryError, OverflowError, ValueError):  # numpy's ValueError: more than it can count
            needed = f"{size / 2**30:,.1f} GiB of memory"
            raise ValueError(f"buffer_size {capacity} would take {needed}: take a smaller one") from None
        self.data["next_masks"][:] = True
        self.next, self.size = 0, 0
        self.pending: list[list[list[Any]]] = []
        "for each copy its steps that still wait: [obs, action, return so far, discount of the next reward]"

    def add(self, obs: Shaped[np.ndarray, "N ..."], actions: Int[np.ndarray, "N"], step: Step) -> None:
        """One step of each copy: what was seen, the actions as indices from 0, and what they led to."""
        if not self.pending:
            self.pending = [[] for _ in obs]
        for i, waiting in enumerate(self.pending):
            reward = float(step.rewards[i])
            waiting.append([obs[i], int(actions[i]), 0.0, 1.0])
            for entry in waiting:
                entry[2] += entry[3] * reward
                entry[3] *= self.gamma
            ended = step.terminated[i] or step.truncated[i]
            while waiting and (ended or len(waiting) == self.n_step):
                mask = None if step.next_masks is None else step.next_masks[i]
                self._store(waiting.pop(0), step.next_obs[i], bool(step.terminated[i]), mask)

    def _store(self, entry: list[Any], next_obs: Any, terminated: bool, next_mask: np.ndarray | None) -> None:
        row, data = self.next, self.data
        data["obs"][row], data["actions"][row], data["rewards"][row], discount = entry
        data["discounts"][row] = 0.0 if terminated else discount
        data["next_obs"][row] = next_obs
        if next_mask is not None:
            data["next_masks"][row] = next_mask
        self.next = (row + 1) % self.capacity
        self.size = min(self.size + 1, self.capacity)

    def sample(self, n_batches: int, batch_size: int, generator: torch.Generator) -> Transitions:
        """Uniformly, with replacement: [n_batches, batch_size, ...]."""
        rows = torch.randint(self.size, (n_batches, batch_size), generator=generator).numpy()
        return Transitions(**{f.name: self.data[f.name][rows] for f in fields(Transitions)})

    def state_dict(self) -> dict[str, Any]:
        data = {name: torch.from_numpy(array[: self.size].copy()) for name, array in self.data.items()}
        pending = [[[torch.from_numpy(np.array(e[0])), *e[1:]] for e in waiting] for waiting in self.pending]
        return {"data": data, "next": self.next, "pending": pending}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError if the state holds more than the capacity."""
        self.next, self.size = state["next"], len(state["data"]["actions"])
        if self.size > self.capacity:
            raise ValueError(f"the state has {self.size} transitions, buffer_size is {self.capacity}")
        for name, rows in state["data"].items():
            self.data[name][: self.size] = rows.numpy()
        self.pending = [[[e[0].numpy(), *e[1:]] for e in waiting] for waiting in state["pending"]]
