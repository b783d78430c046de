"""Settings that all tabular control methods share."""

from dataclasses import dataclass

from tabular.core.checks import (
    check_at_least,
    check_choice,
    check_finite,
    check_fraction,
    check_not_negative,
    check_positive,
)
from tabular.core.schedules import SCHEDULES

Number = float | int


@dataclass(frozen=True)
class ControlConfig:
    """Settings of the one-step methods.

    Action values converge if every action is tried infinitely often in every state and the step sizes sum to infinity
    while their squares do not. Robbins & Monro (1951); for Q-learning Watkins & Dayan (1992). Where outcomes are
    deterministic a constant step size is enough: each update removes the fraction `alpha` of an error. Where they are
    random it leaves noise in proportion to alpha, and `alpha_schedule` must lower it. The default epsilon collects
    reward early but tries most actions rarely; for exact values begin with `epsilon` 1 and let `exploration_schedule`
    lower it.
    """

    alpha: Number = 0.1
    "step size, in (0, 1]"
    gamma: Number = 0.99
    "discount, in [0, 1]"
    initial_q: Number = 1.0
    "initial action values; above the true ones they are optimistic and make it explore. Sutton & Barto (2018), 2.6"
    behaviour: str = "epsilon_greedy"
    "how actions are chosen while learning: epsilon_greedy or softmax"
    epsilon: Number = 0.1
    "initial probability of a random action, greedy ones included"
    temperature: Number = 0.1
    "initial temperature of the softmax behaviour, in units of reward"
    exploration_schedule: str = "constant"
    "of epsilon or the temperature: constant, linear or cosine"
    exploration_end: Number = 0.01
    "epsilon, in [0, 1], or temperature at the end of the schedule"
    exploration_steps: int = 50_000
    "environment steps until the end of the schedule"
    alpha_schedule: str = "constant"
    "of the step size: constant, linear or cosine"
    alpha_end: Number = 0.01
    "step size at the end of its schedule, in (0, 1]"
    alpha_steps: int = 50_000
    "environment steps until the end of its schedule"
    log_every: int = 1000
    "environment steps between two entries of the history's td_error and q_change"

    def __post_init__(self) -> None:
        self._check_alpha()
        check_fraction(gamma=self.gamma, epsilon=self.epsilon)
        check_finite(initial_q=self.initial_q)
        check_choice(("epsilon_greedy", "softmax"), behaviour=self.behaviour)
        check_positive(temperature=self.temperature)
        check_choice(SCHEDULES, exploration_schedule=self.exploration_schedule, alpha_schedule=self.alpha_schedule)
        self._check_exploration_end()
        check_positive(alpha_end=self.alpha_end)
        check_fraction(alpha_end=self.alpha_end)
        check_at_least(
            1, exploration_steps=self.exploration_steps, alpha_steps=self.alpha_steps, log_every=self.log_every
        )

    def _check_alpha(self) -> None:
        check_positive(alpha=self.alpha)
        check_fraction(alpha=self.alpha)

    def _check_exploration_end(self) -> None:
        if not self.softmax:
            check_fraction(exploration_end=self.exploration_end)
        elif self.exploration_schedule == "constant":
            check_not_negative(exploration_end=self.exploration_end)
        else:  # the last temperature is a divisor
            check_positive(exploration_end=self.exploration_end)

    @property
    def softmax(self) -> bool:
        return self.behaviour == "softmax"
