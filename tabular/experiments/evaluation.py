"""Judging agents: evaluation runs, statistics over seeds, and what an agent stands.

One greedy evaluation is no verdict: agents differ from seed to seed and from one thousand steps to the next. So every
figure here is one number a seed, and comes with an interval over the seeds. Agarwal et al. (2021), arXiv 2108.13264.
The figures of learning itself (TD error, explained variance, approx_kl, ...) are in a learner's `history`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from jaxtyping import Float

from tabular.envs.arrays import time_limit
from tabular.history import History
from tabular.planning.mdp import MDP, reachable

Number = float | int

NEVER = math.inf
"""Steps to a threshold that was not reached: a value like others, so that medians over seeds stay right."""

PATIENCE = 1000
"""Steps after which an evaluation episode is given up where the environment has no limit: greedy policies can walk in
circles for ever."""


@dataclass(frozen=True)
class Evaluation:
    """Episodes [E] of the greedy policy."""

    returns: Float[np.ndarray, "E"]
    "undiscounted"
    lengths: Float[np.ndarray, "E"]
    "steps"
    successes: Float[np.ndarray, "E"] | None
    "1 where the goal was reached, 0 where not; None where the environment has none"
    states: frozenset[int] = field(default_factory=frozenset)
    "states visited, where observations are numbers"

    @property
    def mean_return(self) -> float:
        return float(self.returns.mean())

    @property
    def success_rate(self) -> float:
        """Share of episodes that reached the goal; nan where the environment has none."""
        return math.nan if self.successes is None else float(self.successes.mean())


def evaluate(learner: Any, make_env: Callable[..., gym.Env], episodes: int, seed: int) -> Evaluation:
    """Plays `learner.act` for some episodes in a fresh environment; training sees nothing of it.

    Episodes without a time limit are given up after 1000 steps. Raises ValueError for fewer than one episode.
    """
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    env = make_env()
    limit, best = time_limit(env) or PATIENCE, best_reward(env)
    returns, lengths, successes, states = [], [], [], set()
    for episode in range(episodes):
        observation, info = env.reset(seed=seed if episode == 0 else None)
        rewards, ended, terminated = [], False, False
        while not ended and len(rewards) < limit:
            if isinstance(observation, int | np.integer):
                states.add(int(observation))
            observation, reward, terminated, truncated, info = env.step(
                learner.act(observation, info.get("action_mask"))
            )
            rewards.append(float(reward))
            ended = terminated or truncated
        returns.append(sum(rewards))
        lengths.append(len(rewards))
        successes.append(succeeded(rewards, bool(terminated), info, best))
    env.close()
    known = [float(success) for success in successes if success is not None]
    return Evaluation(
        np.array(returns, dtype=float),
        np.array(lengths, dtype=float),
        np.array(known) if len(known) == episodes else None,
        frozenset(states),
    )


def succeeded(rewards: Sequence[float], terminated: bool, info: dict[str, Any], best: float | None) -> bool | None:
    """Whether an episode reached its goal: `info["success"]` where the environment says it; else, on a table, whether
    it terminated with the best reward (`best`) that the table has. None where neither tells.

    A positive last reward alone proves nothing: CartPole pays 1 for the step that drops the pole.
    """
    if "success" in info:
        return bool(info["success"])
    return None if best is None else terminated and rewards[-1] == best


def best_reward(env: Any) -> float | None:
    """The largest reward in an environment's table, if terminating can pay it; None otherwise."""
    table = getattr(env.unwrapped, "P", None)
    if table is None:
        return None
    outcomes = [outcome for actions in table.values() for some in actions.values() for outcome in some]
    best = float(max(outcome[2] for outcome in outcomes))
    return best if any(outcome[3] and outcome[2] == best for outcome in outcomes) else None


# Statistics over seeds: functions of values [..., N] over the last axis


def mean(values: Any) -> Any:
    return np.mean(np.asarray(values, dtype=float), axis=-1)


def median(values: Any) -> Any:
    """The middle value; of an even number the mean of the two in the middle, NEVER if one of them is."""
    ordered = np.sort(np.asarray(values, dtype=float), axis=-1)
    n = ordered.shape[-1]
    return mean(ordered[..., [(n - 1) // 2, n // 2]])


def iqm(values: Any) -> Any:
    """Interquartile mean: of the middle half, the values on its edges weighted by the share that lies inside."""
    ordered = np.sort(np.asarray(values, dtype=float), axis=-1)
    weights = np.diff(np.clip(np.linspace(0, 1, ordered.shape[-1] + 1), 0.25, 0.75))
    inside = weights > 0  # what lies outside may be NEVER
    return ordered[..., inside] @ weights[inside] / weights.sum()


STATISTICS: dict[str, Callable[..., Any]] = {"mean": mean, "median": median, "iqm": iqm}


@dataclass(frozen=True)
class Interval:
    """A statistic over seeds with its bootstrap interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if self.low == self.high:
            return _text(self.value)
        return f"{_text(self.value)} [{_text(self.low)}, {_text(self.high)}]"


def interval(
    values: Sequence[Number] | np.ndarray,
    statistic: Callable[..., Any] = mean,
    confidence: Number = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """The percentile bootstrap: the statistic of `resamples` samples with replacement. Efron (1979).

    Raises ValueError for no values, nan among them, or a confidence outside (0, 1).
    """
    values = np.asarray(values, dtype=float)
    if len(values) == 0 or np.isnan(values).any():
        raise ValueError(f"an interval needs numbers, got {values.tolist()}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    generator = np.random.default_rng(seed)
    samples = np.sort(statistic(generator.choice(values, (resamples, len(values)))))
    # Entries, not interpolated: between a number and NEVER lies nothing.
    tail = (1 - confidence) / 2
    low, high = samples[int(tail * resamples)], samples[min(int((1 - tail) * resamples), resamples - 1)]
    return Interval(float(statistic(values)), float(low), float(high))


def _text(value: float) -> str:
    return "never" if value == NEVER else f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"


# Learning curves


def final_return(history: History, window: int = 100) -> float:
    """Mean return of the last `window` training episodes; nan if none ended."""
    return float(np.mean(history.returns[-window:])) if history.returns else math.nan


def steps_to_threshold(history: History, threshold: Number, window: int = 100) -> float:
    """Environment steps until the mean return of `window` training episodes in a row was `threshold` or more; NEVER if
    it never was."""
    if len(history.returns) < window:
        return NEVER
    totals = np.cumsum([0.0, *history.returns])
    reached = totals[window:] - totals[:-window] >= threshold * window - 1e-9
    return float(history.ends[int(reached.argmax()) + window - 1]) if reached.any() else NEVER


def final_length(history: History, window: int = 100) -> float:
    """Mean length of the last `window` training episodes; nan if none ended."""
    return float(np.mean(history.lengths[-window:])) if history.lengths else math.nan


def learning_curve(
    history: History, steps: Float[np.ndarray, "N"], window: int = 100, figure: str = "returns"
) -> Float[np.ndarray, "N"]:
    """Mean return (or `figure`: "lengths") of the last `window` (or fewer) training episodes at each given step; nan
    before the first."""
    totals = np.cumsum([0.0, *getattr(history, figure)])
    done = np.searchsorted(history.ends, steps, side="right")
    first = np.maximum(done - window, 0)
    return np.where(done > 0, (totals[done] - totals[first]) / np.maximum(done - first, 1), np.nan)


def area_under_curve(history: History, total_steps: int) -> float:
    """Mean over the steps 0 to `total_steps` of the return of the training episode that a step belonged to.

    Steps of an episode still under way count with the last one that ended; nan if none did. Unlike the mean over
    episodes it does not give the many short episodes of a bad (or good) phase more weight.
    """
    if not history.ends:
        return math.nan
    ends = np.minimum([0, *history.ends, total_steps], total_steps)
    return float(np.diff(ends) @ np.array([*history.returns, history.returns[-1]]) / total_steps)


# What an agent has seen, and what it stands


def state_coverage(visits: np.ndarray, mdp: MDP) -> float:
    """Share of the states in which an episode can act that were visited (`visits` [S] above 0)."""
    return float((visits[reachable(mdp)] > 0).mean())


class ActionNoise(gym.Wrapper):
    """Replaces each action by a random one (any, the intended one too) with `probability`, seeded by reset."""

    def __init__(self, env: gym.Env, probability: Number) -> None:
        super().__init__(env)
        if not 0 <= probability <= 1:
            raise ValueError(f"probability must be in [0, 1], got {probability}")
        self.probability = probability

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if seed is not None:
            self.action_space.seed(seed)
        self.info: dict[str, Any]
        observation, self.info = self.env.reset(seed=seed, options=options)
        return observation, self.info

    def step(self, action: Any) -> Any:
        if self.env.unwrapped.np_random.random() < self.probability:
            mask = self.info.get("action_mask")
            action = self.action_space.sample(mask) if mask is not None else self.action_space.sample()
        *step, self.info = self.env.step(action)
        return *step, self.info


class ObservationNoise(gym.ObservationWrapper):
    """Adds normal noise of standard deviation `scale` to vector observations, seeded by reset."""

    def __init__(self, env: gym.Env, scale: Number) -> None:
        super().__init__(env)
        if not isinstance(env.observation_space, gym.spaces.Box):
            raise ValueError(f"noise is added to vectors, not to {env.observation_space}")
        self.scale = scale

    def observation(self, observation: Any) -> Any:
        noise = self.env.unwrapped.np_random.normal(scale=self.scale, size=observation.shape)
        return (observation + noise).astype(observation.dtype)


def robustness(
    learner: Any, make_env: Callable[..., gym.Env], probabilities: Sequence[Number], episodes: int, seed: int
) -> dict[float, Evaluation]:
    """How the policy fares when actions are replaced by random ones with each of the probabilities, 0 for comparison.

    For changed dynamics call `evaluate` with another `make_env`: a slippery lake, another gravity.
    """
    return {
        float(p): evaluate(learner, lambda p=p: ActionNoise(make_env(), p), episodes, seed) for p in (0, *probabilities)
    }


@dataclass(frozen=True)
class Generalisation:
    """The same policy where it was trained and where it was not."""

    trained: Evaluation
    held_out: Evaluation

    @property
    def gap(self) -> float:
        """Mean return where it was trained minus mean return elsewhere."""
        return self.trained.mean_return - self.held_out.mean_return


def generalisation(
    learner: Any, train_env: Callable[..., gym.Env], held_out_env: Callable[..., gym.Env], episodes: int, seed: int
) -> Generalisation:
    """Evaluates on the environments of training and on others: two `tabular/MazePool-v0` of different seeds, say."""
    return Generalisation(evaluate(learner, train_env, episodes, seed), evaluate(learner, held_out_env, episodes, seed))
