"""Several copies of an environment, stepped in one plain loop, without the traps of automatic resets.

Gymnasium's vector environments by default answer an episode's end with a step that ignores the action and returns the
reset observation; stored as a transition it is wrong. Here every step is a real one: `step` returns what the actions
led to, final observations included, and `obs` is what to act on next, the first observation of a new episode where the
old one ended. No row ever holds a step that did not happen, and no observation is lost.

Every episode has a seed of its own, derived from the run's seed, the copy and the episode's number. So a state of the
environments is saved as three numbers and the actions since the last reset, and restored by acting them out again:
exact for every environment that is a function of its seed and its actions.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Float, Shaped

from tabular.envs.arrays import not_finite
from tabular.envs.cartpole import CartPoles, together


class Step(NamedTuple):
    """What one action in each of N copies led to."""

    next_obs: Shaped[np.ndarray, "N ..."]
    "the observation after the action, the final one where an episode ended"
    next_masks: Bool[np.ndarray, "N A"] | None
    "legal actions there; all True where an episode ended"
    rewards: Float[np.ndarray, "N"]
    terminated: Bool[np.ndarray, "N"]
    truncated: Bool[np.ndarray, "N"]
    "True where a time limit cut the episode and the state had a value still; never together with terminated"
    episodes: list[tuple[float, int]]
    "return and length of each episode that ended"


class VectorEnv:
    """N copies of what `make_env()` returns.

    Attributes: `obs` [N, ...] and `masks` ([N, A], True on legal actions, from `info["action_mask"]`; None if the
    environment gives none) are what to act on next. Raises ValueError for `n_envs < 1`.
    """

    def __init__(self, make_env: Callable[..., gym.Env], n_envs: int, seed: int) -> None:
        if n_envs < 1:
            raise ValueError(f"n_envs must be at least 1, got {n_envs}")
        self.envs = [make_env() for _ in range(n_envs)]
        self.observation_space, self.action_space = self.envs[0].observation_space, self.envs[0].action_space
        if self.observation_space.shape is None:
            raise ValueError(
                f"observations must be arrays, got {self.observation_space}; "
                "gymnasium.wrappers.FlattenObservation makes a Box of most others"
            )
        self.seed = seed
        self.n_resets = [0] * n_envs
        self.actions: list[list[Any]] = [[] for _ in range(n_envs)]
        "since the last reset, as the environment was given them"
        self.totals = np.zeros(n_envs)
        self.cart_poles: CartPoles | None = together(self.envs)
        space = self.observation_space
        self.dtype: Any = np.float32 if np.issubdtype(space.dtype, np.floating) else space.dtype
        self.obs = np.zeros((n_envs, *(space.shape or ())), dtype=self.dtype)
        self.masks: np.ndarray | None = None
        for i, env in enumerate(self.envs):
            env.action_space.seed(self._episode_seed(i))
            self._reset(i)

    def __len__(self) -> int:
        return len(self.envs)

    def step(self, actions: np.ndarray) -> Step:
        """Acts once in every copy; `actions` [N, ...] are the environment's own, one a row.

        Raises ValueError for a reward that is not finite.
        """
        masks = None if self.masks is None else np.ones_like(self.masks)
        # A list of Python's integers is quicker for environments than numpy's; rows stay arrays.
        rows = actions.tolist() if actions.ndim == 1 else list(actions)
        if self.cart_poles is not None:
            obs, rewards, terminated, truncated = self.cart_poles.step(actions)
        else:
            obs, rewards, terminated, truncated = self._step_each(rows, masks)
        self.totals += rewards
        for taken, action in zip(self.actions, rows, strict=True):
            taken.append(action)
        truncated &= ~terminated
        self.obs, self.masks = obs, masks
        episodes = []
        done = terminated | truncated
        if done.any():
            self.obs, self.masks = obs.copy(), None if masks is None else masks.copy()
            for i in np.flatnonzero(done).tolist():
                episodes.append((float(self.totals[i]), len(self.actions[i])))
                self._reset(i)
        return Step(obs, masks, rewards, terminated, truncated, episodes)

    def _step_each(self, actions: list[Any], masks: np.ndarray | None) -> tuple[np.ndarray, ...]:
        """Observations, rewards and ends; legal actions are written to `masks`."""
        n = len(self.envs)
        obs, rewards = np.empty_like(self.obs), np.empty(n)
        terminated, truncated = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
        for i, (env, action) in enumerate(zip(self.envs, actions, strict=True)):
            obs[i], rewards[i], terminated[i], truncated[i], info = env.step(action)
            if masks is not None and not (terminated[i] or truncated[i]):
                masks[i] = info["action_mask"]
        if not np.isfinite(rewards).all():
            i = int(np.isfinite(rewards).argmin())
            raise not_finite(self.envs[i], rewards[i])
        return obs, rewards, terminated, truncated

    def scale_obs(self, obs: np.ndarray) -> np.ndarray:
        """The observations as they are; `NormalizedEnvs` does more."""
        return obs

    def _reset(self, i: int) -> None:
        self.obs[i], info = self.envs[i].reset(seed=self._episode_seed(i))
        self.actions[i], self.totals[i] = [], 0.0
        self.n_resets[i] += 1
        if self.cart_poles is not None:
            self.cart_poles.take(i, age=0)
        if "action_mask" in info:
            if self.masks is None:
                self.masks = np.ones((len(self.envs), len(info["action_mask"])), dtype=bool)
            self.masks[i] = info["action_mask"]

    def _episode_seed(self, i: int) -> int:
        return int(np.random.SeedSequence((self.seed, i, self.n_resets[i])).generate_state(1)[0])

    def state_dict(self) -> dict[str, Any]:
        """Resets so far, and the actions of each copy's present episode."""
        actions = [[a.tolist() if isinstance(a, np.ndarray) else a for a in row] for row in self.actions]
        return {"n_resets": list(self.n_resets), "actions": actions, "seed": self.seed, "obs": self.obs.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Acts the present episodes out again. Warns and begins a new one where that does not lead to the same
        observation, because the environment is no function of its seed and its actions.
        """
        if len(state["actions"]) != len(self.envs):
            raise ValueError(f"the state is of {len(state['actions'])} environments, here are {len(self.envs)}")
        self.seed = state["seed"]
        for i, (n_resets, actions) in enumerate(zip(state["n_resets"], state["actions"], strict=True)):
            self.n_resets[i] = n_resets - 1
            self._reset(i)
            for action in actions:
                self._replay(i, action)
            if self.cart_poles is not None:
                self.cart_poles.take(i, age=len(actions))
            if not np.array_equal(self.obs[i], np.array(state["obs"][i], dtype=self.obs.dtype), equal_nan=True):
                warnings.warn(f"environment {i} did not repeat its episode; a new one begins", stacklevel=2)
                self._reset(i)

    def _replay(self, i: int, action: Any) -> None:
        if not isinstance(self.action_space, spaces.Discrete):
            action = np.array(action, dtype=self.action_space.dtype)
        self.obs[i], reward, _, _, info = self.envs[i].step(action)
        self.actions[i].append(action)
        self.totals[i] += float(reward)
        if self.masks is not None:
            self.masks[i] = info["action_mask"]
