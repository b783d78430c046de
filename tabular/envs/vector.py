"""A vector environment: several copies of an environment stepped in one loop, with correct transitions at resets.

By default gymnasium's vector environments follow the end of an episode with a step that ignores the action and returns
the reset observation; stored as a transition it is wrong. Here every step is a real one: `step` returns the result of
the actions, including final observations, and `obs` is what to act on next, the first observation of a new episode
where the old one ended.

Every episode has its own seed, derived from the run's seed, the copy and the episode's number. So the state of the
environments is saved as the number of resets and the actions since the last one, and restored by replaying them: exact
for every environment that is a function of its seed and its actions.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from jaxtyping import Bool, Float, Shaped

from tabular.core.checks import check_at_least
from tabular.envs.arrays import reward_error
from tabular.envs.cartpole import BatchedCartPole, batched


class Step(NamedTuple):
    """The result of one action in each of N copies."""

    next_obs: Shaped[np.ndarray, "N ..."]
    "the observation after the action; the final observation where an episode ended"
    next_masks: Bool[np.ndarray, "N A"] | None
    "legal actions there; all True where an episode ended"
    rewards: Float[np.ndarray, "N"]
    terminated: Bool[np.ndarray, "N"]
    truncated: Bool[np.ndarray, "N"]
    "True where a time limit ended the episode; False where it also terminated"
    episodes: list[tuple[float, int]]
    "return and length of each episode that ended"


class VectorEnv:
    """N copies of the environment that `make_env()` returns.

    Attributes:
        obs: observations [N, ...] to act on next.
        masks: legal actions there [N, A], from `info["action_mask"]`; None if the environment has no masks.

    Raises:
        ValueError: for `n_envs` below 1, and for observations that are not arrays.
    """

    def __init__(self, make_env: Callable[..., gym.Env], n_envs: int, seed: int) -> None:
        check_at_least(1, n_envs=n_envs)
        self.envs = [make_env() for _ in range(n_envs)]
        self.observation_space, self.action_space = self.envs[0].observation_space, self.envs[0].action_space
        if self.observation_space.shape is None:
            raise ValueError(
                f"observations are {self.observation_space}, but must be arrays: wrap the environment in "
                "gymnasium.wrappers.FlattenObservation"
            )
        self.seed = seed
        self.n_resets = [0] * n_envs
        self.actions: list[list[Any]] = [[] for _ in range(n_envs)]
        "actions of each copy since its last reset, as passed to the environment"
        self.totals = np.zeros(n_envs)
        "return of each copy's episode so far"
        self.cart_poles: BatchedCartPole | None = batched(self.envs)
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
        """Takes one step in every copy, with one row of `actions` [N, ...] each.

        Raises:
            ValueError: for a reward that is not finite.
        """
        masks = None if self.masks is None else np.ones_like(self.masks)
        # Python integers are faster in most environments than numpy's.
        rows = actions.tolist() if actions.ndim == 1 else list(actions)
        if self.cart_poles is not None:
            obs, rewards, terminated, truncated = self.cart_poles.step(actions)
        else:
            obs, rewards, terminated, truncated = self._step_each(rows, masks)
        self.totals += rewards
        for history, action in zip(self.actions, rows, strict=True):
            history.append(action)
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
        """Observations, rewards, terminated and truncated; legal actions are written to `masks`."""
        n = len(self.envs)
        obs, rewards = np.empty_like(self.obs), np.empty(n)
        terminated, truncated = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
        for i, (env, action) in enumerate(zip(self.envs, actions, strict=True)):
            obs[i], rewards[i], terminated[i], truncated[i], info = env.step(action)
            if masks is not None and not (terminated[i] or truncated[i]):
                masks[i] = info["action_mask"]
        if not np.isfinite(rewards).all():
            i = int(np.isfinite(rewards).argmin())
            raise reward_error(self.envs[i], rewards[i])
        return obs, rewards, terminated, truncated

    def scale_obs(self, obs: np.ndarray) -> np.ndarray:
        """The observations unchanged; `NormalizedEnvs` normalises them."""
        return obs

    def _reset(self, i: int) -> None:
        self.obs[i], info = self.envs[i].reset(seed=self._episode_seed(i))
        self.actions[i], self.totals[i] = [], 0.0
        self.n_resets[i] += 1
        if self.cart_poles is not None:
            self.cart_poles.copy_state(i, elapsed_steps=0)
        if "action_mask" in info:
            if self.masks is None:
                self.masks = np.ones((len(self.envs), len(info["action_mask"])), dtype=bool)
            self.masks[i] = info["action_mask"]

    def _episode_seed(self, i: int) -> int:
        return int(np.random.SeedSequence((self.seed, i, self.n_resets[i])).generate_state(1)[0])

    def state_dict(self) -> dict[str, Any]:
        """Resets so far, and the actions of each copy's current episode."""
        actions = [[a.tolist() if isinstance(a, np.ndarray) else a for a in row] for row in self.actions]
        return {"n_resets": list(self.n_resets), "actions": actions, "seed": self.seed, "obs": self.obs.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replays the current episodes.

        Where that does not lead to the same observation, because the environment is not a function of its seed and its
        actions, warns and starts a new episode.

        Raises:
            ValueError: for the state of another number of copies.
        """
        if len(state["actions"]) != len(self.envs):
            raise ValueError(
                f"the saved state has {len(state['actions'])} environments, but n_envs is {len(self.envs)}"
            )
        self.seed = state["seed"]
        for i, (n_resets, actions) in enumerate(zip(state["n_resets"], state["actions"], strict=True)):
            self.n_resets[i] = n_resets - 1
            self._reset(i)
            for action in actions:
                self._replay(i, action)
            if self.cart_poles is not None:
                self.cart_poles.copy_state(i, elapsed_steps=len(actions))
            if not np.array_equal(self.obs[i], np.array(state["obs"][i], dtype=self.obs.dtype), equal_nan=True):
                warnings.warn(f"environment {i} did not repeat its episode, so a new one starts", stacklevel=2)
                self._reset(i)

    def _replay(self, i: int, action: Any) -> None:
        if not isinstance(self.action_space, spaces.Discrete):
            action = np.array(action, dtype=self.action_space.dtype)
        self.obs[i], reward, _, _, info = self.envs[i].step(action)
        self.actions[i].append(action)
        self.totals[i] += float(reward)
        if self.masks is not None:
            self.masks[i] = info["action_mask"]
