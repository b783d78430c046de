"""OpenRLHF 0.11.2: KL forms, rewards by token, GAE, the estimators with their normalisation, losses."""

import sys
from functools import partial
from types import SimpleNamespace
from unittest.mock import MagicMock

import peft  # noqa: F401  # with transformers, before either looks whether the libraries below are there
import pytest
import torch

from rlhf.config.ppo import PPOConfig
from rlhf.trainers.advantages import GROUP_STD_EPS, estimate, gae_estimates, returns_to_go, token_rewards
from rlhf.trainers.loss import loss_weights
from tabular.core.kl import AdaptiveKL, kl_estimate
from tabular.core.losses import aggregate, clipped_surrogate_loss, value_loss
from tabular.core.masked import masked_mean, masked_whiten

# What its workers run on, and its reader of mathematical answers; none of the functions below touches them.
UNSUPPORTED = (
    "deepspeed flash_attn flash_attn.bert_padding flash_attn.utils flash_attn.utils.distributed pylatexenc ray "
    "openrlhf.trainer.ray openrlhf.trainer.ray.launcher"
)
pytest.importorskip("openrlhf")
with pytest.MonkeyPatch.context() as patch:
    for name in UNSUPPORTED.split():
        patch.setitem(sys.modules, name, MagicMock(__spec__=None, __path__=[]))
    from openrlhf.models import loss as losses
    from openrlhf.models import utils
    from openrlhf.trainer.ppo_utils import experience_maker as maker
    from openrlhf.trainer.ppo_utils import kl_controller as controller

pytestmark = pytest.mark.slow
assert_same = partial(torch.testing.assert_close, rtol=0, atol=1e-6)
single = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-6, check_dtype=False)  # theirs casts to float32
GROUP = 4

# ---------------------------------------------------------------------------------------------------------- KL


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_kl_forms_and_their_gradients(ragged, kind):
    logprobs = ragged.logprobs.requires_grad_()
    ours = kl_estimate(logprobs, ragged.ref_logprobs, kind)
    wanted = utils.compute_approx_kl(logprobs, ragged.ref_logprobs, kl_estimator=kind)
    single(ours, wanted)
    single(*(torch.autograd.grad(kl.sum(), logprobs)[0] for kl in (ours, wanted)))


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_every_form_is_capped_at_ten_there_only(kind):
    """A cap makes each of them biased where the policies are furthest apart, and takes its gradient away."""
    logprobs = torch.tensor([-12.0], dtype=torch.float64, requires_grad=True)
    ours = kl_estimate(logprobs, torch.zeros_like(logprobs), kind)
    wanted = utils.compute_approx_kl(logprobs, torch.zeros_like(logprobs), kl_estimator=kind)
    assert wanted.abs() == 10
    assert torch.autograd.grad(wanted.sum(), logprobs)[0] == 0
    assert ours.abs() >= 12
    assert torch.autograd.grad(ours.sum(), logprobs)[0] != 0


def test_the_unbiased_gradient_is_that_of_k2(ragged):
    logprobs = ragged.logprobs.requires_grad_()
    wanted = utils.compute_approx_kl(logprobs, ragged.ref_logprobs, kl_estimator="k3", unbiased_gradient=True)
    ours = kl_estimate(logprobs, ragged.ref_logprobs, "k2")
    single(*(torch.autograd.grad(kl.sum(), logprobs)[0] for kl in (ours, wanted)))


def test_adaptive_coefficient():
    ours, peer = AdaptiveKL(0.15, 6.0, 10_000), controller.AdaptiveKLController(0.15, 6.0, 10_000)
    for kl in (0.0, 5.9, 6.5, 30.0, -2.0, 7.0):
        ours.update(kl, 512)
        peer.update(kl, 512)
        assert ours.coef == pytest.approx(peer.value, abs=1e-12)


@pytest.mark.parametrize("kind", ["k1", "k2", "k3"])
def test_token_rewards(either, kind):
    """The score on the last real token; theirs leaves what lies in padding to be masked later."""
    kl = kl_estimate(either.old_logprobs, either.ref_logprobs, kind)
    wanted = utils.compute_reward(either.scores, 0.3, kl, either.mask)
    assert_same(token_rewards(either.rollout(), either.scores, 0.3, kind)[either.mask], wanted[either.mask])


# -------------------------------------------------------------------------------------------------- estimators


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.7), (0.99, 0.0), (0.9, 1.0)])
def test_gae(ragged, gamma, lam):
    ours = estimate(ragged.rollout(), ragged.rewards, None, PPOConfig(gamma=gamma, lam=lam))
    wanted = maker.RemoteExperienceMaker.get_advantages_and_returns(
        None, ragged.values, ragged.rewards, ragged.mask, gamma, lam
    )
    for our, peers in zip(ours, wanted, strict=True):
        assert_same(our[ragged.mask], peers[ragged.mask])


def test_gae_over_environment_tokens_differs():
    """Environment tokens are steps of value 0 there: the token before them gets the target that nothing follows.

    Ours (as verl's) skips them. Two decisions of value 1 and a last reward of 1, nothing to discount: neither
    decision was better than expected.
    """
    mask = torch.tensor([[True, False, True]])
    values, rewards = torch.ones(1, 3, dtype=torch.float64), torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    ours, _ = gae_estimates(rewards, values, mask, PPOConfig(gamma=1.0, lam=0.0))
    wanted, _ = maker.RemoteExperienceMaker.get_advantages_and_returns(None, values, rewards, mask, 1.0, 0.0)
    assert ours[mask].tolist() == [0, 0]
    assert wanted[mask].tolist() == [-1, 0]


def test_returns_over_holes_differ():
    """A reward two places on is one decision away, where the place between is no decision."""
    mask, rewards = torch.tensor([[True, False, True]]), torch.tensor([[0.0, 0.0, 1.0]])
    assert returns_to_go(rewards, mask, 0.5).tolist() == [[0.5, 0, 1]]
    wanted = maker.RemoteExperienceMaker.get_cumulative_returns(None, rewards, mask, 0.5)
    assert wanted[mask].tolist() == [0.25, 1]


def through_their_maker(batch, estimator, gamma=1.0):
    """Advantages and returns as their whole method makes them, in two batches as its workers would."""
    args = SimpleNamespace(
        rollout=SimpleNamespace(n_samples_per_prompt=GROUP),
        algo=SimpleNamespace(advantage=SimpleNamespace(estimator=estimator, gamma=gamma, lambd=0.9, no_std_norm=False)),
        reward=SimpleNamespace(clip_range=None),
    )
    own = maker.RemoteExperienceMaker.__new__(maker.RemoteExperienceMaker)
    own.strategy, own.args, own.advantage_estimator = SimpleNamespace(args=args), args, estimator
    own.kl_ctl = SimpleNamespace(value=0.3)
    kl = kl_estimate(batch.old_logprobs, batch.ref_logprobs, "k1")
    parts = [
        maker.Experience(
            index=list(range(i, i + 4)), rewards=batch.scores[i : i + 4].clone(), kl=kl[i : i + 4], info={},
            action_mask=batch.mask[i : i + 4], values=batch.values[i : i + 4],
        )
        for i in (0, 4)
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maker, "apply_length_penalties", lambda *_: None)
        parts = own.compute_advantages_and_returns(parts)
    return (torch.cat([getattr(part, name) for part in parts]) for name in ("advantages", "returns"))


def test_gae_and_whitening_of_a_batch(ragged):
    """Rewards, GAE and whitening in one: both whiten over the whole batch, by the biased deviation."""
    rewards = token_rewards(ragged.rollout(), ragged.scores, 0.3, "k1")
    advantages, returns = estimate(ragged.rollout(), rewards, None, PPOConfig(gamma=0.95, lam=0.9))
    wanted, wanted_returns = through_their_maker(ragged, "gae", gamma=0.95)
    assert_same(returns[ragged.mask], wanted_returns[ragged.mask])
    single(masked_whiten(advantages, ragged.mask)[ragged.mask], wanted[ragged.mask])


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_reinforce_pp(ragged, gamma):
    config = PPOConfig(estimator="reinforce_pp", gamma=gamma)
    rewards = token_rewards(ragged.rollout(), ragged.scores, 0.3, "k1")
    advantages, returns = estimate(ragged.rollout(), rewards, None, config)
    wanted, wanted_returns = through_their_maker(ragged, "reinforce", gamma=gamma)
    single(returns[ragged.mask], wanted_returns[ragged.mask])
    single(masked_whiten(advantages, ragged.mask)[ragged.mask], wanted[ragged.mask])


@pytest.mark.parametrize(("name", "peer"), [("rloo", "rloo"), ("grpo", "group_norm"), ("grpo", "dr_grpo")])
def test_group_estimators_of_the_score(ragged, name, peer):
    """With no KL in the reward the two agree: theirs has 1e-9 in GRPO's divisor, ours 1e-6."""
    ragged.ref_logprobs = ragged.old_logprobs
    ours, _ = estimate(
        ragged.rollout(), ragged.outcome, None,
        PPOConfig(estimator=name, samples_per_prompt=GROUP, grpo_divide_by_std=peer != "dr_grpo"),
    )  # fmt: skip
    if peer == "group_norm":
        deviations = ragged.scores.view(-1, GROUP).std(-1, keepdim=True)
        scale = ((deviations + GROUP_STD_EPS) / (deviations + 1e-9)).repeat(1, GROUP).flatten()
        ours = ours * scale[:, None]
    wanted, _ = through_their_maker(ragged, peer)
    single(ours[ragged.mask], wanted[ragged.mask])


def test_group_estimators_differ_where_kl_is_paid(ragged):
    """Ours compares what whole responses earned, KL included, as RLOO's paper does; every token gets that number.

    Theirs compares the scores alone and lets each token pay the KL from itself on, without a baseline.
    """
    rewards = token_rewards(ragged.rollout(), ragged.scores, 0.3, "k1")
    ours, _ = estimate(ragged.rollout(), rewards, None, PPOConfig(estimator="rloo", samples_per_prompt=GROUP))
    wanted, _ = through_their_maker(ragged, "rloo")
    kl = torch.where(ragged.mask, kl_estimate(ragged.old_logprobs, ragged.ref_logprobs, "k1"), 0)
    to_go = kl.flip(-1).cumsum(-1).flip(-1)
    totals = kl.sum(-1).view(-1, GROUP)
    baseline = ((totals.sum(-1, keepdim=True) - totals) / (GROUP - 1)).view(-1, 1)
    single((ours + 0.3 * (kl.sum(-1, keepdim=True) - baseline) - 0.3 * to_go)[ragged.mask], wanted[ragged.mask])


# ------------------------------------------------------------------------------------------------------ losses


def own_weights(mask, mode):
    weights = loss_weights(mask, mode, *mask.shape)
    return weights if weights is None else weights.double()


@pytest.mark.parametrize("mode", ["token", "sequence"])
def test_aggregation(ragged, mode):
    x, mask = ragged.rewards, ragged.mask
    assert_same(
        aggregate(x, mask, mask.sum(), own_weights(mask, mode)), losses.aggregate_loss(x, mask, mode == "token")
    )
    assert_same(masked_mean(x, mask), utils.masked_mean(x, mask))


@pytest.mark.parametrize("mode", ["token", "sequence"])
@pytest.mark.parametrize("clips", [(0.2, 0.2, None), (0.2, 0.28, 3.0), (0.1, 0.1, 1.5)])
def test_clipped_surrogate_and_its_gradient(ragged, mode, clips):
    mask = ragged.mask
    ragged.logprobs[1, 0] -= 40  # beyond the clamp on the log-ratio, which both have at 20
    logprobs = ragged.logprobs.requires_grad_()
    ours, metrics = clipped_surrogate_loss(
        logprobs, ragged.old_logprobs, ragged.advantages, mask, mask.sum(), *clips, weights=own_weights(mask, mode)
    )
    wanted, clipped, k1, *_ = losses.PolicyLoss(*clips, token_level_loss=mode == "token")(
        logprobs, ragged.old_logprobs, ragged.advantages, mask
    )
    assert_same(ours, wanted)
    assert_same(*(torch.autograd.grad(loss, logprobs)[0] for loss in (ours, wanted)))
    assert metrics["clip_fraction"] >= clipped - 1e-6  # theirs: only where the clipped branch was chosen
    assert_same(masked_mean(kl_estimate(ragged.old_logprobs, logprobs.detach(), "k1"), mask), k1)


@pytest.mark.parametrize("mode", ["token", "sequence"])
@pytest.mark.parametrize("clip", [None, 0.2])
def test_value_loss_and_its_gradient(ragged, mode, clip):
    mask, values = ragged.mask, ragged.values.requires_grad_()
    arguments = (values, ragged.old_values, ragged.returns, mask)
    ours, _ = value_loss(*arguments, mask.sum(), clip, own_weights(mask, mode))
    wanted = losses.ValueLoss(clip, token_level_loss=mode == "token")(*arguments)
    assert_same(ours, wanted)
    assert_same(*(torch.autograd.grad(loss, values)[0] for loss in (ours, wanted)))
