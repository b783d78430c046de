"""REINFORCE: the policy gradient from whole episodes, with the total return or the reward-to-go, and a baseline.

Williams (1992); Sutton & Barto (2018), sections 13.3 and 13.4. As is usual, the factor `gamma^t` is left out.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tabular.core.checks import check_choice, check_fraction, check_not_negative, check_positive
from tabular.core.losses import policy_gradient_loss, value_loss
from tabular.core.masked import explained_variance, masked_whiten
from tabular.core.returns import discounted_returns
from tabular.deep.fast.mlp import fuse
from tabular.deep.fast.optimizers import FlatAdam
from tabular.deep.networks import ActorCriticNetwork
from tabular.deep.optimizers import clip_gradients
from tabular.deep.policies import make_policy
from tabular.deep.state import gather_state, restore_state
from tabular.deep.trajectories import Trajectory, bootstrap, collect, greedy_action, state_value
from tabular.envs.vector import VectorEnv
from tabular.history import History

WEIGHTS = ("total", "to_go")
BASELINES = ("none", "mean", "learned")


@dataclass(frozen=True)
class REINFORCEConfig:
    """Settings of REINFORCE. Raises ValueError for a setting that is out of range."""

    weight: str = "to_go"
    "the weight of each log-probability: the episode's return (total), or the return from its step on (to_go)"
    baseline: str = "learned"
    "what is subtracted from the weight: none, the batch's mean, or learned state values"
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
    "record the variance of the gradient between episodes (one more backward pass per episode)"
    max_steps: int = 1_000_000
    "a batch that takes more steps is an error: the environment may have episodes without an end"
    hidden: tuple[int, ...] = (64, 64)
    "units of each layer"
    squash: bool = False
    "continuous actions pass through a tanh instead of being clipped to their bounds"
    fast: bool = True
    "the numpy MLPs and flat optimizers of `tabular.deep.fast`; false: plain PyTorch, the same numbers to rounding"

    def __post_init__(self) -> None:
        check_choice(WEIGHTS, weight=self.weight)
        check_choice(BASELINES, baseline=self.baseline)
        check_fraction(gamma=self.gamma)
        check_positive(n_episodes=self.n_episodes, lr=self.lr, vf_lr=self.vf_lr, n_value_epochs=self.n_value_epochs)
        check_positive(max_grad_norm=self.max_grad_norm, max_steps=self.max_steps)
        check_not_negative(ent_coef=self.ent_coef)
        if self.measure_variance and self.n_episodes < 2:
            raise ValueError("n_episodes is 1, but measure_variance needs at least 2")


class REINFORCE:
    """Learns a policy. `advance` is exact across `state_dict` and `load_state_dict`.

    A time limit counts as a termination, unless the baseline is learned: then the value of the final observation is
    added.
    """

    Config = REINFORCEConfig
    PARTS = ("network", "optimizer", "value_optimizer", "envs", "history")

    def __init__(self, make_env: Callable[..., gym.Env], config: REINFORCEConfig, seed: int) -> None:
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)
        # One copy: of several in parallel, the first episodes to end would be the short ones.
        self.envs = VectorEnv(make_env, 1, seed)
        self.policy = make_policy(self.envs.action_space, config.squash)
        self.network = ActorCriticNetwork(self.envs.observation_space, self.policy, config.hidden, self.generator)
        self.optimizer: Any = torch.optim.Adam(self.network.actor.parameters(), lr=config.lr, eps=1e-5)
        self.value_optimizer: Any = torch.optim.Adam(self.network.critic.parameters(), lr=config.vf_lr, eps=1e-5)
        if config.fast:
            fuse(self.network)
            self.optimizer = FlatAdam(self.network.actor, lr=config.lr, eps=1e-5)
            self.value_optimizer = FlatAdam(self.network.critic, lr=config.vf_lr, eps=1e-5)
        self.history = History()
        self.steps = 0

    def advance(self, steps: int) -> None:
        """Learn for at least `steps` more environment steps, in whole iterations."""
        end = self.steps + steps
        while self.steps < end:
            self._iterate()

    def _iterate(self) -> None:
        trajectory = self._collect()
        weights, returns = self._weights_and_returns(trajectory)
        metrics = self._update(trajectory, weights)
        if self.config.baseline == "learned":
            metrics |= self._fit_values(trajectory, returns)
        self.steps += trajectory.n_steps
        self.history.add(self.steps, **metrics)

    def _collect(self) -> Trajectory:
        """Whole episodes, one after the other in a single row: [1, T]."""
        trajectory = collect(
            envs=self.envs,
            actor=self.network.actor,
            policy=self.policy,
            n_steps=self.config.max_steps,
            gamma=self.config.gamma,
            generator=self.generator,
            history=self.history,
            steps=self.steps,
            n_episodes=self.config.n_episodes,
        )
        if int(trajectory.ends.sum()) < self.config.n_episodes:
            raise ValueError(
                f"max_steps is {self.config.max_steps}, but {self.config.n_episodes} episodes did not end within it: "
                "put a gymnasium.wrappers.TimeLimit around the environment, or use a2c or ppo"
            )
        return trajectory

    def _weights_and_returns(self, trajectory: Trajectory) -> tuple[Float[Tensor, "1 T"], Float[Tensor, "1 T"]]:
        """The weight `G - b` of each log-probability, and the return from each step on."""
        config = self.config
        rewards = trajectory.rewards
        if config.baseline == "learned":
            rewards, _ = bootstrap(self.network.critic, trajectory, config.gamma)
        returns = discounted_returns(rewards, trajectory.discounts)
        weights = returns
        if config.weight == "total":
            is_first = torch.cat([torch.ones(1, 1, dtype=torch.bool), trajectory.ends[:, :-1]], dim=1)
            weights = returns[is_first][episode_of(trajectory)]
        if config.baseline == "mean":
            weights = weights - weights.mean()
        elif config.baseline == "learned":
            with torch.no_grad():
                weights = weights - self.network.critic(trajectory.obs)
        if config.normalize_weights:
            weights = masked_whiten(weights, mask=None, shift_mean=False)
        return weights, returns

    def _update(self, trajectory: Trajectory, weights: Float[Tensor, "1 T"]) -> dict[str, float]:
        """One gradient step of the policy up `E[sum_t (G - b) log pi]`, the mean over episodes."""
        config = self.config
        params = self.network.actor(trajectory.obs)
        logprobs = self.policy.logprob(params, trajectory.actions, trajectory.masks)
        metrics = {}
        if config.measure_variance:
            metrics["gradient_variance"] = self._gradient_variance(logprobs, weights, episode_of(trajectory))

        policy_loss, _ = policy_gradient_loss(logprobs, weights, mask=None, denom=config.n_episodes)
        entropy = self.policy.entropy(params, trajectory.masks, self.generator).mean()
        loss = policy_loss - config.ent_coef * entropy

        self.optimizer.zero_grad()
        loss.backward()
        grad_norm = clip_gradients(self.optimizer, config.max_grad_norm)
        self.optimizer.step()
        return {"entropy": float(entropy.detach()), "grad_norm": grad_norm} | metrics

    def _fit_values(self, trajectory: Trajectory, returns: Float[Tensor, "1 T"]) -> dict[str, float]:
        """Gradient steps of the baseline on `E[(V - G)^2] / 2`; the loss is that of the last one."""
        with torch.no_grad():
            explained = explained_variance(self.network.critic(trajectory.obs), returns)
        loss = torch.zeros(())
        for _ in range(self.config.n_value_epochs):
            values = self.network.critic(trajectory.obs)
            loss, _ = value_loss(values, values.detach(), returns, mask=None, denom=returns.numel())
            self.value_optimizer.zero_grad()
            loss.backward()
            clip_gradients(self.value_optimizer, self.config.max_grad_norm)
            self.value_optimizer.step()
        return {"value_loss": float(loss.detach()), "explained_variance": float(explained)}

    def _gradient_variance(self, logprobs: Tensor, weights: Tensor, episode: Tensor) -> float:
        """The variance of the gradient estimate: the trace of the covariance between the gradients of single episodes,
        divided by their number."""
        parameters = list(self.network.actor.parameters())
        gradients = []
        for k in range(self.config.n_episodes):
            loss, _ = policy_gradient_loss(logprobs, weights, mask=episode == k, denom=1)
            parts = torch.autograd.grad(loss, parameters, retain_graph=True)
            gradients.append(torch.cat([part.flatten() for part in parts]))
        return float(torch.stack(gradients).var(dim=0).sum()) / self.config.n_episodes

    def act(self, observation: Any, mask: Any = None) -> Any:
        """The most probable action for one observation, as the environment takes it. `mask` [A]: True on legal ones."""
        return greedy_action(self.envs, self.network.actor, self.policy, observation, mask)

    def value(self, observation: Any, mask: Any = None) -> float:
        """The baseline's value of one observation, nan without a learned one; `mask` has no influence."""
        if self.config.baseline != "learned":
            return math.nan
        return state_value(self.envs, self.network.critic, observation)

    def state_dict(self) -> dict[str, Any]:
        return gather_state(self, self.PARTS)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        restore_state(self, self.PARTS, state)


def episode_of(trajectory: Trajectory) -> Int[Tensor, "N T"]:
    """The number of each step's episode within its row, from 0."""
    return trajectory.ends.cumsum(-1) - trajectory.ends.long()
