"""Advantage actor-critic: one gradient step on each short batch from several copies of the environment.

Mnih et al. (2016), arXiv 1602.01783, without its asynchronous workers; advantages by GAE (arXiv 1506.02438).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch

from tabular.core.checks import check_fraction, check_not_negative, check_positive
from tabular.core.losses import policy_gradient_loss, value_loss
from tabular.core.masked import explained_variance, masked_whiten
from tabular.core.returns import gae
from tabular.core.schedules import linear_to_zero
from tabular.deep.fast.mlp import fuse
from tabular.deep.fast.optimizers import FlatRMSProp
from tabular.deep.networks import ActorCriticNetwork
from tabular.deep.optimizers import clip_gradients, set_learning_rate
from tabular.deep.policies import make_policy
from tabular.deep.state import gather_state, restore_state
from tabular.deep.trajectories import Trajectory, bootstrap, collect, greedy_action, state_value
from tabular.envs.normalization import make_envs
from tabular.history import History


@dataclass(frozen=True)
class A2CConfig:
    """Settings of A2C. Raises ValueError for a setting that is out of range."""

    n_envs: int = 8
    "copies of the environment"
    n_steps: int = 5
    "steps in each copy between updates; n_envs * n_steps make a batch"
    gamma: float | int = 0.99
    "discount"
    lam: float | int = 1.0
    "GAE's lambda: 0 one-step TD errors, 1 Monte Carlo returns up to the end of the batch"
    lr: float | int = 7e-4
    "RMSProp's learning rate"
    vf_coef: float | int = 0.5
    "weight of the value loss"
    ent_coef: float | int = 0.0
    "weight of the entropy bonus"
    max_grad_norm: float | int = 0.5
    "gradients are scaled down to this norm"
    normalize_advantages: bool = False
    "mean 0 and variance 1 over each batch"
    normalize_observations: bool = False
    "mean 0 and variance 1 by running statistics"
    normalize_rewards: bool = False
    "returns of variance 1 by running statistics"
    anneal_steps: int = 0
    "environment steps over which the learning rate falls linearly to 0; 0: it is constant"
    log_every: int = 10
    "gradient steps between two entries of the history"
    hidden: tuple[int, ...] = (64, 64)
    "units of each layer"
    shared: bool = False
    "the same hidden layers for policy and values instead of separate ones"
    squash: bool = False
    "continuous actions pass through a tanh instead of being clipped to their bounds"
    fast: bool = True
    "the numpy MLPs and flat optimizers of `tabular.deep.fast`; false: plain PyTorch, the same numbers to rounding"

    def __post_init__(self) -> None:
        check_fraction(gamma=self.gamma, lam=self.lam)
        check_positive(n_envs=self.n_envs, n_steps=self.n_steps, lr=self.lr, max_grad_norm=self.max_grad_norm)
        check_positive(log_every=self.log_every)
        check_not_negative(vf_coef=self.vf_coef, ent_coef=self.ent_coef, anneal_steps=self.anneal_steps)
        if self.normalize_advantages and self.n_envs * self.n_steps < 2:
            raise ValueError("n_envs * n_steps is 1, but normalize_advantages needs a batch of at least 2 steps")


class A2C:
    """Learns a policy and its values. `advance` is exact across `state_dict` and `load_state_dict`."""

    Config = A2CConfig
    PARTS = ("network", "optimizer", "envs", "history")

    def __init__(self, make_env: Callable[..., gym.Env], config: A2CConfig, seed: int) -> None:
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
        self.optimizer: Any = torch.optim.RMSprop(self.network.parameters(), lr=config.lr, alpha=0.99, eps=1e-5)
        if config.fast:
            fuse(self.network)
            self.optimizer = FlatRMSProp(self.network, lr=config.lr, alpha=0.99, eps=1e-5)
        self.lr = linear_to_zero(config.lr, config.anneal_steps)
        self.history = History()
        self.steps = 0

    def advance(self, steps: int) -> None:
        """Learn for at least `steps` more environment steps, in whole iterations."""
        end = self.steps + steps
        while self.steps < end:
            self._iterate()

    def _iterate(self) -> None:
        trajectory = self._collect()
        metrics = self._update(trajectory)
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

    def _update(self, trajectory: Trajectory) -> dict[str, float]:
        """One gradient step up `E[A log pi]` and down `E[(V - R)^2]`."""
        config = self.config
        params = self.network.actor(trajectory.obs)
        values = self.network.critic(trajectory.obs)
        logprobs = self.policy.logprob(params, trajectory.actions, trajectory.masks)

        old_values = values.detach()
        rewards, last_value = bootstrap(self.network.critic, trajectory, config.gamma)
        advantages = gae(rewards, old_values, trajectory.discounts, config.lam, last_value)
        returns = advantages + old_values
        if config.normalize_advantages:
            advantages = masked_whiten(advantages, mask=None)

        n = trajectory.n_steps
        policy_loss, _ = policy_gradient_loss(logprobs, advantages, mask=None, denom=n)
        critic_loss, _ = value_loss(values, old_values, returns, mask=None, denom=n)
        loss = policy_loss + config.vf_coef * critic_loss
        if config.ent_coef > 0:
            loss = loss - config.ent_coef * self.policy.entropy(params, trajectory.masks, self.generator).mean()

        set_learning_rate(self.optimizer, self.lr(self.steps))
        self.optimizer.zero_grad()
        loss.backward()
        grad_norm = clip_gradients(self.optimizer, config.max_grad_norm)
        self.optimizer.step()

        if not self._is_log_step():
            return {}
        entropy = self.policy.entropy(params.detach(), trajectory.masks, self.generator)
        return {
            "policy_loss": float(policy_loss.detach()),
            "value_loss": float(critic_loss.detach()),
            "entropy": float(entropy.mean()),
            "grad_norm": grad_norm,
            "explained_variance": float(explained_variance(old_values, returns)),
        }

    def _is_log_step(self) -> bool:
        """Whether metrics are recorded after this gradient step."""
        n_updates = self.steps // (self.config.n_envs * self.config.n_steps)
        return (n_updates + 1) % self.config.log_every == 0

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
