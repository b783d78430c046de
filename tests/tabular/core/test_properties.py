"""Properties of the core mathematics on inputs made by hypothesis: ragged masks, NaN in the padding, extreme numbers.

The examples are the same in every run (`derandomize`), and the smallest that fails is printed.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from tabular.core.distributions import categorical_entropy, categorical_logprob, categorical_sample
from tabular.core.kl import categorical_kl, gaussian_kl, kl_estimate
from tabular.core.losses import clipped_surrogate_loss, kl_penalty_surrogate_loss, policy_gradient_loss, value_loss
from tabular.core.masked import explained_variance, masked_mean, masked_sum, masked_var, masked_whiten, unit_scale
from tabular.core.returns import discounted_returns, gae, n_step_returns, td_errors
from tabular.core.schedules import cosine, linear
from tabular.core.statistics import bootstrap_interval, iqm, mean, median

examples = settings(
    derandomize=True,
    deadline=None,
    max_examples=50,
    database=None,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow],  # no test depends on the speed of the machine
)
fractions = st.floats(0, 1)


def numbers(shape: Any, low: float = -10, high: float = 10) -> Any:
    """Tensors of float64 between two bounds."""
    return arrays(np.float64, shape, elements=st.floats(low, high, allow_subnormal=False)).map(torch.from_numpy)


def tensors(count: int, low: float = -10, high: float = 10) -> Any:
    """Several tensors of one shape [B, T]."""
    return st.tuples(st.integers(1, 4), st.integers(1, 6)).flatmap(
        lambda shape: st.tuples(*[numbers(shape, low, high)] * count)
    )


def with_mask(count: int, low: float = -10, high: float = 10) -> Any:
    """Several tensors [B, T], and a mask with any gaps but at least one True."""
    return st.tuples(st.integers(1, 4), st.integers(1, 6)).flatmap(
        lambda shape: st.tuples(
            *[numbers(shape, low, high)] * count,
            arrays(np.bool_, shape).map(torch.from_numpy).filter(lambda mask: bool(mask.any())),
        )
    )


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


def padded(x: Tensor, mask: Tensor, width: int) -> Tensor:
    """NaN where the mask is False, and in `width` more columns."""
    fill = torch.full_like(x[:, :1], torch.nan).expand(-1, width)
    return torch.cat([torch.where(mask, x, torch.nan), fill], -1)


def wider(mask: Tensor, width: int) -> Tensor:
    return torch.nn.functional.pad(mask, (0, width))


# ------------------------------------------------------------------------------------------------------------ returns


@examples
@given(tensors(4), st.floats(0, 1))
def test_gae_at_lambda_one_is_the_return_less_the_value_and_at_zero_the_td_error(four, end):
    rewards, values, extra, more = four
    discounts = torch.where(more > 10 * end, 0, more.abs() / 10)  # some of them 0
    after = extra[:, 0]
    close(gae(rewards, values, discounts, 1.0, after), discounted_returns(rewards, discounts, after) - values)
    close(gae(rewards, values, discounts, 0.0, after), td_errors(rewards, values, discounts, after))


@examples
@given(tensors(2), fractions)
def test_a_return_is_the_sum_of_powers_of_gamma(pair, gamma):
    rewards, values = pair
    steps = torch.arange(rewards.shape[1])
    powers = torch.where(steps >= steps[:, None], gamma ** (steps - steps[:, None]).clamp_min(0).double(), 0)
    close(discounted_returns(rewards, torch.full_like(rewards, gamma)), rewards @ powers.T)
    # one that looks to the end of the row does not read the values
    n = rewards.shape[1]
    close(n_step_returns(rewards, values, torch.full_like(rewards, gamma), n), rewards @ powers.T)


@examples
@given(tensors(4), fractions, fractions, st.floats(-3, 3))
def test_gae_is_linear_in_rewards_and_values(four, gamma, lam, factor):
    rewards, values, more_rewards, more_values = four
    discounts = torch.full_like(rewards, gamma)
    both = gae(rewards + factor * more_rewards, values + factor * more_values, discounts, lam)
    close(both, gae(rewards, values, discounts, lam) + factor * gae(more_rewards, more_values, discounts, lam))


@examples
@given(with_mask(3), fractions, fractions, st.integers(0, 4), st.booleans())
def test_gae_with_a_mask_is_that_of_the_row_without_the_masked_steps(batch, gamma, lam, width, bootstrap):
    rewards, values, extra, mask = batch
    after = extra[:, 0] if bootstrap else None
    padded_rewards, padded_values = padded(rewards, mask, width), padded(values, mask, width)
    discounts = torch.full_like(padded_rewards, gamma)
    result = gae(padded_rewards, padded_values, discounts, lam, after, mask=wider(mask, width))
    for i, keep in enumerate(mask):
        if keep.any():
            alone = gae(
                rewards[i][keep],
                values[i][keep],
                torch.full_like(rewards[i][keep], gamma),
                lam,
                None if after is None else after[i],
            )
            close(result[i, : len(keep)][keep], alone)
    assert bool((result[~wider(mask, width)] == 0).all())


@examples
@given(tensors(2), fractions, st.integers(0, 5))
def test_nothing_passes_the_end_of_an_episode(pair, lam, place):
    rewards, values = pair
    place = place % rewards.shape[1]
    discounts = torch.full_like(rewards, 0.9)
    discounts[:, place] = 0
    broken_rewards, broken_values = rewards.clone(), values.clone()
    broken_rewards[:, place + 1 :] = torch.nan
    broken_values[:, place + 1 :] = torch.nan
    until = slice(0, place + 1)
    for result, expected in (
        (gae(broken_rewards, broken_values, discounts, lam), gae(rewards, values, discounts, lam)),
        (discounted_returns(broken_rewards, discounts), discounted_returns(rewards, discounts)),
        (n_step_returns(broken_rewards, broken_values, discounts, 2), n_step_returns(rewards, values, discounts, 2)),
    ):
        close(result[:, until], expected[:, until])


# ------------------------------------------------------------------------------------------------------------- losses

LOSSES = {
    "policy gradient": lambda x, y, a, b, mask, denom: policy_gradient_loss(x, a, mask, denom),
    "clip": lambda x, y, a, b, mask, denom: clipped_surrogate_loss(x, y, a, mask, denom, dual_clip=3.0),
    "kl penalty": lambda x, y, a, b, mask, denom: kl_penalty_surrogate_loss(x, y, a, x + b, 0.5, mask, denom),
    "value": lambda x, y, a, b, mask, denom: value_loss(x, y, a, mask, denom, clip_range=0.2),
}


def with_gradient(name: str, tensors: tuple[Tensor, ...], mask: Tensor, denom: Any) -> tuple[Tensor, dict, Tensor]:
    x = tensors[0].clone().requires_grad_()
    loss, metrics = LOSSES[name](x, *tensors[1:], mask, denom)
    (gradient,) = torch.autograd.grad(loss, x)
    return loss.detach(), metrics, gradient


@pytest.mark.parametrize("name", LOSSES)
@examples
@given(batch=with_mask(4, -3, 3), width=st.integers(0, 4))
def test_padding_of_any_width_and_content_changes_no_loss_metric_or_gradient(name, batch, width):
    *four, mask = batch
    denom = mask.sum()
    loss, metrics, gradient = with_gradient(name, tuple(torch.where(mask, x, 0) for x in four), mask, denom)
    wide = tuple(padded(x, mask, width) for x in four)
    wide_loss, wide_metrics, wide_gradient = with_gradient(name, wide, wider(mask, width), denom)
    close(wide_loss, loss)
    for key, value in metrics.items():
        close(wide_metrics[key], value)
    close(wide_gradient[:, : mask.shape[1]], gradient)
    assert bool((wide_gradient[~wider(mask, width)] == 0).all())


@pytest.mark.parametrize("name", LOSSES)
@examples
@given(batch=with_mask(4, -3, 3), cut=st.integers(0, 4))
def test_losses_gradients_and_metrics_of_microbatches_sum_to_those_of_the_whole(name, batch, cut):
    *four, mask = batch
    denom = mask.sum()
    whole = with_gradient(name, tuple(four), mask, denom)
    rows = [rows for rows in (slice(0, cut), slice(cut, None)) if len(mask[rows])]
    parts = [with_gradient(name, tuple(x[part] for x in four), mask[part], denom) for part in rows]
    close(sum(part[0] for part in parts), whole[0])
    close(torch.cat([part[2] for part in parts]), whole[2])
    for key, value in whole[1].items():
        values = [part[1][key] for part in parts]
        assert value.dtype == whole[0].dtype
        close(max(values) if key.endswith("_max") else sum(values), value)


@examples
@given(with_mask(3, -3, 3), st.floats(0, 0.9), st.floats(1.01, 5))
def test_clipping_never_lowers_a_loss_and_dual_clip_never_raises_it(batch, clip_range, dual_clip):
    new, old, third, mask = batch
    denom = mask.sum()

    def surrogate(**options: Any) -> float:
        return float(clipped_surrogate_loss(new, old, third, mask, denom, **options)[0])

    clipped = surrogate(clip_range=clip_range)
    unclipped = float(masked_mean(-(new - old).exp() * third, mask, denom))
    assert clipped >= unclipped - 1e-9
    assert surrogate(clip_range=clip_range, dual_clip=dual_clip) <= clipped + 1e-9
    assert surrogate(clip_range=clip_range, clip_range_high=1e3) <= clipped + 1e-9
    clipped_value = value_loss(new, old, third, mask, denom, clip_range)[0]
    assert clipped_value >= value_loss(new, old, third, mask, denom)[0] - 1e-9


@examples
@given(with_mask(2, -3, 3))
def test_the_gradient_at_ratio_one_is_the_policy_gradient(batch):
    logprobs, advantages, mask = batch
    x = logprobs.clone().requires_grad_()
    (clipped,) = torch.autograd.grad(clipped_surrogate_loss(x, logprobs, advantages, mask, mask.sum())[0], x)
    (plain,) = torch.autograd.grad(policy_gradient_loss(x, advantages, mask, mask.sum())[0], x)
    close(clipped, plain)


# ------------------------------------------------------------------------------------------------------- masked moments


@examples
@given(with_mask(1), st.integers(0, 4))
def test_moments_are_numpy_s_of_the_real_entries(batch, width):
    x, mask = batch
    wide, wide_mask = padded(x, mask, width), wider(mask, width)
    real = x[mask].numpy()
    close(masked_sum(wide, wide_mask), torch.tensor(real.sum()))
    close(masked_mean(wide, wide_mask), torch.tensor(real.mean()))
    close(masked_var(wide, wide_mask), torch.tensor(real.var()))
    if len(real) > 1:
        close(masked_var(wide, wide_mask, unbiased=True), torch.tensor(real.var(ddof=1)))


@examples
@given(with_mask(1), st.integers(0, 4), st.floats(-5, 5), st.floats(0.5, 5))
def test_whitening_has_mean_zero_and_variance_one_and_forgets_shift_and_scale(batch, width, shift, factor):
    x, mask = batch
    assume(float(masked_var(x, mask)) > 1e-2)
    wide, wide_mask = padded(x, mask, width), wider(mask, width)
    white = masked_whiten(wide, wide_mask)
    assert float(masked_mean(white, wide_mask)) == pytest.approx(0, abs=1e-9)
    assert float(masked_var(white, wide_mask)) == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(masked_whiten(shift + factor * wide, wide_mask), white, atol=1e-5, rtol=1e-5)
    assert bool((white[~wide_mask] == 0).all())
    scaled = masked_whiten(wide, wide_mask, shift_mean=False)
    assert bool((scaled[wide_mask].sign() == x[mask].sign()).all())
    assert float(masked_var(scaled, wide_mask)) == pytest.approx(1, abs=1e-5)
    close(scaled[wide_mask], x[mask] * unit_scale(x, mask))


@examples
@given(with_mask(2), st.integers(0, 4))
def test_explained_variance_is_at_most_one_which_perfect_predictions_have(batch, width):
    predictions, targets, mask = batch
    assume(float(masked_var(targets, mask)) > 1e-2)
    wide = padded(targets, mask, width)
    assert float(explained_variance(wide, wide, wider(mask, width))) == 1
    assert float(explained_variance(padded(predictions, mask, width), wide, wider(mask, width))) <= 1 + 1e-9
    constant = torch.full_like(targets, 0.5)
    assert float(explained_variance(constant, targets, mask)) == pytest.approx(0, abs=1e-9)


# ----------------------------------------------------------------------------------------- divergences, distributions


@examples
@given(tensors(2, -100, 100))
def test_k2_and_k3_are_never_negative_and_zero_where_the_policies_agree(pair):
    logprobs, ref_logprobs = pair
    for kind in ("k2", "k3"):
        estimate = kl_estimate(logprobs, ref_logprobs, kind)
        assert bool((estimate >= 0).all())
        assert bool(estimate.isfinite().all())
    for kind in ("k1", "k2", "k3"):
        assert bool((kl_estimate(logprobs, logprobs, kind) == 0).all())


@examples
@given(tensors(2, -5, 5), st.floats(-50, 50))
def test_exact_kl_is_never_negative_and_zero_for_equal_distributions_alone(pair, shift):
    p, q = pair
    kl = categorical_kl(p, q)
    assert bool((kl >= -1e-12).all())
    close(categorical_kl(p, p + shift), torch.zeros_like(kl))
    differs = (p.softmax(-1) - q.softmax(-1)).abs().sum(-1)
    assert bool((kl >= differs**2 / 2 - 1e-12).all())  # Pinsker's inequality: equal to 0 only if they are equal
    for kind in ("k1", "k3"):  # unbiased
        p_logprobs, q_logprobs = p.log_softmax(-1), q.log_softmax(-1)
        close((p_logprobs.exp() * kl_estimate(p_logprobs, q_logprobs, kind)).sum(-1), kl)


@examples
@given(tensors(4, -2, 2))
def test_gaussian_kl_is_torch_s_never_negative_and_zero_for_equal_distributions(four):
    p_mean, p_log_std, q_mean, q_log_std = four
    kl = gaussian_kl(*four)
    normals = torch.distributions.Normal(p_mean, p_log_std.exp()), torch.distributions.Normal(q_mean, q_log_std.exp())
    close(kl, torch.distributions.kl_divergence(*normals).sum(-1))
    assert bool((kl >= -1e-9).all())
    close(gaussian_kl(p_mean, p_log_std, p_mean, p_log_std), torch.zeros_like(kl))


@examples
@given(with_mask(1, -20, 20), st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
def test_categorical_samples_are_legal_and_rise_with_the_uniform(batch, first, second):
    logits, legal = batch
    legal[:, 0] |= ~legal.any(-1)
    low, high = sorted((first, second))
    draws = [
        categorical_sample(logits, legal, uniforms=torch.full((len(logits),), u, dtype=torch.float64))
        for u in (low, high)
    ]
    assert bool(legal.gather(-1, draws[0][:, None]).all())
    assert bool((draws[0] <= draws[1]).all())
    entropy = categorical_entropy(logits, legal)
    assert bool((entropy >= -1e-9).all())
    assert bool((entropy <= legal.sum(-1).double().log() + 1e-9).all())
    every = [categorical_logprob(logits, torch.full_like(draws[0], a), legal) for a in range(logits.shape[1])]
    close(torch.stack(every).exp().sum(0), torch.ones_like(entropy))


# --------------------------------------------------------------------------------------------- statistics, schedules


@examples
@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_statistics_lie_inside_the_sample_and_forget_its_order(values, random):
    shuffled = values.copy()
    random.shuffle(shuffled)
    for statistic in (mean, median, iqm):
        assert min(values) - 1e-9 <= statistic(values) <= max(values) + 1e-9
        assert statistic(shuffled) == pytest.approx(statistic(values), abs=1e-9)
        interval = bootstrap_interval(values, statistic, resamples=200)
        assert min(values) - 1e-9 <= interval.low <= interval.high <= max(values) + 1e-9
        narrower = bootstrap_interval(values, statistic, confidence=0.5, resamples=200)
        assert interval.low <= narrower.low <= narrower.high <= interval.high
    assert median(values) == pytest.approx(np.median(values), abs=1e-9)


@examples
@given(st.floats(-10, 10), st.floats(-10, 10), st.integers(1, 50), st.integers(0, 100))
def test_schedules_run_from_start_to_end_and_stay_between(start, end, total, step):
    for schedule in (linear(start, end, total), cosine(start, end, total)):
        assert schedule(0) == pytest.approx(start)
        assert schedule(total) == pytest.approx(end)
        assert min(start, end) - 1e-9 <= schedule(step) <= max(start, end) + 1e-9
        assert abs(schedule(step + 1) - end) <= abs(schedule(step) - end) + 1e-9
        assert math.isfinite(schedule(step))
