"""RLax 0.1.9: returns, GAE, policy gradient, clipped surrogate, exact KL; in jax, float64."""

from functools import partial

import numpy as np
import pytest
import torch

from tabular.core.kl import categorical_kl
from tabular.core.losses import clipped_surrogate_loss, policy_gradient_loss
from tabular.core.returns import discounted_returns, gae, n_step_returns

rlax = pytest.importorskip("rlax")
jax = pytest.importorskip("jax")
jax.config.update("jax_enable_x64", True)

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")]
jnp = jax.numpy
assert_same = partial(torch.testing.assert_close, rtol=0, atol=1e-6)


def tensor(x):
    return torch.from_numpy(np.array(x))


def rows(batch):
    """Each row's rewards, discounts, values and the value behind its end, theirs in front of ours."""
    discounts = 0.97 * torch.nn.functional.pad(batch.mask[:, 1:], (0, 1)).double()
    discounts[:, -1] = 0.97  # one row is as long as the batch: cut, not ended
    last = batch.returns[:, 0]
    for i in range(len(last)):
        ours = batch.rewards[i], discounts[i], batch.values[i], last[i]
        yield ours, [jnp.asarray(x.numpy()) for x in ours]


@pytest.mark.parametrize("lam", [0.0, 0.9, 1.0])
def test_gae(ragged, lam):
    for (rewards, discounts, values, last), (r, d, v, end) in rows(ragged):
        wanted = rlax.truncated_generalized_advantage_estimation(r, d, lam, jnp.append(v, end))
        assert_same(gae(rewards, values, discounts, lam, last), tensor(wanted))


def test_gae_with_a_lambda_for_each_step(ragged):
    """Theirs numbers lambda by the step that is left, as ours does."""
    for i, ((rewards, discounts, values, last), (r, d, v, end)) in enumerate(rows(ragged)):
        lam = ragged.advantages[i].sigmoid()
        wanted = rlax.truncated_generalized_advantage_estimation(r, d, jnp.asarray(lam.numpy()), jnp.append(v, end))
        assert_same(gae(rewards, values, discounts, lam, last), tensor(wanted))


def test_returns(ragged):
    for (rewards, discounts, values, last), (r, d, v, end) in rows(ragged):
        assert_same(discounted_returns(rewards, discounts, last), tensor(rlax.discounted_returns(r, d, end)))
        lambda_returns = rlax.lambda_returns(r, d, jnp.append(v[1:], end), 0.9)
        assert_same(gae(rewards, values, discounts, 0.9, last) + values, tensor(lambda_returns))


@pytest.mark.parametrize("n", [1, 3, 9])
def test_n_step_returns(ragged, n):
    for (rewards, discounts, values, last), (r, d, v, end) in rows(ragged):
        wanted = rlax.n_step_bootstrapped_returns(r, d, jnp.append(v[1:], end), n)
        assert_same(n_step_returns(rewards, values, discounts, n, last), tensor(wanted))


def test_clipped_surrogate_and_its_gradient(ragged):
    mask = ragged.mask
    logprobs = ragged.logprobs.requires_grad_()
    ours, _ = clipped_surrogate_loss(logprobs, ragged.old_logprobs, ragged.advantages, mask, mask.sum(), 0.2)
    new, old, advantages = (
        jnp.asarray(x[mask].numpy()) for x in (logprobs.detach(), ragged.old_logprobs, ragged.advantages)
    )
    wanted, gradient = jax.value_and_grad(
        lambda new: rlax.clipped_surrogate_pg_loss(jnp.exp(new - old), advantages, 0.2)
    )(new)
    assert_same(ours.detach(), tensor(wanted))
    assert_same(torch.autograd.grad(ours, logprobs)[0][mask], tensor(gradient))


def test_policy_gradient(ragged):
    mask = ragged.mask
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(*mask.shape, 5, generator=random, dtype=torch.float64).requires_grad_()
    actions = torch.randint(5, mask.shape, generator=random)
    logprobs = logits.log_softmax(-1).gather(-1, actions[..., None]).squeeze(-1)
    ours, _ = policy_gradient_loss(logprobs, ragged.advantages, mask, mask.sum())
    wanted, gradient = jax.value_and_grad(rlax.policy_gradient_loss)(
        jnp.asarray(logits[mask].detach().numpy()), jnp.asarray(actions[mask].numpy()),
        jnp.asarray(ragged.advantages[mask].numpy()), jnp.ones(int(mask.sum())),
    )  # fmt: skip
    assert_same(ours.detach(), tensor(wanted))
    assert_same(torch.autograd.grad(ours, logits)[0][mask], tensor(gradient))


def test_exact_kl():
    p, q = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p[0, 1] = -torch.inf  # an action that p never takes
    q[1, 1] = -torch.inf  # one that only p takes
    wanted = rlax.categorical_kl_divergence(jnp.asarray(p.numpy()), jnp.asarray(q.numpy()))
    assert_same(categorical_kl(p, q), tensor(wanted))
