"""Steps for policy gradients: collected, with the values that their advantages need; acting greedily, and judging."""

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
    """T steps in each of N copies. A row may hold several episodes; `discounts` says where one ends."""

    obs: Shaped[Tensor, "N T ..."]
    actions: Shaped[Tensor, "N T ..."]
    "as the policy sampled them, before any clipping or squashing"
    masks: Bool[Tensor, "N T A"] | None
    "legal actions, None where all are"
    rewards: Float[Tensor, "N T"]
    discounts: Float[Tensor, "N T"]
    "gamma where a step t + 1 of the same episode exists, 0 where the episode ends"
    ends: Bool[Tensor, "N T"]
    "True on the last step of an episode, however it ended"
    next_obs: Shaped[Tensor, "N ..."]
    "what the last step led to"
    truncated_at: Int[Tensor, "K"]
    "steps that a time limit made the last of their episode, as indices into the N * T"
    final_obs: Shaped[Tensor, "K ..."]
    "what these steps led to: states that have a value still"


def collect(
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
    """Acts `n_steps` times in all copies, or less if `n_episodes` have ended before.

    Episodes that end go to the history; `steps` is the count before the first. Only the actor is asked while acting:
    log-probabilities and values of the whole trajectory come from one forward each afterwards, the same that the
    update makes, so that the first ratio of the update is 1.
    """
    n_envs = len(envs)
    obs, masks, actions, taken, ended = [], [], [], [], 0
    while len(taken) < n_steps and (n_episodes is None or ended < n_episodes):
        obs.append(envs.obs)
        masks.append(envs.masks)
        mask = None if envs.masks is None else torch.from_numpy(envs.masks)
        with torch.inference_mode():
            action = policy.sample(actor(torch.from_numpy(envs.obs)), mask, generator)
        actions.append(action.numpy())
        step = envs.step(policy.to_env(action))
        taken.append(step)
        for total, length in step.episodes:
            history.add_episode(steps + len(taken) * n_envs, total, length)
            ended += 1
    # [N, T], as everything below
    rewards, terminated, truncated = (
        np.stack(rows, axis=1) for rows in zip(*((s.rewards, s.terminated, s.truncated) for s in taken), strict=True)
    )
    ends = terminated | truncated
    cut_rows, cut_steps = np.nonzero(truncated)
    final_obs = [taken[t].next_obs[i] for i, t in zip(cut_rows, cut_steps, strict=True)]
    return Trajectory(
        obs=torch.from_numpy(np.stack(obs, axis=1)),
        actions=torch.from_numpy(np.stack(actions, axis=1)),
        masks=None if envs.masks is None else torch.from_numpy(np.stack(masks, axis=1)),
        rewards=torch.from_numpy(rewards.astype(np.float32)),
        discounts=torch.from_numpy(np.where(ends, np.float32(0), np.float32(gamma))),
        ends=torch.from_numpy(ends),
        next_obs=torch.from_numpy(taken[-1].next_obs),
        truncated_at=torch.from_numpy(cut_rows * len(taken) + cut_steps),
        final_obs=torch.from_numpy(np.array(final_obs, dtype=envs.obs.dtype).reshape(-1, *envs.obs.shape[1:])),
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


@torch.no_grad()
def greedy_action(envs: Envs, actor: nn.Module, policy: Any, observation: Any, mask: Any = None) -> Any:
    """The most probable action for one observation, as the environment takes it. `mask` [A]: True on legal ones."""
    return policy.to_env(policy.mode(actor(_one(envs, observation)), _one_mask(mask)))[0]


@torch.no_grad()
def action_probability(
    envs: Envs, actor: nn.Module, policy: Any, observation: Any, action: int, mask: Any = None
) -> float:
    """The probability of a discrete action, counted from 0, for one observation."""
    params = actor(_one(envs, observation))
    return float(policy.logprob(params, torch.tensor([action]), _one_mask(mask)).exp()[0])


@torch.no_grad()
def state_value(envs: Envs, critic: nn.Module, observation: Any) -> float:
    """The critic's value of one observation, on the scale of the rewards that it learns from."""
    return float(critic(_one(envs, observation))[0])


def _one(envs: Envs, observation: Any) -> Shaped[Tensor, "1 ..."]:
    """An observation as networks see it."""
    return torch.as_tensor(envs.scale_obs(np.asarray(observation, dtype=envs.dtype)[None]))


def _one_mask(mask: Any) -> Bool[Tensor, "1 A"] | None:
    return None if mask is None else torch.as_tensor(mask, dtype=torch.bool)[None]
