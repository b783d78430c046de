"""Off-policy learning from a log of another policy's transitions: Q-learning without ever acting."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
from jaxtyping import Bool, Float, Int

from tabular import kernels
from tabular.history import History
from tabular.tables import discrete

Number = float | int

METHODS = {"q_learning": kernels.Q_LEARNING, "double_q_learning": kernels.DOUBLE_Q_LEARNING}
"""Those whose target does not ask what the behaviour would do next."""


@dataclass(frozen=True, eq=False)
class Transitions:
    """A log of N transitions, numbered states and actions from 0. A cut episode (truncation) is not terminated."""

    states: Int[np.ndarray, "N"]
    actions: Int[np.ndarray, "N"]
    rewards: Float[np.ndarray, "N"]
    next_states: Int[np.ndarray, "N"]
    terminated: Bool[np.ndarray, "N"]


def record(
    make_env: Callable[..., gym.Env], act: Callable[[Any, np.random.Generator], int], steps: int, seed: int
) -> Transitions:
    """Follows `act(observation, generator)` for `steps` steps and writes everything down.

    Raises ValueError for observations that are not discrete.
    """
    env, generator = make_env(), np.random.default_rng(seed)
    _, index = discrete(env.observation_space, "a log needs discrete observations", "observations")
    _, action_index = discrete(env.action_space, "a log needs discrete actions", "actions")
    rows = []
    observation, _ = env.reset(seed=int(generator.integers(2**31)))
    for _ in range(steps):
        action = act(observation, generator)
        after, reward, terminated, truncated, _ = env.step(action)
        rows.append((index(observation), action_index(action), float(reward), index(after), bool(terminated)))
        observation = env.reset()[0] if terminated or truncated else after
    states, actions, rewards, next_states, ends = (np.array(column) for column in zip(*rows, strict=True))
    return Transitions(states, actions, rewards, next_states, ends)


def learn_from_log(
    log: Transitions,
    n_states: int,
    n_actions: int,
    gamma: Number = 0.99,
    alpha: Number = 0.1,
    epochs: int = 10,
    seed: int = 0,
    method: str = "q_learning",
    masks: Bool[np.ndarray, "S A"] | None = None,
) -> tuple[Float[np.ndarray, "S A"], History]:
    """Action values from `epochs` passes over the log, each in a random order; what is not in it stays 0.

    The history has td_error and q_change of each pass. `masks` are True where an action may be taken (None: all).
    Raises ValueError for an unknown method, and for states or actions outside the table.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if max(log.states.max(), log.next_states.max()) >= n_states or log.actions.max() >= n_actions:
        raise ValueError(f"the log has states or actions outside [S, A] = [{n_states}, {n_actions}]")
    generator, rng = np.random.default_rng(seed), kernels.make_rng(np.random.SeedSequence(seed))
    tables = 2 if method == "double_q_learning" else 1
    q, history, summary = np.zeros((tables, n_states, n_actions)), History(), np.empty((2, 1))
    masks = np.ones((n_states, n_actions), dtype=bool) if masks is None else masks
    rule, sums = kernels.Rule(METHODS[method], False, float(gamma), float(alpha)), np.zeros(4)
    columns = log.states, log.actions, log.rewards, log.next_states, log.terminated
    for epoch in range(epochs):
        order = generator.permutation(len(log.states))
        kernels.replay(q, *columns, masks, order, rule, 0.0, rng, sums)
        kernels.end_interval(sums, summary, 0)
        history.add((epoch + 1) * len(order), td_error=summary[0, 0], q_change=summary[1, 0])
    return q.mean(axis=0), history
