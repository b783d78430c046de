"""Off-policy learning from a log of another policy's transitions: Q-learning without acting."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import gymnasium as gym
import numpy as np
from jaxtyping import Bool, Float, Int

from tabular.core.checks import check_at_least, check_choice, check_fraction, check_positive
from tabular.envs.arrays import enumerate_space
from tabular.history import History
from tabular.td import kernels
from tabular.td.rng import make_rng

Number = float | int

METHODS = {"q_learning": kernels.Q_LEARNING, "double_q_learning": kernels.DOUBLE_Q_LEARNING}
"""The methods whose target does not depend on the behaviour policy."""


@dataclass(frozen=True, eq=False)
class Transitions:
    """A log of N transitions; states and actions are indices from 0, truncated steps are not `terminated`.

    Raises:
        ValueError: for columns of another type or of different lengths, and for rewards that are not finite.
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
            kind, requirement = kinds.get(field.name, ("iu", "whole numbers"))
            if column.ndim != 1 or (len(column) and column.dtype.kind not in kind):
                raise ValueError(
                    f"{field.name} is {list(column.shape)} of {column.dtype}, but must be {requirement} [N]"
                )
            if len(column) != len(self.states):
                raise ValueError(
                    f"there are {len(column)} {field.name}, but must be as many as states: {len(self.states)}"
                )
            object.__setattr__(self, field.name, column.astype(float) if field.name == "rewards" else column)
        finite = np.isfinite(self.rewards)
        if not finite.all():
            row = finite.argmin()
            raise ValueError(f"rewards[{row}] is {self.rewards[row]}, but must be finite")


def record(
    make_env: Callable[..., gym.Env], act: Callable[[Any, np.random.Generator], int], steps: int, seed: int
) -> Transitions:
    """Records `steps` transitions of the policy `act(observation, generator)`.

    Raises:
        ValueError: for observations or actions that are not discrete, and for fewer than one step.
    """
    check_at_least(1, steps=steps)
    env = make_env()
    generator = np.random.default_rng(seed)
    _, index = enumerate_space(env.observation_space, "a log needs discrete observations", "observations")
    _, action_index = enumerate_space(env.action_space, "a log needs discrete actions", "actions")
    rows = []
    observation, _ = env.reset(seed=int(generator.integers(2**31)))
    for _ in range(steps):
        action = act(observation, generator)
        next_observation, reward, terminated, truncated, _ = env.step(action)
        rows.append(
            (index(observation), action_index(action), float(reward), index(next_observation), bool(terminated))
        )
        observation = env.reset()[0] if terminated or truncated else next_observation
    return Transitions(*(np.array(column) for column in zip(*rows, strict=True)))


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
    """Learns action values from a log, in `epochs` passes of random order; actions that are not in it keep the value 0.

    Args:
        log: the transitions.
        n_states: S.
        n_actions: A.
        gamma: discount, in [0, 1].
        alpha: step size, in (0, 1].
        epochs: passes over the log.
        seed: of the order, and of the choice of a table by double Q-learning.
        method: q_learning or double_q_learning.
        masks: True where an action is legal [S, A]; None: everywhere.

    Returns:
        The action values [S, A], and a history with td_error and q_change of each pass.

    Raises:
        ValueError: for settings out of range, an empty log, states or actions outside the table, and masks that allow
            no action.
    """
    masks = np.ones((n_states, n_actions), dtype=bool) if masks is None else np.asarray(masks, dtype=bool)
    check_choice(list(METHODS), method=method)
    check_fraction(gamma=gamma, alpha=alpha)
    check_positive(alpha=alpha)
    check_at_least(1, epochs=epochs)
    _check_log(log, n_states, n_actions, masks)
    generator = np.random.default_rng(seed)
    rng = make_rng(np.random.SeedSequence(seed))
    q = np.zeros((2 if method == "double_q_learning" else 1, n_states, n_actions))
    history = History()
    summary = np.empty((2, 1))
    rule = kernels.Rule(METHODS[method], False, float(gamma), float(alpha))
    stats = np.zeros(4)
    columns = log.states, log.actions, log.rewards, log.next_states, log.terminated
    for epoch in range(epochs):
        order = generator.permutation(len(log.states))
        kernels.replay(q, *columns, masks, order, rule, 0.0, rng, stats)
        kernels.end_interval(stats, summary, 0)
        history.add((epoch + 1) * len(order), td_error=summary[0, 0], q_change=summary[1, 0])
    return q.mean(axis=0), history


def _check_log(log: Transitions, n_states: int, n_actions: int, masks: Bool[np.ndarray, "..."]) -> None:
    """The compiled loop checks no bounds: an index outside the table would write to other memory."""
    if len(log.states) == 0:
        raise ValueError("the log is empty, but must have at least one transition")
    for name, column, size in (
        ("states", log.states, n_states),
        ("next_states", log.next_states, n_states),
        ("actions", log.actions, n_actions),
    ):
        outside = (column < 0) | (column >= size)
        if outside.any():
            row = outside.argmax()
            raise ValueError(
                f"{name}[{row}] of the log is {column[row]}, but must be 0 to {size - 1} for [S, A] = [{n_states}, "
                f"{n_actions}]"
            )
    if masks.shape != (n_states, n_actions):
        raise ValueError(f"masks is {list(masks.shape)}, but must be [S, A] = [{n_states}, {n_actions}]")
    stuck = ~log.terminated & (masks.sum(axis=1) == 0)[log.next_states]
    if stuck.any():
        raise ValueError(
            f"masks allows no action in state {log.next_states[stuck.argmax()]}, but must allow at least one"
        )
