"""TorchRL 0.14.1: GAE (plain and vectorised), TD and lambda returns, clipped and penalised PPO, value loss, A2C."""

from functools import partial
from importlib import import_module

import pytest
import torch

from tabular.core.kl import PenaltyBeta, categorical_kl, kl_estimate
from tabular.core.losses import (
    clipped_surrogate_loss,
    kl_penalty_surrogate_loss,
    policy_gradient_loss,
    value_loss,
)
from tabular.core.returns import discounted_returns, gae, td_errors

pytest.importorskip("torchrl")
functional = import_module("torchrl.objectives.value.functional")
objectives = import_module("torchrl.objectives")
modules = import_module("tensordict.nn")
TensorDict = import_module("tensordict").TensorDict

pytestmark = pytest.mark.slow
assert_same = partial(torch.testing.assert_close, rtol=0, atol=1e-6)
ACTIONS = 5


# ----------------------------------------------------------------------------------------------------- returns


@pytest.fixture(params=range(3), ids="seed{}".format)
def episodes(request):
    """Rows [4, 12] of several episodes, some ended, some cut: a cut shows the value of where it stopped."""
    random = torch.Generator().manual_seed(request.param)
    rewards, values, after = torch.randn(3, 4, 12, generator=random, dtype=torch.float64)
    done = torch.rand(4, 12, generator=random) < 0.3
    done[0] = False
    terminated = done & (torch.rand(4, 12, generator=random) < 0.5)
    following = torch.where(done, after, torch.cat([values[:, 1:], after[:, -1:]], -1))
    return rewards, values, following, done, terminated


def ours_of(episodes, gamma):
    """As `gae` wants it: 0 where an episode stops, and what a cut left behind paid with its last reward."""
    rewards, values, following, done, terminated = episodes
    rewards = rewards + torch.where(done & ~terminated, gamma * following, 0)
    return rewards, values, gamma * (~done).double(), following[:, -1]


@pytest.mark.parametrize("name", ["generalized_advantage_estimate", "vec_generalized_advantage_estimate"])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.7), (0.9, 0.0), (0.9, 1.0)])
def test_gae(episodes, name, gamma, lam):
    if lam == 0:
        name = "generalized_advantage_estimate"  # the vectorised one ends with an IndexError
    rewards, values, following, done, terminated = (x.unsqueeze(-1) for x in episodes)
    wanted, targets = getattr(functional, name)(gamma, lam, values, following, rewards, done, terminated)
    r, v, discounts, last = ours_of(episodes, gamma)
    ours = gae(r, v, discounts, lam, last)
    assert_same(ours, wanted.squeeze(-1))
    assert_same(ours + v, targets.squeeze(-1))


def test_td_errors_and_returns(episodes):
    rewards, values, following, done, terminated = (x.unsqueeze(-1) for x in episodes)
    r, v, discounts, last = ours_of(episodes, 0.9)
    td = functional.td0_advantage_estimate(0.9, values, following, rewards, done, terminated)
    assert_same(td_errors(r, v, discounts, last), td.squeeze(-1))
    for peer in (functional.td1_return_estimate, functional.vec_td1_return_estimate):
        assert_same(discounted_returns(r, discounts, last), peer(0.9, following, rewards, done, terminated).squeeze(-1))
    for peer in (functional.td_lambda_return_estimate, functional.vec_td_lambda_return_estimate):
        wanted = peer(0.9, 0.7, following, rewards, done, terminated).squeeze(-1)
        assert_same(gae(r, v, discounts, 0.7, last) + v, wanted)


# ------------------------------------------------------------------------------------------------------ losses


@pytest.fixture(params=range(3), ids="seed{}".format)
def steps(request):
    """40 steps of a categorical policy: old and new logits, actions, advantages, values."""
    random = torch.Generator().manual_seed(request.param)
    old_logits, logits = torch.randn(2, 40, ACTIONS, generator=random, dtype=torch.float64) * 0.7
    advantages, values, old_values, returns = torch.randn(4, 40, generator=random, dtype=torch.float64)
    actions = torch.randint(ACTIONS, (40,), generator=random)
    old = old_logits.log_softmax(-1).gather(-1, actions[:, None]).squeeze(-1)
    return {
        "old_logits": old_logits, "logits": logits.requires_grad_(), "actions": actions, "old_logprobs": old,
        "advantages": advantages, "values": values.requires_grad_(), "old_values": old_values, "returns": returns,
    }  # fmt: skip


def theirs(loss_class, x, **settings):
    """Their loss, where the networks hand on what stands in the batch."""
    actor = modules.ProbabilisticTensorDictSequential(
        modules.TensorDictModule(torch.nn.Identity(), in_keys=["given"], out_keys=["logits"]),
        modules.ProbabilisticTensorDictModule(
            in_keys=["logits"], out_keys=["action"], distribution_class=torch.distributions.Categorical
        ),
    )
    critic = modules.TensorDictModule(torch.nn.Identity(), in_keys=["worth"], out_keys=["state_value"])
    loss = loss_class(actor, critic, **settings)
    batch = {
        "given": x["logits"], "logits": x["old_logits"], "action": x["actions"],
        "action_log_prob": x["old_logprobs"], "advantage": x["advantages"][:, None],
        "worth": x["values"][:, None], "state_value": x["old_values"][:, None], "value_target": x["returns"][:, None],
    }  # fmt: skip
    return loss, loss(TensorDict(batch, batch_size=[40]))


def ours(x):
    logprobs = x["logits"].log_softmax(-1).gather(-1, x["actions"][:, None]).squeeze(-1)
    return logprobs, torch.ones(40, dtype=torch.bool)


def gradients_agree(our_loss, their_loss, x):
    assert_same(*(torch.autograd.grad(loss, x)[0] for loss in (our_loss, their_loss)))


@pytest.mark.parametrize("clips", [0.2, (0.2, 0.28)])
def test_clipped_surrogate_and_its_gradient(steps, clips):
    logprobs, mask = ours(steps)
    low, high = clips if isinstance(clips, tuple) else (clips, clips)
    loss, metrics = clipped_surrogate_loss(logprobs, steps["old_logprobs"], steps["advantages"], mask, 40, low, high)
    _, peers = theirs(objectives.ClipPPOLoss, steps, clip_epsilon=clips, entropy_bonus=False)
    assert_same(loss, peers["loss_objective"], check_dtype=False)
    assert_same(metrics["clip_fraction"], peers["clip_fraction"])
    assert_same(metrics["ratio_mean"], peers["mean_ratio"])
    assert_same(metrics["ratio_max"], peers["max_ratio"])
    k1 = kl_estimate(steps["old_logprobs"], logprobs, "k1").mean()
    assert_same(k1.detach(), peers["kl_approx"])  # theirs may be negative; ours, half of the squared log ratio, may not
    gradients_agree(loss, peers["loss_objective"], steps["logits"])


@pytest.mark.parametrize("target", [0.01, 100.0])
def test_kl_penalty(steps, target):
    """The losses agree and so does beta's rule. The gradient is ours with the beta of *afterwards*.

    Theirs adjusts beta in place, behind autograd's back, between the loss and its backward pass: the penalty's gradient
    is twice, or half, of what the loss says.
    """
    logprobs, mask = ours(steps)

    def loss_at(beta):
        kl = categorical_kl(steps["old_logits"], steps["logits"])
        return kl_penalty_surrogate_loss(logprobs, steps["old_logprobs"], steps["advantages"], kl, beta, mask, 40)

    loss, metrics = loss_at(0.7)
    peer, peers = theirs(objectives.KLPENPPOLoss, steps, beta=0.7, dtarg=target, entropy_bonus=False)
    assert_same(loss, peers["loss_objective"])
    assert_same(metrics["exact_kl"], peers["kl"].mean())
    beta = PenaltyBeta(0.7, target)
    beta.update(metrics["exact_kl"].item())
    assert beta.beta == pytest.approx(peer.beta.item())
    assert beta.beta in (1.4, 0.35)
    gradients_agree(loss_at(beta.beta)[0], peers["loss_objective"], steps["logits"])


@pytest.mark.parametrize("clip", [None, 0.2])
def test_value_loss_and_its_gradient(steps, clip):
    """Theirs has no factor of a half, and counts every value that left the interval."""
    _, mask = ours(steps)
    loss, metrics = value_loss(steps["values"], steps["old_values"], steps["returns"], mask, 40, clip)
    _, peers = theirs(
        objectives.ClipPPOLoss, steps, clip_value=clip, loss_critic_type="l2", critic_coeff=0.5, entropy_bonus=False
    )
    assert_same(loss, peers["loss_critic"])
    gradients_agree(loss, peers["loss_critic"], steps["values"])
    if clip is not None:
        assert metrics["clip_fraction"] <= peers["value_clip_fraction"]


def test_policy_gradient(steps):
    logprobs, mask = ours(steps)
    loss, _ = policy_gradient_loss(logprobs, steps["advantages"], mask, 40)
    _, peers = theirs(objectives.A2CLoss, steps, loss_critic_type="l2", entropy_bonus=False)
    assert_same(loss, peers["loss_objective"])
    gradients_agree(loss, peers["loss_objective"], steps["logits"])
