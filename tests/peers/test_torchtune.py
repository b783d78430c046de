"""torchtune 0.6.1, `torchtune.rlhf`: whitening, GAE, rewards by token, the PPO loss."""

import sys
from functools import partial
from unittest.mock import MagicMock

import pytest
import torch

from rlhf.config.ppo import PPOConfig
from rlhf.trainers.advantages import estimate, token_rewards
from tabular.core.losses import clipped_surrogate_loss, value_loss
from tabular.core.masked import masked_mean, masked_var, masked_whiten

# Quantization, of which the release wants an older version than this torch has, and tokenizers.
REPLACED_MODULES = (
    "torchao torchao.dtypes torchao.dtypes.nf4tensor torchao.quantization sentencepiece tiktoken tiktoken.load"
)
with pytest.MonkeyPatch.context() as patch:
    for name in REPLACED_MODULES.split():
        patch.setitem(sys.modules, name, MagicMock(__spec__=None, __path__=[]))
    pytest.importorskip("torchtune")
    from torchtune import rlhf as theirs
    from torchtune.rlhf.loss import PPOLoss

pytestmark = pytest.mark.slow
assert_same = partial(torch.testing.assert_close, rtol=0, atol=1e-6)


def bessel(mask):
    """What an unbiased deviation is larger by."""
    return (mask.sum() / (mask.sum() - 1)).sqrt()


def test_moments(ragged):
    x, mask = ragged.rewards, ragged.mask
    mean = masked_mean(x, mask)
    assert_same(mean, theirs.masked_mean(x, mask))
    assert_same(masked_var(x, mask), theirs.masked_var(x - mean, mask, unbiased=False))
    assert_same(masked_var(x, mask, unbiased=True), theirs.masked_var(x - mean, mask))


def test_their_whitening_has_its_flag_the_wrong_way_round(ragged):
    """`shift_mean`, on by default, adds the mean back; switched off, it does what its name says."""
    x, mask = ragged.rewards, ragged.mask
    centred = masked_whiten(x, mask) / bessel(mask)
    assert_same(centred[mask], theirs.whiten(x, mask, shift_mean=False)[mask])
    assert_same((centred + masked_mean(x, mask))[mask], theirs.whiten(x, mask, shift_mean=True)[mask])


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.7), (0.99, 0.0), (0.9, 1.0)])
def test_gae(ragged, gamma, lam):
    """Returns agree where the caller has put zeros into the padding, which theirs reads.

    Its advantages are scaled but not centred, by the flag above: the batch's mean advantage stays in.
    """
    mask = ragged.mask
    config = PPOConfig(gamma=gamma, lam=lam)
    advantages, returns = estimate(ragged.rollout(), ragged.rewards, None, config)
    values, rewards = (torch.where(mask, x, 0) for x in (ragged.values, ragged.rewards))
    whitened, wanted = theirs.estimate_advantages(values, rewards, gamma, lam, mask)
    assert_same(returns, wanted)
    centred = masked_whiten(advantages, mask) / bessel(mask)
    assert_same(torch.where(mask, centred + masked_mean(advantages, mask), 0), whitened)


def test_gae_reads_padding_there(ragged):
    advantages, _ = estimate(ragged.rollout(), ragged.rewards, None, PPOConfig())
    _, returns = theirs.estimate_advantages(ragged.values, ragged.rewards, 1.0, 0.95, ragged.mask)
    short = ragged.lengths < ragged.mask.shape[1]
    last = ragged.lengths - 1
    rows = torch.arange(len(last))
    # The last action earns its reward and nothing else; theirs adds what stands in the padding.
    assert_same((advantages + ragged.values)[rows, last], ragged.rewards[rows, last])
    assert ((returns[rows, last] - ragged.rewards[rows, last]).abs()[short] > 1e-3).all()


def test_token_rewards(ragged):
    wanted, _, _ = theirs.get_rewards_ppo(
        ragged.scores, ragged.old_logprobs, ragged.ref_logprobs, 0.3, ragged.lengths - 1
    )
    assert_same(token_rewards(ragged.rollout(), ragged.scores, 0.3, "k1")[ragged.mask], wanted[ragged.mask])


def test_losses_and_their_gradients(ragged):
    mask = ragged.mask
    logprobs, values = ragged.logprobs.requires_grad_(), ragged.values.requires_grad_()
    arguments = (mask, mask.sum(), 0.2)
    policy, metrics = clipped_surrogate_loss(logprobs, ragged.old_logprobs, ragged.advantages, *arguments)
    critic, _ = value_loss(values, ragged.old_values, ragged.returns, *arguments)
    wanted, wanted_policy, wanted_critic, ratio, clipped = PPOLoss(epsilon=0.2, value_clip_range=0.2, value_coeff=0.1)(
        ragged.old_logprobs, logprobs, ragged.advantages, ragged.old_values, values, ragged.returns, mask, mask
    )
    assert_same(policy, wanted_policy)
    assert_same(critic, wanted_critic)
    for x in (logprobs, values):
        ours, peers = (torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in (policy + 0.1 * critic, wanted))
        assert_same(ours, peers)
    assert metrics["clip_fraction"] >= clipped - 1e-6  # theirs: only where the clipped branch was chosen
    everything = torch.ones_like(mask)  # and its mean ratio is one over padding too
    _, over_padding = clipped_surrogate_loss(
        logprobs, ragged.old_logprobs, ragged.advantages, everything, everything.sum()
    )
    assert_same(over_padding["ratio_mean"], ratio)
