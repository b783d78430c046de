"""Multi-step control with delayed updates: n-step SARSA, and Monte Carlo, which waits until the episode has ended."""

from dataclasses import dataclass

import numpy as np

from tabular.core.checks import check_at_least, check_fraction
from tabular.td import kernels
from tabular.td.config import ControlConfig, Number
from tabular.td.control import Control


class DelayedControl(Control):
    """Control whose updates need the stored steps of the episode."""

    memory_parts = ("episode",)

    def _update(self, t, s, a, r, s2, a2, terminated, truncated, exploration, rng) -> None:
        kernels.delayed_update(
            self.q, t, s, a, r, s2, a2, self.masks, terminated, truncated,
            self.rule, exploration, self.memory.episode, self.stats,
        )  # fmt: skip


@dataclass(frozen=True)
class NStepSarsaConfig(ControlConfig):
    """Settings of n-step SARSA."""

    n: int = 4
    "number of rewards in a target; 1 is SARSA"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least(1, n=self.n)


class NStepSarsa(DelayedControl):
    """SARSA with the next n rewards in its target. Sutton & Barto (2018), section 7.2.

    Raises:
        ValueError: if n steps do not fit into memory.
    """

    Config = NStepSarsaConfig
    method = kernels.N_STEP_SARSA
    on_policy = True

    def _make_memory(self) -> kernels.Memory:
        capacity = 1 << (self.config.n - 1).bit_length()
        try:
            return kernels.make_memory(self.n_states, self.n_actions, capacity)
        except (MemoryError, OverflowError, ValueError):  # ValueError: more elements than numpy can address
            size = f"{3 * 8 * capacity / 2**30:,.1f} GiB of memory"
            raise ValueError(f"n is {self.config.n}, which needs {size}: use a smaller n, or monte_carlo") from None

    def _make_rule(self) -> kernels.Rule:
        return super()._make_rule()._replace(n=self.config.n)


@dataclass(frozen=True)
class MonteCarloConfig(ControlConfig):
    """Settings of Monte Carlo control."""

    alpha: Number = 0.02
    "step size, in [0, 1]; 0 takes the plain average of all returns so far"
    first_visit: bool = True
    "learn only from the first visit of an action in an episode: otherwise one long failure counts many times"

    def _check_alpha(self) -> None:
        check_fraction(alpha=self.alpha)
        if self.alpha == 0 and self.alpha_schedule != "constant":
            raise ValueError(
                f"alpha_schedule is {self.alpha_schedule!r}, but must be constant with alpha 0, which averages returns"
            )


class MonteCarlo(DelayedControl):
    """Learns from whole episodes, without bootstrapping. Sutton & Barto (2018), section 5.4."""

    Config = MonteCarloConfig
    method = kernels.MONTE_CARLO

    def _make_memory(self) -> kernels.Memory:
        return kernels.make_memory(self.n_states, self.n_actions, capacity=1024)

    def _make_rule(self) -> kernels.Rule:
        return super()._make_rule()._replace(first_visit=self.config.first_visit)

    def _advance_on_table(self, steps: int) -> None:
        self._grow_memory(int(self.cursor[kernels.LENGTH]))
        super()._advance_on_table(steps)

    def _update(self, t, s, a, r, s2, a2, terminated, truncated, exploration, rng) -> None:
        self._grow_memory(t)
        super()._update(t, s, a, r, s2, a2, terminated, truncated, exploration, rng)

    def _grow_memory(self, t: int) -> None:
        """Doubles the capacity when the episode fills it."""
        episode = self.memory.episode
        capacity = len(episode.states)
        if t == capacity:
            episode = episode._replace(
                states=np.resize(episode.states, 2 * capacity),
                actions=np.resize(episode.actions, 2 * capacity),
                rewards=np.resize(episode.rewards, 2 * capacity),
            )
            self.memory = self.memory._replace(episode=episode)
