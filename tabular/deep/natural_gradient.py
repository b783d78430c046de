"""Natural policy gradient: steps along `F^-1 g` whose quadratic approximation of the KL divergence is fixed.

`g` is the gradient of the surrogate and `F` the Fisher matrix of the policy, which is never built: conjugate gradients
need only products with it. Kakade (2001), "A natural policy gradient".
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from tabular.core.checks import check_fraction, check_not_negative, check_positive
from tabular.core.losses import kl_penalty_surrogate_loss, value_loss
from tabular.core.masked import explained_variance, masked_whiten
from tabular.core.returns import gae
from tabular.core.schedules import linear_to_zero
from tabular.deep.fast.mlp import fuse
from tabular.deep.fast.optimizers import FlatAdam
from tabular.deep.fisher import conjugate_gradient, fisher_product, flat_gradient
from tabular.deep.networks import ActorCriticNetwork
from tabular.deep.optimizers import clip_gradients, set_learning_rate
from tabular.deep.policies import make_policy
from tabular.deep.state import gather_state, restore_state
from tabular.deep.trajectories import Trajectory, bootstrap, collect, greedy_action, state_value
from tabular.envs.normalization import make_envs
from tabular.history import History


@dataclass(frozen=True)
class NaturalGradientConfig:
    """Settings of the natural policy gradient. Raises ValueError for a setting that is out of range."""

    target_kl: float | int = 0.01
    "size of a step: mean KL(old || new) in nats, in the quadratic approximation"
    cg_iterations: int = 15
    "conjugate gradient iterations at most"
    cg_damping: float | int = 0.1
    "multiple of the identity that is added to the Fisher matrix"
    n_envs: int = 4
    "copies of the environment"
    n_steps: int = 512
    "steps in each copy between updates; n_envs * n_steps make a batch"
    gamma: float | int = 0.99
    "discount"
    lam: float | int = 0.95
    "GAE's lambda: 0 one-step TD errors, 1 Monte Carlo returns"
    lr: float | int = 1e-3
    "Adam's learning rate of the critic"
    n_value_epochs: int = 10
    "the critic's passes over each batch"
    minibatch_size: int = 128
    "steps of one gradient step of the critic; the last minibatch of an epoch may be smaller"
    normalize_advantages: bool = True
    "mean 0 and variance 1 over each batch"
    normalize_observations: bool = False
    "mean 0 and variance 1 by running statistics"
    normalize_rewards: bool = False
    "returns of variance 1 by running statistics"
    anneal_steps: int = 0
    "environment steps over which the critic's learning rate falls linearly to 0; 0: it is constant"
    hidden: tuple[int, ...] = (64, 64)
    "units of each layer; policy and values have separate layers, or the critic's steps would change the policy"
    squash: bool = False
    "continuous actions pass through a tanh instead of being clipped to their bounds"
    fast: bool = True
    "the numpy MLPs and flat optimizers of `tabular.deep.fast`; false: plain PyTorch, the same numbers to rounding"

    def __post_init__(self) -> None:
        check_fraction(gamma=self.gamma, lam=self.lam)
        check_positive(target_kl=self.target_kl, cg_iterations=self.cg_iterations, n_envs=self.n_envs)
        check_positive(n_steps=self.n_steps, lr=self.lr, n_value_epochs=self.n_value_epochs)
        check_positive(minibatch_size=self.minibatch_size)
        check_not_negative(cg_damping=self.cg_damping, anneal_steps=self.anneal_steps)
        if self.normalize_advantages and self.n_envs * self.n_steps < 2:
            raise ValueError("n_envs * n_steps is 1, but normalize_advantages needs a batch of at least 2 steps")


class NaturalGradient:
    """Learns a policy and its values. `advance` is exact across `state_dict` and `load_state_dict`."""

    Config: type = NaturalGradientConfig
    PARTS = ("network", "optimizer", "envs", "history")

    def __init__(self, make_env: Callable[..., gym.Env], config: Any, seed: int) -> None:
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
        self.network = ActorCriticNetwork(self.envs.observation_space, self.policy, config.hidden, self.generator)
        self.optimizer: Any = torch.optim.Adam(self.network.critic.parameters(), lr=config.lr, eps=1e-5)
        if config.fast:
            fuse(self.network)
            self.optimizer = FlatAdam(self.network.critic, lr=config.lr, eps=1e-5)
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
        values, advantages = self._values_and_advantages(trajectory)
        returns = advantages + values
        if self.config.normalize_advantages:
            advantages = masked_whiten(advantages, mask=None)
        metrics = self._update(trajectory, advantages)
        metrics["value_loss"] = self._fit_values(trajectory.obs.flatten(0, 1), returns.flatten())
        metrics["explained_variance"] = float(explained_variance(values, returns))
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
    def _values_and_advantages(self, trajectory: Trajectory) -> tuple[Float[Tensor, "N T"], Float[Tensor, "N T"]]:
        values = self.network.critic(trajectory.obs)
        rewards, last_value = bootstrap(self.network.critic, trajectory, self.config.gamma)
        return values, gae(rewards, values, trajectory.discounts, self.config.lam, last_value)

    def _update(self, trajectory: Trajectory, advantages: Float[Tensor, "N T"]) -> dict[str, float]:
        """One step of the policy along the natural gradient of the surrogate `E[ratio A]`."""
        config = self.config
        actor = self.network.actor
        masks = trajectory.masks
        old_params = actor(trajectory.obs)
        old_logprobs = self.policy.logprob(old_params, trajectory.actions, masks)

        def surrogate(params: Tensor) -> Tensor:
            """`E[ratio A]`: PPO's KL-penalty objective without the penalty."""
            loss, _ = kl_penalty_surrogate_loss(
                self.policy.logprob(params, trajectory.actions, masks),
                old_logprobs,
                advantages,
                kl=torch.zeros_like(advantages),
                beta=0,
                mask=None,
                denom=advantages.numel(),
            )
            return -loss

        gradient = flat_gradient(surrogate(old_params), actor)
        fisher = fisher_product(actor, self.policy, trajectory.obs, old_params, masks, config.cg_damping)
        direction, residual = conjugate_gradient(fisher, gradient, config.cg_iterations)
        # The quadratic approximation of the KL, step^T F step / 2, equals target_kl for a step of this length.
        # F direction is gradient - residual.
        curvature = direction @ (gradient - residual)
        metrics = {"grad_norm": float(gradient.norm()), "accepted": 0.0, "kl": 0.0, "improvement": 0.0}
        if curvature > 0:
            step = direction * torch.sqrt(2 * config.target_kl / curvature)
            metrics |= self._take_step(step, surrogate, trajectory, old_params.detach())
        with torch.no_grad():
            metrics["entropy"] = float(self.policy.entropy(actor(trajectory.obs), masks, self.generator).mean())
        return metrics

    @torch.no_grad()
    def _take_step(
        self,
        step: Float[Tensor, "P"],
        surrogate: Callable[[Tensor], Tensor],
        trajectory: Trajectory,
        old_params: Float[Tensor, "N T D"],
    ) -> dict[str, float]:
        """Take the whole step, whatever its exact KL divergence is."""
        actor = self.network.actor
        vector_to_parameters(parameters_to_vector(actor.parameters()) + step, actor.parameters())
        params = actor(trajectory.obs)
        kl = self.policy.kl(old_params, params, trajectory.masks).mean()
        improvement = surrogate(params) - surrogate(old_params)
        return {"accepted": 1.0, "kl": float(kl), "improvement": float(improvement)}

    def _fit_values(self, obs: Shaped[Tensor, "B ..."], returns: Float[Tensor, "B"]) -> float:
        """All epochs of the critic on `E[(V - R)^2] / 2`; returns the mean loss of the last epoch."""
        n = len(returns)
        set_learning_rate(self.optimizer, self.lr(self.steps))
        losses = []
        for _ in range(self.config.n_value_epochs):
            losses = []
            for rows in torch.randperm(n, generator=self.generator).split(self.config.minibatch_size):
                values = self.network.critic(obs[rows])
                loss, _ = value_loss(values, values.detach(), returns[rows], mask=None, denom=len(rows))
                self.optimizer.zero_grad()
                loss.backward()
                clip_gradients(self.optimizer, max_norm=float("inf"))
                self.optimizer.step()
                losses.append(loss.detach() * (len(rows) / n))
        return float(sum(losses))

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
