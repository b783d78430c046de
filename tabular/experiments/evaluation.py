"""Evaluation runs of greedy policies: returns, successes, robustness against noise, and generalisation.

`tabular.experiments.statistics` summarises them over seeds.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np
from jaxtyping import Float

from tabular.envs.arrays import time_limit
from tabular.planning.mdp import MDP, reachable

Number = float | int

MAX_EVALUATION_STEPS = 1000
"""Steps after which an evaluation episode is cut in an environment without a time limit: a greedy policy can run in
circles."""


@dataclass(frozen=True)
class Evaluation:
    """Episodes [E] of a greedy policy."""

    returns: Float[np.ndarray, "E"]
    "undiscounted"
    discounted_returns: Float[np.ndarray, "E"]
    "discounted by the gamma of the evaluation"
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


def evaluate(
    learner: Any, make_env: Callable[..., gym.Env], episodes: int, seed: int, gamma: Number = 1.0
) -> Evaluation:
    """Plays episodes of the greedy policy in a new environment; the learner's training state does not change.

    Args:
        learner: anything with `act(observation, mask)`.
        make_env: makes the environment.
        episodes: number of episodes, each cut after 1000 steps where the environment has no time limit.
        seed: of the first reset.
        gamma: discount of `discounted_returns`.

    Raises:
        ValueError: fewer than one episode.
    """
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    env = make_env()
    limit, best = time_limit(env) or MAX_EVALUATION_STEPS, best_reward(env)
    returns, discounted, lengths, successes, states = [], [], [], [], set()
    for episode in range(episodes):
        observation, info = env.reset(seed=seed if episode == 0 else None)
        rewards, ended, terminated = [], False, False
        while not ended and len(rewards) < limit:
            if isinstance(observation, int | np.integer):
                states.add(int(observation))
            action = learner.act(observation, info.get("action_mask"))
            observation, reward, terminated, truncated, info = env.step(action)
            rewards.append(float(reward))
            ended = terminated or truncated
        returns.append(sum(rewards))
        discounted.append(float(np.array(rewards) @ gamma ** np.arange(len(rewards), dtype=float)))
        lengths.append(len(rewards))
        successes.append(succeeded(rewards, bool(terminated), info, best))
    env.close()
    decided = [float(success) for success in successes if success is not None]
    return Evaluation(
        returns=np.array(returns, dtype=float),
        discounted_returns=np.array(discounted),
        lengths=np.array(lengths, dtype=float),
        successes=np.array(decided) if len(decided) == episodes else None,
        states=frozenset(states),
    )


def succeeded(rewards: Sequence[float], terminated: bool, info: dict[str, Any], best: float | None) -> bool | None:
    """Whether an episode reached its goal: the environment's `info["success"]`, or else, on a table, whether it
    terminated with the `best` reward of that table. None where neither exists.

    A positive last reward alone is no success: CartPole pays 1 for the step that drops the pole.
    """
    if "success" in info:
        return bool(info["success"])
    return None if best is None else terminated and rewards[-1] == best


def best_reward(env: Any) -> float | None:
    """The largest reward in an environment's table, if a transition that terminates pays it; None otherwise."""
    table = getattr(env.unwrapped, "P", None)
    if table is None:
        return None
    outcomes = [
        outcome for actions in table.values() for action_outcomes in actions.values() for outcome in action_outcomes
    ]
    best = float(max(outcome[2] for outcome in outcomes))
    return best if any(outcome[3] and outcome[2] == best for outcome in outcomes) else None


def state_coverage(visits: np.ndarray, mdp: MDP) -> float:
    """Share of the states in which an episode can act that were visited (`visits` [S] above 0)."""
    return float((visits[reachable(mdp)] > 0).mean())


class ActionNoise(gym.Wrapper):
    """Replaces each action with `probability` by a random one, which may be the intended one; seeded by reset.

    Raises:
        ValueError: a probability outside [0, 1].
    """

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
    """Adds normal noise of standard deviation `scale` to vector observations; seeded by reset.

    Raises:
        ValueError: observations that are no vectors.
    """

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
    """Evaluations with each of the probabilities that an action is replaced by a random one, and with 0.

    For changed dynamics call `evaluate` with another `make_env`: a slippery lake, another gravity.
    """
    return {
        float(p): evaluate(learner, lambda p=p: ActionNoise(make_env(), p), episodes, seed) for p in (0, *probabilities)
    }


@dataclass(frozen=True)
class Generalisation:
    """The same policy in its training environments and in others."""

    trained: Evaluation
    held_out: Evaluation

    @property
    def gap(self) -> float:
        """Mean return in the training environments minus mean return in the others."""
        return self.trained.mean_return - self.held_out.mean_return


def generalisation(
    learner: Any, train_env: Callable[..., gym.Env], held_out_env: Callable[..., gym.Env], episodes: int, seed: int
) -> Generalisation:
    """Evaluates on the training environments and on others: two `tabular/MazePool-v0` of different seeds, say."""
    return Generalisation(
        trained=evaluate(learner, train_env, episodes, seed),
        held_out=evaluate(learner, held_out_env, episodes, seed),
    )
