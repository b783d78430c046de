"""REINFORCE: the policy gradient from whole episodes, with the total return or the reward-to-go, and a baseline.

Williams (1992); Sutton & Barto (2018), sections 13.3 and 13.4. As is usual, the factor `gamma^t` is left out.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor

from tabular.core.losses import policy_gradient_loss, value_loss
from tabular.core.masked import explained_variance, masked_mean, masked_whiten
from tabular.core.returns import discounted_returns
from tabular.deep.learner import (
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
from tabular.envs.vector import VectorEnv
from tabular.history import History

WEIGHTS = ("total", "to_go")
BASELINES = ("none", "mean", "learned")


@dataclass(frozen=True)
class REINFORCEConfig:
    """Settings of REINFORCE. Raises ValueError, naming it, for one that is out of range."""

    weight: str = "to_go"
    "what log-probabilities are weighted with: the episode's total return, or the return from each step to_go"
    baseline: str = "learned"
    "what is subtracted from it: none, the batch's mean, or learned state values"
    n_episodes: int = 10
    "episodes of one gradient step"
    gamma: float | int = 0.99
    "discount"
    lr: float | int = 5e-3
    "Adam's learning rate of the policy"
    vf_lr: float | int = 5e-3
    "Adam's learning rate of the learned baseline"
    n_value_epochs: int = 20
    "gradient steps of the learned baseline on each batch"
    ent_coef: float | int = 0.0
    "weight of the entropy bonus"
    max_grad_norm: float | int = 10.0
    "gradients are scaled down to this norm"
    normalize_weights: bool = False
    "weights, less the baseline, are scaled to variance 1 over the batch"
    measure_variance: bool = False
    "record the variance of the gradient between episodes (one more backward pass an episode)"
    max_steps: int = 1_000_000
    "a batch that takes more steps is an error: the environment may have episodes without an end"
    hidden: tuple[int, ...] = (64, 64)
    "units of each layer"
    squash: bool = False
    "continuous actions end in a tanh instead of being clipped to their bounds"

    def __post_init__(self) -> None:
        check_choice("weight", self.weight, WEIGHTS)
        check_choice("baseline", self.baseline, BASELINES)
        check_fraction(gamma=self.gamma)
        check_positive(n_episodes=self.n_episodes, lr=self.lr, vf_lr=self.vf_lr, n_value_epochs=self.n_value_epochs)
        check_positive(max_grad_norm=self.max_grad_norm, max_steps=self.max_steps)
        check_not_negative(ent_coef=self.ent_coef)
        if self.measure_variance and self.n_episodes < 2:
            raise ValueError("measure_variance needs n_episodes of at least 2, got 1")


class REINFORCE:
    """Learns a policy. `advance` is exact across `state_dict` and `load_state_dict`.

    A time limit counts as an end here, unless the baseline is learned: then the value of the state that the limit cut
    off is added.
    """

    Config = REINFORCEConfig
    fits = "vector, image or discrete observations; discrete, multi-discrete or continuous actions; episodes that end"
    PARTS = ("network", "optimizer", "value_optimizer", "envs", "history")

    def __init__(self, make_env: Callable[..., gym.Env], config: REINFORCEConfig, seed: int) -> None:
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)
        # One copy: of several in parallel, the first episodes to end would be the short ones.
        self.envs = VectorEnv(make_env, 1, seed)
        self.policy = make_policy(self.envs.action_space, config.squash)
        self.network = ActorCritic(self.envs.observation_space, self.policy, config.hidden, self.generator)
        self.weights, self.value_weights = (
            flatten_parameters(self.network.actor),
            flatten_parameters(self.network.critic),
        )
        self.optimizer = Adam(self.weights, config.lr)
        self.value_optimizer = Adam(self.value_weights, config.vf_lr)
        self.history, self.steps = History(), 0

    def advance(self, steps: int) -> None:
        """Learns for at least `steps` more environment steps, in whole iterations."""
        end = self.steps + steps
        while self.steps < end:
            self._iterate()

    def _iterate(self) -> None:
        """Plays `n_episodes`, then takes one step up `E[sum_t (G - b) log pi]`."""
        config = self.config
        trajectory = collect(
            self.envs, self.network.actor, self.policy, config.max_steps, config.gamma, self.generator, self.history,
            self.steps, config.n_episodes,
        )  # fmt: skip
        if int(trajectory.ends.sum()) < config.n_episodes:
            raise ValueError(
                f"{config.n_episodes} episodes did not end within max_steps = {config.max_steps}: put a "
                "gymnasium.wrappers.TimeLimit around the environment, or take a2c or ppo"
            )
        episode = trajectory.ends.cumsum(-1) - trajectory.ends.long()  # [1, T]: the episode of each step, from 0
        weights, returns = self._weights(trajectory, episode)
        params, mask = self.network.actor(trajectory.obs), torch.ones_like(weights, dtype=torch.bool)
        logprobs = self.policy.logprob(params, trajectory.actions, trajectory.masks)
        metrics = {}
        if config.measure_variance:
            metrics["gradient_variance"] = self._gradient_variance(logprobs, weights, episode)
        policy_loss, _ = policy_gradient_loss(logprobs, weights, mask, config.n_episodes)
        entropy = masked_mean(self.policy.entropy(params, trajectory.masks, self.generator), mask)
        loss = policy_loss - config.ent_coef * entropy
        grad_norm = descend(loss, self.weights, self.optimizer, config.max_grad_norm)
        if config.baseline == "learned":
            metrics |= self._fit_values(trajectory, returns)
        self.steps += weights.numel()
        self.history.add(self.steps, entropy=float(entropy.detach()), grad_norm=grad_norm, **metrics)

    def _weights(self, trajectory: Trajectory, episode: Tensor) -> tuple[Tensor, Tensor]:
        """What each log-probability is multiplied by, and the returns from each step: [1, T] both."""
        config, rewards = self.config, trajectory.rewards
        if config.baseline == "learned":
            rewards, _ = bootstrap(self.network.critic, trajectory, config.gamma)
        returns = discounted_returns(rewards, trajectory.discounts)
        weights = returns
        if config.weight == "total":
            first = torch.cat([torch.ones(1, 1, dtype=torch.bool), trajectory.ends[:, :-1]], dim=1)
            weights = returns[first][episode]
        mask = torch.ones_like(weights, dtype=torch.bool)
        if config.baseline == "mean":
            weights = weights - masked_mean(weights, mask)
        elif config.baseline == "learned":
            with torch.no_grad():
                weights = weights - self.network.critic(trajectory.obs)
        return (masked_whiten(weights, mask, shift_mean=False) if config.normalize_weights else weights), returns

    def _fit_values(self, trajectory: Trajectory, returns: Tensor) -> dict[str, float]:
        mask, losses = torch.ones_like(returns, dtype=torch.bool), []
        with torch.no_grad():
            explained = explained_variance(self.network.critic(trajectory.obs), returns)
        for _ in range(self.config.n_value_epochs):
            values = self.network.critic(trajectory.obs)
            loss, _ = value_loss(values, values.detach(), returns, mask, returns.numel())
            descend(loss, self.value_weights, self.value_optimizer, self.config.max_grad_norm)
            losses.append(float(loss.detach()))
        return {"value_loss": losses[-1], "explained_variance": float(explained)}

    def _gradient_variance(self, logprobs: Tensor, weights: Tensor, episode: Tensor) -> float:
        """Trace of the covariance between the gradients of single episodes, over their number: that of the estimate."""
        gradients = []
        parameters = list(self.network.actor.parameters())
        for k in range(self.config.n_episodes):
            loss, _ = policy_gradient_loss(logprobs, weights, episode == k, 1)
            parts = torch.autograd.grad(loss, parameters, retain_graph=True)
            gradients.append(torch.cat([part.flatten() for part in parts]))
        return float(torch.stack(gradients).var(dim=0).sum()) / self.config.n_episodes

    def act(self, observation: Any, mask: Any = None) -> Any:
        """The most probable action for one observation, as the environment takes it. `mask` [A]: True on legal ones."""
        return greedy_action(self.envs, self.network.actor, self.policy, observation, mask)

    def value(self, observation: Any, mask: Any = None) -> float:
        """The baseline's value of one observation, nan without a learned one; legal actions do not matter to it."""
        learned = self.config.baseline == "learned"
        return state_value(self.envs, self.network.critic, observation) if learned else math.nan

    def state_dict(self) -> dict[str, Any]:
        return gather_state(self, self.PARTS)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        restore_state(self, self.PARTS, state)
