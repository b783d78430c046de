"""Environments for tabular methods: states and actions as indices, transition tables as flat arrays, action masks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Discrete, MultiDiscrete, Space
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit

TRANSPARENT_WRAPPERS = (OrderEnforcing, PassiveEnvChecker, TimeLimit)
"""Wrappers that change neither observations nor rewards, so that the table below them still describes the dynamics."""


class Table(NamedTuple):
    """A transition table in flat arrays: action `a` in state `s` has `count[s, a]` outcomes, from `first[s, a]` on."""

    start: np.ndarray
    "[S] cumulative probability of starting in each state"
    first: np.ndarray
    "[S, A] index of the first outcome"
    count: np.ndarray
    "[S, A] number of outcomes"
    cumulative: np.ndarray
    "[M] cumulative probability within the outcomes of one action"
    next_state: np.ndarray
    "[M]"
    reward: np.ndarray
    "[M]"
    terminated: np.ndarray
    "[M] True where the episode ends"
    masks: np.ndarray
    "[S, A] True where an action is legal"


def enumerate_space(space: Space[Any], requirement: str, role: str) -> tuple[int, Callable[[Any], int]]:
    """The number of values of a space, and a function from a value to its index, from 0.

    Args:
        space: Discrete; for observations also MultiDiscrete or a tuple of Discrete.
        requirement: the start of the error message, such as "prediction needs discrete actions".
        role: "observations" or "actions".

    Raises:
        ValueError: for any other space.
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
    raise ValueError(f"{requirement}, but the {role} here are {space}")


def _combined(sizes: list[int], starts: list[int]) -> tuple[int, Callable[[Any], int]]:
    def index(values: Any) -> int:
        number = 0
        for value, size, start in zip(values, sizes, starts, strict=True):
            number = number * size + int(value) - start
        return number

    return int(np.prod(sizes)), index


def time_limit(env: gym.Env) -> int:
    """Steps after which the environment truncates an episode; 0 if it has no limit."""
    while isinstance(env, gym.Wrapper):
        if isinstance(env, TimeLimit):
            return int(env._max_episode_steps)
        env = env.env
    return 0


def reward_error(env: gym.Env, reward: Any) -> ValueError:
    """The error for a reward that is not finite, which would make every value nan."""
    name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
    return ValueError(f"{name} returned the reward {reward}, but rewards must be finite: check its step()")


def compile_table(env: gym.Env) -> Table | None:
    """The environment as flat arrays if its table `P` describes it completely, otherwise None.

    It does not if a wrapper changes the environment, if observations are not the state itself, or for Taxi with
    `fickle_passenger`, which its table leaves out. Action masks come from `action_mask(state)` if there is one.

    Raises:
        ValueError: for a mask that allows no action, and for a reward that is not finite.
    """
    inner = env
    while isinstance(inner, gym.Wrapper):
        if type(inner) not in TRANSPARENT_WRAPPERS:
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
    cumulative = [p for actions in outcomes for outcome in actions for p in np.cumsum([o[0] for o in outcome])]
    mask_of = getattr(inner, "action_mask", None)
    masked = mask_of is not None and getattr(inner, "masked", True)
    masks = [mask_of(s) for s in range(n_states)] if masked and mask_of is not None else np.ones((n_states, n_actions))
    if not np.array(masks).any(axis=1).all():
        raise ValueError(f"the action mask of state {np.array(masks).any(axis=1).argmin()} allows no action")
    reward = np.array([o[2] for o in flat], dtype=float)
    finite = np.isfinite(reward)
    if not finite.all():
        raise reward_error(env, reward[finite.argmin()])
    return Table(
        start=np.cumsum(np.asarray(start, dtype=float)),
        first=first,
        count=count,
        cumulative=np.array(cumulative, dtype=float),
        next_state=np.array([o[1] for o in flat], dtype=np.int64),
        reward=reward,
        terminated=np.array([o[3] for o in flat], dtype=bool),
        masks=np.array(masks, dtype=bool),
    )
