"""verl 0.9.1, `verl.trainer.ppo.core_algos`: GAE, the group estimators, KL forms, losses and their aggregation."""

import sys
from functools import partial
from unittest.mock import MagicMock

import pytest
import torch

from rlhf.config.ppo import PPOConfig
from rlhf.trainers.advantages import GROUP_STD_EPS, estimate
from rlhf.trainers.loss import loss_weights
from tabular.core.kl import AdaptiveKL, kl_estimate
from tabular.core.losses import aggregate, clipped_surrogate_loss, value_loss
from tabular.core.masked import masked_mean, masked_var, masked_whiten

with pytest.MonkeyPatch.context() as patch:  # Ray runs verl's workers; none of these functions touches it
    patch.setitem(sys.modules, "ray", MagicMock(__spec__=None))
    pytest.importorskip("verl")
    from omegaconf import OmegaConf
    from verl.trainer.ppo import core_algos as core
theirs = core.verl_F

pytestmark = pytest.mark.slow
assert_same = partial(torch.testing.assert_close, rtol=0, atol=1e-6)
GROUP = 4


def bessel(mask):
    """What an unbiased deviation is larger by."""
    return (mask.sum() / (mask.sum() - 1)).sqrt()


# --------------------------------------------------------------------------------------------------- whitening


def test_moments(ragged):
    x, mask = ragged.rewards, ragged.mask
    assert_same(masked_mean(x, mask), theirs.masked_mean(x, mask))
    assert_same(masked_var(x, mask), theirs.masked_var(x, mask, unbiased=False))
    assert_same(masked_var(x, mask, unbiased=True), theirs.masked_var(x, mask))


def test_one_real_entry_is_an_error_there():
    x, mask = torch.tensor([[5.0, 1.0]]), torch.tensor([[True, False]])
    with pytest.raises(ValueError, match="sum of the mask is one"):
        theirs.masked_whiten(x, mask)
    assert masked_whiten(x, mask)[mask] == 0


def test_whitening_differs_by_the_divisor_alone(ragged):
    x, mask = ragged.rewards, ragged.mask
    assert_same(masked_whiten(x, mask)[mask] / bessel(mask), theirs.masked_whiten(x, mask)[mask])


def test_scaling_alone_is_ours_only(ragged):
    """Theirs centres, scales and adds the mean back, so that signs turn: 0.1 below the mean becomes a punishment."""
    x, mask = ragged.rewards, ragged.mask
    mean = masked_mean(x, mask)
    assert_same(
        (masked_whiten(x, mask) / bessel(mask) + mean)[mask], theirs.masked_whiten(x, mask, shift_mean=False)[mask]
    )
    x = torch.tensor([[1.0, 1.1, 1.2, 1.3]], dtype=torch.float64)
    mask = torch.ones(1, 4, dtype=torch.bool)
    assert (masked_whiten(x, mask, shift_mean=False) > 0).all()
    assert (theirs.masked_whiten(x, mask, shift_mean=False) < 0).any()


# -------------------------------------------------------------------------------------------------- estimators


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.7), (0.99, 0.0), (0.9, 1.0)])
def test_gae(either, gamma, lam):
    x = either
    config = PPOConfig(gamma=gamma, lam=lam)
    advantages, returns = estimate(x.rollout(), x.rewards, None, config)
    whitened, wanted = core.compute_gae_advantage_return(x.rewards, x.values, x.mask.double(), gamma, lam)
    assert_same(returns[x.mask], wanted[x.mask])
    assert_same(advantages[x.mask], (wanted - x.values)[x.mask])
    assert_same(masked_whiten(advantages, x.mask)[x.mask] / bessel(x.mask), whitened[x.mask])


@pytest.mark.parametrize("divide", [True, False])
def test_grpo(ragged, divide):
    assert GROUP_STD_EPS == 1e-6
    config = PPOConfig(estimator="grpo", samples_per_prompt=GROUP, grpo_divide_by_std=divide)
    rewards = torch.where(ragged.mask, ragged.rewards, 0)
    ours, _ = estimate(ragged.rollout(), ragged.rewards, None, config)
    for peer in (core.compute_grpo_outcome_advantage, core.compute_grpo_vectorized_outcome_advantage):
        assert_same(
            ours,
            peer(rewards, ragged.mask.double(), ragged.prompt.numpy(), norm_adv_by_std_in_grpo=divide)[0],
        )


def test_rloo(ragged):
    rewards = torch.where(ragged.mask, ragged.rewards, 0)
    ours, _ = estimate(ragged.rollout(), ragged.rewards, None, PPOConfig(estimator="rloo", samples_per_prompt=GROUP))
    for peer in (core.compute_rloo_outcome_advantage, core.compute_rloo_vectorized_outcome_advantage):
        assert_same(ours, peer(rewards, ragged.mask.double(), ragged.prompt.numpy())[0])


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_reinforce_pp(either, gamma):
    x = either
    config = PPOConfig(estimator="reinforce_pp", gamma=gamma)
    advantages, returns = estimate(x.rollout(), x.rewards, None, config)
    whitened, wanted = core.compute_reinforce_plus_plus_outcome_advantage(
        x.rewards, x.mask.double(), config=OmegaConf.create({"gamma": gamma})
    )
    assert_same(returns, wanted)
    assert_same(masked_whiten(advantages, x.mask) / bessel(x.mask), whitened)


def test_remax(ragged):
    ours = estimate(ragged.rollout(), ragged.rewards, ragged.baselines, PPOConfig(estimator="remax"))
    wanted = core.compute_remax_outcome_advantage(ragged.rewards, ragged.baselines, ragged.mask.double())
    for our, peers in zip(ours, wanted, strict=True):
        assert_same(our[ragged.mask], peers[ragged.mask])


def test_remax_discounts_as_told(ragged):
    config = PPOConfig(estimator="remax", gamma=0.9)
    _, returns = estimate(ragged.rollout(), ragged.outcome, ragged.baselines, config)
    _, wanted = core.compute_remax_outcome_advantage(
        ragged.outcome, ragged.baselines, ragged.mask.double(), config=OmegaConf.create({"gamma": 0.9})
    )
    steps_left = (ragged.lengths[:, None] - 1 - torch.arange(ragged.mask.shape[1])).double()
    assert_same(returns, torch.where(ragged.mask, 0.9**steps_left * wanted, 0))  # theirs does not read its gamma


# ---------------------------------------------------------------------------------------------------------- KL


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_forms_and_their_gradients(ragged, kind):
    logprobs = ragged.logprobs.requires_grad_()
    ours, wanted = (f(logprobs, ragged.ref_logprobs, kind) for f in (kl_estimate, core.kl_penalty))
    assert_same(ours, wanted)
    assert_same(*(torch.autograd.grad(kl.sum(), logprobs)[0] for kl in (ours, wanted)))


def test_k3_is_capped_at_ten_there_only():
    """A cap makes the estimate biased, and takes the gradient away where the policies are furthest apart."""
    logprobs = torch.tensor([-4.0, -8.0], dtype=torch.float64, requires_grad=True)
    ours, wanted = (f(logprobs, torch.zeros(2).double(), "k3") for f in (kl_estimate, core.kl_penalty))
    assert_same(ours, torch.expm1(-logprobs) + logprobs)
    assert wanted.tolist() == [10, 10]
    assert torch.autograd.grad(wanted.sum(), logprobs)[0].tolist() == [0, 0]
    assert (torch.autograd.grad(ours.sum(), logprobs)[0] < -10).all()


def test_adaptive_coefficient():
    ours, peer = AdaptiveKL(0.15, 6.0, 10_000), core.AdaptiveKLController(0.15, 6.0, 10_000)
    for kl in (0.0, 5.9, 6.5, 30.0, -2.0, 7.0):
        ours.update(kl, 512)
        peer.update(kl, 512)
        assert ours.coef == pytest.approx(peer.value, abs=1e-12)


# ------------------------------------------------------------------------------------------------------ losses

MODES = {"token": "token-mean", "sequence": "seq-mean-token-mean", "fixed": "seq-mean-token-sum-norm"}


@pytest.mark.parametrize("mode", MODES)
def test_aggregation(ragged, mode):
    x, mask = ragged.rewards, ragged.mask
    weights = loss_weights(mask, mode, *mask.shape)
    weights = weights if weights is None else weights.double()
    assert_same(aggregate(x, mask, mask.sum(), weights), core.agg_loss(x, mask.double(), MODES[mode]))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("clips", [(0.2, None, 3.0), (0.2, 0.28, 3.0), (0.1, 0.1, 1.5)])
def test_clipped_surrogate_and_its_gradient(ragged, mode, clips):
    low, high, dual = clips
    mask = ragged.mask
    ragged.logprobs[0, 0] += 40  # beyond the clamp on the log-ratio, which both have at 20
    ragged.logprobs[1, 0] -= 40
    ragged.advantages[0, 0] = -1.0
    logprobs = ragged.logprobs.requires_grad_()
    weights = loss_weights(mask, mode, *mask.shape)
    ours, metrics = clipped_surrogate_loss(
        logprobs, ragged.old_logprobs, ragged.advantages, mask, mask.sum(), low, high, dual,
        weights=weights if weights is None else weights.double(),
    )  # fmt: skip
    config = OmegaConf.create(
        {
            "clip_ratio": low,
            "clip_ratio_low": low,
            "clip_ratio_high": high,
            "clip_ratio_c": dual,
            "global_batch_info": {},
        }
    )
    wanted, peers_metrics = core.compute_policy_loss_vanilla(
        ragged.old_logprobs, logprobs, ragged.advantages, mask.double(), MODES[mode], config
    )
    assert_same(ours, wanted)
    assert_same(*(torch.autograd.grad(loss, logprobs)[0] for loss in (ours, wanted)))
    assert (
        metrics["clip_fraction"] >= peers_metrics["actor/pg_clipfrac"] - 1e-6
    )  # theirs: only where the clip was chosen
    k1 = masked_mean((ragged.old_logprobs - logprobs).clamp(-20, 20), mask)
    assert k1.item() == pytest.approx(peers_metrics["actor/ppo_kl"], abs=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_value_loss_and_its_gradient(ragged, mode):
    mask, values = ragged.mask, ragged.values.requires_grad_()
    weights = loss_weights(mask, mode, *mask.shape)
    weights = weights if weights is None else weights.double()
    ours, metrics = value_loss(values, ragged.old_values, ragged.returns, mask, mask.sum(), 0.2, weights)
    wanted, clipped = core.compute_value_loss(
        values, ragged.returns, ragged.old_values, mask.double(), 0.2, MODES[mode]
    )
    assert_same(ours, wanted)
    assert_same(*(torch.autograd.grad(loss, values)[0] for loss in (ours, wanted)))
    assert_same(metrics["clip_fraction"], clipped, check_dtype=False)
