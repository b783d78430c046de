"""Normalisation of observations and rewards by running statistics."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from jaxtyping import Float

from tabular.envs.vector import Step, VectorEnv

CLIP = 10.0
"""Normalised observations and rewards are clipped to +-10, because early statistics come from few samples."""

EPS = 1e-8
"""Added to variances before the square root."""


class RunningMoments:
    """Mean and variance of all rows so far, updated batch by batch. Chan, Golub & LeVeque (1983)."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.mean, self.var, self.count = np.zeros(shape), np.ones(shape), 0

    def update(self, rows: Float[np.ndarray, "N ..."]) -> None:
        n = len(rows)
        mean = rows.mean(axis=0, dtype=np.float64)
        var = rows.var(axis=0, dtype=np.float64)
        total = self.count + n
        delta = mean - self.mean
        sum_of_squares = self.var * self.count + var * n + delta**2 * self.count * n / total
        self.mean = self.mean + delta * n / total
        self.var = sum_of_squares / total
        self.count = total

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean.tolist(), "var": self.var.tolist(), "count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean = np.array(state["mean"])
        self.var = np.array(state["var"])
        self.count = state["count"]


class NormalizedEnvs:
    """A `VectorEnv` with observations of mean 0 and variance 1, and rewards whose discounted return has variance 1.

    Rewards are divided by the standard deviation of the discounted return so far, but not shifted: a shift would change
    the optimal policy. Final observations are normalised by the same statistics as all others. The episodes that `step`
    reports have the original rewards. Engstrom et al. (2020), arXiv 2005.12729.

    Raises:
        ValueError: for `observations` that are not float arrays.
    """

    def __init__(self, envs: VectorEnv, gamma: float | int, observations: bool = True, rewards: bool = True) -> None:
        if observations and not (isinstance(envs.observation_space, spaces.Box) and envs.obs.dtype == np.float32):
            raise ValueError(
                f"observations are {envs.observation_space}, but must be floats for normalize_observations"
            )
        self.envs, self.gamma = envs, gamma
        self.obs_moments = RunningMoments(envs.obs.shape[1:]) if observations else None
        self.return_moments = RunningMoments(()) if rewards else None
        self.returns = np.zeros(len(envs))
        self._observe(envs.obs)

    def __len__(self) -> int:
        return len(self.envs)

    @property
    def observation_space(self) -> gym.Space:
        return self.envs.observation_space

    @property
    def action_space(self) -> gym.Space:
        return self.envs.action_space

    @property
    def masks(self) -> np.ndarray | None:
        return self.envs.masks

    def scale_obs(self, obs: np.ndarray) -> np.ndarray:
        """Normalised observations [N, ...]; the statistics are not updated."""
        if self.obs_moments is None:
            return obs
        scaled = (obs - self.obs_moments.mean) / np.sqrt(self.obs_moments.var + EPS)
        return scaled.clip(-CLIP, CLIP).astype(np.float32)

    def step(self, actions: np.ndarray) -> Step:
        step = self.envs.step(actions)
        self._observe(self.envs.obs)
        rewards = step.rewards
        if self.return_moments is not None:
            self.returns = self.gamma * self.returns + rewards
            self.return_moments.update(self.returns)
            self.returns[step.terminated | step.truncated] = 0
            rewards = (rewards / np.sqrt(self.return_moments.var + EPS)).clip(-CLIP, CLIP)
        next_obs = self.scale_obs(step.next_obs)
        return Step(next_obs, step.next_masks, rewards, step.terminated, step.truncated, step.episodes)

    def _observe(self, obs: np.ndarray) -> None:
        if self.obs_moments is not None:
            self.obs_moments.update(obs)
        self.obs = self.scale_obs(obs)

    def state_dict(self) -> dict[str, Any]:
        moments = {name: m.state_dict() for name, m in self._moments().items()}
        return {"envs": self.envs.state_dict(), "returns": self.returns.tolist(), "obs": self.obs.tolist()} | moments

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.envs.load_state_dict(state["envs"])
        self.returns = np.array(state["returns"])
        for name, moments in self._moments().items():
            moments.load_state_dict(state[name])
        self.obs = self.scale_obs(self.envs.obs)

    @property
    def dtype(self) -> Any:
        return self.envs.dtype

    def _moments(self) -> dict[str, RunningMoments]:
        named = {"obs_moments": self.obs_moments, "return_moments": self.return_moments}
        return {name: moments for name, moments in named.items() if moments is not None}


Envs = VectorEnv | NormalizedEnvs


def make_envs(
    make_env: Callable[..., gym.Env],
    n_envs: int,
    seed: int,
    gamma: float | int,
    normalize_observations: bool,
    normalize_rewards: bool,
) -> Envs:
    """A vector environment, with normalised observations and rewards if requested."""
    envs = VectorEnv(make_env, n_envs, seed)
    if normalize_observations or normalize_rewards:
        return NormalizedEnvs(envs, gamma, normalize_observations, normalize_rewards)
    return envs
