"""Control that waits before it learns: n-step SARSA, and Monte Carlo, which waits until the episode is over."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tabular.td import kernels
from tabular.td.control import Control, ControlConfig, Number


@dataclass(frozen=True)
class NStepSarsaConfig(ControlConfig):
    """Settings of n-step SARSA."""

    n: int = 4
    "steps that it looks ahead; 1 is SARSA"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n < 1:
            raise ValueError(f"n must be at least 1, got {self.n}")


class NStepSarsa(Control):
    """SARSA whose target holds the next n rewards. Sutton & Barto (2018), section 7.2.

    Raises ValueError if there is not the memory for n steps.
    """

    Config = NStepSarsaConfig
    method = kernels.N_STEP_SARSA
    on_policy = True

    def __init__(self, make_env: Any, config: Any, seed: int) -> None:
        super().__init__(make_env, config, seed)
        capacity = 1 << (config.n - 1).bit_length()
        try:
            self.memory = self._memory(capacity)
        except (MemoryError, OverflowError, ValueError):  # numpy's ValueError: more than it can count
            needed = f"{3 * 8 * capacity / 2**30:,.1f} GiB of memory"
            raise ValueError(f"n {config.n} would take {needed}: take a smaller one, or monte_carlo") from None

    def _rule(self, config: Any) -> kernels.Rule:
        return super()._rule(config)._replace(n=config.n)

    def _update(self, t, s, a, r, s2, a2, terminated, truncated, exploration, rng) -> None:
        kernels.update_later(
            self.q,
            t,
            s,
            a,
            r,
            s2,
            a2,
            self.masks,
            terminated,
            truncated,
            self.rule,
            exploration,
            self.memory,
            self.sums,
        )

    def state_dict(self) -> dict[str, Any]:
        names = kernels.Memory._fields
        return {**super().state_dict(), **{name: getattr(self.memory, name).ravel().tolist() for name in names}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        table = self.q.shape[1:]
        self.memory = kernels.Memory(
            states=np.array(state["states"], dtype=np.int64),
            actions=np.array(state["actions"], dtype=np.int64),
            rewards=np.array(state["rewards"], dtype=float),
            first_seen=np.array(state["first_seen"], dtype=np.int64).reshape(table),
            counts=np.array(state["counts"], dtype=np.int64).reshape(table),
        )
        if self.table is None:  # the episode that it remembers is not carried on
            self.memory.first_seen[:] = -1


@dataclass(frozen=True)
class MonteCarloConfig(ControlConfig):
    """Settings of Monte Carlo control."""

    alpha: Number = 0.02
    "step size, in [0, 1]; 0 takes the plain average of all returns so far"
    first_visit: bool = True
    "learn from the first visit of an action in an episode only: every visit of one long failure would count"

    def __post_init__(self) -> None:
        if self.alpha == 0:
            replace(self, alpha=1)  # the other settings are checked as ever
            if self.alpha_schedule != "constant":
                raise ValueError(f"alpha 0 averages, without an alpha_schedule, got {self.alpha_schedule!r}")
        else:
            super().__post_init__()


class MonteCarlo(NStepSarsa):
    """Learns from whole episodes, without bootstrapping. Sutton & Barto (2018), section 5.4."""

    Config = MonteCarloConfig
    method = kernels.MONTE_CARLO
    on_policy = False

    def __init__(self, make_env: Any, config: Any, seed: int) -> None:
        Control.__init__(self, make_env, config, seed)
        self.memory = self._memory(1024)

    def _rule(self, config: Any) -> kernels.Rule:
        return Control._rule(self, config)._replace(first_visit=config.first_visit)

    def _on_table(self, steps: int) -> None:
        self._make_room(int(self.clock[kernels.LENGTH]))
        super()._on_table(steps)

    def _update(self, t, s, a, r, s2, a2, terminated, truncated, exploration, rng) -> None:
        self._make_room(t)
        super()._update(t, s, a, r, s2, a2, terminated, truncated, exploration, rng)

    def _make_room(self, t: int) -> None:
        """Doubles the memory when the episode fills it."""
        memory, capacity = self.memory, len(self.memory.states)
        if t == capacity:
            states, actions, rewards = (np.resize(part, 2 * capacity) for part in memory[:3])
            self.memory = kernels.Memory(states, actions, rewards, memory.first_seen, memory.counts)
