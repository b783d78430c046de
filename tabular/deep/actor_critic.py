"""One-step actor-critic: every step moves the policy by its TD error, and the critic towards the TD target.

Sutton & Barto (2018), section 13.5, as a batch over the copies of the environment and without the factor `gamma^t`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch

from tabular.core.losses import policy_gradient_loss, value_loss
from tabular.core.masked import masked_mean
from tabular.core.returns import td_errors
from tabular.deep.learner import (
    annealed,
    check_fraction,
    check_not_negative,
    check_positive,
    gather_state,
    restore_state,
)
from tabular.deep.networks import ActorCritic as Network
from tabular.deep.optimizers import Adam, descend, flatten_parameters
from tabular.deep.policies import make_policy
from tabular.deep.trajectories import bootstrap, collect, greedy_action, state_value
from tabular.envs.vector import VectorEnv
from tabular.history import History


@dataclass(frozen=True)
class ActorCriticConfig:
    """Settings of one-step actor-critic. Raises ValueError, naming it, for one that is out of range."""

    n_envs: int = 8
    "copies of the environment; each gradient step is over one step in each"
    gamma: float | int = 0.99
    "discount"
    lr: float | int = 5e-4
    "Adam's learning rate"
    vf_coef: float | int = 0.5
    "weight of the value loss"
    ent_coef: float | int = 0.01
    "weight of the entropy bonus"
    max_grad_norm: float | int = 0.5
    "gradients are scaled down to this norm"
    anneal_steps: int = 0
    "the learning rate falls linearly to 0 over this many environment steps; 0: it stays"
    log_every: int = 100
    "gradient steps between two entries of the history"
    hidden: tuple[int, ...] = (64, 64)
    "units of each layer"
    squash: bool = False
    "continuous actions end in a tanh instead of being clipped to their bounds"

    def __post_init__(self) -> None:
        check_fraction(gamma=self.gamma)
        check_positive(n_envs=self.n_envs, lr=self.lr, max_grad_norm=self.max_grad_norm, log_every=self.log_every)
        check_not_negative(vf_coef=self.vf_coef, ent_coef=self.ent_coef, anneal_steps=self.anneal_steps)


class ActorCritic:
    """Learns a policy and its values. `advance` is exact across `state_dict` and `load_state_dict`."""

    Config = ActorCriticConfig
    fits = "vector, image or discrete observations; discrete, multi-discrete or continuous actions"
    PARTS = ("network", "optimizer", "envs", "history")

    def __init__(self, make_env: Callable[..., gym.Env], config: ActorCriticConfig, seed: int) -> None:
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)
        self.envs = VectorEnv(make_env, config.n_envs, seed)
        self.policy = make_policy(self.envs.action_space, config.squash)
        self.network = Network(self.envs.observation_space, self.policy, config.hidden, self.generator)
        self.weights = flatten_parameters(self.network)
        self.optimizer = Adam(self.weights, config.lr)
        self.history, self.steps = History(), 0

    def advance(self, steps: int) -> None:
        """Learns for at least `steps` more environment steps, in whole iterations."""
        end = self.steps + steps
        while self.steps < end:
            self._iterate()

    def _iterate(self) -> None:
        """Acts once in each copy, then takes one step up `E[delta log pi]` and down `E[(V - (r + gamma V'))^2]`."""
        config = self.config
        trajectory = collect(
            self.envs, self.network.actor, self.policy, 1, config.gamma, self.generator, self.history, self.steps
        )
        params, values = self.network.actor(trajectory.obs), self.network.critic(trajectory.obs)
        rewards, last_value = bootstrap(self.network.critic, trajectory, config.gamma)
        old_values = values.detach()
        deltas = td_errors(rewards, old_values, trajectory.discounts, last_value)
        mask, denom = None, deltas.numel()  # every step is real

        logprobs = self.policy.logprob(params, trajectory.actions, trajectory.masks)
        policy_loss, _ = policy_gradient_loss(logprobs, deltas, mask, denom)
        critic_loss, _ = value_loss(values, old_values, deltas + old_values, mask, denom)
        entropy = masked_mean(self.policy.entropy(params, trajectory.masks, self.generator), mask, denom)
        loss = policy_loss + config.vf_coef * critic_loss - config.ent_coef * entropy
        self.optimizer.lr = annealed(config.lr, self.steps, config.anneal_steps)
        grad_norm = descend(loss, self.weights, self.optimizer, config.max_grad_norm)

        self.steps += config.n_envs
        if self.steps // config.n_envs % config.log_every == 0:
            self.history.add(
                self.steps,
                td_error=float(deltas.square().mean().sqrt()),
                value_loss=float(critic_loss.detach()),
                entropy=float(entropy.detach()),
                grad_norm=grad_norm,
            )

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
