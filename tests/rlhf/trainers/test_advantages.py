"""From scores to advantages: every estimator by hand, and the effect of truncation, environment tokens and padding."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rlhf.config.ppo import PPOConfig
from rlhf.config.scores import RewardConfig
from rlhf.records import Prompts, Rollout, mask_up_to_last, select
from rlhf.trainers.advantages import (
    RunningScale,
    broadcast_over_tokens,
    estimate,
    gae_estimates,
    grpo,
    make_batch,
    reference_kl,
    returns_to_go,
    rloo,
    scale_and_clip,
    sum_over_tokens,
    token_rewards,
)
from rlhf.trainers.loss import Normalizers, loss_weights
from tabular.core.losses import aggregate

T, F = True, False
PLAIN = RewardConfig()
# Two prompts, three responses to each; the rewards of each response's tokens, and their sums.
REWARDS = [[1.0, 2.0], [0.0], [1.0, 0.0, 2.0], [4.0], [1.0, 1.0], [0.0, 0.0, 0.0]]
SUMS = [3.0, 0.0, 3.0, 4.0, 2.0, 0.0]


def filled(rows, filler=0.0, width=None):
    """Ragged lists as a tensor and a mask."""
    width = width or max(map(len, rows))
    mask = torch.tensor([[t < len(row) for t in range(width)] for row in rows])
    return torch.tensor([[*row, *[filler] * (width - len(row))] for row in rows]), mask


def rollout_of(mask, seed=0, scores=None, filler=1e6, **fields):
    """Random numbers on the mask's tokens, in float64; `filler` everywhere else."""
    random = torch.Generator().manual_seed(seed)
    rows, width = mask.shape

    def numbers():
        return torch.where(mask, torch.randn(rows, width, generator=random), filler)

    prompts = Prompts(torch.full((rows, 1), 7), torch.ones(rows, 1, dtype=torch.bool), ["the"] * rows, {})
    old, ref, values = numbers(), numbers(), numbers()
    scores = torch.randn(rows, generator=random) if scores is None else torch.tensor(scores)
    cut = fields.pop("truncated", torch.zeros(rows, dtype=torch.bool))
    return Rollout(prompts, mask.long(), mask, cut, ["film"] * rows, old, ref, values, scores, **fields)


def lengths(*counts, width=None):
    return torch.arange(width or max(counts)) < torch.tensor(counts)[:, None]


def ppo(**settings):
    """Six responses, one minibatch."""
    return PPOConfig(**{"rollout_batch_size": 6, "minibatch_size": 6, "microbatch_size": 6} | settings)


# ------------------------------------------------------------------------------------------------ estimators by hand


def test_rloo_baseline_is_the_mean_of_the_other_responses_to_the_prompt():
    """3 - (0 + 3) / 2 = 1.5, 0 - (3 + 3) / 2 = -3, ...; 4 - (2 + 0) / 2 = 3, 2 - (4 + 0) / 2 = 0, 0 - (4 + 2) / 2."""
    assert rloo(torch.tensor(SUMS), 3).tolist() == [1.5, -3.0, 1.5, 3.0, 0.0, -3.0]
    assert rloo(torch.tensor([1.0, 5.0]), 2).tolist() == [-4.0, 4.0]


def test_grpo_divides_by_the_unbiased_deviation_of_the_group():
    """Means 2 and 2; deviations sqrt((1 + 4 + 1) / 2) = sqrt(3) and sqrt((4 + 0 + 4) / 2) = 2."""
    expected = torch.tensor([1 / 3**0.5, -2 / 3**0.5, 1 / 3**0.5, 1.0, 0.0, -1.0])
    torch.testing.assert_close(grpo(torch.tensor(SUMS), 3), expected, rtol=1e-5, atol=0)
    assert grpo(torch.tensor(SUMS), 3, divide_by_std=False).tolist() == [1.0, -2.0, 1.0, 2.0, 0.0, -2.0]


@pytest.mark.parametrize("divide", [True, False])
@pytest.mark.parametrize("score", [0.0, 1.0, -2.5])
def test_a_group_of_equal_scores_has_zero_advantages(divide, score):
    assert grpo(torch.full((8,), score), 4, divide).tolist() == [0.0] * 8
    assert rloo(torch.full((8,), score), 4).tolist() == [0.0] * 8


@pytest.mark.parametrize(("score", "size"), [(0.3, 6), (5.3, 6), (0.7, 7), (1000.1, 3)])
def test_a_group_of_equal_scores_has_zero_advantages_for_any_score(score, size):
    assert float(grpo(torch.full((size,), score), size).abs().max()) < 1e-3


def test_grpo_is_invariant_to_shift_and_scale_and_rloo_to_shift():
    scores = torch.randn(6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scale, shift = torch.tensor([[2.0], [5.0]]).double(), torch.tensor([[7.0], [-3.0]]).double()
    moved = (scores.view(2, 3) * scale + shift).flatten()
    torch.testing.assert_close(grpo(moved, 3), grpo(scores, 3), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(rloo(moved, 3), (rloo(scores, 3).view(2, 3) * scale).flatten())
    torch.testing.assert_close(rloo(scores, 3), 1.5 * grpo(scores, 3, False))  # n / (n - 1) times the centred score


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"estimator": "rloo", "samples_per_prompt": 3}, [1.5, -3.0, 1.5, 3.0, 0.0, -3.0]),
        (
            {"estimator": "grpo", "samples_per_prompt": 3, "grpo_divide_by_std": False},
            [1.0, -2.0, 1.0, 2.0, 0.0, -2.0],
        ),
    ],
)
def test_response_level_estimators_repeat_one_advantage_on_each_token(settings, expected):
    rewards, mask = filled(REWARDS, filler=1e6)
    advantages, returns = estimate(rollout_of(mask), rewards, None, ppo(**settings))
    assert advantages.tolist() == [
        [a if real else 0.0 for real in row] for a, row in zip(expected, mask.tolist(), strict=True)
    ]
    assert returns.tolist() == [[3, 2, 0], [0, 0, 0], [3, 2, 2], [4, 0, 0], [2, 1, 0], [0, 0, 0]]


def test_reinforce_pp_whitens_the_returns_over_the_batch():
    """gamma 1 / 2: 1 + 2 / 2 = 2, then 2; 1 + 0 + 2 / 4 = 1.5, 1, 2; 1 + 1 / 2, 1. Whitened over all 12 tokens."""
    rewards, mask = filled(REWARDS, filler=1e6)
    config = ppo(estimator="reinforce_pp", gamma=0.5)
    advantages, returns = estimate(rollout_of(mask), rewards, None, config)
    expected = [[2, 2, 0], [0, 0, 0], [1.5, 1, 2], [4, 0, 0], [1.5, 1, 0], [0, 0, 0]]
    assert returns.tolist() == expected
    assert torch.equal(advantages, returns)

    rollout = replace(rollout_of(mask, scores=[0.0] * 6), token_scores=rewards)
    batch = make_batch(rollout, config, 0.0, PLAIN)
    real = torch.tensor(expected)[mask]
    assert len(real) == 12
    white = (real - real.mean()) / real.std(correction=0)
    torch.testing.assert_close(batch.advantages[mask], white)
    assert not batch.advantages[~mask].any()
    assert batch.returns.tolist() == expected


def test_remax_baseline_is_the_greedy_response_s_score():
    """Scores 5 and 1 less 2 and 4; what is paid for the KL stays: -0.1 a token where the log-ratio is 1."""
    mask = lengths(3, 2)
    rollout = rollout_of(mask, scores=[5.0, 1.0], baseline_scores=torch.tensor([2.0, 4.0]))
    rollout = replace(rollout, ref_logprobs=rollout.old_logprobs - 1)
    config = PPOConfig(rollout_batch_size=2, minibatch_size=2, estimator="remax")
    without_kl, with_kl = (make_batch(rollout, config, coef, PLAIN) for coef in (0.0, 0.1))
    assert without_kl.advantages.tolist() == [[3.0, 3.0, 3.0], [-3.0, -3.0, 0.0]]
    assert without_kl.returns.tolist() == [[5.0, 5.0, 5.0], [1.0, 1.0, 0.0]]
    torch.testing.assert_close(with_kl.advantages, torch.tensor([[2.7, 2.8, 2.9], [-3.2, -3.1, 0.0]]))


@pytest.mark.parametrize("seed", range(3))
def test_gae_skips_environment_tokens(seed):
    mask = torch.rand(6, 8, generator=torch.Generator().manual_seed(seed)) < 0.5
    mask[:, seed] |= ~mask.any(-1)
    assert (mask_up_to_last(mask) & ~mask).any()
    rollout = rollout_of(mask, seed)
    for settings in ({}, {"lam_critic": 1.0}, {"lam_length_alpha": 0.5}, {"gamma": 0.9, "lam": 0.0}):
        config = ppo(**settings, whiten_advantages=False)
        batch = make_batch(rollout, config, 0.1, PLAIN)
        for row, keep in enumerate(mask):
            one = replace(
                rollout_of(torch.ones(1, int(keep.sum()), dtype=torch.bool)),
                **{
                    name: getattr(rollout, name)[row][keep][None]
                    for name in ("old_logprobs", "ref_logprobs", "old_values")
                },
                scores=rollout.scores[row : row + 1],
            )
            alone = make_batch(one, config, 0.1, PLAIN)
            for name in ("rewards", "advantages", "returns"):
                torch.testing.assert_close(getattr(batch, name)[row][keep], getattr(alone, name)[0])
                assert not getattr(batch, name)[row][~keep].any()


def test_advantages_at_lambda_zero_are_td_errors_and_at_one_monte_carlo():
    mask = lengths(4, 1, 3, 2, 4, 3)
    rollout = rollout_of(mask)
    td, mc = (make_batch(rollout, ppo(gamma=0.5, lam=lam, whiten_advantages=False), 0.1, PLAIN) for lam in (0.0, 1.0))
    for row, count in enumerate([4, 1, 3, 2, 4, 3]):
        r, v = td.rewards[row].tolist(), rollout.old_values[row].tolist()
        errors = [r[t] + (0.5 * v[t + 1] if t + 1 < count else 0.0) - v[t] for t in range(count)]
        sums = [sum(0.5 ** (k - t) * r[k] for k in range(t, count)) for t in range(count)]
        torch.testing.assert_close(td.advantages[row, :count], torch.tensor(errors))
        torch.testing.assert_close(mc.advantages[row, :count] + rollout.old_values[row, :count], torch.tensor(sums))


def test_the_critic_may_have_its_own_lambda():
    """Advantages are those of lam, returns those of lam_critic."""
    rollout = rollout_of(lengths(4, 1, 3, 2, 4, 3))

    def batch(**settings):
        return make_batch(rollout, ppo(gamma=0.9, whiten_advantages=False, **settings), 0.1, PLAIN)

    both, low, high = batch(lam=0.5, lam_critic=1.0), batch(lam=0.5), batch(lam=1.0)
    assert torch.equal(both.advantages, low.advantages)
    assert torch.equal(both.returns, high.returns)
    assert (low.returns - high.returns).abs().max() > 0.1


def test_lambda_may_grow_with_the_length():
    """alpha 1 / 2: 1 - 1 / (4 / 2) = 0.5 for four tokens, 1 - 1 / (3 / 2) = 1 / 3 for three, and none below two."""
    counts = [4, 1, 3, 2, 4, 3]
    rollout = rollout_of(lengths(*counts))
    batch = make_batch(rollout, ppo(lam_length_alpha=0.5, whiten_advantages=False), 0.1, PLAIN)
    for row, lam in enumerate([0.5, 0.0, 1 / 3, 0.0, 0.5, 1 / 3]):
        alone = make_batch(rollout, ppo(lam=lam, whiten_advantages=False), 0.1, PLAIN)
        torch.testing.assert_close(batch.advantages[row], alone.advantages[row])
        torch.testing.assert_close(batch.returns[row], alone.returns[row])
    short = make_batch(rollout, ppo(lam_length_alpha=0.125, whiten_advantages=False), 0.1, PLAIN)
    none = make_batch(rollout, ppo(lam=0.0, whiten_advantages=False), 0.1, PLAIN)
    assert torch.equal(short.advantages, none.advantages)  # 1 - 1 / (4 / 8) would be -1


def test_gae_across_environment_tokens_by_hand():
    """Rewards 1 and 2, values 4 and 6, gamma 1 / 2, lambda 1 / 2; deltas 1 + 3 - 4 = 0 and 2 - 6 = -4."""
    mask = torch.tensor([[T, F, T, F]])
    rewards, values = torch.tensor([[1.0, 9.0, 2.0, 9.0]]), torch.tensor([[4.0, 9.0, 6.0, 9.0]])
    config = ppo(gamma=0.5, lam=0.5, lam_critic=0.0)
    advantages, returns = gae_estimates(rewards, values, mask, config)
    assert advantages.tolist() == [[-1.0, 0.0, -4.0, 0.0]]
    assert returns.tolist() == [[4.0, 0.0, 2.0, 0.0]]


def test_sums_and_broadcasts_over_tokens_by_hand():
    mask = torch.tensor([[T, F, T, F], [T, T, F, F]])
    assert broadcast_over_tokens(torch.tensor([2.0, 3.0]), mask).tolist() == [
        [2.0, 0.0, 2.0, 0.0],
        [3.0, 3.0, 0.0, 0.0],
    ]
    rewards = torch.tensor([[1.0, torch.nan, 4.0, 9.0], [1.0, 2.0, 9.0, torch.inf]])
    assert sum_over_tokens(rewards, mask).tolist() == [5.0, 3.0]
    assert returns_to_go(rewards, mask, 0.5).tolist() == [[3.0, 0.0, 4.0, 0.0], [2.0, 2.0, 0.0, 0.0]]


# ------------------------------------------------------------------------------------------------------------- rewards


def test_score_is_on_the_policy_s_last_token_and_token_scores_on_their_tokens():
    mask = torch.tensor([[T, F, T, F], [T, T, T, T]])
    rollout = rollout_of(mask, scores=[10.0, 20.0])
    paid = torch.tensor([[1.0, 9.0, 2.0, 9.0], [0.0, 3.0, 0.0, 4.0]])
    assert token_rewards(rollout, rollout.scores, 0.0, "k1").tolist() == [[0, 0, 10, 0], [0, 0, 0, 20]]
    rewards = token_rewards(replace(rollout, token_scores=paid), rollout.scores, 0.0, "k1")
    assert rewards.tolist() == [[1, 0, 12, 0], [0, 3, 0, 24]]


def test_token_scores_count_in_every_estimator():
    """Rewards on tokens or all at the end: response-level estimators give the same at gamma 1."""
    mask = lengths(3, 2, 1, 3, 3, 1)
    paid = torch.where(mask, torch.randn(6, 3, generator=torch.Generator().manual_seed(3)), 0.0)
    rollout = rollout_of(mask, baseline_scores=torch.zeros(6))
    by_token = replace(rollout, token_scores=paid)
    at_once = replace(rollout, scores=rollout.scores + paid.sum(-1))
    for settings in ({"estimator": "rloo", "samples_per_prompt": 3}, {"estimator": "grpo", "samples_per_prompt": 3}):
        one, other = (make_batch(r, ppo(**settings), 0.1, PLAIN).advantages for r in (by_token, at_once))
        torch.testing.assert_close(one, other)
    for estimator in ("reinforce_pp", "remax", "gae"):
        config = ppo(estimator=estimator, whiten_advantages=None if estimator == "reinforce_pp" else False)
        one, other = (make_batch(r, config, 0.1, PLAIN) for r in (by_token, at_once))
        assert (one.advantages - other.advantages).abs().max() > 0.1  # these know which token was paid
        first = torch.zeros(6, dtype=torch.long)
        torch.testing.assert_close(
            one.returns[range(6), first] if estimator != "gae" else sum_over_tokens(one.rewards, mask),
            other.returns[range(6), first] if estimator != "gae" else sum_over_tokens(other.rewards, mask),
        )


def test_reference_kl_by_every_estimator():
    """d = ln 2: k1 is d, k2 d^2 / 2, k3 1 / 2 - 1 + d, full the exact KL of the distributions."""
    d = torch.tensor(2.0).log()
    rollout = replace(
        rollout_of(lengths(1)),
        old_logprobs=torch.tensor([[-1.0]]),
        ref_logprobs=torch.tensor([[-1.0]]) - d,
        exact_kl=torch.tensor([[0.3]]),
    )
    expected = {"k1": d, "k2": d**2 / 2, "k3": d - 0.5, "full": torch.tensor(0.3)}
    for kind, kl in expected.items():
        torch.testing.assert_close(reference_kl(rollout, kind), kl.reshape(1, 1))
        torch.testing.assert_close(token_rewards(rollout, torch.ones(1), 0.5, kind), (1 - 0.5 * kl).reshape(1, 1))


def test_rewards_have_no_kl_penalty_where_the_loss_has_it():
    rollout = rollout_of(lengths(3, 2, 1, 3, 3, 1))
    in_loss = make_batch(rollout, ppo(kl_placement="loss", kl_estimator="k3"), 0.5, PLAIN)
    without_kl = make_batch(rollout, ppo(), 0.0, PLAIN)
    assert torch.equal(in_loss.rewards, without_kl.rewards)
    assert not torch.equal(make_batch(rollout, ppo(), 0.5, PLAIN).rewards, without_kl.rewards)


def test_whitened_rewards_have_deviation_one_and_keep_their_signs():
    rollout = rollout_of(lengths(4, 1, 3, 2, 4, 3))
    mask = rollout.response_mask
    plain, white = (make_batch(rollout, ppo(whiten_rewards=on), 0.1, PLAIN) for on in (False, True))
    std = plain.rewards[mask].std(correction=0)
    torch.testing.assert_close(white.rewards[mask], plain.rewards[mask] / std)
    assert not white.rewards[~mask].any()
    expected = gae_estimates(plain.rewards / std, rollout.old_values, mask, ppo())[1]
    torch.testing.assert_close(white.returns, expected)


def test_scores_are_scaled_before_they_are_clipped():
    scores = torch.tensor([6.0, -1.0, -9.0])
    scale = RunningScale(count=4.0, mean=100.0, squares=16.0)  # deviation 2; the mean stays out of it
    assert scale_and_clip(scores, PLAIN, None).tolist() == [6.0, -1.0, -9.0]
    assert scale_and_clip(scores, PLAIN, scale).tolist() == [3.0, -0.5, -4.5]
    assert scale_and_clip(scores, RewardConfig(clip=2.5), None).tolist() == [2.5, -1.0, -2.5]
    assert scale_and_clip(scores, RewardConfig(clip=2.5), scale).tolist() == [2.5, -0.5, -2.5]


def test_scaling_and_clipping_apply_to_scores_and_baselines():
    mask = lengths(2, 1)
    rollout = rollout_of(mask, scores=[8.0, -3.0], baseline_scores=torch.tensor([10.0, 1.0]))
    config = PPOConfig(rollout_batch_size=2, minibatch_size=2, estimator="remax")
    scale = RunningScale(count=1.0, squares=4.0)
    batch = make_batch(rollout, config, 0.0, RewardConfig(clip=3.0), scale)
    assert batch.rewards.tolist() == [[0.0, 3.0], [-1.5, 0.0]]
    assert batch.advantages.tolist() == [[0.0, 0.0], [-2.0, 0.0]]  # 3 - 3 and -1.5 - 0.5
    assert rollout.scores.tolist() == [8.0, -3.0]  # the reported scores stay as they are


@pytest.mark.parametrize("sizes", [[40], [1, 1, 38], [7, 13, 20], [1] * 40])
@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_running_scale_is_the_standard_deviation_of_all_scores_so_far(sizes, shift):
    scores = shift + 3 * torch.randn(40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scale, seen = RunningScale(), 0
    for part in scores.split(sizes):
        scale.update(part.float())
        seen += len(part)
        so_far = scores[:seen].float().double().numpy()
        assert scale.count == seen
        assert scale.mean == pytest.approx(np.mean(so_far), rel=1e-12)
        if seen > 1:
            assert scale.std == pytest.approx(np.std(so_far), rel=1e-9)
    assert scale.std > 2


def test_running_scale_of_equal_scores_divides_by_one():
    scale = RunningScale()
    assert scale.std == 1.0
    for _ in range(3):
        scale.update(torch.full((5,), 0.7))
        assert scale.std == 1.0
    scale.update(torch.tensor([1.7] * 15))
    assert scale.std == pytest.approx(0.5)


# ------------------------------------------------------------------------------------------------------- truncation


CUT = torch.tensor([T, F, F, T, F, F])


def test_bootstrap_replaces_the_score_of_a_truncated_response_by_its_value():
    """As if the response continued: the last step's target is gamma times the value of the state that the cut left."""
    mask, bootstrap_values = lengths(3, 2, 1, 3, 3, 1), torch.tensor([5.0, 0.0, 0.0, -7.0, 0.0, 0.0])
    rollout = rollout_of(mask, truncated=CUT, bootstrap_values=bootstrap_values)
    config = ppo(gamma=0.5, lam=0.0, whiten_advantages=False)
    batch = make_batch(rollout, config, 0.0, RewardConfig(truncated="bootstrap"))
    plain = make_batch(rollout, config, 0.0, PLAIN)
    assert batch.rewards[0].tolist() == [0.0, 0.0, 2.5]
    assert batch.rewards[3].tolist() == [0.0, 0.0, -3.5]
    assert batch.returns[0, 2] == 0.5 * 5.0
    assert torch.equal(batch.rewards[~CUT], plain.rewards[~CUT])
    assert batch.loss_mask.tolist() == mask.tolist()


def test_bootstrapped_value_is_neither_scaled_nor_clipped():
    """The critic speaks of scaled scores already."""
    rollout = rollout_of(
        lengths(3, 2, 1, 3, 3, 1), truncated=CUT, bootstrap_values=torch.full((6,), 50.0), scores=[40.0] * 6
    )
    scale = RunningScale(count=1.0, squares=100.0)
    batch = make_batch(rollout, ppo(), 0.0, RewardConfig(truncated="bootstrap", clip=3.0), scale)
    assert batch.rewards.sum(-1).tolist() == [50.0, 3.0, 3.0, 50.0, 3.0, 3.0]


def test_masked_responses_are_excluded_from_loss_and_whitening():
    rollout = rollout_of(lengths(3, 2, 1, 3, 3, 1), truncated=CUT)
    mask = rollout.response_mask
    batch = make_batch(rollout, ppo(), 0.1, RewardConfig(truncated="mask"))
    assert batch.loss_mask.tolist() == (mask & ~CUT[:, None]).tolist()
    assert not batch.advantages[CUT].any()
    plain = make_batch(rollout, ppo(whiten_advantages=False), 0.1, PLAIN)
    real = plain.advantages[batch.loss_mask]
    torch.testing.assert_close(batch.advantages[batch.loss_mask], (real - real.mean()) / real.std(correction=0))
    assert torch.equal(batch.rewards, plain.rewards)
    count = Normalizers.of(batch)
    assert (int(count.tokens), int(count.responses), count.rows) == (7, 4, 6)


@pytest.mark.parametrize("estimator", ["gae", "reinforce_pp"])
def test_a_masked_response_changes_no_other(estimator):
    rollout = rollout_of(lengths(3, 2, 1, 3, 3, 1), truncated=CUT)
    other = replace(
        rollout,
        scores=torch.where(CUT, 1e3, rollout.scores),
        old_logprobs=torch.where(CUT[:, None], -30.0, rollout.old_logprobs),
        old_values=torch.where(CUT[:, None], 1e3, rollout.old_values),
    )
    one, two = (make_batch(r, ppo(estimator=estimator), 0.1, RewardConfig(truncated="mask")) for r in (rollout, other))
    torch.testing.assert_close(one.advantages, two.advantages)
    torch.testing.assert_close(one.returns[~CUT], two.returns[~CUT])


def test_a_masked_response_does_not_scale_the_rewards_of_others():
    rollout = rollout_of(lengths(3, 2, 1, 3, 3, 1), truncated=CUT)
    other = replace(rollout, scores=torch.where(CUT, 1e3, rollout.scores))
    one, two = (make_batch(r, ppo(whiten_rewards=True), 0.1, RewardConfig(truncated="mask")) for r in (rollout, other))
    torch.testing.assert_close(one.rewards[~CUT], two.rewards[~CUT])


# ---------------------------------------------------------------------------------------------------------- padding

EVERY = [
    {},
    {"gamma": 0.9, "lam": 0.7, "lam_critic": 1.0, "whiten_rewards": True},
    {"lam_length_alpha": 0.3},
    {"estimator": "rloo", "samples_per_prompt": 3},
    {"estimator": "grpo", "samples_per_prompt": 3},
    {"estimator": "reinforce_pp", "gamma": 0.9},
    {"estimator": "remax", "whiten_advantages": True},
    {"kl_estimator": "full"},
]


@pytest.mark.parametrize("policy", ["replace", "bootstrap", "mask"])
@pytest.mark.parametrize("settings", EVERY)
def test_batches_do_not_depend_on_padding(settings, policy):
    """Large numbers in three more columns and at environment tokens change no real number."""
    mask = torch.tensor([[T, F, T, T], [T, T, F, F], [F, T, F, F], [T, T, T, T], [T, F, F, T], [T, F, F, F]])
    fields = {"truncated": CUT, "bootstrap_values": torch.arange(6.0), "baseline_scores": -torch.arange(6.0)}
    rollout = rollout_of(mask, filler=0.0, **fields)
    kl = torch.where(mask, torch.rand(6, 4, generator=torch.Generator().manual_seed(5)), 0.0)
    rollout = replace(rollout, exact_kl=kl, token_scores=kl / 2)
    loud = {
        name: torch.nn.functional.pad(torch.where(mask, getattr(rollout, name), number), (0, 3), value=number)
        for name, number in (
            ("old_logprobs", -1e6),
            ("ref_logprobs", 1e6),
            ("old_values", torch.nan),
            ("exact_kl", torch.inf),
            ("token_scores", 1e6),
        )
    }
    loud |= {n: torch.nn.functional.pad(getattr(rollout, n), (0, 3)) for n in ("response_ids", "response_mask")}
    made = [
        make_batch(r, ppo(**settings), 0.1, RewardConfig(truncated=policy), RunningScale(1.0, 0.0, 4.0))
        for r in (rollout, replace(rollout, **loud))
    ]
    for name in ("rewards", "advantages", "returns"):
        narrow, wide = (getattr(batch, name) for batch in made)
        torch.testing.assert_close(wide[:, :4][mask], narrow[mask])
        assert not wide[:, 4:].any()
        assert not wide[:, :4][~mask].any()
    assert torch.equal(made[1].loss_mask[:, :4], made[0].loss_mask)
    assert not made[1].loss_mask[:, 4:].any()


@pytest.mark.parametrize("settings", EVERY)
def test_advantages_do_not_depend_on_the_order_of_prompts(settings):
    mask = lengths(3, 2, 1, 3, 3, 1)
    rollout = replace(rollout_of(mask, baseline_scores=torch.arange(6.0)), exact_kl=mask * 0.25)
    order = torch.tensor([3, 4, 5, 0, 1, 2])
    turned = replace(
        rollout,
        **{
            name: getattr(rollout, name)[order]
            for name in (
                "response_mask",
                "old_logprobs",
                "ref_logprobs",
                "old_values",
                "scores",
                "exact_kl",
                "baseline_scores",
            )
        },
    )
    one, other = (make_batch(r, ppo(**settings), 0.1, PLAIN) for r in (rollout, turned))
    torch.testing.assert_close(other.advantages, one.advantages[order])
    torch.testing.assert_close(other.returns, one.returns[order])


# ----------------------------------------------------------------------------------------------------- loss weights


def test_loss_weights_by_hand():
    """Rows of three, one and no tokens; two responses teach, the limit is 10 tokens."""
    mask = torch.tensor([[T, F, T, T], [T, F, F, F], [F, F, F, F]])
    assert loss_weights(mask, "token", 2, 10) is None
    torch.testing.assert_close(loss_weights(mask, "sequence", 2, 10), torch.tensor([[1 / 6], [1 / 2], [1 / 2]]))
    torch.testing.assert_close(loss_weights(mask, "fixed", 3, 10), torch.full((3, 1), 1 / 30))


@pytest.mark.parametrize("aggregation", ["token", "sequence", "fixed"])
@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_weighted_microbatches_sum_to_the_definition(aggregation, size):
    """Rows of 5, 1, 3, 0, 2 and 4 tokens, cut anyhow; a response without tokens counts in `fixed` alone."""
    counts = [5, 1, 3, 0, 2, 4]
    mask = lengths(*counts)
    x = torch.where(mask, torch.randn(6, 5, generator=torch.Generator().manual_seed(0)), torch.nan)
    rows = [x[i, :n] for i, n in enumerate(counts) if n]
    expected = {
        "token": torch.cat(rows).mean(),
        "sequence": torch.stack([row.mean() for row in rows]).mean(),
        "fixed": torch.cat(rows).sum() / (6 * 8),
    }[aggregation]
    responses = 6 if aggregation == "fixed" else 5
    parts = [
        aggregate(x[i : i + size], m, 15, loss_weights(m, aggregation, responses, 8))
        for i in range(0, 6, size)
        for m in [mask[i : i + size]]
    ]
    torch.testing.assert_close(torch.stack(parts).sum(), expected)


# ---------------------------------------------------------------------------------------------- small but not nothing


def test_a_kl_coefficient_of_one_is_no_special_case_and_zero_needs_no_reference():
    rollout = rollout_of(lengths(2, 3), scores=[1.0, 2.0])
    kl = reference_kl(rollout, "k1")
    expected = torch.where(rollout.response_mask, -kl, 0)
    expected[0, 1] += 1
    expected[1, 2] += 2
    torch.testing.assert_close(token_rewards(rollout, rollout.scores, 1.0, "k1"), expected)
    without = token_rewards(replace(rollout, ref_logprobs=None), rollout.scores, 0.0, "k1")
    assert without.tolist() == [[0, 1, 0], [0, 0, 2]]


@pytest.mark.parametrize("divide", [True, False])
def test_the_batch_holds_its_rollout_and_grpo_divides_as_configured(divide):
    rollout = rollout_of(lengths(2, 1, 2, 2, 1, 2), scores=SUMS)
    config = ppo(estimator="grpo", samples_per_prompt=3, kl_coef=0.0, grpo_divide_by_std=divide)
    batch = make_batch(rollout, config, 0.0, PLAIN)
    assert batch.rollout is rollout
    torch.testing.assert_close(batch.advantages[:, 0], grpo(torch.tensor(SUMS), 3, divide))


def test_grpo_adds_its_epsilon_to_a_small_deviation():
    """Scores 0 and 2e-6: the deviation is sqrt(2) * 1e-6."""
    expected = 1 / (2**0.5 + 1)
    advantages = grpo(torch.tensor([0.0, 2e-6], dtype=torch.float64), 2)
    assert advantages.tolist() == pytest.approx([-expected, expected])


# ------------------------------------------------------------------------------------- rewards by token, and no score


def test_rewards_by_token_are_paid_where_they_belong_and_the_rest_on_the_last_token():
    """Score 5, of which 1 and 2.5 belong to the first two tokens: 1.5 is left for the third."""
    mask = lengths(3, 2)
    rollout = rollout_of(mask, scores=[5.0, 4.0], score_by_token=torch.tensor([[1.0, 2.5, 0.0], [0.0, 0.0, 0.0]]))
    batch = make_batch(rollout, ppo(samples_per_prompt=1), 0.0, PLAIN)
    assert batch.rewards.tolist() == [[1.0, 2.5, 1.5], [0.0, 4.0, 0.0]]


def test_scale_and_clip_hold_for_the_sum_of_rewards_by_token():
    rollout = rollout_of(lengths(3), scores=[6.0], score_by_token=torch.tensor([[4.0, 2.0, 0.0]]))
    scale = RunningScale(count=2.0, mean=0.0, squares=8.0)  # a deviation of 2
    assert make_batch(rollout, ppo(), 0.0, PLAIN, scale).rewards.tolist() == [[2.0, 1.0, 0.0]]
    clipped = make_batch(rollout, ppo(), 0.0, RewardConfig(clip=5.0))
    assert clipped.rewards.tolist() == [[4.0, 2.0, -1.0]]
    assert float(clipped.rewards.sum()) == 5.0


def test_a_response_level_estimator_sums_the_rewards_by_token():
    by_token = torch.tensor([[1.0, 2.0], [0.0, 0.0]])
    rollout = rollout_of(lengths(2, 2), scores=[3.0, 1.0], score_by_token=by_token)
    config = ppo(estimator="rloo", samples_per_prompt=2, whiten_advantages=False)
    assert make_batch(rollout, config, 0.0, PLAIN).advantages.tolist() == [[2.0, 2.0], [-2.0, -2.0]]


def test_responses_without_a_score_count_in_no_groups_mean():
    """Of [3, x, 3] the others' means are 3 and 3; of [4, 2, x] 2 and 4; x is left out."""
    is_scored = torch.tensor([T, F, T, T, T, F])
    rewards = torch.tensor([3.0, 99.0, 3.5, 4.0, 2.0, -99.0])
    assert rloo(rewards, 3, is_scored).tolist() == [-0.5, 0.0, 0.5, 2.0, -2.0, 0.0]
    assert grpo(rewards, 3, False, is_scored).tolist() == [-0.25, 0.0, 0.25, 1.0, -1.0, 0.0]
    deviations = [0.5 / 2**0.5, 2 / 2**0.5]
    expected = [-0.25 / deviations[0], 0, 0.25 / deviations[0], 1 / deviations[1], -1 / deviations[1], 0]
    assert grpo(rewards, 3, True, is_scored).tolist() == pytest.approx(expected, rel=1e-5)
    alone = torch.tensor([T, F, F])
    assert rloo(rewards[:3], 3, alone).tolist() == grpo(rewards[:3], 3, True, alone).tolist() == [0.0, 0.0, 0.0]
    everyone = torch.ones(6, dtype=torch.bool)
    torch.testing.assert_close(rloo(rewards, 3, everyone), rloo(rewards, 3))
    torch.testing.assert_close(grpo(rewards, 3, True, everyone), grpo(rewards, 3))


@pytest.mark.parametrize("settings", [{"estimator": "gae"}, {"estimator": "reinforce_pp"}])
def test_responses_without_a_score_are_out_of_the_loss_and_of_whitening(settings):
    """The others get the advantages that they have without them."""
    rollout = rollout_of(lengths(3, 2, 3), scores=[1.0, 2.0, 3.0], errors=[None, "broken", None])
    batch = make_batch(rollout, ppo(**settings), 0.1, PLAIN)
    assert batch.loss_mask.tolist() == [[T, T, T], [F, F, F], [T, T, T]]
    rows = torch.tensor([0, 2])
    others = make_batch(replace(select(rollout, rows), errors=None), ppo(**settings), 0.1, PLAIN)
    torch.testing.assert_close(batch.advantages[rows], others.advantages)
    assert Normalizers.of(batch).tokens == 6
    assert Normalizers.of(batch).responses == Normalizers.of(batch).rows == 2
