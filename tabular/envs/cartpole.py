"""The dynamics of gymnasium's CartPole batched over many copies, bit-identical to gymnasium's own.

Eight copies stepped one by one take two thirds of the time of acting with a small network; batched they take a quarter
of that. Only the arithmetic is repeated here: constants, resets and states stay in gymnasium's environments.
"""

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleEnv
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit
from jaxtyping import Bool, Float, Int


class BatchedCartPole:
    """N cart poles with states [4, N]: position, velocity, angle, angular velocity. Barto et al. (1983)."""

    def __init__(self, envs: Sequence[gym.Env], time_limit: float | int) -> None:
        self.envs: list[Any] = [env.unwrapped for env in envs]
        self.time_limit = time_limit
        self.states = np.zeros((4, len(envs)))
        self.elapsed_steps = np.zeros(len(envs), dtype=int)

    def copy_state(self, i: int, elapsed_steps: int) -> None:
        """Copies the state of environment `i`, `elapsed_steps` steps after its reset."""
        self.states[:, i] = self.envs[i].state
        self.elapsed_steps[i] = elapsed_steps

    def step(
        self, actions: Int[np.ndarray, "N"]
    ) -> tuple[Float[np.ndarray, "N 4"], Float[np.ndarray, "N"], Bool[np.ndarray, "N"], Bool[np.ndarray, "N"]]:
        """Observations, rewards, terminated and truncated, computed as in `CartPoleEnv.step`."""
        env = self.envs[0]
        x, x_dot, theta, theta_dot = self.states
        force = np.where(actions == 1, env.force_mag, -env.force_mag)
        cos, sin = np.cos(theta), np.sin(theta)
        temp = (force + env.polemass_length * np.square(theta_dot) * sin) / env.total_mass
        theta_acc = (env.gravity * sin - cos * temp) / (
            env.length * (4.0 / 3.0 - env.masspole * np.square(cos) / env.total_mass)
        )
        x_acc = temp - env.polemass_length * theta_acc * cos / env.total_mass
        x, x_dot = x + env.tau * x_dot, x_dot + env.tau * x_acc
        theta, theta_dot = theta + env.tau * theta_dot, theta_dot + env.tau * theta_acc
        self.states = np.stack((x, x_dot, theta, theta_dot))
        self.elapsed_steps += 1
        terminated = (np.abs(x) > env.x_threshold) | (np.abs(theta) > env.theta_threshold_radians)
        return self.states.T.astype(np.float32), np.ones(len(x)), terminated, self.elapsed_steps >= self.time_limit


def batched(envs: Sequence[gym.Env]) -> BatchedCartPole | None:
    """The environments as one batch if they are unmodified cart poles, otherwise None.

    None also for fewer than four, where stepping one by one is as fast.
    """
    time_limit: float | int = float("inf")
    env = envs[0]
    while isinstance(env, OrderEnforcing | PassiveEnvChecker | TimeLimit):
        if isinstance(env, TimeLimit):
            time_limit = min(time_limit, env._max_episode_steps)
        env = env.env
    if len(envs) < 4 or type(env) is not CartPoleEnv or env.render_mode is not None:
        return None
    if env.kinematics_integrator != "euler" or env._sutton_barto_reward:
        return None
    return BatchedCartPole(envs, time_limit)
