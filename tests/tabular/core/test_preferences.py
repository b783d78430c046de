"""Losses of preference pairs by hand."""

import math

import pytest
import torch

from tabular.core.preferences import dpo_loss, ipo_loss


def test_equal_models_give_log_2():
    zeros = torch.zeros(3)
    assert dpo_loss(zeros, zeros, beta=0.3).tolist() == pytest.approx([math.log(2)] * 3)
    assert dpo_loss(zeros, zeros, beta=0.3, label_smoothing=0.2).tolist() == pytest.approx([math.log(2)] * 3)


def test_dpo_of_worked_pairs():
    """beta h = 1, -1 and 0.5: log(1 + exp(-1)) = 0.313262, log(1 + e) = 1.313262, log(1 + exp(-0.5)) = 0.474077."""
    chosen, rejected = torch.tensor([1.5, -2.0, 0.0]), torch.tensor([-0.5, 0.0, -1.0])
    assert dpo_loss(chosen, rejected, beta=0.5).tolist() == pytest.approx([0.313262, 1.313262, 0.474077], abs=1e-6)
    # Smoothed by 0.1, the first is 0.9 * 0.313262 + 0.1 * 1.313262.
    assert float(dpo_loss(chosen, rejected, 0.5, 0.1)[0]) == pytest.approx(0.413262, abs=1e-6)


def test_ipo_of_worked_pairs():
    """The target of beta 0.25 is 2: h = 2 has no loss, h = 0.5 has 1.5 squared, h = -1 has 3 squared."""
    chosen, rejected = torch.tensor([1.5, 0.0, 0.0]), torch.tensor([-0.5, -0.5, 1.0])
    assert ipo_loss(chosen, rejected, beta=0.25).tolist() == [0.0, 2.25, 9.0]


def test_gradient_of_dpo_is_beta_times_the_probability_of_the_wrong_order():
    """Rafailov et al. (2023), section 4: the weight of a pair is sigmoid of the reward's error."""
    chosen = torch.tensor([0.7], requires_grad=True)
    rejected = torch.tensor([0.2], requires_grad=True)
    dpo_loss(chosen, rejected, beta=2.0).sum().backward()
    weight = 2.0 / (1 + math.exp(2.0 * 0.5))
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert float(chosen.grad) == pytest.approx(-weight)
    assert float(rejected.grad) == pytest.approx(weight)


def test_smoothing_has_a_finite_optimum():
    """The margin at which the gradient is 0 is that of a preference which is right with probability 1 - e."""
    margin = torch.tensor([math.log(0.8 / 0.2)], requires_grad=True)
    dpo_loss(margin, torch.zeros(1), beta=1.0, label_smoothing=0.2).sum().backward()
    assert margin.grad is not None
    assert float(margin.grad) == pytest.approx(0.0, abs=1e-7)


def test_far_apart_models_have_finite_losses():
    far = torch.tensor([1e4])
    assert float(dpo_loss(far, -far, beta=1.0)) == 0.0
    assert float(dpo_loss(-far, far, beta=1.0)) == pytest.approx(2e4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"beta": 0.0}, "beta is 0.0, but must be positive"),
        ({"beta": 1.0, "label_smoothing": 0.5}, "label_smoothing is 0.5, but must be below 0.5"),
        ({"beta": 1.0, "label_smoothing": -0.1}, "label_smoothing is -0.1, but must be at least 0"),
    ],
)
def test_values_out_of_range_are_rejected(arguments, message):
    with pytest.raises(ValueError, match=message):
        dpo_loss(torch.zeros(1), torch.zeros(1), **arguments)
    if "label_smoothing" not in arguments:
        with pytest.raises(ValueError, match=message):
            ipo_loss(torch.zeros(1), torch.zeros(1), **arguments)
