"""KL divergences and their estimates, and the coefficients of KL penalties: fixed, adaptive, and PPO's beta."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from tabular.core.checks import check_choice, check_finite, check_not_negative, check_positive

KL_KINDS = ("k1", "k2", "k3")


def kl_estimate(
    logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"], kind: str
) -> Float[Tensor, "*shape"]:
    """Per-token estimates of `KL(pi || pi_ref)` from tokens sampled by `pi`. With `d = logprobs - ref_logprobs`:

    - `k1 = d`: unbiased, of either sign, high variance; as a loss its expected gradient is 0.
    - `k2 = d^2 / 2`: biased, never negative; its gradient as a loss is the KL's.
    - `k3 = exp(-d) - 1 + d`: unbiased, never negative, of lower variance than k1. In the exponential `d` is clamped to
      at least -20 against overflow.

    J. Schulman, "Approximating KL divergence" (2020), http://joschu.net/blog/kl-approx.html. TRL's k1 and k3 are the
    same. verl caps k3 at 10; OpenRLHF caps every form, k3 for `d` below -2.6. A cap biases the estimate and removes the
    gradient where the policies are furthest apart, so there is none here.

    Raises:
        ValueError: for another `kind`.
    """
    check_choice(KL_KINDS, kind=kind)
    d = logprobs - ref_logprobs
    if kind == "k1":
        return d
    if kind == "k2":
        return 0.5 * d**2
    # expm1 is accurate where d is small; the clamp removes a rounding error below 0.
    return (torch.expm1(-d.clamp_min(-20)) + d).clamp_min(0)


def categorical_kl(p_logits: Float[Tensor, "*batch A"], q_logits: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch"]:
    """Exact `KL(p || q) = sum_a p_a (log p_a - log q_a)` over the last axis.

    Logits of -inf are allowed: an action that `p` never takes adds 0, one that only `q` never takes makes the KL inf.
    """
    p_logprobs = p_logits.log_softmax(-1)
    q_logprobs = q_logits.log_softmax(-1)
    impossible = torch.isneginf(p_logprobs)
    log_ratio = torch.where(impossible, 0, p_logprobs) - torch.where(impossible, 0, q_logprobs)
    return (p_logprobs.exp() * log_ratio).sum(-1)


def best_of_n_kl_bound(n: int) -> float:
    """`log n - (n - 1) / n`, an upper bound on the KL of the best of n samples to the distribution they are drawn from.

    In nats per sample. It is the KL itself where no two samples have equal scores, as with densities; for discrete
    distributions it is a bound, whatever scores them. Beirami et al. (2024), arXiv 2401.01879, theorem 3.1.

    Raises:
        ValueError: n is not positive.
    """
    check_positive(n=n)
    return math.log(n) - (n - 1) / n


def gaussian_kl(
    p_mean: Float[Tensor, "*batch D"],
    p_log_std: Float[Tensor, "*batch D"],
    q_mean: Float[Tensor, "*batch D"],
    q_log_std: Float[Tensor, "*batch D"],
) -> Float[Tensor, "*batch"]:
    """Exact `KL(p || q) = sum_d log(s_q / s_p) + (s_p^2 + (m_p - m_q)^2) / (2 s_q^2) - 1/2` of independent normals."""
    variance_ratio = torch.exp(2 * (p_log_std - q_log_std))
    z = (p_mean - q_mean) * torch.exp(-q_log_std)
    return (q_log_std - p_log_std + 0.5 * (variance_ratio + z**2 - 1)).sum(-1)


@dataclass
class FixedKL:
    """A constant KL coefficient. Raises ValueError for a negative or non-finite `coef`."""

    coef: float | int

    def __post_init__(self) -> None:
        check_not_negative(coef=self.coef)

    def update(self, kl: float | int, n_episodes: int) -> None:
        """Does nothing; the same call as `AdaptiveKL.update`."""

    def state_dict(self) -> dict[str, float]:
        return {"coef": float(self.coef)}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.coef = _coefficient_of("coef", state)


@dataclass
class AdaptiveKL:
    """A KL coefficient that steers the measured KL to `target` (nats per episode) by a proportional controller.

    `error = clip(kl / target - 1, -0.2, 0.2)`; `coef *= 1 + error * n_episodes / horizon`, once per step.
    Ziegler et al. (2019), arXiv 1909.08593, section 2.2: target 6, horizon 10,000 episodes.

    Raises:
        ValueError: for a negative `coef`, for a `target` or `horizon` that is not positive, and in `update` for a `kl`
            that is not finite or for `n_episodes >= 5 * horizon`, where the factor could become 0 for good.
    """

    coef: float | int
    target: float | int
    horizon: float | int

    def __post_init__(self) -> None:
        check_not_negative(coef=self.coef)
        check_positive(target=self.target, horizon=self.horizon)

    def update(self, kl: float | int, n_episodes: int) -> None:
        """One controller step with the mean KL per episode of the `n_episodes` just collected."""
        check_finite(kl=kl)
        if not 0 <= n_episodes < 5 * self.horizon:
            raise ValueError(
                f"n_episodes is {n_episodes}, but must be at least 0 and below 5 * horizon = {5 * self.horizon}"
            )
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.coef *= 1 + error * n_episodes / self.horizon

    def state_dict(self) -> dict[str, float]:
        return {"coef": float(self.coef)}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.coef = _coefficient_of("coef", state)


@dataclass
class ProportionalIntegralKL:
    """A KL coefficient that steers the measured KL to `target` (nats per episode) by proportional-integral control.

    With `error = clip(kl / target - 1, -1, 1)`, once per step:

        log coef += gain * (error - previous error) + error * n_episodes / horizon

    The second term is `AdaptiveKL`'s: it integrates the error, and alone it comes too late, because the KL still
    rises while the coefficient catches up. The first one is the proportional term: it answers to the KL's rise
    before the target is reached. Together they let the error decay with a time constant of `gain * horizon` episodes.
    Proportional-integral control of a Lagrange multiplier: Stooke et al. (2020), arXiv 2007.03964; in log space here,
    so that the coefficient stays positive and its scale does not matter.

    Raises:
        ValueError: for a negative `coef` or `gain`, for a `target` or `horizon` that is not positive, and in `update`
            for a `kl` that is not finite or a negative `n_episodes`.
    """

    coef: float | int
    target: float | int
    horizon: float | int
    gain: float | int = 2.0
    error: float | None = None
    """The error of the last update; None before the first one."""

    def __post_init__(self) -> None:
        check_not_negative(coef=self.coef, gain=self.gain)
        check_positive(target=self.target, horizon=self.horizon)

    def update(self, kl: float | int, n_episodes: int) -> None:
        """One controller step with the mean KL per episode of the `n_episodes` just collected."""
        check_finite(kl=kl)
        check_not_negative(n_episodes=n_episodes)
        error = min(max(kl / self.target - 1, -1.0), 1.0)
        rise = 0.0 if self.error is None else error - self.error
        self.coef *= math.exp(self.gain * rise + error * n_episodes / self.horizon)
        self.error = error

    def state_dict(self) -> dict[str, float]:
        state = {"coef": float(self.coef)}
        return state if self.error is None else state | {"error": self.error}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.coef = _coefficient_of("coef", state)
        self.error = state.get("error")
        if self.error is not None:
            check_finite(error=self.error)


@dataclass
class PenaltyBeta:
    """The coefficient of PPO's KL-penalty objective: doubles above `1.5 target`, halves below `target / 1.5`.

    Updated once per policy iteration, after the epochs, with the mean exact `KL(pi_old || pi)`. Schulman et al. (2017),
    arXiv 1707.06347, section 4. TorchRL applies the same rule at every minibatch, unlike the paper, which can change
    beta by many powers of two in one iteration.

    Raises:
        ValueError: for a `beta` or `target` that is not positive, and in `update` for a `kl` that is not finite.
    """

    beta: float | int
    target: float | int

    def __post_init__(self) -> None:
        check_positive(beta=self.beta, target=self.target)

    def update(self, kl: float | int) -> None:
        """Adjust `beta` to the KL between the policies before and after the last iteration."""
        check_finite(kl=kl)
        if kl > 1.5 * self.target:
            self.beta *= 2
        elif kl < self.target / 1.5:
            self.beta /= 2

    def state_dict(self) -> dict[str, float]:
        return {"beta": float(self.beta)}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.beta = _coefficient_of("beta", state)


def _coefficient_of(name: str, state: Mapping[str, float]) -> float:
    """The entry `name` of a saved state. Raises ValueError if it is missing or out of range."""
    if name not in state:
        raise ValueError(f"the state has no {name!r}, only {sorted(state)}")
    check_not_negative(**{name: state[name]})
    return state[name]
