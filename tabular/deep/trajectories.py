"""Trajectories for policy gradients: collecting steps, bootstrapping from truncated episodes, and acting greedily."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from tabular.envs.normalization import Envs
from tabular.history import History


@dataclass(frozen=True)
class Trajectory:
    """T steps in each of N copies of the environment. A row may hold several episodes; `discounts` marks their ends."""

    obs: Shaped[Tensor, "N T ..."]
    actions: Shaped[Tensor, "N T ..."]
    "as the policy sampled them, before any clipping or squashing"
    masks: Bool[Tensor, "N T A"] | None
    "legal actions; None if all are legal"
    rewards: Float[Tensor, "N T"]
    discounts: Float[Tensor, "N T"]
    "gamma where a step t + 1 of the same episode exists, 0 where the episode ends"
    ends: Bool[Tensor, "N T"]
    "True on the last step of an episode, whether terminated or truncated"
    next_obs: Shaped[Tensor, "N ..."]
    "the observation after the last step"
    truncated_at: Int[Tensor, "K"]
    "steps at which a time limit truncated an episode, as indices into the N * T steps"
    final_obs: Shaped[Tensor, "K ..."]
    "the observation after each of these steps; its state still has a value"

    @property
    def n_steps(self) -> int:
        """N * T."""
        return self.rewards.numel()


def collect(
    *,
    envs: Envs,
    actor: nn.Module,
    policy: Any,
    n_steps: int,
    gamma: float | int,
    generator: torch.Generator,
    history: History,
    steps: int,
    n_episodes: int | None = None,
) -> Trajectory:
    """Act `n_steps` times in all copies, or fewer if `n_episodes` end before.

    Only the actor is evaluated here. Log-probabilities and values of the whole trajectory come from one forward pass
    afterwards, the same as in the update, so that the first ratio of the update is exactly 1.

    Args:
        history: receives the episodes that end.
        steps: environment steps taken before the first of these.
    """
    n_envs = len(envs)
    obs, masks, actions, outcomes = [], [], [], []
    n_ended = 0
    while len(outcomes) < n_steps and (n_episodes is None or n_ended < n_episodes):
        obs.append(envs.obs)
        masks.append(envs.masks)
        mask = None if envs.masks is None else torch.from_numpy(envs.masks)
        with torch.inference_mode():
            action = policy.sample(actor(torch.from_numpy(envs.obs)), mask, generator)
        actions.append(action.numpy())
        step = envs.step(policy.to_env(action))
        outcomes.append(step)
        for episode_return, length in step.episodes:
            history.add_episode(steps + len(outcomes) * n_envs, episode_return, length)
            n_ended += 1
    rewards = np.stack([step.rewards for step in outcomes], axis=1)  # [N, T]
    terminated = np.stack([step.terminated for step in outcomes], axis=1)
    truncated = np.stack([step.truncated for step in outcomes], axis=1)
    ends = terminated | truncated
    rows, columns = np.nonzero(truncated)
    final_obs = [outcomes[t].next_obs[i] for i, t in zip(rows, columns, strict=True)]
    return Trajectory(
        obs=torch.from_numpy(np.stack(obs, axis=1)),
        actions=torch.from_numpy(np.stack(actions, axis=1)),
        masks=None if envs.masks is None else torch.from_numpy(np.stack(masks, axis=1)),
        rewards=torch.from_numpy(rewards.astype(np.float32)),
        discounts=torch.from_numpy(np.where(ends, np.float32(0), np.float32(gamma))),
        ends=torch.from_numpy(ends),
        next_obs=torch.from_numpy(outcomes[-1].next_obs),
        truncated_at=torch.from_numpy(rows * len(outcomes) + columns),
        final_obs=torch.from_numpy(np.array(final_obs, dtype=envs.obs.dtype).reshape(-1, *envs.obs.shape[1:])),
    )


@torch.no_grad()
def bootstrap(
    critic: nn.Module, trajectory: Trajectory, gamma: float | int
) -> tuple[Float[Tensor, "N T"], Float[Tensor, "N"]]:
    """Rewards with `gamma V(final observation)` added where a time limit truncated an episode, and `V` after the last
    step of each row.

    A truncated episode did not terminate: the state after its last step has a value, which is neither 0 nor that of the
    next episode's first state. Pardo et al. (2018), arXiv 1712.00378.
    """
    values = critic(torch.cat([trajectory.next_obs, trajectory.final_obs]))
    n_envs = len(trajectory.next_obs)
    rewards = trajectory.rewards.clone()
    rewards.view(-1)[trajectory.truncated_at] += gamma * values[n_envs:]
    return rewards, values[:n_envs]


@torch.no_grad()
def greedy_action(envs: Envs, actor: nn.Module, policy: Any, observation: Any, mask: Any = None) -> Any:
    """The most probable action for one observation, as the environment takes it. `mask` [A]: True on legal actions."""
    params = actor(_batch_of_one(envs, observation))
    return policy.to_env(policy.mode(params, _mask_of_one(mask)))[0]


@torch.no_grad()
def action_probability(
    envs: Envs, actor: nn.Module, policy: Any, observation: Any, action: int, mask: Any = None
) -> float:
    """The probability of a discrete action (counted from 0) for one observation."""
    params = actor(_batch_of_one(envs, observation))
    return float(policy.logprob(params, torch.tensor([action]), _mask_of_one(mask)).exp()[0])


@torch.no_grad()
def state_value(envs: Envs, critic: nn.Module, observation: Any) -> float:
    """The critic's value of one observation, in the units of the (possibly normalised) rewards it learns from."""
    return float(critic(_batch_of_one(envs, observation))[0])


def _batch_of_one(envs: Envs, observation: Any) -> Shaped[Tensor, "1 ..."]:
    """One observation as networks see it: normalised, with a batch axis."""
    return torch.as_tensor(envs.scale_obs(np.asarray(observation, dtype=envs.dtype)[None]))


def _mask_of_one(mask: Any) -> Bool[Tensor, "1 A"] | None:
    return None if mask is None else torch.as_tensor(mask, dtype=torch.bool)[None]
