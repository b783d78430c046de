"""Bandits: epsilon-greedy, optimistic initial values, upper confidence bounds and gradient bandits on Gaussian arms.

The testbed of Sutton & Barto (2018), chapter 2: K arms with true values from N(mean, 1), rewards from N(true value, 1).
A bandit is reinforcement learning with one state, so that exploration can be studied by itself. The gradient bandit is
REINFORCE with one state and one step: its baseline changes the variance of the update but not its expectation, which is
why the policy gradients of `tabular.deep`, and PPO's advantages, subtract one.

All runs of a method are one numpy array with a row for each.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from tabular.core.checks import check_at_least, check_choice, check_finite, check_fraction, check_not_negative

Number = float | int

METHODS = ("epsilon_greedy", "ucb", "gradient")


@dataclass(frozen=True)
class BanditConfig:
    """Settings of one method."""

    method: str = "epsilon_greedy"
    "epsilon_greedy, ucb or gradient"
    epsilon: Number = 0.1
    "probability of a random arm, for epsilon_greedy; 0 is greedy"
    initial_value: Number = 0.0
    "initial estimates; above the true values they are optimistic, and make even a greedy method explore"
    c: Number = 2.0
    "ucb: weight of the uncertainty"
    alpha: Number = 0.0
    "step size; 0 takes the average of all rewards of an arm (not for gradient)"
    baseline: bool = True
    "gradient: subtract the average reward so far"

    def __post_init__(self) -> None:
        check_choice(METHODS, method=self.method)
        check_fraction(epsilon=self.epsilon, alpha=self.alpha)
        check_finite(initial_value=self.initial_value)
        check_not_negative(c=self.c)
        if self.method == "gradient" and self.alpha == 0:
            raise ValueError("alpha is 0, but must be positive for a gradient bandit")


class BanditCurves(NamedTuple):
    """Means over all runs at each of T steps, with their standard errors."""

    reward: Float[np.ndarray, "T"]
    "mean reward"
    reward_error: Float[np.ndarray, "T"]
    "standard error of `reward`"
    optimal: Float[np.ndarray, "T"]
    "fraction of runs that chose the arm with the largest true value"
    optimal_error: Float[np.ndarray, "T"]
    "standard error of `optimal`"


class ValueBandit:
    """Estimates the value of each arm [R, K]; chooses epsilon-greedily or by upper confidence bounds."""

    def __init__(self, config: BanditConfig, n_runs: int, n_arms: int) -> None:
        self.config = config
        self.values = np.full((n_runs, n_arms), float(config.initial_value))
        self.counts = np.zeros((n_runs, n_arms))

    def choose(self, step: int, generator: np.random.Generator) -> Int[np.ndarray, "R"]:
        """An arm for each run at `step` (from 1). Equations 2.2 and 2.10."""
        if self.config.method == "ucb":
            with np.errstate(divide="ignore", invalid="ignore"):
                bonus = self.config.c * np.sqrt(np.log(step) / self.counts)
            bonus[self.counts == 0] = np.inf  # an arm that was never chosen comes first
            return _argmax(self.values + bonus, generator)
        greedy = _argmax(self.values, generator)
        n_runs, n_arms = self.values.shape
        explore = generator.random(n_runs) < self.config.epsilon
        return np.where(explore, generator.integers(n_arms, size=n_runs), greedy)

    def update(self, arms: Int[np.ndarray, "R"], rewards: Float[np.ndarray, "R"]) -> None:
        """`Q += step size * (R - Q)`, the step size being alpha or 1 / n. Equations 2.3 and 2.5."""
        chosen = np.arange(len(arms)), arms
        self.counts[chosen] += 1
        step_sizes = self.config.alpha if self.config.alpha > 0 else 1 / self.counts[chosen]
        self.values[chosen] += step_sizes * (rewards - self.values[chosen])


class GradientBandit:
    """A softmax policy over preferences [R, K], which follow the gradient of the expected reward."""

    def __init__(self, config: BanditConfig, n_runs: int, n_arms: int) -> None:
        self.config = config
        self.preferences = np.zeros((n_runs, n_arms))
        self.baseline = np.zeros(n_runs)
        "average reward so far; stays 0 if the config has no baseline"
        self.steps = 0

    def probabilities(self) -> Float[np.ndarray, "R K"]:
        weights = np.exp(self.preferences - self.preferences.max(axis=1, keepdims=True))
        return weights / weights.sum(axis=1, keepdims=True)

    def choose(self, step: int, generator: np.random.Generator) -> Int[np.ndarray, "R"]:
        """An arm for each run, drawn from the policy."""
        cumulative = self.probabilities().cumsum(axis=1)
        arms = (generator.random(len(cumulative))[:, None] >= cumulative).sum(axis=1)
        return np.minimum(arms, cumulative.shape[1] - 1)  # a cumulative sum may round to less than 1

    def update(self, arms: Int[np.ndarray, "R"], rewards: Float[np.ndarray, "R"]) -> None:
        """`H += alpha (R - baseline) grad log pi(arm)`, with `grad log pi(arm) = onehot(arm) - pi`. Equation 2.12.

        The baseline is the average of the earlier rewards; at the first step, which has none, the reward itself.
        """
        if self.config.baseline and self.steps == 0:
            self.baseline += rewards
        score = -self.probabilities()
        score[np.arange(len(arms)), arms] += 1
        self.preferences += self.config.alpha * (rewards - self.baseline)[:, None] * score
        self.steps += 1
        if self.config.baseline:
            self.baseline += (rewards - self.baseline) / self.steps


def run_bandits(
    configs: Mapping[str, BanditConfig],
    n_runs: int = 2000,
    n_steps: int = 1000,
    n_arms: int = 10,
    mean: Number = 0.0,
    seed: int = 0,
) -> dict[str, BanditCurves]:
    """Runs every method on the same bandit problems.

    Args:
        configs: name of a curve -> settings.
        n_runs: bandit problems, each with new true values.
        n_steps: steps T of each run.
        n_arms: arms K.
        mean: mean of the true values (4 in figure 2.5, where it makes the baseline necessary).
        seed: of the problems, the rewards and the choices.

    Returns:
        Name -> curves over the steps, for example `run_bandits({"greedy": BanditConfig(epsilon=0)})["greedy"].reward`.

    Raises:
        ValueError: for fewer than one step, two runs or two arms.
    """
    check_at_least(1, n_steps=n_steps)
    check_at_least(2, n_runs=n_runs, n_arms=n_arms)
    check_finite(mean=mean)
    curves = {}
    for name, config in configs.items():
        problems, noise, choices = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3))
        true_values = problems.normal(mean, 1, (n_runs, n_arms))
        best = true_values.argmax(axis=1)
        bandit = (GradientBandit if config.method == "gradient" else ValueBandit)(config, n_runs, n_arms)
        rewards, optimal = np.empty((n_steps, n_runs)), np.empty((n_steps, n_runs), dtype=bool)
        for t in range(n_steps):
            arms = bandit.choose(t + 1, choices)
            rewards[t] = true_values[np.arange(n_runs), arms] + noise.normal(size=n_runs)
            optimal[t] = arms == best
            bandit.update(arms, rewards[t])
        scale = n_runs**0.5
        curves[name] = BanditCurves(
            reward=rewards.mean(axis=1),
            reward_error=rewards.std(axis=1, ddof=1) / scale,
            optimal=optimal.mean(axis=1),
            optimal_error=optimal.std(axis=1, ddof=1) / scale,
        )
    return curves


def _argmax(values: Float[np.ndarray, "R K"], generator: np.random.Generator) -> Int[np.ndarray, "R"]:
    """The arm with the largest value in each row, ties broken at random."""
    best = values == values.max(axis=1, keepdims=True)
    return np.where(best, generator.random(values.shape), -1.0).argmax(axis=1)
