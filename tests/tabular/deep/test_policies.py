"""Policies: log-probabilities, entropies and KL divergences match the samples, and masks apply in every method."""

import math

import numpy as np
import pytest
import torch
from gymnasium import spaces

from tabular.core import distributions, kl
from tabular.deep.policies import (
    Categorical,
    Gaussian,
    MultiCategorical,
    TanhGaussian,
    make_policy,
)

BOX = spaces.Box(np.array([-1.0, 0.0], np.float32), np.array([1.0, 4.0], np.float32))
NO_MASK = None


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


POLICIES = {
    "categorical": (Categorical(spaces.Discrete(3)), torch.tensor([0.3, -0.5, 1.0])),
    "multi": (MultiCategorical(spaces.MultiDiscrete([2, 3])), torch.tensor([0.2, -0.1, 0.5, 0.0, -1.0])),
    "gaussian": (Gaussian(BOX), torch.tensor([0.3, -0.2, -0.5, 0.1])),
    "tanh": (TanhGaussian(BOX), torch.tensor([0.3, -0.2, -0.5, 0.1])),
}


@pytest.mark.parametrize("name", POLICIES)
def test_entropy_and_kl_agree_with_sample_means(name):
    policy, params = POLICIES[name]
    n = 200_000
    old, new = params.expand(n, -1), (params + 0.2).expand(n, -1)
    samples = policy.sample(old, NO_MASK, generator())
    logprobs = policy.logprob(old, samples, NO_MASK)
    entropy = policy.entropy(old, NO_MASK, generator(1))
    assert float(entropy.mean()) == pytest.approx(-float(logprobs.mean()), abs=0.02)
    sampled_kl = logprobs - policy.logprob(new, samples, NO_MASK)
    assert float(policy.kl(old, new, NO_MASK)[0]) == pytest.approx(float(sampled_kl.mean()), abs=0.01)
    assert float(policy.kl(old, old, NO_MASK)[0]) == pytest.approx(0, abs=1e-6)


def test_formulas_come_from_tabular_core():
    """The functions that the language trainer's losses call, not copies of them."""
    import tabular.deep.policies as module

    for name in ("categorical_logprob", "categorical_entropy", "categorical_sample", "gaussian_logprob"):
        assert getattr(module, name) is getattr(distributions, name)
    for name in ("gaussian_entropy", "tanh_gaussian_logprob", "tanh_gaussian_sample"):
        assert getattr(module, name) is getattr(distributions, name)
    assert module.categorical_kl is kl.categorical_kl


def test_masks_are_exact_when_sampling_and_in_every_formula():
    policy = Categorical(spaces.Discrete(3))
    logits, mask = torch.tensor([[0.0, 5.0, 0.0]]), torch.tensor([[True, False, True]])
    many = (logits.expand(1000, 3), mask.expand(1000, 3))
    assert set(policy.sample(*many, generator()).tolist()) == {0, 2}
    assert policy.mode(logits, mask).item() == 0
    actions = torch.tensor([2])
    assert policy.logprob(logits, actions, mask).item() == pytest.approx(math.log(0.5))
    assert policy.logprob(logits, torch.tensor([1]), mask).item() == -math.inf
    assert policy.entropy(logits, mask, generator()).item() == pytest.approx(math.log(2))
    # Logits of illegal actions do not contribute to the KL.
    assert policy.kl(logits, torch.tensor([[0.0, -7.0, 0.0]]), mask).item() == 0
    logits.requires_grad_()
    policy.logprob(logits, actions, mask).sum().backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.5, 0.0, 0.5]]))


@pytest.mark.parametrize("method", ["sample", "mode", "logprob", "entropy", "kl"])
def test_no_legal_action_raises(method):
    """A fill of -1e8 would give a uniform distribution over illegal actions."""
    policy, logits, mask = Categorical(spaces.Discrete(2)), torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.bool)
    calls = {
        "sample": lambda: policy.sample(logits, mask, generator()),
        "mode": lambda: policy.mode(logits, mask),
        "logprob": lambda: policy.logprob(logits, torch.tensor([0]), mask),
        "entropy": lambda: policy.entropy(logits, mask, generator()),
        "kl": lambda: policy.kl(logits, logits, mask),
    }
    with pytest.raises(ValueError, match="allows no action"):
        calls[method]()


def test_multi_discrete_sums_over_its_parts_and_splits_the_mask():
    policy = MultiCategorical(spaces.MultiDiscrete([2, 3]))
    params = torch.tensor([[0.1, 0.4, -1.0, 0.5, 0.0]])
    first, second = Categorical(spaces.Discrete(2)), Categorical(spaces.Discrete(3))
    actions, mask = torch.tensor([[1, 2]]), torch.tensor([[True, True, False, True, True]])
    expected = first.logprob(params[:, :2], actions[:, 0], None) + second.logprob(
        params[:, 2:], actions[:, 1], mask[:, 2:]
    )
    torch.testing.assert_close(policy.logprob(params, actions, mask), expected)
    assert policy.mode(params, mask).tolist() == [[1, 1]]


def test_clipping_applies_to_the_environment_action_and_not_to_the_log_probability():
    policy = Gaussian(BOX)
    samples = torch.tensor([[3.0, -2.0]])
    assert policy.to_env(samples).tolist() == [[1.0, 0.0]]
    params = torch.tensor([[0.0, 0.0, 0.0, 0.0]])
    of_sample = policy.logprob(params, samples, NO_MASK)
    of_clipped = policy.logprob(params, torch.from_numpy(policy.to_env(samples)), NO_MASK)
    assert of_sample.item() == pytest.approx(-6.5 - math.log(2 * math.pi))
    assert (of_clipped - of_sample).item() == pytest.approx(6.0)


def test_squashed_actions_are_scaled_to_the_bounds_and_log_probabilities_are_exact_when_saturated():
    policy = TanhGaussian(BOX)
    actions = policy.to_env(torch.tensor([[0.0, 0.0], [50.0, -50.0]]))
    np.testing.assert_allclose(actions, [[0, 2], [1, 0]], atol=1e-6)
    # 1 - tanh(20)^2 is 0 in floats: the log-probability cannot be computed from the action.
    logprob = policy.logprob(torch.tensor([20.0, 0.0, 0.0, 0.0]), torch.tensor([20.0, 0.0]), NO_MASK)
    assert logprob.item() == pytest.approx(-math.log(2 * math.pi) - 2 * (math.log(2) - 20), rel=1e-6)


def test_entropy_of_the_squashed_gaussian_falls_when_a_wide_one_widens():
    policy = TanhGaussian(BOX)
    wide = torch.tensor([0.0, 0.0, 3.0, 3.0]).expand(1000, 4).clone().requires_grad_()
    entropy = policy.entropy(wide, NO_MASK, generator()).mean()
    entropy.backward()
    # Widening a normal raises its entropy, but a squashed one piles up at the bounds.
    assert wide.grad[:, 2:].sum() < 0
    assert entropy.item() < float(Gaussian(BOX).entropy(wide.detach(), NO_MASK, generator()).mean()) - 3


def test_environment_actions_count_from_the_start_of_the_space():
    assert Categorical(spaces.Discrete(2, start=5)).to_env(torch.tensor([0, 1])).tolist() == [5, 6]
    assert MultiCategorical(spaces.MultiDiscrete([2, 2], start=[1, 3])).to_env(torch.tensor([[0, 1]])).tolist() == [
        [1, 4]
    ]


@pytest.mark.parametrize(
    ("space", "squash", "message"),
    [
        (spaces.Box(-np.inf, np.inf, (1,)), True, "no finite bounds"),
        (spaces.Discrete(2), True, "squash is for continuous"),
        (spaces.MultiBinary(3), False, "must be Discrete"),
        (spaces.Box(0, 255, (2,), np.uint8), False, "must be Discrete"),
    ],
)
def test_unsupported_action_spaces_are_rejected(space, squash, message):
    with pytest.raises(ValueError, match=message):
        make_policy(space, squash)


def test_continuous_policies_reject_a_mask():
    with pytest.raises(ValueError, match="is for discrete actions"):
        Gaussian(BOX).mode(torch.zeros(1, 4), torch.ones(1, 2, dtype=torch.bool))
