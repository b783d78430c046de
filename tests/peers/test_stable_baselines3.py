"""Stable-Baselines3 2.9.2: GAE of its rollout buffer, explained variance, and the losses of a real PPO update.

The losses stand in the middle of `train()`: a small agent is trained, and its numbers are read at each backward pass.
"""

import sys
from functools import partial
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tabular.core.kl import kl_estimate
from tabular.core.losses import clipped_surrogate_loss, value_loss
from tabular.core.masked import explained_variance, masked_whiten
from tabular.core.returns import gae

sb3 = pytest.importorskip("stable_baselines3")
common = import_module("stable_baselines3.common")
buffers = import_module("stable_baselines3.common.buffers")
spaces = import_module("gymnasium").spaces

pytestmark = pytest.mark.slow
assert_same = partial(torch.testing.assert_close, rtol=0, atol=1e-6)
STEPS, ENVS = 12, 3


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.7), (0.99, 0.0), (0.9, 1.0)])
def test_gae_over_several_episodes_in_a_row(seed, gamma, lam):
    random = np.random.default_rng(seed)
    buffer = buffers.RolloutBuffer(STEPS, spaces.Discrete(2), spaces.Discrete(2), "cpu", lam, gamma, ENVS)
    buffer.advantages = np.zeros((STEPS, ENVS))  # float64, which theirs is not by itself
    buffer.rewards, buffer.values = random.normal(size=(2, STEPS, ENVS))
    buffer.episode_starts = (random.random((STEPS, ENVS)) < 0.3).astype(np.float64)
    dones, last = np.array([True, False, False]), torch.randn(ENVS, dtype=torch.float64)
    buffer.compute_returns_and_advantage(last, dones)
    ended = np.concatenate([buffer.episode_starts[1:], dones[None].astype(np.float64)])
    rewards, values, discounts, wanted, returns = (
        torch.from_numpy(x.T.copy())
        for x in (buffer.rewards, buffer.values, gamma * (1 - ended), buffer.advantages, buffer.returns)
    )
    ours = gae(rewards, values, discounts, lam, last)
    assert_same(ours, wanted)
    assert_same(ours + values, returns)


def test_explained_variance():
    predictions, targets = torch.randn(2, 50, dtype=torch.float64)
    wanted = common.utils.explained_variance(predictions.numpy(), targets.numpy())
    assert explained_variance(predictions, targets).item() == pytest.approx(wanted, abs=1e-9)
    assert np.isnan(common.utils.explained_variance(predictions.numpy(), np.ones(50)))
    assert explained_variance(predictions, torch.ones(50).double()).isnan()


@pytest.fixture(scope="module", params=[None, 0.05], ids=["values-free", "values-clipped"])
def updates(request):
    """The local variables of PPO's `train()` at each of its backward passes."""
    agent = sb3.PPO(
        "MlpPolicy", "CartPole-v1", n_steps=64, batch_size=32, n_epochs=3, learning_rate=0.01, ent_coef=0.01,
        clip_range_vf=request.param, seed=0, device="cpu",
    )  # fmt: skip
    calls, backward = [], torch.Tensor.backward

    def seen(loss):
        calls.append(dict(sys._getframe(1).f_locals))
        backward(loss, retain_graph=True)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "backward", seen)
        agent.learn(64)
    assert len(calls) == 6
    return SimpleNamespace(calls=calls, clip_range_vf=request.param)


def real(x):
    return torch.ones_like(x, dtype=torch.bool), x.numel()


def test_policy_loss_and_clip_fraction(updates):
    for x in updates.calls:
        loss, metrics = clipped_surrogate_loss(
            x["log_prob"], x["rollout_data"].old_log_prob, x["advantages"], *real(x["log_prob"]), x["clip_range"]
        )
        assert_same(loss, x["policy_loss"])
        assert metrics["clip_fraction"].item() == pytest.approx(x["clip_fraction"], abs=1e-6)
        assert_same(*(torch.autograd.grad(y, x["log_prob"], retain_graph=True)[0] for y in (loss, x["policy_loss"])))


def test_approximate_kl_is_k3_there(updates):
    """Theirs is `ratio - 1 - log ratio`, ours half of the squared log ratio: the same to second order."""
    for x in updates.calls:
        old = x["rollout_data"].old_log_prob
        theirs = kl_estimate(old, x["log_prob"], "k3").mean()
        assert_same(theirs.detach(), torch.tensor(x["approx_kl_div"]))
        _, metrics = clipped_surrogate_loss(x["log_prob"], old, x["advantages"], *real(old))
        assert metrics["approx_kl"].item() == pytest.approx(theirs.item(), rel=0.5, abs=1e-6)


def test_value_loss(updates):
    """Theirs has no factor of a half; clipped, it takes the clipped error alone, not the larger of the two."""
    excess = []
    for x in updates.calls:
        arguments = (x["values"], x["rollout_data"].old_values, x["rollout_data"].returns, *real(x["values"]))
        ours, _ = value_loss(*arguments, updates.clip_range_vf)
        excess.append((2 * ours / x["value_loss"] - 1).item())
    if updates.clip_range_vf is None:
        assert max(map(abs, excess)) < 1e-6
    else:
        assert min(excess) > -1e-6
        assert max(excess) > 1e-5


def test_normalised_advantages_differ_by_the_divisor_alone(updates):
    for x in updates.calls:
        raw = x["rollout_data"].advantages
        mask, n = real(raw)
        torch.testing.assert_close(
            masked_whiten(raw, mask) * ((n - 1) / n) ** 0.5, x["advantages"], rtol=1e-5, atol=1e-6
        )
