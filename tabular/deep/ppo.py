"""Proximal policy optimisation: several epochs on each batch, held near the old policy by a clip or a KL penalty.

Schulman et al. (2017), arXiv 1707.06347; advantages by GAE (arXiv 1506.02438).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from tabular.core.kl import PenaltyBeta
from tabular.core.losses import clipped_surrogate_loss, kl_penalty_surrogate_loss, value_loss
from tabular.core.masked import explained_variance, masked_mean, masked_whiten
from tabular.core.returns import gae
from tabular.deep.learner import (
    annealed,
    check_choice,
    check_fraction,
    check_not_negative,
    check_positive,
    gather_state,
    restore_state,
)
from tabular.deep.networks import ActorCritic
from tabular.deep.optimizers import Adam, descend, flatten_parameters
from tabular.deep.policies import make_policy
from tabular.deep.trajectories import Trajectory, bootstrap, collect, greedy_action, state_value
from tabular.envs.normalization import make_envs
from tabular.history import History

OBJECTIVES = ("clip", "kl_fixed", "kl_adaptive")


@dataclass(frozen=True)
class PPOConfig:
    """Settings of PPO. Raises ValueError, naming it, for one that is out of range."""

    objective: str = "clip"
    "clip, kl_fixed (a penalty with the coefficient `beta`) or kl_adaptive (one that steers the KL to `target_kl`)"
    n_envs: int = 8
    "copies of the environment"
    n_steps: int = 32
    "steps in each copy between updates; n_envs * n_steps make a batch"
    n_epochs: int = 20
    "passes over each batch"
    minibatch_size: int = 256
    "steps of one gradient step; the last minibatch of an epoch may be smaller"
    gamma: float | int = 0.98
    "discount"
    lam: float | int = 0.8
    "GAE's lambda: 0 one-step TD errors, 1 Monte Carlo returns"
    lr: float | int = 1e-3
    "Adam's learning rate"
    clip_range: float | int = 0.2
    "how far a ratio may leave 1 before its gradient stops (clip)"
    clip_range_value: float | int | None = None
    "the same for values, in their own units; None: no clipping"
    beta: float | int = 1.0
    "coefficient of the penalty to begin with (kl_fixed, kl_adaptive)"
    target_kl: float | int = 0.01
    "mean KL(old || new) that kl_adaptive steers each iteration to, in nats"
    vf_coef: float | int = 0.5
    "weight of the value loss"
    ent_coef: float | int = 0.0
    "weight of the entropy bonus"
    max_grad_norm: float | int = 0.5
    "gradients are scaled down to this norm"
    normalize_advantages: bool = True
    "mean 0 and variance 1 over each batch"
    normalize_observations: bool = False
    "mean 0 and variance 1 by running statistics"
    normalize_rewards: bool = False
    "returns of variance 1 by running statistics"
    anneal_steps: int = 0
    "learning rate and clip range fall linearly to 0 over this many environment steps; 0: they stay"
    hidden: tuple[int, ...] = (64, 64)
    "units of each layer"
    shared: bool = False
    "one trunk for policy and values instead of two"
    squash: bool = False
    "continuous actions end in a tanh instead of being clipped to their bounds"

    def __post_init__(self) -> None:
        check_choice("objective", self.objective, OBJECTIVES)
        check_fraction(gamma=self.gamma, lam=self.lam)
        check_positive(n_envs=self.n_envs, n_steps=self.n_steps, n_epochs=self.n_epochs, lr=self.lr)
        check_positive(minibatch_size=self.minibatch_size, beta=self.beta, target_kl=self.target_kl)
        check_positive(clip_range=self.clip_range, max_grad_norm=self.max_grad_norm)
        check_not_negative(vf_coef=self.vf_coef, ent_coef=self.ent_coef, anneal_steps=self.anneal_steps)
        if self.clip_range_value is not None:
            check_positive(clip_range_value=self.clip_range_value)
        if self.normalize_advantages and self.n_envs * self.n_steps < 2:
            raise ValueError("normalize_advantages needs a batch of at least 2 steps, n_envs * n_steps is 1")


class PPO:
    """Learns a policy and its values. `advance` is exact across `state_dict` and `load_state_dict`."""

    Config = PPOConfig
    fits = "vector, image or discrete observations; discrete, multi-discrete or continuous actions"
    PARTS = ("network", "optimizer", "envs", "history", "penalty")

    def __init__(self, make_env: Callable[..., gym.Env], config: PPOConfig, seed: int) -> None:
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)
        self.envs = make_envs(
            make_env, config.n_envs, seed, config.gamma, config.normalize_observations, config.normalize_rewards
        )
        self.policy = make_policy(self.envs.action_space, config.squash)
        self.network = ActorCritic(
            self.envs.observation_space, self.policy, config.hidden, self.generator, config.shared
        )
        self.weights = flatten_parameters(self.network)
        self.optimizer = Adam(self.weights, config.lr)
        self.penalty = PenaltyBeta(config.beta, config.target_kl)
        self.history, self.steps = History(), 0

    def advance(self, steps: int) -> None:
        """Learns for at least `steps` more environment steps, in whole iterations."""
        end = self.steps + steps
        while self.steps < end:
            self._iterate()

    def _iterate(self) -> None:
        config = self.config
        trajectory = collect(
            self.envs, self.network.actor, self.policy, config.n_steps, config.gamma, self.generator, self.history,
            self.steps,
        )  # fmt: skip
        batch = self._make_batch(trajectory)
        metrics = self._update(batch)
        self.steps += config.n_envs * config.n_steps
        with torch.no_grad():
            params, mask = self.network.actor(batch["obs"]), batch.get("masks")
            kl = float(self.policy.kl(batch["params"], params, mask).mean())
            entropy = float(self.policy.entropy(params, mask, self.generator).mean())
        if config.objective == "kl_adaptive":
            self.penalty.update(kl)
        if config.objective != "clip":
            metrics["beta"] = float(self.penalty.beta)
        self.history.add(self.steps, kl=kl, entropy=entropy, **metrics)

    @torch.no_grad()
    def _make_batch(self, trajectory: Trajectory) -> dict[str, Tensor]:
        """Old log-probabilities, values and advantages, all flat: [N * T, ...]."""
        params, values = self.network.actor(trajectory.obs), self.network.critic(trajectory.obs)
        rewards, last_value = bootstrap(self.network.critic, trajectory, self.config.gamma)
        advantages = gae(rewards, values, trajectory.discounts, self.config.lam, last_value)
        batch = {
            "obs": trajectory.obs,
            "actions": trajectory.actions,
            "params": params,
            "logprobs": self.policy.logprob(params, trajectory.actions, trajectory.masks),
            "values": values,
            "returns": advantages + values,
            "advantages": advantages,
        }
        if self.config.normalize_advantages:
            batch["advantages"] = masked_whiten(advantages, mask=None)
        if trajectory.masks is not None:
            batch["masks"] = trajectory.masks
        return {name: x.flatten(0, 1) for name, x in batch.items()}

    def _update(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """All epochs on one batch; the metrics are means over the last of them."""
        config, n = self.config, len(batch["obs"])
        lr, clip_range = (annealed(x, self.steps, config.anneal_steps) for x in (config.lr, config.clip_range))
        self.optimizer.lr = lr
        logs: list[tuple[int, dict[str, Any]]] = []
        for _ in range(config.n_epochs):
            logs = []
            for rows in torch.randperm(n, generator=self.generator).split(config.minibatch_size):
                # A batch in one piece needs no shuffling.
                minibatch = batch if len(rows) == n else {name: x[rows] for name, x in batch.items()}
                loss, metrics = self._loss(minibatch, clip_range)
                metrics["grad_norm"] = descend(loss, self.weights, self.optimizer, config.max_grad_norm)
                logs.append((len(rows), metrics))
        means = {name: sum(size * float(metrics[name]) for size, metrics in logs) / n for name in logs[0][1]}
        return means | {"lr": lr, "explained_variance": float(explained_variance(batch["values"], batch["returns"]))}

    def _loss(self, batch: dict[str, Tensor], clip_range: float) -> tuple[Tensor, dict[str, Any]]:
        config, action_mask = self.config, batch.get("masks")
        params, values = self.network.actor(batch["obs"]), self.network.critic(batch["obs"])
        logprobs = self.policy.logprob(params, batch["actions"], action_mask)
        mask, denom = None, len(values)  # every step is real
        if config.objective == "clip":
            policy_loss, metrics = clipped_surrogate_loss(
                logprobs, batch["logprobs"], batch["advantages"], mask, denom, clip_range
            )
        else:
            kl = self.policy.kl(batch["params"], params, action_mask)
            policy_loss, metrics = kl_penalty_surrogate_loss(
                logprobs, batch["logprobs"], batch["advantages"], kl, self.penalty.beta, mask, denom
            )
        critic_loss, _ = value_loss(values, batch["values"], batch["returns"], mask, denom, config.clip_range_value)
        loss = policy_loss + config.vf_coef * critic_loss
        if config.ent_coef > 0:
            loss = loss - config.ent_coef * masked_mean(self.policy.entropy(params, action_mask, self.generator), mask)
        return loss, metrics | {"policy_loss": policy_loss.detach(), "value_loss": critic_loss.detach()}

    def act(self, observation: Any, mask: Any = None) -> Any:
        """The most probable action for one observation, as the environment takes it. `mask` [A]: True on legal ones."""
        return greedy_action(self.envs, self.network.actor, self.policy, observation, mask)

    def value(self, observation: Any, mask: Any = None) -> float:
        """The critic's value of one observation; legal actions do not matter to it."""
        return state_value(self.envs, self.network.critic, observation)

    def state_dict(self) -> dict[str, Any]:
        return gather_state(self, self.PARTS)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        restore_state(self, self.PARTS, state)
