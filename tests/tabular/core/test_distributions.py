import math

import pytest
import torch
from torch import distributions as D

from tabular.core.distributions import (
    categorical_entropy,
    categorical_logprob,
    categorical_sample,
    gaussian_entropy,
    gaussian_logprob,
    gaussian_sample,
    tanh_gaussian_logprob,
    tanh_gaussian_sample,
)


@pytest.fixture
def logits():
    return torch.randn(5, 4, 7, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def actions():
    return torch.randint(7, (5, 4), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def legal():
    mask = torch.rand(5, 4, 7, generator=torch.Generator().manual_seed(2)) > 0.5
    mask[..., 3] = True
    return mask


def test_categorical_by_hand():
    logits = torch.tensor([1.0, 2.0, 1.0]).log() + 5
    assert categorical_logprob(logits, torch.tensor(1)).item() == pytest.approx(math.log(0.5))
    assert categorical_entropy(logits).item() == pytest.approx(1.5 * math.log(2))
    mask = torch.tensor([True, False, True])
    assert categorical_logprob(logits, torch.tensor(0), mask).item() == pytest.approx(math.log(0.5))
    assert categorical_logprob(logits, torch.tensor(1), mask) == -torch.inf
    assert categorical_entropy(logits, mask).item() == pytest.approx(math.log(2))


def test_categorical_agrees_with_torch(logits, actions):
    reference = D.Categorical(logits=logits)
    torch.testing.assert_close(categorical_logprob(logits, actions), reference.log_prob(actions))
    torch.testing.assert_close(categorical_entropy(logits), reference.entropy())


def test_masked_actions_equal_a_smaller_action_set(logits, legal):
    """Values and gradients equal those of the categorical over the legal actions alone."""
    row, mask = logits[0, 0].clone().requires_grad_(), legal[0, 0]
    short = logits[0, 0][mask].requires_grad_()
    action = int(mask.nonzero()[0])
    (categorical_logprob(row, torch.tensor(action), mask) + categorical_entropy(row, mask)).backward()
    (categorical_logprob(short, torch.tensor(0)) + categorical_entropy(short)).backward()
    torch.testing.assert_close(row.grad[mask], short.grad)
    assert not mask.all()
    assert (row.grad[~mask] == 0).all()


def test_one_legal_action_has_entropy_zero_and_a_finite_gradient():
    logits = torch.tensor([1.0, 2.0], requires_grad=True)
    entropy = categorical_entropy(logits, torch.tensor([False, True]))
    entropy.backward()
    assert entropy == 0
    assert logits.grad.tolist() == [0, 0]


def test_no_legal_action_raises(logits, actions, legal):
    legal[2, 1] = False
    for function in (
        lambda: categorical_logprob(logits, actions, legal),
        lambda: categorical_entropy(logits, legal),
        lambda: categorical_sample(logits, legal),
    ):
        with pytest.raises(ValueError, match=r"no action in row \[2, 1\]"):
            function()


def test_sample_inverts_the_cumulative_distribution():
    logits = torch.tensor([0.2, 0.5, 0.3]).log().expand(6, 3)
    uniforms = torch.tensor([0.0, 0.19, 0.21, 0.69, 0.71, 1 - 2**-24])
    assert categorical_sample(logits, uniforms=uniforms).tolist() == [0, 0, 1, 1, 2, 2]
    mask = torch.tensor([False, True, False]).expand(6, 3)
    assert categorical_sample(logits, mask, uniforms=uniforms).tolist() == [1] * 6


@pytest.mark.parametrize("n_actions", [2, 10, 1000])
def test_sample_never_takes_an_action_of_probability_zero(n_actions):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(400, n_actions, generator=generator)
    mask = torch.rand(400, n_actions, generator=generator) > 0.5
    mask[:, n_actions // 2] = True
    mask[:, 0] = mask[:, -1] = n_actions == 2
    for uniform in (0.0, 0.5, 1 - 2**-24):
        actions = categorical_sample(logits, mask, uniforms=torch.full((400,), uniform))
        assert mask.gather(-1, actions[:, None]).all()


def test_a_row_of_nan_gives_an_action_whose_logprob_is_nan():
    logits = torch.tensor([[torch.nan, 0.0, 0.0], [0.0, -torch.inf, -torch.inf]])
    actions = categorical_sample(logits, uniforms=torch.tensor([0.5, 0.5]))
    assert actions.tolist() == [2, 0]
    assert torch.isnan(categorical_logprob(logits, actions)).tolist() == [True, False]


def test_sample_frequencies_and_generator():
    probabilities = torch.tensor([0.1, 0.0, 0.6, 0.3])
    logits = probabilities.log().expand(100_000, 4)
    actions = categorical_sample(logits, generator=torch.Generator().manual_seed(0))
    again = categorical_sample(logits, generator=torch.Generator().manual_seed(0))
    assert actions.equal(again)
    frequencies = actions.bincount(minlength=4) / len(actions)
    standard_errors = (probabilities * (1 - probabilities) / len(actions)).sqrt()
    assert ((frequencies - probabilities).abs() <= 4 * standard_errors).all()


@pytest.fixture
def gaussian():
    generator = torch.Generator().manual_seed(0)
    mean, actions = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64)
    return mean, torch.randn(3, generator=generator, dtype=torch.float64), actions


def test_gaussian_agrees_with_torch(gaussian):
    mean, log_std, actions = gaussian
    reference = D.Independent(D.Normal(mean, log_std.exp()), 1)
    torch.testing.assert_close(gaussian_logprob(mean, log_std, actions), reference.log_prob(actions))
    torch.testing.assert_close(gaussian_entropy(mean, log_std), reference.entropy())


def test_gaussian_by_hand():
    mean, log_std = torch.zeros(1, 2), torch.tensor([0.0, math.log(2)])
    expected = -0.5 * (1 + 1) - math.log(2) - math.log(2 * math.pi)
    assert gaussian_logprob(mean, log_std, torch.tensor([[1.0, 2.0]])).item() == pytest.approx(expected)
    assert gaussian_entropy(mean, log_std).item() == pytest.approx(math.log(2) + math.log(2 * math.pi) + 1)


def test_gaussian_sample_moments_and_gradients():
    mean = torch.full((100_000, 1), 3.0)
    log_std = torch.tensor([math.log(0.5)], requires_grad=True)
    sample = gaussian_sample(mean, log_std, torch.Generator().manual_seed(0))
    assert sample.mean().item() == pytest.approx(3, abs=4 * 0.5 / math.sqrt(100_000))
    assert sample.std().item() == pytest.approx(0.5, abs=4 * 0.5 / math.sqrt(200_000))
    (gradient,) = torch.autograd.grad(sample[0, 0], log_std)
    torch.testing.assert_close(gradient, (sample[0] - 3).detach())


def test_tanh_gaussian_agrees_with_torch_where_tanh_is_not_saturated(gaussian):
    mean, log_std, pre_tanh = gaussian
    reference = D.TransformedDistribution(D.Normal(mean, log_std.exp()), D.TanhTransform())
    expected = reference.log_prob(torch.tanh(pre_tanh)).sum(-1)
    torch.testing.assert_close(tanh_gaussian_logprob(mean, log_std, pre_tanh), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("u", [-40.0, -15.0, 0.0, 15.0, 40.0])
def test_tanh_correction_is_exact_when_saturated(u):
    """log(1 - tanh(u)^2) = -2 log cosh(u), and log cosh(u) = |u| + log((1 + e^-2|u|) / 2)."""
    pre_tanh = torch.tensor([[u]])
    zeros = torch.zeros(1, 1)
    correction = gaussian_logprob(zeros, zeros, pre_tanh) - tanh_gaussian_logprob(zeros, zeros, pre_tanh)
    expected = -2 * (abs(u) + math.log((1 + math.exp(-2 * abs(u))) / 2))
    assert correction.item() == pytest.approx(expected, abs=1e-4, rel=1e-6)


def test_tanh_gaussian_density_integrates_to_one():
    u = torch.linspace(-8, 8, 20_001, dtype=torch.float64)[:, None]
    density = tanh_gaussian_logprob(torch.full_like(u, 0.3), torch.tensor([-0.5], dtype=torch.float64), u).exp()
    assert torch.trapezoid(density, torch.tanh(u)[:, 0]).item() == pytest.approx(1, abs=1e-6)


def test_tanh_gaussian_sample():
    mean, log_std = torch.zeros(1000, 2), torch.tensor([0.0, 3.0])
    action, pre_tanh = tanh_gaussian_sample(mean, log_std, torch.Generator().manual_seed(0))
    assert action.equal(torch.tanh(pre_tanh))
    assert pre_tanh.equal(gaussian_sample(mean, log_std, torch.Generator().manual_seed(0)))


def test_functions_take_any_number_of_batch_axes():
    """[2, 3, 4] is two batches of [3, 4], and a single row is a batch of one."""
    random = torch.Generator().manual_seed(0)
    a, b, noise = torch.randn(3, 2, 3, 4, generator=random, dtype=torch.float64)
    uniforms = torch.rand(2, 3, generator=random, dtype=torch.float64)
    functions = [
        lambda i: categorical_sample(a[i], uniforms=uniforms[i]),
        lambda i: gaussian_logprob(a[i], b[i], noise[i]),
        lambda i: gaussian_entropy(a[i], b[i]),
        lambda i: tanh_gaussian_logprob(a[i], b[i], noise[i]),
    ]
    for function in functions:
        whole = function(slice(None))
        assert whole.shape == (2, 3)
        for i, j in [(0, 0), (1, 2)]:
            torch.testing.assert_close(whole[i, j], function((i, j)))


def test_samples_are_a_function_of_the_generator_in_double_precision():
    mean = torch.tensor([[1.0, -2.0]] * 5, dtype=torch.float64)
    log_std = torch.tensor([0.5, 0.1], dtype=torch.float64)
    noise = torch.randn(5, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    sample = gaussian_sample(mean, log_std, generator=torch.Generator().manual_seed(3))
    assert torch.equal(sample, mean + log_std.exp() * noise)
    logits = torch.zeros(2, 5, 9)
    uniforms = torch.rand(2, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    drawn = categorical_sample(logits, generator=torch.Generator().manual_seed(3))
    assert torch.equal(drawn, categorical_sample(logits, uniforms=uniforms))
