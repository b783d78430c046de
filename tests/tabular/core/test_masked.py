import math

import pytest
import torch

from tabular.core.masked import explained_variance, masked_mean, masked_sum, masked_var, masked_whiten, unit_scale

X = torch.tensor([[1.0, 2.0, torch.nan], [6.0, torch.inf, torch.nan]])
MASK = torch.tensor([[True, True, False], [True, False, False]])
NOTHING = torch.zeros(2, 3, dtype=torch.bool)


def test_moments_by_hand():
    assert masked_sum(X, MASK) == 9
    assert masked_mean(X, MASK) == 3
    assert masked_mean(X, MASK, 6) == 1.5
    assert masked_mean(X, MASK, torch.tensor(9)) == 1
    torch.testing.assert_close(masked_var(X, MASK), torch.tensor((4 + 1 + 9) / 3))
    torch.testing.assert_close(masked_var(X, MASK, unbiased=True), torch.tensor(7.0))


def test_no_real_entries_give_zero():
    assert masked_sum(X, NOTHING) == 0
    assert masked_mean(X, NOTHING) == 0
    assert masked_var(X, NOTHING) == 0
    assert masked_var(X, NOTHING, unbiased=True) == 0
    assert (masked_whiten(X, NOTHING) == 0).all()


@pytest.mark.parametrize(
    "function",
    [
        masked_sum,
        masked_mean,
        masked_var,
        lambda x, mask: (masked_whiten(x, mask) ** 3).sum(),
        lambda x, mask: (masked_whiten(x, mask, shift_mean=False) ** 3).sum(),
    ],
)
def test_masked_nan_reaches_neither_result_nor_gradient(function):
    x = X.clone().requires_grad_()
    real = X[MASK].requires_grad_()
    result = function(x, MASK)
    expected = function(real, torch.ones(3, dtype=torch.bool))
    result.backward()
    expected.backward()
    torch.testing.assert_close(result, expected)
    torch.testing.assert_close(x.grad[MASK], real.grad, atol=1e-6, rtol=1e-5)
    assert (x.grad[~MASK] == 0).all()


def test_parts_with_a_global_denominator_sum_to_the_whole():
    parts = [masked_mean(X[i : i + 1], MASK[i : i + 1], MASK.sum()) for i in range(2)]
    torch.testing.assert_close(sum(parts), masked_mean(X, MASK))


def test_whiten_centres_and_scales():
    whitened = masked_whiten(X, MASK)
    std = math.sqrt(14 / 3)
    torch.testing.assert_close(whitened, torch.tensor([[-2.0, -1, 0], [3, 0, 0]]) / std)
    assert masked_mean(whitened, MASK).abs() < 1e-6
    torch.testing.assert_close(masked_var(whitened, MASK), torch.tensor(1.0))


def test_whiten_without_shift_only_scales():
    whitened = masked_whiten(X, MASK, shift_mean=False)
    torch.testing.assert_close(whitened, torch.tensor([[1.0, 2, 0], [6, 0, 0]]) / math.sqrt(14 / 3))
    torch.testing.assert_close(masked_mean(whitened, MASK), torch.tensor(3 / math.sqrt(14 / 3)))


def test_whiten_of_a_single_entry():
    mask = torch.tensor([[False, True, False], [False, False, False]])
    assert masked_whiten(X, mask).tolist() == [[0, 0, 0], [0, 0, 0]]
    assert masked_whiten(X, mask, shift_mean=False).tolist() == [[0, 2, 0], [0, 0, 0]]


def test_explained_variance():
    targets = torch.tensor([1.0, 2.0, 3.0, 6.0])
    assert explained_variance(targets, targets) == 1
    assert explained_variance(targets + 5, targets) == 1  # a constant offset has no variance
    assert explained_variance(torch.zeros(4), targets) == 0
    torch.testing.assert_close(explained_variance(-targets, targets), torch.tensor(-3.0))
    # residuals 0, 0, 1, 0: variance 3/16, against 14/4
    predictions = torch.tensor([1.0, 2.0, 2.0, 6.0])
    torch.testing.assert_close(explained_variance(predictions, targets), torch.tensor(1 - (3 / 16) / (14 / 4)))


def test_explained_variance_reads_only_real_entries():
    predictions = torch.tensor([[1.0, 2.0, 2.0], [6.0, torch.nan, 100.0]])
    targets = torch.tensor([[1.0, 2.0, 3.0], [6.0, 7.0, torch.nan]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    torch.testing.assert_close(explained_variance(predictions, targets, mask), torch.tensor(1 - (3 / 16) / (14 / 4)))


@pytest.mark.parametrize("targets", [torch.full((7,), 0.1), torch.zeros(0)])
def test_explained_variance_without_variance_is_nan(targets):
    assert explained_variance(torch.arange(len(targets)).float(), targets).isnan()

    assert explained_variance(torch.ones(1, dtype=torch.float64), torch.ones(1, dtype=torch.float64)).isnan()
    double = torch.full((3,), 2.0, dtype=torch.float64)
    assert explained_variance(double, double).dtype == torch.float64


def test_without_a_mask_every_entry_is_real():
    x = torch.tensor([[1.0, 2.0], [3.0, 6.0]])
    everything = torch.ones_like(x, dtype=torch.bool)
    assert masked_mean(x, None) == 3
    assert masked_mean(torch.tensor([5.0]), None) == 5
    assert masked_mean(torch.zeros(0), None) == 0
    assert torch.equal(masked_whiten(x, None), masked_whiten(x, everything))


def test_entries_whose_variance_is_at_most_eps_are_not_scaled():
    for half, eps, factor in [(1.0, 1.0, 1.0), (2.0, 3.0, 1 / math.sqrt(7)), (2.0, 5.0, 1.0)]:
        x = torch.tensor([-half, half])
        everything = torch.ones(2, dtype=torch.bool)
        torch.testing.assert_close(unit_scale(x, everything, eps), torch.tensor(factor))
        torch.testing.assert_close(masked_whiten(x, everything, shift_mean=False, eps=eps), factor * x)
