"""skrl 2.1.1, `compute_gae` of its PPO."""

from functools import partial
from importlib import import_module

import pytest
import torch

from tabular.core.masked import masked_whiten
from tabular.core.returns import gae

pytest.importorskip("skrl")
compute_gae = import_module("skrl.agents.torch.ppo.ppo").compute_gae

pytestmark = pytest.mark.slow
assert_same = partial(torch.testing.assert_close, rtol=0, atol=1e-6)
ENVS, STEPS = 3, 12


@pytest.fixture(params=range(3), ids="seed{}".format)
def episodes(request):
    random = torch.Generator().manual_seed(request.param)
    rewards, values = torch.randn(2, ENVS, STEPS, generator=random, dtype=torch.float64)
    last = torch.randn(ENVS, generator=random, dtype=torch.float64)
    done = torch.rand(ENVS, STEPS, generator=random) < 0.3
    cut = done & (torch.rand(ENVS, STEPS, generator=random) < 0.5)
    return rewards, values, last, done, cut


def theirs(rewards, values, last, terminated, truncated, **settings):
    """Returns and normalised advantages, time last."""
    by_time = [x.T.unsqueeze(-1).contiguous() for x in (rewards, terminated, truncated, values)]
    names = ("rewards", "terminated", "truncated", "values")
    returns, advantages = compute_gae(
        **dict(zip(names, by_time, strict=True)), last_values=last.unsqueeze(-1), **settings
    )
    return returns.squeeze(-1).T, advantages.squeeze(-1).T


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.7), (0.99, 0.0), (0.9, 1.0)])
def test_gae(episodes, gamma, lam):
    rewards, values, last, done, cut = episodes
    settings = {"discount_factor": gamma, "lambda_coefficient": lam, "time_limit_bootstrap": True}
    returns, advantages = theirs(rewards, values, last, done & ~cut, cut, **settings)
    ours = gae(rewards, values, gamma * (~done).double(), lam, last)
    assert_same(ours + values, returns)
    n = done.numel()
    assert_same(masked_whiten(ours, torch.ones_like(done)) * ((n - 1) / n) ** 0.5, advantages)


def test_a_cut_is_no_end_there_by_default(episodes):
    """Without `time_limit_bootstrap` an episode that was cut takes in the next one's values and rewards."""
    rewards, values, last, done, cut = episodes
    returns, _ = theirs(rewards, values, last, done & ~cut, cut, discount_factor=0.9, lambda_coefficient=0.7)
    assert_same(gae(rewards, values, 0.9 * (~(done & ~cut)).double(), 0.7, last) + values, returns)
    ours = gae(rewards, values, 0.9 * (~done).double(), 0.7, last) + values
    assert (ours - returns)[cut].abs().max() > 1e-3
