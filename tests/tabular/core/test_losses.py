import math

import pytest
import torch

from tabular.core.kl import categorical_kl
from tabular.core.losses import (
    aggregate,
    clipped_surrogate_loss,
    kl_penalty_surrogate_loss,
    policy_gradient_loss,
    value_loss,
)

REAL = torch.ones(4, dtype=torch.bool)


def ratios(*numbers):
    """New log-probabilities with these ratios to old ones of 0."""
    return torch.tensor(numbers, dtype=torch.float64).log().requires_grad_()


@pytest.fixture
def ragged():
    """[6, 5] rows of real lengths 5, 1, 3, 0, 2, 4."""
    generator = torch.Generator().manual_seed(0)
    logprobs, old_logprobs, advantages, values, old_values, returns, kl = torch.randn(
        7, 6, 5, generator=generator, dtype=torch.float64
    )
    mask = torch.arange(5) < torch.tensor([5, 1, 3, 0, 2, 4])[:, None]
    return {
        "logprobs": logprobs,
        "old_logprobs": old_logprobs,
        "advantages": advantages,
        "values": values,
        "old_values": old_values,
        "returns": returns,
        "kl": kl.abs(),
        "mask": mask,
    }


LOSSES = {
    "policy_gradient": lambda x, denom: policy_gradient_loss(x["logprobs"], x["advantages"], x["mask"], denom),
    "clipped": lambda x, denom: clipped_surrogate_loss(
        x["logprobs"], x["old_logprobs"], x["advantages"], x["mask"], denom
    ),
    "dual_clip": lambda x, denom: clipped_surrogate_loss(
        x["logprobs"], x["old_logprobs"], x["advantages"], x["mask"], denom, 0.2, 0.28, dual_clip=1.5
    ),
    "kl_penalty": lambda x, denom: kl_penalty_surrogate_loss(
        x["logprobs"], x["old_logprobs"], x["advantages"], x["kl"], 0.3, x["mask"], denom
    ),
    "value": lambda x, denom: value_loss(x["values"], x["old_values"], x["returns"], x["mask"], denom),
    "clipped_value": lambda x, denom: value_loss(x["values"], x["old_values"], x["returns"], x["mask"], denom, 0.2),
}


def run(name, x, denom):
    """Loss, metrics and the gradients with respect to every float input (zeros where none arrives)."""
    x = {key: tensor if key == "mask" else tensor.clone().requires_grad_() for key, tensor in x.items()}
    loss, metrics = LOSSES[name](x, denom)
    loss.backward()
    assert not any(metric.requires_grad or metric.shape for metric in metrics.values())
    grads = {key: torch.zeros_like(t) if t.grad is None else t.grad for key, t in x.items() if key != "mask"}
    return loss.detach(), metrics, grads


@pytest.mark.parametrize("name", LOSSES)
def test_microbatches_sum_to_the_minibatch(name, ragged):
    denom = ragged["mask"].sum()
    loss, metrics, grads = run(name, ragged, denom)
    parts = [run(name, {key: x[i : i + 2] for key, x in ragged.items()}, denom) for i in (0, 2, 4)]
    torch.testing.assert_close(sum(part[0] for part in parts), loss)
    for key, grad in grads.items():
        torch.testing.assert_close(torch.cat([part[2][key] for part in parts]), grad)
    for key, metric in metrics.items():
        values = [part[1][key] for part in parts]
        torch.testing.assert_close(max(values) if key.endswith("_max") else sum(values), metric)


@pytest.mark.parametrize("name", LOSSES)
def test_masked_nan_changes_nothing(name, ragged):
    denom = ragged["mask"].sum()
    poisoned = {key: x if key == "mask" else torch.where(ragged["mask"], x, torch.nan) for key, x in ragged.items()}
    clean, dirty = run(name, ragged, denom), run(name, poisoned, denom)
    torch.testing.assert_close(dirty, clean)
    assert all((grad[~ragged["mask"]] == 0).all() for grad in dirty[2].values())


@pytest.mark.parametrize("name", LOSSES)
def test_only_network_outputs_get_gradients(name, ragged):
    _, _, grads = run(name, ragged, ragged["mask"].sum())
    moved = {key for key, grad in grads.items() if grad.any()}
    assert moved == {"values"} if "value" in name else {"logprobs"} <= moved <= {"logprobs", "kl"}


def test_policy_gradient_by_hand():
    logprobs = torch.tensor([-1.0, -2.0, -3.0, -4.0], requires_grad=True)
    loss, metrics = policy_gradient_loss(logprobs, torch.tensor([2.0, -1.0, 0.5, 0.0]), REAL, 2)
    loss.backward()
    assert loss == (2 - 2 + 1.5) / 2
    assert logprobs.grad.tolist() == [-1, 0.5, -0.25, 0]
    assert metrics == {}


def test_clipped_surrogate_by_hand():
    logprobs = ratios(1.5, 0.5, 1.5, 0.5)
    advantages = torch.tensor([2.0, 2.0, -2.0, -2.0], dtype=torch.float64)
    loss, metrics = clipped_surrogate_loss(logprobs, torch.zeros(4, dtype=torch.float64), advantages, REAL, 4)
    loss.backward()
    # 1.2 * 2 (clipped), 0.5 * 2, 1.5 * -2, 0.8 * -2 (clipped)
    assert loss.item() == pytest.approx(-(2.4 + 1.0 - 3.0 - 1.6) / 4, abs=1e-12)
    assert logprobs.grad.tolist() == pytest.approx([0, -0.5 * 2 / 4, 1.5 * 2 / 4, 0], abs=1e-12)
    assert metrics["clip_fraction"] == 1  # all four lie outside the interval, though only two are held back
    assert metrics["ratio_mean"].item() == pytest.approx(1.0)
    assert metrics["ratio_max"].item() == pytest.approx(1.5)
    approx_kl = 0.5 * (2 * math.log(1.5) ** 2 + 2 * math.log(0.5) ** 2) / 4
    assert metrics["approx_kl"].item() == pytest.approx(approx_kl, abs=1e-12)


def test_clip_range_high_widens_only_the_upper_half():
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64)
    logprobs = ratios(1.25, 1.5, 0.75, 0.85)
    loss, metrics = clipped_surrogate_loss(
        logprobs, torch.zeros_like(logprobs), advantages, REAL, 1, clip_range=0.2, clip_range_high=0.3
    )
    assert loss.item() == pytest.approx(-(1.25 + 1.3 - 0.8 - 0.85), abs=1e-12)
    assert metrics["clip_fraction"] == 2


def test_dual_clip_bounds_the_loss_where_the_advantage_is_negative():
    advantages = torch.tensor([-1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    logprobs = ratios(5.0, 2.0, 5.0, 0.1)
    loss, _ = clipped_surrogate_loss(logprobs, torch.zeros_like(logprobs), advantages, REAL, 1, dual_clip=3)
    loss.backward()
    assert loss.item() == pytest.approx(-(-3 - 2 + 1.2 - 0.8), abs=1e-12)
    assert logprobs.grad.tolist() == pytest.approx([0, 2, 0, 0], abs=1e-12)


def test_at_ratio_one_the_gradient_is_the_policy_gradient(ragged):
    ragged["old_logprobs"] = ragged["logprobs"]
    denom = ragged["mask"].sum()
    expected = run("policy_gradient", ragged, denom)[2]["logprobs"]
    for name in ("clipped", "dual_clip", "kl_penalty"):
        _, metrics, grads = run(name, ragged, denom)
        torch.testing.assert_close(grads["logprobs"], expected)
        assert metrics["approx_kl"] == 0
        assert metrics["ratio_max"] == 1


def test_log_ratio_clamp_keeps_the_loss_finite():
    logprobs = torch.tensor([0.0, -500.0, 500.0, 1.0], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, -1.0, 1.0])
    loss, metrics = clipped_surrogate_loss(logprobs, torch.zeros(4), advantages, REAL, 4)
    loss.backward()
    assert loss.isfinite()
    assert logprobs.grad.isfinite().all()
    assert metrics["ratio_max"].item() == pytest.approx(math.exp(20))
    _, metrics = clipped_surrogate_loss(logprobs, torch.zeros(4), advantages, REAL, 4, log_ratio_clamp=2.0)
    assert metrics["ratio_max"].item() == pytest.approx(math.exp(2))


def test_a_batch_without_real_tokens_has_loss_zero(ragged):
    ragged["mask"] = torch.zeros_like(ragged["mask"])
    for name in LOSSES:
        loss, metrics, grads = run(name, ragged, 7)
        assert loss == 0
        assert all(metric == 0 for metric in metrics.values())
        assert not any(grad.any() for grad in grads.values())


def test_kl_penalty_by_hand():
    logprobs = ratios(1.5, 0.5, 1.0, 1.0)
    kl = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64, requires_grad=True)
    loss, metrics = kl_penalty_surrogate_loss(
        logprobs, torch.zeros_like(kl), torch.tensor([2.0, 1.0, -1.0, 0.0], dtype=torch.float64), kl, 10, REAL, 2
    )
    loss.backward()
    assert loss.item() == pytest.approx(-(3 + 0.5 - 1 + 0 - 10 * 1.0) / 2, abs=1e-12)
    assert kl.grad.tolist() == [5, 5, 5, 5]
    assert metrics["exact_kl"].item() == pytest.approx(0.5)


def test_gradient_of_the_kl_penalty_points_back_to_the_old_policy():
    generator = torch.Generator().manual_seed(0)
    old_logits, logits = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    logits.requires_grad_()
    zeros = torch.zeros(4, dtype=torch.float64)
    loss, _ = kl_penalty_surrogate_loss(
        logits.log_softmax(-1)[:, 0], zeros, zeros, categorical_kl(old_logits, logits), 1, REAL, 1
    )
    loss.backward()
    torch.testing.assert_close(logits.grad, logits.softmax(-1).detach() - old_logits.softmax(-1))


def test_value_loss_by_hand():
    values = torch.tensor([1.0, 3.0, 0.0, 2.0], requires_grad=True)
    old_values = torch.tensor([1.0, 2.0, 2.0, 2.5])
    returns = torch.tensor([2.0, 3.0, 3.0, 0.0])
    loss, metrics = value_loss(values, old_values, returns, REAL, 2)
    assert loss == 0.5 * (1 + 0 + 9 + 4) / 2
    assert metrics["clip_fraction"] == 0

    loss, metrics = value_loss(values, old_values, returns, REAL, 2, clip_range=0.5)
    loss.backward()
    # clipped values 1, 2.5, 1.5, 2: squared errors 1, 0.25, 2.25, 4
    assert loss == 0.5 * (1 + 0.25 + 9 + 4) / 2
    assert metrics["clip_fraction"] == 0.5  # only the second, over 2: clipping the third makes its error smaller
    assert values.grad.tolist() == [-0.5, 0, -1.5, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_range": -0.1}, "clip_range is -0.1, but must be at least 0"),
        ({"clip_range": math.nan}, "clip_range is nan, but must be at least 0"),
        ({"clip_range_high": -1.0}, "clip_range_high is -1.0, but must be at least 0"),
        ({"log_ratio_clamp": -1}, "log_ratio_clamp is -1, but must be at least 0"),
        ({"dual_clip": 1.0}, "dual_clip is 1.0, but must be above 1"),
    ],
)
def test_out_of_range_options_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        clipped_surrogate_loss(torch.zeros(4), torch.zeros(4), torch.zeros(4), REAL, 4, **options)


def test_negative_beta_and_negative_value_clip_range_are_rejected():
    zeros = torch.zeros(4)
    with pytest.raises(ValueError, match="beta is -1, but must be at least 0"):
        kl_penalty_surrogate_loss(zeros, zeros, zeros, zeros, -1, REAL, 4)
    with pytest.raises(ValueError, match=r"clip_range is -0\.2, but must be at least 0"):
        value_loss(zeros, zeros, zeros, REAL, 4, -0.2)


# -------------------------------------------------------------------------------------------------------------- weights

WEIGHTED = {
    "policy_gradient": lambda x, denom, w: policy_gradient_loss(
        x["logprobs"], x["advantages"], x["mask"], denom, weights=w
    ),
    "clipped": lambda x, denom, w: clipped_surrogate_loss(
        x["logprobs"], x["old_logprobs"], x["advantages"], x["mask"], denom, weights=w
    ),
    "kl_penalty": lambda x, denom, w: kl_penalty_surrogate_loss(
        x["logprobs"], x["old_logprobs"], x["advantages"], x["kl"], 0.3, x["mask"], denom, weights=w
    ),
    "value": lambda x, denom, w: value_loss(
        x["values"], x["old_values"], x["returns"], x["mask"], denom, 0.2, weights=w
    ),
}


def test_aggregate_by_hand():
    """Rows of three tokens and one. The mean of the rows' means is not the mean of the tokens."""
    x = torch.tensor([[1.0, 2.0, 6.0], [5.0, torch.nan, torch.inf]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert aggregate(x, mask, 4) == (1 + 2 + 6 + 5) / 4
    assert aggregate(x, mask, 7) == 14 / 7
    torch.testing.assert_close(
        aggregate(x, mask, 4, torch.tensor([[1 / 6], [1 / 2]])), torch.tensor(((1 + 2 + 6) / 3 + 5) / 2)
    )
    assert aggregate(x, mask, 4, torch.tensor([[0.5], [0.0]])) == 4.5
    assert aggregate(x, mask, 4, torch.tensor([[1.0, 0.0, 10.0], [2.0, 9.0, 9.0]])) == 1 + 60 + 10


@pytest.mark.parametrize("name", WEIGHTED)
def test_weights_of_one_over_the_denominator_are_the_mean(name, ragged):
    """In loss, gradient and metrics; the denominator is then the metrics' alone."""
    denom = ragged["mask"].sum()
    results = {}
    for key, weights in (("mean", None), ("weights", torch.full((6, 1), 1.0, dtype=torch.float64) / denom)):
        x = {k: t if k == "mask" else t.clone().requires_grad_() for k, t in ragged.items()}
        loss, metrics = WEIGHTED[name](x, denom, weights)
        loss.backward()
        results[key] = loss.detach(), metrics, (x["values"] if name == "value" else x["logprobs"]).grad
    torch.testing.assert_close(results["weights"], results["mean"])


@pytest.mark.parametrize("name", WEIGHTED)
def test_weighted_loss_is_the_weighted_sum_of_single_tokens_losses(name, ragged):
    """And the metrics stay means over tokens, whatever the weights."""
    generator = torch.Generator().manual_seed(1)
    weights = torch.rand(6, 5, generator=generator, dtype=torch.float64)
    denom = ragged["mask"].sum()
    loss, metrics = WEIGHTED[name](ragged, denom, weights)
    expected = torch.zeros((), dtype=torch.float64)
    for row, place in ragged["mask"].nonzero().tolist():
        alone = {k: t[row, place].reshape(1) for k, t in ragged.items()}
        expected += weights[row, place] * WEIGHTED[name](alone, 1, None)[0]
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(metrics, WEIGHTED[name](ragged, denom, None)[1])


@pytest.mark.parametrize("name", WEIGHTED)
def test_weighted_microbatches_sum_to_the_minibatch(name, ragged):
    """Each response counts alike: its own part needs its own tokens and the number of all responses."""
    denom = ragged["mask"].sum()
    weights = 1.0 / (5 * ragged["mask"].sum(-1, keepdim=True).clamp(min=1).double())
    whole, _ = WEIGHTED[name](ragged, denom, weights)
    parts = [
        WEIGHTED[name]({k: x[i : i + 2] for k, x in ragged.items()}, denom, weights[i : i + 2])[0] for i in (0, 2, 4)
    ]
    torch.testing.assert_close(sum(parts), whole)
    rows = [
        WEIGHTED[name]({k: x[i, :n] for k, x in ragged.items()}, n, None)[0]
        for i, n in enumerate(ragged["mask"].sum(-1).tolist())
        if n
    ]
    torch.testing.assert_close(whole, torch.stack(rows).mean())


def test_masked_nan_changes_no_weighted_loss(ragged):
    weights = torch.rand(6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    poisoned = {k: x if k == "mask" else torch.where(ragged["mask"], x, torch.nan) for k, x in ragged.items()}
    poisoned_weights = torch.where(ragged["mask"], weights, torch.nan)
    for loss in WEIGHTED.values():
        torch.testing.assert_close(loss(poisoned, 3, poisoned_weights)[0], loss(ragged, 3, weights)[0])


@pytest.mark.parametrize(
    "name", ["policy_gradient_loss", "clipped_surrogate_loss", "kl_penalty_surrogate_loss", "value_loss"]
)
def test_no_mask_equals_a_mask_of_all_true(name):
    """Loss, metrics and gradient, bit for bit."""
    from tabular.core import losses

    random = torch.Generator().manual_seed(0)
    x, old, other, kl = torch.randn(4, 3, 5, generator=random)
    more = {"kl_penalty_surrogate_loss": (kl.abs(), 0.5), "clipped_surrogate_loss": (), "value_loss": ()}.get(name)
    inputs = (other,) if more is None else (old, other, *more)
    results = []
    for mask in (None, torch.ones(3, 5, dtype=torch.bool)):
        x = x.detach().requires_grad_()
        clip = (0.2,) if name == "value_loss" else ()
        loss, metrics = getattr(losses, name)(x, *inputs, mask, 15, *clip)
        loss.backward()
        results.append({"loss": loss.detach(), "gradient": x.grad.clone(), **metrics})
        x.grad = None
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(results[0][key], results[1][key]) for key in results[0])


@pytest.mark.parametrize("loss", ["clip", "kl penalty"])
def test_the_log_ratio_is_clamped_from_both_sides(loss):
    logprobs = torch.tensor([-5.0, 5.0], dtype=torch.float64)
    old = torch.zeros_like(logprobs)
    advantages = torch.tensor([3.0, -1.0], dtype=torch.float64)  # both branches take the ratio itself
    if loss == "clip":
        result, metrics = clipped_surrogate_loss(logprobs, old, advantages, None, 2, 0.9, log_ratio_clamp=2)
        expected = -(3 * math.exp(-2) - math.exp(2)) / 2
    else:
        result, metrics = kl_penalty_surrogate_loss(logprobs, old, advantages, old, 1, None, 2, log_ratio_clamp=2)
        expected = -(3 * math.exp(-2) - math.exp(2)) / 2
    assert result.item() == pytest.approx(expected)
    assert metrics["ratio_max"].item() == pytest.approx(math.exp(2))
    assert metrics["ratio_mean"].item() == pytest.approx((math.exp(-2) + math.exp(2)) / 2)


def test_a_negative_clamp_is_rejected():
    with pytest.raises(ValueError, match="log_ratio_clamp is -1, but must be at least 0"):
        kl_penalty_surrogate_loss(ratios(1.0), torch.zeros(1).double(), *[torch.ones(1).double()] * 2, 1, None, 1, -1)


def test_a_ratio_on_the_edge_of_the_interval_is_not_clipped():
    one = torch.ones(3, dtype=torch.float64)
    assert clipped_surrogate_loss(0 * one, 0 * one, one, None, 3, clip_range=0)[1]["clip_fraction"] == 0


def test_values_that_fell_below_the_interval_are_clipped_too():
    """From 0 to -1 with a range of 0.2: the clipped value is -0.2. Its error of 1.44 / 2 counts for a return of -1.4,
    where it is the larger one, and the error of 4 / 2 counts for a return of 1."""

    def loss(value, old, target, clip_range=0.2):
        numbers = [torch.tensor([x], dtype=torch.float64) for x in (value, old, target)]
        result, metrics = value_loss(*numbers, None, 1, clip_range)
        return result.item(), metrics["clip_fraction"].item()

    assert loss(-1.0, 0.0, -1.4) == (pytest.approx(0.72), 1)
    assert loss(-1.0, 0.0, 1.0) == (pytest.approx(2), 0)
    assert loss(1.0, -1.0, 1.0) == (pytest.approx(1.8**2 / 2), 1)  # the sum of old and new value does not matter
    assert loss(3.0, 2.9, 7.0)[1] == 0
    assert loss(3.0, 0.0, 2.0, 1.0) == (0.5, 0)  # both errors are 1: neither is the larger one
