"""Collecting steps for policy gradients, and the values that advantages need."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from tabular.history import History
from tabular.normalization import NormalizedEnvs
from tabular.vector import VectorEnv


@dataclass(frozen=True)
class Trajectory:
    """T steps in each of N copies. A row may hold several episodes; `discounts` says where one ends."""

    obs: Shaped[Tensor, "N T ..."]
    actions: Shaped[Tensor, "N T ..."]
    "as the policy sampled them, before any clipping or squashing"
    masks: Bool[Tensor, "N T A"] | None
    "legal actions, None where all are"
    rewards: Float[Tensor, "N T"]
    discounts: Float[Tensor, "N T"]
    "gamma where a step t + 1 of the same episode exists, 0 where the episode ends"
    next_obs: Shaped[Tensor, "N ..."]
    "what the last step led to"
    truncated_at: Int[Tensor, "K"]
    "steps that a time limit made the last of their episode, as indices into the N * T"
    final_obs: Shaped[Tensor, "K ..."]
    "what these steps led to: states that have a value still"


def collect(
    envs: VectorEnv | NormalizedEnvs,
    actor: nn.Module,
    policy: Any,
    n_steps: int,
    gamma: float | int,
    generator: torch.Generator,
    history: History,
    steps: int,
) -> Trajectory:
    """Acts `n_steps` times in all copies. Episodes that end go to the history; `steps` is the count before the first.

    Only the actor is asked while acting. Log-probabilities and values of the whole trajectory come from one forward
    each afterwards, the same that the update makes, so that the first ratio of the update is 1.
    """
    n_envs = len(envs)
    obs = np.empty((n_envs, n_steps, *envs.obs.shape[1:]), dtype=envs.obs.dtype)
    masks = None if envs.masks is None else np.empty((n_envs, n_steps, envs.masks.shape[1]), dtype=bool)
    rewards, ends = np.empty((n_envs, n_steps), dtype=np.float32), np.empty((n_envs, n_steps), dtype=bool)
    actions, truncated_at, final_obs = [], [], []
    next_obs = envs.obs
    for t in range(n_steps):
        obs[:, t] = envs.obs
        mask = None
        if masks is not None:
            masks[:, t] = envs.masks
            mask = torch.from_numpy(envs.masks)
        with torch.inference_mode():
            action = policy.sample(actor(torch.from_numpy(envs.obs)), mask, generator)
        step = envs.step(policy.to_env(action))
        actions.append(action.numpy())
        rewards[:, t], ends[:, t] = step.rewards, step.terminated | step.truncated
        next_obs = step.next_obs
        for i in np.flatnonzero(step.truncated).tolist():
            truncated_at.append(i * n_steps + t)
            final_obs.append(next_obs[i])
        for total, length in step.episodes:
            history.add_episode(steps + (t + 1) * n_envs, total, length)
    return Trajectory(
        obs=torch.from_numpy(obs),
        actions=torch.from_numpy(np.stack(actions, axis=1)),
        masks=None if masks is None else torch.from_numpy(masks),
        rewards=torch.from_numpy(rewards),
        discounts=torch.from_numpy(np.where(ends, np.float32(0), np.float32(gamma))),
        next_obs=torch.from_numpy(next_obs),
        truncated_at=torch.tensor(truncated_at, dtype=torch.long),
        final_obs=torch.from_numpy(np.array(final_obs, dtype=obs.dtype).reshape(-1, *obs.shape[2:])),
    )


@torch.no_grad()
def bootstrap(
    critic: nn.Module, trajectory: Trajectory, gamma: float | int
) -> tuple[Float[Tensor, "N T"], Float[Tensor, "N"]]:
    """Rewards with `gamma V(final observation)` added where a time limit cut an episode, and `V` after the last steps.

    A cut is no end: the state it left behind has a value, which is neither 0 nor that of the next episode's first
    state. Pardo et al. (2018), arXiv 1712.00378.
    """
    values = critic(torch.cat([trajectory.next_obs, trajectory.final_obs]))
    n_envs = len(trajectory.next_obs)
    rewards = trajectory.rewards.clone()
    rewards.view(-1)[trajectory.truncated_at] += gamma * values[n_envs:]
    return rewards, values[:n_envs]
