"""How far two policies are apart, and the coefficients that hold them together."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

KL_KINDS = ("k1", "k2", "k3")


def kl_estimate(
    logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"], kind: str
) -> Float[Tensor, "*shape"]:
    """Per-token estimates of `KL(pi || pi_ref)` from tokens sampled by `pi`. With `d = logprobs - ref_logprobs`:

    - `k1 = d`: unbiased, but of either sign and high variance; as a loss its gradient is 0 in expectation.
    - `k2 = d^2 / 2`: biased, never negative; its gradient as a loss is the KL's.
    - `k3 = exp(-d) - 1 + d`: unbiased and never negative, of lower variance. `d` below -20 counts as -20 in the
      exponential, which would overflow.

    J. Schulman, "Approximating KL divergence" (2020), http://joschu.net/blog/kl-approx.html. TRL's k1 and k3 are the
    same. verl caps k3 at 10 and OpenRLHF every form, k3 thus from `d` below -2.6 on: that biases them and takes the
    gradient away where the policies are furthest apart, so there is no cap here.
    Raises ValueError for another `kind`.
    """
    d = logprobs - ref_logprobs
    if kind == "k1":
        return d
    if kind == "k2":
        return 0.5 * d**2
    if kind == "k3":
        # expm1 keeps the digits where d is small; the clamp removes a last rounding below 0.
        return (torch.expm1(-d.clamp_min(-20)) + d).clamp_min(0)
    raise ValueError(f"kind must be one of {', '.join(KL_KINDS)}, got {kind!r}")


def categorical_kl(p_logits: Float[Tensor, "*batch A"], q_logits: Float[Tensor, "*batch A"]) -> Float[Tensor, "*batch"]:
    """Exact `KL(p || q) = sum_a p_a (log p_a - log q_a)` over the last axis.

    Logits of -inf are allowed: an action that `p` never takes adds 0, one that only `q` never takes gives inf.
    """
    p_logprobs, q_logprobs = p_logits.log_softmax(-1), q_logits.log_softmax(-1)
    impossible = torch.isneginf(p_logprobs)
    log_ratio = torch.where(impossible, 0, p_logprobs) - torch.where(impossible, 0, q_logprobs)
    return (p_logprobs.exp() * log_ratio).sum(-1)


@dataclass
class FixedKL:
    """A KL coefficient that stays as it is. Raises ValueError for a negative or non-finite `coef`."""

    coef: float | int

    def __post_init__(self) -> None:
        _check_coefficient("coef", self.coef)

    def update(self, kl: float | int, n_episodes: int) -> None:
        """Nothing changes; here so that both coefficients are called alike."""

    def state_dict(self) -> dict[str, float]:
        return {"coef": float(self.coef)}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.coef = _load("coef", state)


@dataclass
class AdaptiveKL:
    """A KL coefficient that steers the measured KL to `target` (nats per episode) by a proportional controller.

    `error = clip(kl / target - 1, -0.2, 0.2)`; `coef *= 1 + error * n_episodes / horizon`, once per step.
    Ziegler et al. (2019), arXiv 1909.08593, section 2.2: target 6, horizon 10,000 episodes.

    Raises ValueError for a negative `coef`, for a `target` or `horizon` that is not positive, and in `update` for a
    `kl` that is not finite or for `n_episodes >= 5 * horizon`, where the factor could reach 0 and stay there.
    """

    coef: float | int
    target: float | int
    horizon: float | int

    def __post_init__(self) -> None:
        _check_coefficient("coef", self.coef)
        _check_positive("target", self.target)
        _check_positive("horizon", self.horizon)

    def update(self, kl: float | int, n_episodes: int) -> None:
        """One controller step with the mean KL per episode of the `n_episodes` just collected."""
        _check_finite("kl", kl)
        if not 0 <= n_episodes < 5 * self.horizon:
            raise ValueError(f"n_episodes must be in [0, 5 * horizon = {5 * self.horizon}), got {n_episodes}")
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.coef *= 1 + error * n_episodes / self.horizon

    def state_dict(self) -> dict[str, float]:
        return {"coef": float(self.coef)}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.coef = _load("coef", state)


@dataclass
class PenaltyBeta:
    """The coefficient of PPO's KL-penalty objective: doubles above `1.5 target`, halves below `target / 1.5`.

    Updated once per policy iteration, after the epochs, with the mean exact `KL(pi_old || pi)`. TorchRL has the same
    rule but applies it at every minibatch, which is not the paper's and can move beta by many powers of two at once.
    Schulman et al. (2017), arXiv 1707.06347, section 4. Raises ValueError for a `beta` or `target` that is not
    positive, and in `update` for a `kl` that is not finite.
    """

    beta: float | int
    target: float | int

    def __post_init__(self) -> None:
        _check_positive("beta", self.beta)
        _check_positive("target", self.target)

    def update(self, kl: float | int) -> None:
        """Adjusts `beta` to the KL that the last policy iteration caused."""
        _check_finite("kl", kl)
        if kl > 1.5 * self.target:
            self.beta *= 2
        elif kl < self.target / 1.5:
            self.beta /= 2

    def state_dict(self) -> dict[str, float]:
        return {"beta": float(self.beta)}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.beta = _load("beta", state)


def _check_finite(name: str, number: float | int) -> None:
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {number}")


def _check_coefficient(name: str, number: float | int) -> None:
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"{name} must be finite and not negative, got {number}")


def _check_positive(name: str, number: float | int) -> None:
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name} must be finite and positive, got {number}")


def _load(name: str, state: Mapping[str, float]) -> float:
    if name not in state:
        raise ValueError(f"the state has no {name!r}, only {sorted(state)}")
    _check_coefficient(name, state[name])
    return state[name]
