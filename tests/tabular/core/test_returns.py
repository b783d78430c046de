import pytest
import torch

from tabular.core.returns import discounted_returns, gae, n_step_returns, td_errors

REWARDS = torch.tensor([1.0, 2.0, 3.0])
VALUES = torch.tensor([10.0, 20.0, 30.0])
ENDS = torch.tensor([0.5, 0.5, 0.0])
NO_END = torch.tensor([0.5, 0.5, 0.5])
BOOTSTRAP = torch.tensor(40.0)


@pytest.fixture
def batch():
    """Random [3, 4, 9] rows, some of which hold several episodes, in float64."""
    generator = torch.Generator().manual_seed(0)
    rewards, values = torch.randn(2, 3, 4, 9, generator=generator, dtype=torch.float64)
    no_end = torch.rand(3, 4, 9, generator=generator) > 0.2
    discounts = torch.where(no_end, 0.9, 0.0).double()
    return rewards, values, discounts, torch.randn(3, 4, generator=generator, dtype=torch.float64)


def assert_equal(actual, expected):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), atol=1e-12, rtol=0)


def test_discounted_returns_by_hand():
    assert_equal(discounted_returns(REWARDS, ENDS), [2.75, 3.5, 3])
    assert_equal(discounted_returns(REWARDS, NO_END, BOOTSTRAP), [7.75, 13.5, 23])
    assert_equal(discounted_returns(REWARDS, NO_END), [2.75, 3.5, 3])
    assert_equal(discounted_returns(REWARDS, ENDS, BOOTSTRAP), [2.75, 3.5, 3])  # a discount of 0 cuts off what follows
    assert_equal(discounted_returns(REWARDS, torch.tensor([0.5, 0.0, 0.5]), BOOTSTRAP), [2, 2, 23])  # two episodes


def test_td_errors_by_hand():
    assert_equal(td_errors(REWARDS, VALUES, ENDS), [1, -3, -27])
    assert_equal(td_errors(REWARDS, VALUES, NO_END, BOOTSTRAP), [1, -3, -7])


def test_n_step_returns_by_hand():
    assert_equal(n_step_returns(REWARDS, VALUES, NO_END, 1, BOOTSTRAP), [11, 17, 23])
    assert_equal(
        n_step_returns(REWARDS, VALUES, NO_END, 2, BOOTSTRAP), [1 + 0.5 * 2 + 0.25 * 30, 2 + 1.5 + 0.25 * 40, 23]
    )
    assert_equal(n_step_returns(REWARDS, VALUES, torch.tensor([0.5, 0.0, 0.5]), 2, BOOTSTRAP), [2, 2, 23])


def test_gae_by_hand():
    # decay 0.5 * 0.5; deltas 1, -3, -27
    assert_equal(gae(REWARDS, VALUES, ENDS, 0.5), [1 + 0.25 * (-3 - 0.25 * 27), -3 - 0.25 * 27, -27])


def test_gae_is_the_naive_double_loop(batch):
    rewards, values, discounts, after = batch
    lam, steps = 0.8, rewards.shape[-1]
    next_values = torch.cat([values[..., 1:], after[..., None]], -1)
    expected = torch.zeros_like(rewards)
    for t in range(steps):
        weight = torch.ones_like(after)
        for k in range(t, steps):
            expected[..., t] += weight * (rewards + discounts * next_values - values)[..., k]
            weight = weight * discounts[..., k] * lam
    assert_equal(gae(rewards, values, discounts, lam, after), expected)


def test_identities(batch):
    rewards, values, discounts, after = batch
    monte_carlo = discounted_returns(rewards, discounts, after)
    assert_equal(gae(rewards, values, discounts, 1, after), monte_carlo - values)
    assert_equal(gae(rewards, values, discounts, 0, after), td_errors(rewards, values, discounts, after))
    assert_equal(
        n_step_returns(rewards, values, discounts, 1, after) - values, td_errors(rewards, values, discounts, after)
    )
    assert_equal(n_step_returns(rewards, values, discounts, rewards.shape[-1], after), monte_carlo)
    assert_equal(n_step_returns(rewards, values, discounts, 10_000, after), monte_carlo)
    assert_equal(gae(rewards, torch.zeros_like(values), discounts, 1), discounted_returns(rewards, discounts))


def test_gae_is_the_lambda_mixture_of_n_step_returns(batch):
    rewards, values, _, after = batch
    lam, steps = 0.7, rewards.shape[-1]
    no_end = torch.full_like(rewards, 0.9)
    mixture = (
        sum(
            (1 - lam) * lam ** (n - 1) * n_step_returns(rewards, values, no_end, n, after)[..., 0]
            for n in range(1, steps)
        )
        + lam ** (steps - 1) * n_step_returns(rewards, values, no_end, steps, after)[..., 0]
    )
    assert_equal(gae(rewards, values, no_end, lam, after)[..., 0], mixture - values[..., 0])


def test_scaling_rewards_and_values_scales_the_rest(batch):
    rewards, values, discounts, after = batch
    assert_equal(
        gae(4 * rewards, 4 * values, discounts, 0.95, 4 * after), 4 * gae(rewards, values, discounts, 0.95, after)
    )


@pytest.mark.parametrize("garbage", [0.0, 1e30, torch.nan, torch.inf])
def test_padding_changes_nothing(batch, garbage):
    rewards, values, discounts, _ = batch
    discounts[..., -1] = 0
    padding = torch.full((3, 4, 5), garbage, dtype=torch.float64)

    def pad(x, columns=padding):
        return torch.cat([x, columns], -1)

    padded = pad(rewards), pad(values), pad(discounts, torch.zeros_like(padding))
    after = torch.full((3, 4), garbage, dtype=torch.float64)
    steps = rewards.shape[-1]
    assert_equal(gae(*padded, 0.95, after)[..., :steps], gae(rewards, values, discounts, 0.95))
    assert_equal(n_step_returns(*padded, 3, after)[..., :steps], n_step_returns(rewards, values, discounts, 3))
    assert_equal(discounted_returns(padded[0], padded[2], after)[..., :steps], discounted_returns(rewards, discounts))


def test_two_episodes_in_a_row_do_not_influence_each_other(batch):
    rewards, values, discounts, after = batch
    discounts = torch.full_like(discounts, 0.9)
    discounts[..., 3] = 0
    both = gae(rewards, values, discounts, 0.95, after)
    assert_equal(both[..., :4], gae(rewards[..., :4], values[..., :4], discounts[..., :4], 0.95))
    assert_equal(both[..., 4:], gae(rewards[..., 4:], values[..., 4:], discounts[..., 4:], 0.95, after))


def test_truncation_inside_a_row_is_bootstrapped_through_its_reward(batch):
    """Folding gamma * V(final observation) into the reward equals a row that ends there with a bootstrap value."""
    rewards, values, _, after = batch
    discounts = torch.full_like(rewards, 0.9)
    alone = gae(rewards[..., :4], values[..., :4], discounts[..., :4], 0.95, after)
    discounts[..., 3] = 0
    rewards = rewards.clone()
    rewards[..., 3] += 0.9 * after
    assert_equal(gae(rewards, values, discounts, 0.95)[..., :4], alone)


def test_lambda_may_differ_by_row(batch):
    rewards, values, discounts, after = batch
    lam = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)[:, None, None]
    mixed = gae(rewards, values, discounts, lam, after)
    for i, number in enumerate([0.0, 0.5, 1.0]):
        assert_equal(mixed[i], gae(rewards[i], values[i], discounts[i], number, after[i]))


def test_gradient_of_the_returns():
    rewards = REWARDS.clone().requires_grad_()
    discounted_returns(rewards, torch.tensor([0.5, 0.0, 0.5])).sum().backward()
    assert_equal(rewards.grad, [1, 1.5, 1])


def test_n_must_be_positive():
    with pytest.raises(ValueError, match="n is 0, but must be at least 1"):
        n_step_returns(REWARDS, VALUES, ENDS, 0)


# --------------------------------------------------------------------------------------------------------- masked steps


def test_gae_skips_masked_steps_by_hand():
    """Two real steps with masked steps before, between and after them: deltas 1 + 20 / 2 - 10 = 1 and 2 - 20 = -18."""
    mask = torch.tensor([False, True, False, False, True, False])
    rewards = torch.tensor([7.0, 1.0, 7.0, 7.0, 2.0, 7.0])
    values = torch.tensor([9.0, 10.0, 9.0, 9.0, 20.0, 9.0])
    discounts = torch.tensor([0.9, 0.5, 0.9, 0.9, 0.0, 0.9])
    assert_equal(gae(rewards, values, discounts, 0.5, mask=mask), [0, 1 - 0.25 * 18, 0, 0, -18, 0])


def rows_with_masked_steps(seed):
    """Random rows of 12 steps, a random part of them masked and nan there; every row has a real step."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(6, 12, generator=generator) < 0.6
    mask[torch.arange(6), torch.randint(12, (6,), generator=generator)] = True
    rewards, values = torch.randn(2, 6, 12, generator=generator, dtype=torch.float64)
    discounts = torch.where(torch.rand(6, 12, generator=generator) < 0.8, 0.9, 0.0).double()
    after = torch.randn(6, generator=generator, dtype=torch.float64)
    rewards, values, discounts = (torch.where(mask, x, torch.nan) for x in (rewards, values, discounts))
    return rewards, values, discounts, after, mask


def end(discounts, mask):
    """The same discounts, with 0 on each row's last real step."""
    last = mask.shape[1] - 1 - mask.flip(-1).int().argmax(-1, keepdim=True)
    return discounts.scatter(1, last, 0.0)


def naive(rewards, values, discounts, lam, after):
    """The definition, for one row without masked steps: a double loop over lists."""
    values = [*values, after]
    advantages = []
    for t in range(len(rewards)):
        total, weight = 0.0, 1.0
        for k in range(t, len(rewards)):
            total += weight * (rewards[k] + discounts[k] * values[k + 1] - values[k])
            weight *= discounts[k] * lam
        advantages.append(total)
    return advantages


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("lam", [0.0, 0.7, 1.0])
def test_gae_with_masked_steps_is_a_naive_loop_over_the_real_steps(seed, lam):
    rewards, values, discounts, _, mask = rows_with_masked_steps(seed)
    discounts = end(discounts, mask)
    actual = gae(rewards, values, discounts, lam, mask=mask)
    for row, keep in enumerate(mask):
        real = [x[row][keep].tolist() for x in (rewards, values, discounts)]
        assert_equal(actual[row][keep], naive(*real, lam, 0.0))
        assert_equal(actual[row][~keep], [0.0] * int((~keep).sum()))


@pytest.mark.parametrize("seed", range(3))
def test_identities_hold_with_masked_steps(seed):
    """Lambda 0 is the TD errors of the real steps, lambda 1 their Monte Carlo returns less the values."""
    rewards, values, discounts, _, mask = rows_with_masked_steps(seed)
    discounts = end(discounts, mask)
    td, monte_carlo = (gae(rewards, values, discounts, lam, mask=mask) for lam in (0, 1))
    for row, keep in enumerate(mask):
        r, v, d = (x[row][keep] for x in (rewards, values, discounts))
        assert_equal(td[row][keep], td_errors(r, v, d))
        assert_equal(monte_carlo[row][keep], discounted_returns(r, d) - v)


@pytest.mark.parametrize("bootstrap", [False, True])
def test_mask_of_all_true_equals_no_mask(batch, bootstrap):
    rewards, values, discounts, after = batch
    last = after if bootstrap else None
    full = torch.ones_like(rewards, dtype=torch.bool)
    assert torch.equal(gae(rewards, values, discounts, 0.8, last, full), gae(rewards, values, discounts, 0.8, last))


@pytest.mark.parametrize("seed", range(3))
def test_bootstrap_value_follows_the_last_real_step(seed):
    rewards, values, discounts, after, mask = rows_with_masked_steps(seed)
    actual = gae(rewards, values, discounts, 0.7, after, mask)
    for row, keep in enumerate(mask):
        real = [x[row][keep].tolist() for x in (rewards, values, discounts)]
        assert_equal(actual[row][keep], naive(*real, 0.7, float(after[row])))


def test_lambda_per_step_stays_with_its_step_when_steps_are_masked():
    rewards, values, discounts, _, mask = rows_with_masked_steps(0)
    discounts = end(discounts, mask)
    lam = torch.rand(6, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    actual = gae(rewards, values, discounts, torch.where(mask, lam, torch.nan), mask=mask)
    by_row = gae(rewards, values, discounts, lam[:, :1], mask=mask)
    for row, keep in enumerate(mask):
        r, v, d = (x[row][keep] for x in (rewards, values, discounts))
        assert_equal(actual[row][keep], gae(r, v, d, lam[row][keep]))
        assert_equal(by_row[row][keep], gae(r, v, d, float(lam[row, 0])))


def test_row_without_a_real_step_has_zero_advantages():
    mask = torch.tensor([[False, False, False], [True, True, True]])
    actual = gae(*(x.expand(2, 3) for x in (REWARDS, VALUES, ENDS)), 0.5, mask=mask)
    assert_equal(actual[0], [0, 0, 0])
    assert_equal(actual[1], gae(REWARDS, VALUES, ENDS, 0.5))
