import math

import pytest
import torch

from tabular.core.kl import (
    AdaptiveKL,
    FixedKL,
    PenaltyBeta,
    ProportionalIntegralKL,
    categorical_kl,
    gaussian_kl,
    kl_estimate,
)

P = torch.tensor([0.5, 0.25, 0.25], dtype=torch.float64)
Q = torch.tensor([0.25, 0.25, 0.5], dtype=torch.float64)
KL_P_Q = 0.5 * math.log(2) + 0.25 * 0 - 0.25 * math.log(2)


def test_estimates_by_hand():
    logprobs, ref_logprobs = torch.tensor([-1.0, -1.0, -3.0]), torch.tensor([-1.0, -2.0, -1.0])
    assert kl_estimate(logprobs, ref_logprobs, "k1").tolist() == [0, 1, -2]
    assert kl_estimate(logprobs, ref_logprobs, "k2").tolist() == [0, 0.5, 2]
    expected = torch.tensor([0, math.exp(-1), math.exp(2) - 3])
    torch.testing.assert_close(kl_estimate(logprobs, ref_logprobs, "k3"), expected)


def test_k1_and_k3_are_unbiased():
    for kind in ("k1", "k3"):
        assert (P * kl_estimate(P.log(), Q.log(), kind)).sum().item() == pytest.approx(KL_P_Q, abs=1e-12)


def test_k2_has_the_gradient_of_the_kl_and_k1_has_none():
    """Expected gradients under P of the estimates as losses, against the gradient of the exact KL."""
    logits = P.log().requires_grad_()
    (exact,) = torch.autograd.grad(categorical_kl(logits, Q.log()), logits)
    for kind, expected in (("k1", torch.zeros(3, dtype=torch.float64)), ("k2", exact)):
        loss = (P * kl_estimate(logits.log_softmax(-1), Q.log(), kind)).sum()
        torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], expected, atol=1e-12, rtol=0)


def test_k3_is_accurate_and_never_negative():
    d = torch.logspace(-8, 0, 200)
    d = torch.cat([d, -d])
    estimate = kl_estimate(d, torch.zeros_like(d), "k3")
    assert (estimate >= 0).all()
    d64 = d.double()
    # exp(-d) - 1 + d in float32 would be off by 6e-8 everywhere, more than all of k3 at d = 1e-4.
    assert ((estimate - (torch.expm1(-d64) + d64)).abs() <= 4e-7 * d64.abs()).all()
    assert kl_estimate(torch.tensor([-300.0]), torch.tensor([0.0]), "k3").isfinite()


def test_an_unknown_kl_estimator_is_rejected():
    with pytest.raises(ValueError, match="kind is 'k4', but must be one of k1, k2, k3"):
        kl_estimate(P, Q, "k4")


def test_categorical_kl():
    shifted = torch.stack([P.log() + 7, Q.log()])  # logits need not be normalized
    torch.testing.assert_close(categorical_kl(shifted, Q.log().expand(2, 3)), torch.tensor([KL_P_Q, 0]).double())
    generator = torch.Generator().manual_seed(0)
    p, q = torch.randn(2, 5, 4, 7, generator=generator)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=p), torch.distributions.Categorical(logits=q)
    )
    torch.testing.assert_close(categorical_kl(p, q), expected)


def test_categorical_kl_with_impossible_actions():
    inf = torch.inf
    p = torch.tensor([[0.0, 0.0, -inf], [0.0, 0.0, -inf]], requires_grad=True)
    q = torch.tensor([[0.0, 0.0, -inf], [0.0, 0.0, 0.0]])
    kl = categorical_kl(p, q)
    kl.sum().backward()
    torch.testing.assert_close(kl.detach(), torch.tensor([0, math.log(1.5)]))
    assert p.grad.isfinite().all()
    assert categorical_kl(q[1], q[0]) == inf


def test_gaussian_kl_by_hand():
    zero, one = torch.zeros(1), torch.ones(1)
    assert gaussian_kl(one, zero, zero, zero).item() == pytest.approx(0.5)
    assert gaussian_kl(zero, one, zero, zero).item() == pytest.approx(-1 + 0.5 * (math.e**2 - 1))


def test_fixed_coefficient_ignores_the_kl():
    coefficient = FixedKL(0.05)
    coefficient.update(100.0, 512)
    assert coefficient.coef == 0.05


def test_adaptive_coefficient_by_hand():
    coefficient = AdaptiveKL(coef=0.2, target=6.0, horizon=10_000)
    coefficient.update(6.0, 512)
    assert coefficient.coef == 0.2
    coefficient.update(6.6, 1000)  # 10% above target
    assert coefficient.coef == pytest.approx(0.2 * (1 + 0.1 * 0.1))
    coefficient = AdaptiveKL(coef=0.2, target=6.0, horizon=10_000)
    coefficient.update(600.0, 1000)  # clipped at 20%
    assert coefficient.coef == pytest.approx(0.2 * 1.02)
    coefficient = AdaptiveKL(coef=0.2, target=6.0, horizon=10_000)
    coefficient.update(-1.0, 1000)
    assert coefficient.coef == pytest.approx(0.2 * 0.98)


def test_adaptive_coefficient_reaches_the_target_kl():
    """A process whose KL falls as the coefficient rises: kl = 1 / coef."""
    coefficient = AdaptiveKL(coef=10.0, target=4.0, horizon=1000)
    for _ in range(2000):
        coefficient.update(1 / coefficient.coef, 50)
    assert coefficient.coef == pytest.approx(0.25, rel=1e-6)


def test_proportional_integral_coefficient_by_hand():
    coefficient = ProportionalIntegralKL(coef=0.2, target=6.0, horizon=1000, gain=2.0)
    coefficient.update(3.0, 100)  # error -0.5, no rise yet
    assert coefficient.coef == pytest.approx(0.2 * math.exp(-0.05))
    coefficient.update(6.0, 100)  # error 0, a rise of 0.5
    assert coefficient.coef == pytest.approx(0.2 * math.exp(-0.05 + 2 * 0.5))
    coefficient.update(600.0, 100)  # error clipped to 1
    assert coefficient.coef == pytest.approx(0.2 * math.exp(-0.05 + 1.0 + 2 * 1.0 + 0.1))
    coefficient.update(-100.0, 0)  # error clipped to -1
    assert coefficient.coef == pytest.approx(0.2 * math.exp(-0.05 + 1.0 + 2.1 - 4.0))


def test_proportional_integral_control_overshoots_less_than_integral_control():
    """A KL that follows the equilibrium of its coefficient, 1 / coef^2, with a lag of 12 steps, from 0.

    So that the target 7 needs a coefficient of .378, and the first one, .1, would lead to a KL of 100.
    """

    def largest_and_last(coefficient):
        kl, history = 0.0, []
        for _ in range(120):
            kl += (1 / coefficient.coef**2 - kl) / 12
            coefficient.update(kl, 64)
            history.append(kl)
        return max(history), history[-1]

    largest, last = largest_and_last(ProportionalIntegralKL(coef=0.1, target=7.0, horizon=640))
    integral_only, _ = largest_and_last(ProportionalIntegralKL(coef=0.1, target=7.0, horizon=640, gain=0.0))
    assert largest < 0.6 * integral_only
    assert last == pytest.approx(7.0, rel=0.1)


def test_proportional_integral_control_goes_on_after_a_resume():
    """The next change depends on the last error, which older states do not have."""
    first, second = (ProportionalIntegralKL(0.3, 6.0, 1000) for _ in range(2))
    assert first.state_dict() == {"coef": 0.3}
    first.update(3.0, 64)
    second.load_state_dict(first.state_dict())
    for coefficient in (first, second):
        coefficient.update(9.0, 64)
    assert first == second
    second.load_state_dict({"coef": 0.5})
    assert second.error is None
    with pytest.raises(ValueError, match="error is nan, but must be finite"):
        second.load_state_dict({"coef": 0.5, "error": math.nan})


def test_penalty_beta_doubles_and_halves_outside_the_band():
    beta = PenaltyBeta(beta=1.0, target=0.03)
    for kl, expected in [(0.0451, 2.0), (0.0449, 2.0), (0.0201, 2.0), (0.0199, 1.0), (0.0, 0.5)]:
        beta.update(kl)
        assert beta.beta == expected


@pytest.mark.parametrize(
    "make",
    [
        lambda: FixedKL(0.3),
        lambda: AdaptiveKL(0.3, 6.0, 100),
        lambda: ProportionalIntegralKL(0.3, 6.0, 100),
        lambda: PenaltyBeta(0.3, 1.0),
    ],
)
def test_state_dict_round_trip_and_rejection_of_damaged_states(make):
    first, second = make(), make()
    name = "beta" if isinstance(first, PenaltyBeta) else "coef"
    setattr(first, name, 0.125)
    second.load_state_dict(first.state_dict())
    assert getattr(second, name) == 0.125
    with pytest.raises(ValueError, match=f"no '{name}'"):
        second.load_state_dict({"other": 1.0})
    with pytest.raises(ValueError, match=f"{name} is nan, but must be finite"):
        second.load_state_dict({name: math.nan})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FixedKL(-0.1), "coef is -0.1, but must be at least 0"),
        (lambda: FixedKL(math.inf), "coef is inf, but must be finite"),
        (lambda: AdaptiveKL(-0.1, 6, 100), "coef is -0.1, but must be at least 0"),
        (lambda: AdaptiveKL(0.1, 0, 100), "target is 0, but must be positive"),
        (lambda: AdaptiveKL(0.1, 6, -5), "horizon is -5, but must be positive"),
        (lambda: AdaptiveKL(0.1, 6, 100).update(math.nan, 10), "kl is nan, but must be finite"),
        (
            lambda: AdaptiveKL(0.1, 6, 100).update(6.0, 500),
            "n_episodes is 500, but must be .* below 5 [*] horizon = 500",
        ),
        (lambda: AdaptiveKL(0.1, 6, 100).update(6.0, -1), "n_episodes is -1, but must be at least 0"),
        (lambda: ProportionalIntegralKL(0.1, 6, 100, -1.0), "gain is -1.0, but must be at least 0"),
        (lambda: ProportionalIntegralKL(0.1, 6, 0), "horizon is 0, but must be positive"),
        (lambda: ProportionalIntegralKL(0.1, 6, 100).update(math.inf, 10), "kl is inf, but must be finite"),
        (lambda: ProportionalIntegralKL(0.1, 6, 100).update(6.0, -1), "n_episodes is -1, but must be at least 0"),
        (lambda: PenaltyBeta(0, 1), "beta is 0, but must be positive"),
        (lambda: PenaltyBeta(1, -1), "target is -1, but must be positive"),
        (lambda: PenaltyBeta(1, 1).update(math.inf), "kl is inf, but must be finite"),
    ],
)
def test_out_of_range_arguments_are_rejected(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_k3_is_exact_down_to_a_log_ratio_of_minus_twenty_and_linear_below():
    d = torch.tensor([-19.0, -20.0, -30.0], dtype=torch.float64)
    expected = [math.exp(19) - 20, math.exp(20) - 21, math.exp(20) - 31]
    torch.testing.assert_close(kl_estimate(d, torch.zeros_like(d), "k3"), torch.tensor(expected, dtype=torch.float64))


def test_gaussian_kl_of_two_dimensions_by_hand():
    """log(4 / 2) + (2^2 + (1 - 4)^2) / (2 * 4^2) - 1/2, and KL(N(0, 1) || N(1, 1)) = 1/2."""
    means, log_stds = torch.tensor([[1.0, 0.0], [4.0, 1.0]]), torch.tensor([[2.0, 1.0], [4.0, 1.0]]).log()
    kl = gaussian_kl(means[:1], log_stds[:1], means[1:], log_stds[1:])
    torch.testing.assert_close(kl, torch.tensor([math.log(2) + 13 / 32 - 0.5 + 0.5]))


def test_beta_doubles_and_halves_outside_the_interval_alone():
    for kl, expected in [(3.0, 5.0), (3.01, 10.0), (1.34, 5.0), (1.33, 2.5)]:
        beta = PenaltyBeta(beta=5.0, target=2.0)
        beta.update(kl)
        assert beta.beta == expected
    beta = PenaltyBeta(beta=5.0, target=3.0)
    beta.update(2.0)  # exactly target / 1.5
    assert beta.beta == 5


def test_a_step_without_episodes_leaves_the_coefficient():
    controller = AdaptiveKL(coef=0.1, target=6, horizon=100)
    controller.update(12.0, 0)
    assert controller.coef == 0.1


def test_proportional_integral_control_rejects_a_negative_coefficient_and_target():
    with pytest.raises(ValueError, match="coef is -1, but must be at least 0"):
        ProportionalIntegralKL(-1, 6, 100)
    with pytest.raises(ValueError, match="target is 0, but must be positive"):
        ProportionalIntegralKL(0.1, 0, 100)
