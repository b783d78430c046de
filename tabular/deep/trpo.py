"""Natural policy gradient and TRPO: steps of a given size, measured as the KL divergence between the policies.

Kakade (2001), "A natural policy gradient"; Schulman et al. (2015), arXiv 1502.05477. Both step along `F^-1 g`, found by
conjugate gradients from products with the Fisher matrix `F`, to where the quadratic model of the KL reaches
`target_kl`. TRPO then looks at the true KL and the surrogate, shortens the step until both are right, or takes none.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import torch
import torch.autograd.forward_ad as forward_ad
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn
from torch.func import functional_call

from tabular.core.losses import kl_penalty_surrogate_loss, value_loss
from tabular.core.masked import explained_variance, masked_whiten
from tabular.core.returns import gae
from tabular.deep.learner import (
    annealed,
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

Product = Callable[[Float[Tensor, "P"]], Float[Tensor, "P"]]


@dataclass(frozen=True)
class NaturalGradientConfig:
    """Settings of the natural policy gradient. Raises ValueError, naming it, for one that is out of range."""

    target_kl: float | int = 0.01
    "size of a step: mean KL(old || new) in nats"
    cg_iterations: int = 15
    "conjugate gradient steps at most"
    cg_damping: float | int = 0.1
    "times the identity is added to the Fisher matrix"
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
    "steps of one gradient step of the critic; the last of an epoch may be smaller"
    normalize_advantages: bool = True
    "mean 0 and variance 1 over each batch"
    normalize_observations: bool = False
    "mean 0 and variance 1 by running statistics"
    normalize_rewards: bool = False
    "returns of variance 1 by running statistics"
    anneal_steps: int = 0
    "the critic's learning rate falls linearly to 0 over this many environment steps; 0: it stays"
    hidden: tuple[int, ...] = (64, 64)
    "units of each layer; policy and values have trunks of their own, or the critic's steps would move the policy"
    squash: bool = False
    "continuous actions end in a tanh instead of being clipped to their bounds"

    def __post_init__(self) -> None:
        check_fraction(gamma=self.gamma, lam=self.lam)
        check_positive(target_kl=self.target_kl, cg_iterations=self.cg_iterations, n_envs=self.n_envs)
        check_positive(n_steps=self.n_steps, lr=self.lr, n_value_epochs=self.n_value_epochs)
        check_positive(minibatch_size=self.minibatch_size)
        check_not_negative(cg_damping=self.cg_damping, anneal_steps=self.anneal_steps)
        if self.normalize_advantages and self.n_envs * self.n_steps < 2:
            raise ValueError("normalize_advantages needs a batch of at least 2 steps, n_envs * n_steps is 1")


@dataclass(frozen=True)
class TRPOConfig(NaturalGradientConfig):
    """Settings of TRPO. Raises ValueError, naming it, for one that is out of range."""

    line_search_steps: int = 10
    "lengths tried, the full one first"
    line_search_shrink: float | int = 0.8
    "each is this share of the one before"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(line_search_steps=self.line_search_steps)
        if not 0 < self.line_search_shrink < 1:
            raise ValueError(f"line_search_shrink must be between 0 and 1, got {self.line_search_shrink}")


class NaturalGradient:
    """Learns a policy and its values. `advance` is exact across `state_dict` and `load_state_dict`."""

    Config: type = NaturalGradientConfig
    fits = "vector, image or discrete observations; discrete, multi-discrete or continuous actions"
    PARTS = ("network", "optimizer", "envs", "history")

    def __init__(self, make_env: Callable[..., gym.Env], config: Any, seed: int) -> None:
        self.config = config
        self.generator = torch.Generator().manual_seed(seed)
        self.envs = make_envs(
            make_env, config.n_envs, seed, config.gamma, config.normalize_observations, config.normalize_rewards
        )
        self.policy = make_policy(self.envs.action_space, config.squash)
        self.network = ActorCritic(self.envs.observation_space, self.policy, config.hidden, self.generator)
        self.weights = flatten_parameters(self.network.actor)
        self.value_weights = flatten_parameters(self.network.critic)
        self.optimizer = Adam(self.value_weights, config.lr)
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
        with torch.no_grad():
            values = self.network.critic(trajectory.obs)
        rewards, last_value = bootstrap(self.network.critic, trajectory, config.gamma)
        advantages = gae(rewards, values, trajectory.discounts, config.lam, last_value)
        returns = advantages + values
        if config.normalize_advantages:
            advantages = masked_whiten(advantages, mask=None)
        metrics = self._improve_policy(trajectory, advantages)
        metrics["value_loss"] = self._fit_values(trajectory.obs.flatten(0, 1), returns.flatten())
        self.steps += config.n_envs * config.n_steps
        self.history.add(self.steps, explained_variance=float(explained_variance(values, returns)), **metrics)

    def _improve_policy(self, trajectory: Trajectory, advantages: Float[Tensor, "N T"]) -> dict[str, float]:
        """One step of the policy along the natural gradient of the surrogate `E[ratio A]`."""
        config, actor, masks = self.config, self.network.actor, trajectory.masks
        old_params = actor(trajectory.obs)
        old_logprobs = self.policy.logprob(old_params, trajectory.actions, masks)
        mask, zeros = None, torch.zeros_like(advantages)  # every step is real

        def surrogate(params: Tensor) -> Tensor:
            """`E[ratio A]`: the objective of PPO's penalty form with no penalty."""
            logprobs = self.policy.logprob(params, trajectory.actions, masks)
            loss, _ = kl_penalty_surrogate_loss(logprobs, old_logprobs, advantages, zeros, 0, mask, advantages.numel())
            return -loss

        gradient = flat_gradient(surrogate(old_params), actor)
        product = fisher_product(actor, self.policy, trajectory.obs, old_params, masks, config.cg_damping)
        direction, residual = conjugate_gradient(product, gradient, config.cg_iterations)
        # The quadratic model of the KL, step^T F step / 2, is target_kl at this length. F direction is g - residual.
        curvature = direction @ (gradient - residual)
        metrics = {"grad_norm": float(gradient.norm()), "accepted": 0.0, "kl": 0.0, "improvement": 0.0}
        if curvature > 0:
            step = direction * torch.sqrt(2 * config.target_kl / curvature)
            metrics |= self._take(step, surrogate, trajectory.obs, old_params.detach(), masks)
        with torch.no_grad():
            metrics["entropy"] = float(self.policy.entropy(actor(trajectory.obs), masks, self.generator).mean())
        return metrics

    def _take(
        self,
        step: Float[Tensor, "P"],
        surrogate: Callable[[Tensor], Tensor],
        obs: Shaped[Tensor, "N T ..."],
        old_params: Float[Tensor, "N T D"],
        masks: Bool[Tensor, "N T A"] | None,
    ) -> dict[str, float]:
        """Takes the whole step, whatever its true KL."""
        with torch.no_grad():
            before = surrogate(old_params)
            self.weights += step
            kl, after = self._true_kl(obs, old_params, masks), surrogate(self.network.actor(obs))
        return {"accepted": 1.0, "kl": float(kl), "improvement": float(after - before)}

    def _true_kl(self, obs: Tensor, old_params: Tensor, masks: Tensor | None) -> Tensor:
        """Exact mean `KL(old || new)` over the batch."""
        return self.policy.kl(old_params, self.network.actor(obs), masks).mean()

    def _fit_values(self, obs: Shaped[Tensor, "B ..."], returns: Float[Tensor, "B"]) -> float:
        """All epochs of the critic; the loss is the mean over the last of them."""
        config, n = self.config, len(returns)
        self.optimizer.lr, losses = annealed(config.lr, self.steps, config.anneal_steps), []
        for _ in range(config.n_value_epochs):
            losses = []
            for rows in torch.randperm(n, generator=self.generator).split(config.minibatch_size):
                values, mask = self.network.critic(obs[rows]), None
                loss, _ = value_loss(values, values.detach(), returns[rows], mask, len(rows))
                descend(loss, self.value_weights, self.optimizer, float("inf"))
                losses.append(loss.detach() * (len(rows) / n))
        return float(sum(losses))

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


class TRPO(NaturalGradient):
    """The natural gradient with a line search. `advance` is exact across `state_dict` and `load_state_dict`."""

    Config = TRPOConfig

    def _take(
        self,
        step: Float[Tensor, "P"],
        surrogate: Callable[[Tensor], Tensor],
        obs: Shaped[Tensor, "N T ..."],
        old_params: Float[Tensor, "N T D"],
        masks: Bool[Tensor, "N T A"] | None,
    ) -> dict[str, float]:
        """Takes the longest of the steps tried that raises the surrogate and keeps the true KL to `target_kl`.

        If there is none the weights are what they were, to the last bit.
        """
        config, old_weights = self.config, self.weights.detach().clone()
        with torch.no_grad():
            before = surrogate(old_params)
            for tried in range(config.line_search_steps):
                self.weights.copy_(old_weights + config.line_search_shrink**tried * step)
                kl, after = self._true_kl(obs, old_params, masks), surrogate(self.network.actor(obs))
                # Written so that nan is a failure too.
                if kl <= config.target_kl and after > before:
                    return {"accepted": 1.0, "kl": float(kl), "improvement": float(after - before)}
            self.weights.copy_(old_weights)
        return {"accepted": 0.0, "kl": 0.0, "improvement": 0.0}


def flat_gradient(y: Float[Tensor, ""], module: nn.Module) -> Float[Tensor, "P"]:
    """The gradient of a scalar in all weights of a module, as one vector. The graph stays."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(y, list(module.parameters()), retain_graph=True)])


def fisher_product(
    actor: nn.Module,
    policy: Any,
    obs: Shaped[Tensor, "N T ..."],
    params: Float[Tensor, "N T D"],
    masks: Bool[Tensor, "N T A"] | None,
    damping: float | int,
) -> Product:
    """`v -> (F + damping I) v`, `F` the mean Fisher matrix of the policy over a batch, without ever building it.

    `F = J^T H J`, where `J` is the Jacobian of the policy's parameters `params = actor(obs)` in the weights and `H` the
    Hessian of the mean `KL(old || new)` in these parameters at new = old, where the KL's gradient is 0. `J v` is one
    forward-mode derivative, `J^T` one backward pass. Martens (2020), arXiv 1412.1193, section 9.
    """
    named = dict(actor.named_parameters())
    sizes = [parameter.numel() for parameter in named.values()]
    output = params.detach().requires_grad_()
    kl = policy.kl(params.detach(), output, masks).mean()
    (kl_gradient,) = torch.autograd.grad(kl, output, create_graph=True)

    def product(v: Float[Tensor, "P"]) -> Float[Tensor, "P"]:
        with forward_ad.dual_level():
            tangents = zip(named.items(), v.split(sizes), strict=True)
            duals = {name: forward_ad.make_dual(p, t.view_as(p)) for (name, p), t in tangents}
            d_output = forward_ad.unpack_dual(functional_call(actor, duals, (obs,))).tangent
        (bent,) = torch.autograd.grad(kl_gradient, output, d_output, retain_graph=True)
        parts = torch.autograd.grad(params, list(named.values()), bent, retain_graph=True)
        return torch.cat([part.flatten() for part in parts]) + damping * v

    return product


def conjugate_gradient(
    product: Product, b: Float[Tensor, "P"], iterations: int, tolerance: float = 1e-10
) -> tuple[Float[Tensor, "P"], Float[Tensor, "P"]]:
    """`(x, b - A x)`: an approximate solution of `A x = b` for a positive definite `A`, and what is missing.

    `product(v)` is `A v`. Starts from 0; ends after `iterations`, or when the squared residual is at most `tolerance`.
    Hestenes & Stiefel (1952).
    """
    x, residual = torch.zeros_like(b), b.clone()
    direction, square = residual.clone(), residual @ residual
    for _ in range(iterations):
        if square <= tolerance:
            break
        image = product(direction)
        step = square / (direction @ image)
        x += step * direction
        residual -= step * image
        old_square, square = square, residual @ residual
        direction = residual + (square / old_square) * direction
    return x, residual
