"""One-step actor-critic: after every step the TD error moves the policy, and the critic moves to the TD target.

Sutton & Barto (2018), section 13.5, as a batch over the copies of the environment and without the factor `gamma^t`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch

from tabular.core.checks import check_fraction, check_not_negative, check_positive
from tabular.core.losses import policy_gradient_loss, value_loss
from tabular.core.returns import td_errors
from tabular.core.schedules import linear_to_zero
from tabular.deep.fast.mlp import fuse
from tabular.deep.fast.optimizers import FlatAdam
from tabular.deep.networks import ActorCriticNetwork
from tabular.deep.optimizers import clip_gradients, set_learning_rate
from tabular.deep.policies import make_policy
from tabular.deep.state import gather_state, restore_state
from tabular.deep.trajectories import Trajectory, bootstrap, collect, greedy_action, state_value
from tabular.envs.vector import VectorEnv
from tabular.history import History


@dataclass(frozen=True)
class ActorCriticConfig:
    """Settings of one-step actor-critic. Raises ValueError for a setting that is out of range."""

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
    "environment steps over which the learning rate falls linearly to 0; 0: it is constant"
    log_every: int = 100
    "gradient steps between two entries of the history"
    hidden: tuple[int, ...] = (64, 64)
    "units of each layer"
    squash: bool = False
    "continuous actions pass through a tanh instead of being clipped to their bounds"
    fast: bool = True
    "the numpy MLPs and flat optimizers of `tabular.deep.fast`; false: plain PyTorch, the same numbers to rounding"

    def __post_init__(self) -> None:
        check_fraction(gamma=self.gamma)
        check_positive(n_envs=self.n_envs, lr=self.lr, max_grad_norm=self.max_grad_norm, log_every=self.log_every)
        check_not_negative(vf_coef=self.vf_coef, ent_coef=self.ent_coef, anneal_steps=self.anneal_steps)


class ActorCritic:
    """Learns a policy and its values. `advance` is exact across `state_dict` and `load_state_dict`."""

    Config = ActorCriticConfig
    PARTS = ("network", "optimizer", "envs", "history")

    def __init__(self, make_env: Callable[..., gym.Env], config: ActorCriticConfig, seed: int) -> None:
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)
        self.envs = VectorEnv(make_env, config.n_envs, seed)
        self.policy = make_policy(self.envs.action_space, config.squash)
        self.network = ActorCriticNetwork(self.envs.observation_space, self.policy, config.hidden, self.generator)
        self.optimizer: Any = torch.optim.Adam(self.network.parameters(), lr=config.lr, eps=1e-5)
        if config.fast:
            fuse(self.network)
            self.optimizer = FlatAdam(self.network, lr=config.lr, eps=1e-5)
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
            n_steps=1,
            gamma=self.config.gamma,
            generator=self.generator,
            history=self.history,
            steps=self.steps,
        )

    def _update(self, trajectory: Trajectory) -> dict[str, float]:
        """One gradient step up `E[delta log pi]` and down `E[(V - (r + gamma V'))^2]`."""
        config = self.config
        params = self.network.actor(trajectory.obs)
        values = self.network.critic(trajectory.obs)
        logprobs = self.policy.logprob(params, trajectory.actions, trajectory.masks)
        entropy = self.policy.entropy(params, trajectory.masks, self.generator).mean()

        old_values = values.detach()
        rewards, last_value = bootstrap(self.network.critic, trajectory, config.gamma)
        deltas = td_errors(rewards, old_values, trajectory.discounts, last_value)

        n = trajectory.n_steps
        policy_loss, _ = policy_gradient_loss(logprobs, advantages=deltas, mask=None, denom=n)
        critic_loss, _ = value_loss(values, old_values, returns=deltas + old_values, mask=None, denom=n)
        loss = policy_loss + config.vf_coef * critic_loss - config.ent_coef * entropy

        set_learning_rate(self.optimizer, self.lr(self.steps))
        self.optimizer.zero_grad()
        loss.backward()
        grad_norm = clip_gradients(self.optimizer, config.max_grad_norm)
        self.optimizer.step()

        if not self._is_log_step():
            return {}
        return {
            "td_error": float(deltas.square().mean().sqrt()),
            "value_loss": float(critic_loss.detach()),
            "entropy": float(entropy.detach()),
            "grad_norm": grad_norm,
        }

    def _is_log_step(self) -> bool:
        """Whether metrics are recorded after this gradient step."""
        return (self.steps // self.config.n_envs + 1) % self.config.log_every == 0

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
