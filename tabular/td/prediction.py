"""Prediction: the values of a policy from sampled episodes, by TD(0), TD(lambda), n-step TD and Monte Carlo.

An episode is sampled first, compiled where the environment is described by its table and step by step in any other;
then the same compiled functions update the values. All episodes of a run share one value table [S], so the order of the
updates matters: each rule updates in the order of the steps in which it would do so online, Monte Carlo at the end.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, no_type_check

import gymnasium as gym
import numpy as np
from jaxtyping import Float

from tabular.compiled import compiled_with_allocation
from tabular.core.checks import check_at_least, check_choice, check_finite, check_fraction, check_positive
from tabular.envs.arrays import compile_table, enumerate_space, reward_error, time_limit
from tabular.planning.policies import Policy, checked_policy
from tabular.td.rng import draw, make_rng

Number = float | int

METHODS = ("td", "n_step", "monte_carlo")
TD, N_STEP, MONTE_CARLO = range(3)

MAX_EPISODE_STEPS = 1_000_000
"""Limit for environments without a time limit, so that a policy that never ends is an error."""


@dataclass(frozen=True)
class PredictionConfig:
    """Settings of prediction."""

    method: str = "td"
    "td (TD(lambda); lam 0 is TD(0)), n_step or monte_carlo"
    alpha: Number = 0.1
    "step size, in [0, 1]; 0 takes the average of all returns so far (monte_carlo only)"
    gamma: Number = 1.0
    "discount, in [0, 1]"
    lam: Number = 0.0
    "trace decay of td, in [0, 1]"
    n: int = 4
    "number of rewards in a target of n_step"
    first_visit: bool = False
    "monte_carlo learns only from the first visit of a state in an episode"
    initial_value: Number = 0.0
    "initial value of all states"

    def __post_init__(self) -> None:
        check_choice(METHODS, method=self.method)
        check_fraction(alpha=self.alpha, gamma=self.gamma, lam=self.lam)
        if self.method != "monte_carlo":
            check_positive(alpha=self.alpha)
        check_at_least(1, n=self.n)
        check_finite(initial_value=self.initial_value)


def predict(
    make_env: Callable[..., gym.Env], policy: Policy, config: PredictionConfig, episodes: int, seed: int
) -> Float[np.ndarray, "E S"]:
    """Estimates the values of a policy. A truncated episode bootstraps from the estimate of its last state.

    Args:
        make_env: makes the environment.
        policy: an action per state [S], or the probability of each action [S, A].
        config: the method and its settings.
        episodes: number of episodes E.
        seed: seed of the policy's actions and the environment.

    Returns:
        The estimated values after each episode [E, S].

    Raises:
        ValueError: for spaces that are not discrete, an invalid policy, fewer than one episode, rewards that are not
            finite, and an episode that does not end within a million steps.
    """
    check_at_least(1, episodes=episodes)
    env = make_env()
    n_states, index = enumerate_space(env.observation_space, "prediction needs discrete observations", "observations")
    n_actions, _ = enumerate_space(env.action_space, "prediction needs discrete actions", "actions")
    policy = checked_policy(policy, n_states, n_actions)
    cumulative = (np.eye(n_actions)[policy] if policy.ndim == 1 else policy).cumsum(axis=1, dtype=float)

    behaviour, env_seed = np.random.SeedSequence(seed).spawn(2)
    rng = make_rng(behaviour)
    table = compile_table(env)
    values = np.full(n_states, float(config.initial_value))
    counts = np.zeros(n_states, dtype=np.int64)
    rule = METHODS.index(config.method), float(config.alpha), float(config.gamma), float(config.lam)
    history = np.empty((episodes, n_states))
    limit = time_limit(env) or MAX_EPISODE_STEPS
    n = min(config.n, limit)  # no episode is longer, and numba's integers end somewhere
    first_action = int(getattr(env.action_space, "start", 0))
    reset_seed = int(env_seed.generate_state(1)[0])
    for episode in range(episodes):
        if table is not None:
            sampled = _sample_on_table(table.start, *table[1:7], cumulative, limit, rng)
        else:
            sampled = _sample_in_env(
                env, index, cumulative, limit, rng, first_action, reset_seed if episode == 0 else None
            )
        if len(sampled[1]) == limit == MAX_EPISODE_STEPS and not sampled[2]:
            raise ValueError(f"an episode did not end within {MAX_EPISODE_STEPS} steps: does this policy ever end?")
        learn_values(values, counts, *sampled, *rule, n, config.first_visit)
        history[episode] = values
    return history


def _sample_on_table(*args: Any) -> tuple[np.ndarray, np.ndarray, bool]:
    """`sample`, with Ctrl-C as KeyboardInterrupt: numba raises SystemError if it comes while arrays are passed."""
    try:
        return sample(*args)
    except SystemError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, KeyboardInterrupt):
            cause = cause.__cause__
        raise (cause or error) from None


def _sample_in_env(
    env: gym.Env, index: Any, cumulative: np.ndarray, limit: int, rng: np.ndarray, first_action: int, seed: int | None
) -> tuple[np.ndarray, np.ndarray, bool]:
    """One episode in any environment: states [T + 1], rewards [T], and whether it terminated."""
    observation, _ = env.reset(seed=seed)
    states, rewards, terminated, truncated = [index(observation)], [], False, False
    while not (terminated or truncated) and len(rewards) < limit:
        action = draw(cumulative[states[-1]], 0, cumulative.shape[1], rng)
        observation, reward, terminated, truncated, _ = env.step(action + first_action)
        states.append(index(observation))
        rewards.append(float(reward))
        if not math.isfinite(rewards[-1]):
            raise reward_error(env, reward)
    return np.array(states), np.array(rewards), bool(terminated)


@compiled_with_allocation
@no_type_check
def sample(start, first, count, outcome_cumulative, next_state, reward, terminated, cumulative, limit, rng):
    """One episode on a table, as `_sample_in_env` returns it."""
    states, rewards = [draw(start, 0, len(start), rng)], [0.0]
    rewards.pop()
    ended = False
    while not ended and len(rewards) < limit:
        s = states[-1]
        a = draw(cumulative[s], 0, cumulative.shape[1], rng)
        outcome = draw(outcome_cumulative, first[s, a], count[s, a], rng)
        states.append(next_state[outcome])
        rewards.append(reward[outcome])
        ended = terminated[outcome]
    return np.array(states), np.array(rewards), ended


@compiled_with_allocation
@no_type_check
def learn_values(values, counts, states, rewards, terminated, method, alpha, gamma, lam, n, first_visit):
    """Updates `values` [S] from one episode: states [T + 1], rewards [T]."""
    if method == TD:
        td_lambda(values, states, rewards, terminated, alpha, gamma, lam)
    elif method == N_STEP:
        n_step_td(values, states, rewards, terminated, alpha, gamma, n)
    else:
        monte_carlo(values, counts, states, rewards, terminated, alpha, gamma, first_visit)


@compiled_with_allocation
@no_type_check
def td_lambda(values, states, rewards, terminated, alpha, gamma, lam):
    """At every step each state moves by `alpha delta e(s)`, `delta = r + gamma V(s') - V(s)`; traces `e` accumulate.

    Sutton (1988); Sutton & Barto (2018), section 12.2. With lam 0 only the current state is updated: TD(0), eq. 6.2.
    """
    traces = np.zeros(len(values))
    for t in range(len(rewards)):
        s = states[t]
        last = t == len(rewards) - 1
        next_value = 0.0 if last and terminated else values[states[t + 1]]
        delta = rewards[t] + gamma * next_value - values[s]
        if lam == 0:
            values[s] += alpha * delta
        else:
            traces *= gamma * lam
            traces[s] += 1
            values += alpha * delta * traces


@compiled_with_allocation
@no_type_check
def n_step_td(values, states, rewards, terminated, alpha, gamma, n):
    """Each state moves towards the next n rewards and the value after them. Sutton & Barto (2018), section 7.1."""
    length = len(rewards)
    for t in range(length):
        end = min(t + n, length)
        target = 0.0 if end == length and terminated else values[states[end]]
        for i in range(end - 1, t - 1, -1):
            target = rewards[i] + gamma * target
        values[states[t]] += alpha * (target - values[states[t]])


@compiled_with_allocation
@no_type_check
def monte_carlo(values, counts, states, rewards, terminated, alpha, gamma, first_visit):
    """Each state moves towards the return that followed it, the last one first. Sutton & Barto (2018), section 5.1."""
    target = 0.0 if terminated else values[states[-1]]
    first_visits = np.full(len(values), -1)
    for t in range(len(rewards) - 1, -1, -1):
        first_visits[states[t]] = t
    for t in range(len(rewards) - 1, -1, -1):
        s = states[t]
        target = rewards[t] + gamma * target
        if not first_visit or first_visits[s] == t:
            counts[s] += 1
            values[s] += (alpha if alpha > 0 else 1 / counts[s]) * (target - values[s])
