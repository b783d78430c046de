"""Off-policy learning from a log of another policy's transitions: Q-learning without ever acting."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import gymnasium as gym
import numpy as np
from jaxtyping import Bool, Float, Int

from tabular.envs.arrays import enumerate_space
from tabular.history import History
from tabular.td import kernels
from tabular.td.rng import make_rng

Number = float | int

METHODS = {"q_learning": kernels.Q_LEARNING, "double_q_learning": kernels.DOUBLE_Q_LEARNING}
"""Those whose target does not ask what the behaviour would do next."""


@dataclass(frozen=True, eq=False)
class Transitions:
    """A log of N transitions, numbered states and actions from 0. A cut episode (truncation) is not terminated.

    Raises ValueError for columns that are not of this kind, or not equally long.
    """

    states: Int[np.ndarray, "N"]
    actions: Int[np.ndarray, "N"]
    rewards: Float[np.ndarray, "N"]
    next_states: Int[np.ndarray, "N"]
    terminated: Bool[np.ndarray, "N"]

    def __post_init__(self) -> None:
        kinds = {"rewards": ("iuf", "numbers"), "terminated": ("b", "true or false")}
        for field in fields(self):
            column = np.asarray(getattr(self, field.name))
            kind, wanted = kinds.get(field.name, ("iu", "whole numbers"))
            if column.ndim != 1 or (len(column) and column.dtype.kind not in kind):
                raise ValueError(f"{field.name} must be {wanted} [N], got {list(column.shape)} of {column.dtype}")
            if len(column) != len(self.states):
                raise ValueError(
                    f"all columns must be equally long: {len(self.states)} states, {len(column)} {field.name}"
                )
            object.__setattr__(self, field.name, column.astype(float) if field.name == "rewards" else column)
        if not (good := np.isfinite(self.rewards)).all():
            raise ValueError(f"rewards must be finite, number {good.argmin()} is {self.rewards[good.argmin()]}")


def record(
    make_env: Callable[..., gym.Env], act: Callable[[Any, np.random.Generator], int], steps: int, seed: int
) -> Transitions:
    """Follows `act(observation, generator)` for `steps` steps and writes everything down.

    Raises ValueError for observations or actions that are not discrete, and for fewer than one step.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    env, generator = make_env(), np.random.default_rng(seed)
    _, index = enumerate_space(env.observation_space, "a log needs discrete observations", "observations")
    _, action_index = enumerate_space(env.action_space, "a log needs discrete actions", "actions")
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
    Raises ValueError for settings out of range, for an empty log, for states or actions outside the table, and where
    the masks allow no action.
    """
    masks = np.ones((n_states, n_actions), dtype=bool) if masks is None else np.asarray(masks, dtype=bool)
    _check_settings(method, gamma, alpha, epochs)
    _check_log(log, n_states, n_actions, masks)
    generator, rng = np.random.default_rng(seed), make_rng(np.random.SeedSequence(seed))
    tables = 2 if method == "double_q_learning" else 1
    q, history, summary = np.zeros((tables, n_states, n_actions)), History(), np.empty((2, 1))
    rule, stats = kernels.Rule(METHODS[method], False, float(gamma), float(alpha)), np.zeros(4)
    columns = log.states, log.actions, log.rewards, log.next_states, log.terminated
    for epoch in range(epochs):
        order = generator.permutation(len(log.states))
        kernels.replay(q, *columns, masks, order, rule, 0.0, rng, stats)
        kernels.end_interval(stats, summary, 0)
        history.add((epoch + 1) * len(order), td_error=summary[0, 0], q_change=summary[1, 0])
    return q.mean(axis=0), history


def _check_settings(method: str, gamma: Number, alpha: Number, epochs: int) -> None:
    checks = {
        "method": (method, method in METHODS, f"one of {', '.join(METHODS)}"),
        "gamma": (gamma, 0 <= gamma <= 1, "in [0, 1]"),
        "alpha": (alpha, 0 < alpha <= 1, "in (0, 1]"),
        "epochs": (epochs, epochs >= 1, "at least 1"),
    }
    for name, (value, good, wanted) in checks.items():
        if not good:
            raise ValueError(f"{name} must be {wanted}, got {value!r}")


def _check_log(log: Transitions, n_states: int, n_actions: int, masks: Bool[np.ndarray, "..."]) -> None:
    """The compiled loop looks at no bounds: a number outside the table would be written somewhere else."""
    if len(log.states) == 0:
        raise ValueError("the log is empty: there is nothing to learn from")
    for name, column, size in (
        ("states", log.states, n_states),
        ("next_states", log.next_states, n_states),
        ("actions", log.actions, n_actions),
    ):
        if (outside := (column < 0) | (column >= size)).any():
            row = outside.argmax()
            raise ValueError(
                f"{name} of the log must be 0 to {size - 1} to fit [S, A] = [{n_states}, {n_actions}], number {row} is "
                f"{column[row]}"
            )
    if masks.shape != (n_states, n_actions):
        raise ValueError(f"masks must be [S, A] = [{n_states}, {n_actions}], got {list(masks.shape)}")
    stuck = ~log.terminated & (masks.sum(axis=1) == 0)[log.next_states]
    if stuck.any():
        raise ValueError(
            f"the masks allow no action in state {log.next_states[stuck.argmax()]}: one at least is needed"
        )
