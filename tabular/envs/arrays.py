"""What tabular methods need to know of an environment: its states and actions as numbers, its table, its masks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Discrete, MultiDiscrete, Space
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

HARMLESS = (OrderEnforcing, PassiveEnvChecker, TimeLimit)
"""Wrappers under which an environment is still its table."""


class Table(NamedTuple):
    """A transition table in flat arrays: outcomes `first[s, a]` to `first[s, a] + count[s, a] - 1` belong to `s, a`."""

    start: np.ndarray
    "[S] cumulative probability of beginning in each state"
    first: np.ndarray
    "[S, A] index of the first outcome"
    count: np.ndarray
    "[S, A] number of outcomes"
    chance: np.ndarray
    "[M] cumulative probability within the outcomes of one action"
    next_state: np.ndarray
    "[M]"
    reward: np.ndarray
    "[M]"
    terminated: np.ndarray
    "[M] True where the episode ends"
    masks: np.ndarray
    "[S, A] True where an action may be taken"


def discrete(space: Space[Any], needs: str, role: str) -> tuple[int, Callable[[Any], int]]:
    """How many values a space has, and the number of each, from 0: for Discrete, MultiDiscrete and tuples of Discrete.

    Raises ValueError for any other space, saying what `needs` what for which `role`.
    """
    if isinstance(space, Discrete):
        start = int(space.start)
        return int(space.n), (int if start == 0 else lambda value: int(value) - start)
    if role == "observations":
        parts = [part for part in getattr(space, "spaces", ()) if isinstance(part, Discrete)]
        if isinstance(space, gym.spaces.Tuple) and len(parts) == len(space.spaces) > 0:
            return _combined([int(part.n) for part in parts], [int(part.start) for part in parts])
        if isinstance(space, MultiDiscrete) and space.nvec.ndim == 1:
            return _combined(space.nvec.tolist(), np.asarray(space.start).tolist())
    raise ValueError(f"{needs}, but the {role} here are {space}")


def _combined(sizes: list[int], starts: list[int]) -> tuple[int, Callable[[Any], int]]:
    def index(values: Any) -> int:
        number = 0
        for value, size, start in zip(values, sizes, starts, strict=True):
            number = number * size + int(value) - start
        return number

    return int(np.prod(sizes)), index


def time_limit(env: gym.Env) -> int:
    """Steps after which the environment cuts an episode; 0 where it never does."""
    while isinstance(env, gym.Wrapper):
        if isinstance(env, TimeLimit):
            return int(env._max_episode_steps)
        env = env.env
    return 0


def not_finite(env: gym.Env, reward: Any) -> ValueError:
    """The error for a reward after which every value would be nan."""
    name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
    return ValueError(f"{name} paid the reward {reward}: rewards must be finite numbers, look at its step()")


def compile_table(env: gym.Env) -> Table | None:
    """The environment as flat arrays, if its table `P` is all there is to it; None otherwise.

    It is not if a wrapper changes it, if the agent does not see the state itself, or if the taxi's passenger is
    fickle, of which the table knows nothing. Action masks come from `action_mask(state)`, where there is one.

    Raises ValueError for a mask that allows no action, and for a reward that is not finite.
    """
    inner = env
    while isinstance(inner, gym.Wrapper):
        if type(inner) not in HARMLESS:
            return None
        inner = inner.env
    table, start = getattr(inner, "P", None), getattr(inner, "initial_state_distrib", None)
    if table is None or start is None or inner.observation_space != Discrete(len(table)):
        return None
    if getattr(inner, "fickle_passenger", False) or inner.action_space != Discrete(len(table[0])):
        return None

    n_states, n_actions = len(table), len(table[0])
    outcomes = [[[o for o in table[s][a] if o[0] > 0] for a in range(n_actions)] for s in range(n_states)]
    count = np.array([[len(outcome) for outcome in actions] for actions in outcomes])
    flat = [o for actions in outcomes for outcome in actions for o in outcome]
    first = np.concatenate([[0], count.ravel().cumsum()[:-1]]).reshape(count.shape)
    chance = [total for actions in outcomes for outcome in actions for total in np.cumsum([o[0] for o in outcome])]
    mask_of = getattr(inner, "action_mask", None)
    masked = mask_of is not None and getattr(inner, "masked", True)
    masks = [mask_of(s) for s in range(n_states)] if masked and mask_of is not None else np.ones((n_states, n_actions))
    if not np.array(masks).any(axis=1).all():
        raise ValueError(f"the action mask of state {np.array(masks).any(axis=1).argmin()} allows no action")
    reward = np.array([o[2] for o in flat], dtype=float)
    if not (finite := np.isfinite(reward)).all():
        raise not_finite(env, reward[finite.argmin()])
    return Table(
        start=np.cumsum(np.asarray(start, dtype=float)),
        first=first,
        count=count,
        chance=np.array(chance, dtype=float),
        next_state=np.array([o[1] for o in flat], dtype=np.int64),
        reward=reward,
        terminated=np.array([o[3] for o in flat], dtype=bool),
        masks=np.array(masks, dtype=bool),
    )
