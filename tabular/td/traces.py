"""SARSA(lambda): control with eligibility traces, between one-step SARSA and Monte Carlo."""

from dataclasses import dataclass

from tabular.core.checks import check_choice, check_fraction
from tabular.td import kernels
from tabular.td.config import ControlConfig, Number
from tabular.td.control import Control


@dataclass(frozen=True)
class SarsaLambdaConfig(ControlConfig):
    """Settings of SARSA(lambda)."""

    lam: Number = 0.9
    "trace decay, in [0, 1]; 0 is SARSA, 1 is close to Monte Carlo"
    traces: str = "replacing"
    "replacing: the trace of a repeated action becomes 1; accumulating: it grows by 1, which needs a smaller alpha"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fraction(lam=self.lam)
        check_choice(("replacing", "accumulating"), traces=self.traces)


class SarsaLambda(Control):
    """SARSA whose error updates all actions of the episode, the recent ones most. Rummery & Niranjan (1994).

    Sutton & Barto (2018), section 12.7; replacing traces: Singh & Sutton (1996).
    """

    Config = SarsaLambdaConfig
    method = kernels.SARSA_LAMBDA
    on_policy = True
    memory_parts = ("traces",)

    def _make_memory(self) -> kernels.Memory:
        replacing = self.config.traces == "replacing"
        return kernels.make_memory(self.n_states, self.n_actions, lam=self.config.lam, replacing=replacing)

    def _update(self, t, s, a, r, s2, a2, terminated, truncated, exploration, rng) -> None:
        kernels.trace_update(self.q, s, a, r, s2, a2, terminated, truncated, self.rule, self.memory.traces, self.stats)
