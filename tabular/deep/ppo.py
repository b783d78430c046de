"""Proximal policy optimisation: several epochs on each batch, kept near the old policy by a clip or a KL penalty.

Schulman et al. (2017), arXiv 1707.06347; advantages by GAE (arXiv 1506.02438).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from tabular.core.checks import check_choice, check_fraction, check_not_negative, check_positive
from tabular.core.kl import PenaltyBeta
from tabular.core.losses import clipped_surrogate_loss, kl_penalty_surrogate_loss, value_loss
from tabular.core.masked import explained_variance, masked_whiten
from tabular.core.returns import gae
from tabular.core.schedules import linear_to_zero
from tabular.deep.fast.mlp import fuse
from tabular.deep.fast.optimizers import FlatAdam
from tabular.deep.networks import ActorCriticNetwork
from tabular.deep.optimizers import clip_gradients, set_learning_rate
from tabular.deep.policies import make_policy
from tabular.deep.state import gather_state, restore_state
from tabular.deep.trajectories import Trajectory, bootstrap, collect, greedy_action, state_value
from tabular.envs.normalization import make_envs
from tabular.history import History

OBJECTIVES = ("clip", "kl_fixed", "kl_adaptive")


@dataclass(frozen=True)
class PPOConfig:
    """Settings of PPO. Raises ValueError for a setting that is out of range."""

    objective: str = "clip"
    "clip, kl_fixed (KL penalty with the coefficient `beta`) or kl_adaptive (beta adapts to keep the KL at `target_kl`)"
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
    "initial coefficient of the penalty (kl_fixed, kl_adaptive)"
    target_kl: float | int = 0.01
    "mean KL(old || new) of an iteration that kl_adaptive aims at, in nats"
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
    "environment steps over which learning rate and clip range fall linearly to 0; 0: they are constant"
    hidden: tuple[int, ...] = (64, 64)
    "units of each layer"
    shared: bool = False
    "the same hidden layers for policy and values instead of separate ones"
    squash: bool = False
    "continuous actions pass through a tanh instead of being clipped to their bounds"
    fast: bool = True
    "the numpy MLPs and flat optimizers of `tabular.deep.fast`; false: plain PyTorch, the same numbers to rounding"

    def __post_init__(self) -> None:
        check_choice(OBJECTIVES, objective=self.objective)
        check_fraction(gamma=self.gamma, lam=self.lam)
        check_positive(n_envs=self.n_envs, n_steps=self.n_steps, n_epochs=self.n_epochs, lr=self.lr)
        check_positive(minibatch_size=self.minibatch_size, beta=self.beta, target_kl=self.target_kl)
        check_positive(clip_range=self.clip_range, max_grad_norm=self.max_grad_norm)
        check_not_negative(vf_coef=self.vf_coef, ent_coef=self.ent_coef, anneal_steps=self.anneal_steps)
        if self.clip_range_value is not None:
            check_positive(clip_range_value=self.clip_range_value)
        if self.normalize_advantages and self.n_envs * self.n_steps < 2:
            raise ValueError("n_envs * n_steps is 1, but normalize_advantages needs a batch of at least 2 steps")


@dataclass(frozen=True)
class Batch:
    """B steps, with everything that stays fixed while the policy is updated on them."""

    obs: Shaped[Tensor, "B ..."]
    actions: Shaped[Tensor, "B ..."]
    action_masks: Bool[Tensor, "B A"] | None
    "legal actions; None if all are legal"
    old_params: Float[Tensor, "B P"]
    "of the policy that acted"
    old_logprobs: Float[Tensor, "B"]
    old_values: Float[Tensor, "B"]
    advantages: Float[Tensor, "B"]
    returns: Float[Tensor, "B"]

    def __len__(self) -> int:
        return len(self.obs)

    def rows(self, rows: Tensor) -> "Batch":
        """The steps with these indices."""
        return Batch(
            obs=self.obs[rows],
            actions=self.actions[rows],
            action_masks=None if self.action_masks is None else self.action_masks[rows],
            old_params=self.old_params[rows],
            old_logprobs=self.old_logprobs[rows],
            old_values=self.old_values[rows],
            advantages=self.advantages[rows],
            returns=self.returns[rows],
        )


class PPO:
    """Learns a policy and its values. `advance` is exact across `state_dict` and `load_state_dict`."""

    Config = PPOConfig
    PARTS = ("network", "optimizer", "envs", "history", "penalty")

    def __init__(self, make_env: Callable[..., gym.Env], config: PPOConfig, seed: int) -> None:
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)
        self.envs = make_envs(
            make_env,
            n_envs=config.n_envs,
            seed=seed,
            gamma=config.gamma,
            normalize_observations=config.normalize_observations,
            normalize_rewards=config.normalize_rewards,
        )
        self.policy = make_policy(self.envs.action_space, config.squash)
        self.network = ActorCriticNetwork(
            self.envs.observation_space, self.policy, config.hidden, self.generator, config.shared
        )
        self.optimizer: Any = torch.optim.Adam(self.network.parameters(), lr=config.lr, eps=1e-5)
        if config.fast:
            fuse(self.network)
            self.optimizer = FlatAdam(self.network, lr=config.lr, eps=1e-5)
        self.penalty = PenaltyBeta(config.beta, config.target_kl)
        self.lr = linear_to_zero(config.lr, config.anneal_steps)
        self.clip_range = linear_to_zero(config.clip_range, config.anneal_steps)
        self.history = History()
        self.steps = 0

    def advance(self, steps: int) -> None:
        """Learn for at least `steps` more environment steps, in whole iterations."""
        end = self.steps + steps
        while self.steps < end:
            self._iterate()

    def _iterate(self) -> None:
        trajectory = self._collect()
        batch = self._make_batch(trajectory)
        metrics = self._update(batch)
        metrics |= self._adapt_beta(float(metrics["kl"]))
        self.steps += trajectory.n_steps
        self.history.add(self.steps, **metrics)

    def _collect(self) -> Trajectory:
        return collect(
            envs=self.envs,
            actor=self.network.actor,
            policy=self.policy,
            n_steps=self.config.n_steps,
            gamma=self.config.gamma,
            generator=self.generator,
            history=self.history,
            steps=self.steps,
        )

    @torch.no_grad()
    def _make_batch(self, trajectory: Trajectory) -> Batch:
        """Advantages by GAE, and log-probabilities and values before the update; [N, T] steps flattened to [N * T]."""
        params = self.network.actor(trajectory.obs)
        values = self.network.critic(trajectory.obs)
        rewards, last_value = bootstrap(self.network.critic, trajectory, self.config.gamma)
        advantages = gae(rewards, values, trajectory.discounts, self.config.lam, last_value)
        returns = advantages + values
        if self.config.normalize_advantages:
            advantages = masked_whiten(advantages, mask=None)
        return Batch(
            obs=trajectory.obs.flatten(0, 1),
            actions=trajectory.actions.flatten(0, 1),
            action_masks=None if trajectory.masks is None else trajectory.masks.flatten(0, 1),
            old_params=params.flatten(0, 1),
            old_logprobs=self.policy.logprob(params, trajectory.actions, trajectory.masks).flatten(),
            old_values=values.flatten(),
            advantages=advantages.flatten(),
            returns=returns.flatten(),
        )

    def _update(self, batch: Batch) -> dict[str, float]:
        """All epochs on one batch.

        Returns:
            Means over the last epoch, and the exact KL divergence and entropy after it.
        """
        lr = self.lr(self.steps)
        set_learning_rate(self.optimizer, lr)
        epoch: list[tuple[int, dict[str, Any]]] = []
        for _ in range(self.config.n_epochs):
            epoch = []
            for minibatch in self._minibatches(batch):
                loss, metrics = self._loss(minibatch, self.clip_range(self.steps))
                self.optimizer.zero_grad()
                loss.backward()
                metrics["grad_norm"] = clip_gradients(self.optimizer, self.config.max_grad_norm)
                self.optimizer.step()
                epoch.append((len(minibatch), metrics))
        with torch.no_grad():
            params = self.network.actor(batch.obs)
            kl = self.policy.kl(batch.old_params, params, batch.action_masks).mean()
            entropy = self.policy.entropy(params, batch.action_masks, self.generator).mean()
        means = {name: sum(n * float(metrics[name]) for n, metrics in epoch) / len(batch) for name in epoch[0][1]}
        explained = explained_variance(batch.old_values, batch.returns)
        return {"kl": float(kl), "entropy": float(entropy)} | means | {"lr": lr, "explained_variance": float(explained)}

    def _minibatches(self, batch: Batch) -> Iterator[Batch]:
        """One epoch: the batch in random order, `minibatch_size` steps at a time."""
        for rows in torch.randperm(len(batch), generator=self.generator).split(self.config.minibatch_size):
            # The order does not matter where the minibatch is the whole batch.
            yield batch if len(rows) == len(batch) else batch.rows(rows)

    def _loss(self, batch: Batch, clip_range: float) -> tuple[Tensor, dict[str, Any]]:
        """`-E[objective] + vf_coef E[(V - R)^2] / 2 - ent_coef H`, and metrics."""
        config = self.config
        params = self.network.actor(batch.obs)
        values = self.network.critic(batch.obs)
        logprobs = self.policy.logprob(params, batch.actions, batch.action_masks)
        if config.objective == "clip":
            policy_loss, metrics = clipped_surrogate_loss(
                logprobs,
                batch.old_logprobs,
                batch.advantages,
                mask=None,
                denom=len(batch),
                clip_range=clip_range,
            )
        else:
            policy_loss, metrics = kl_penalty_surrogate_loss(
                logprobs,
                batch.old_logprobs,
                batch.advantages,
                kl=self.policy.kl(batch.old_params, params, batch.action_masks),
                beta=self.penalty.beta,
                mask=None,
                denom=len(batch),
            )
        critic_loss, _ = value_loss(
            values, batch.old_values, batch.returns, mask=None, denom=len(batch), clip_range=config.clip_range_value
        )
        loss = policy_loss + config.vf_coef * critic_loss
        if config.ent_coef > 0:
            loss = loss - config.ent_coef * self.policy.entropy(params, batch.action_masks, self.generator).mean()
        return loss, metrics | {"policy_loss": policy_loss.detach(), "value_loss": critic_loss.detach()}

    def _adapt_beta(self, kl: float) -> dict[str, float]:
        """Adapt the coefficient of the KL penalty (kl_adaptive), and return it if there is a penalty."""
        if self.config.objective == "kl_adaptive":
            self.penalty.update(kl)
        return {} if self.config.objective == "clip" else {"beta": float(self.penalty.beta)}

    def act(self, observation: Any, mask: Any = None) -> Any:
        """The most probable action for one observation, as the environment takes it. `mask` [A]: True on legal ones."""
        return greedy_action(self.envs, self.network.actor, self.policy, observation, mask)

    def value(self, observation: Any, mask: Any = None) -> float:
        """The critic's value of one observation; `mask` has no influence."""
        return state_value(self.envs, self.network.critic, observation)

    def state_dict(self) -> dict[str, Any]:
        return gather_state(self, self.PARTS)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        restore_state(self, self.PARTS, state)
