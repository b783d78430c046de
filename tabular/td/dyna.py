"""Dyna-Q: Q-learning that also learns a model, and plans with it between the steps."""

from dataclasses import dataclass

from tabular.core.checks import check_at_least
from tabular.td import kernels
from tabular.td.config import ControlConfig
from tabular.td.control import Control


@dataclass(frozen=True)
class DynaQConfig(ControlConfig):
    """Settings of Dyna-Q."""

    planning_steps: int = 10
    "updates from the model after each environment step; 0 is Q-learning"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(0, planning_steps=self.planning_steps)


class DynaQ(Control):
    """Q-learning with updates from a learned model in addition. Sutton (1990); Sutton & Barto (2018), section 8.2.

    The model is a table of the last outcome of each action: exact where outcomes are deterministic, and misleading
    where they are random.
    """

    Config = DynaQConfig
    method = kernels.Q_LEARNING
    memory_parts = ("model",)

    def _make_memory(self) -> kernels.Memory:
        return kernels.make_memory(self.n_states, self.n_actions, planning_steps=self.config.planning_steps)

    def _update(self, t, s, a, r, s2, a2, terminated, truncated, exploration, rng) -> None:
        super()._update(t, s, a, r, s2, a2, terminated, truncated, exploration, rng)
        model = self.memory.model
        if model.planning_steps > 0:
            kernels.update_model(s, a, r, s2, terminated, model)
            kernels.plan(self.q, self.masks, self.rule, exploration, model, rng, self.stats)
