"""Properties of token rewards and advantages on ragged batches made by hypothesis; the same examples in every run."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from rlhf.config.ppo import PPOConfig
from rlhf.records import Prompts, Rollout
from rlhf.trainers.advantages import (
    RunningScale,
    broadcast_over_tokens,
    gae_estimates,
    grpo,
    reference_kl,
    returns_to_go,
    rloo,
    sum_over_tokens,
    token_rewards,
)
from rlhf.trainers.loss import loss_weights

examples = settings(
    derandomize=True,
    deadline=None,
    max_examples=50,
    database=None,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow],  # no test depends on the speed of the machine
)


def numbers(shape: Any, low: float = -10, high: float = 10) -> Any:
    return arrays(np.float64, shape, elements=st.floats(low, high, allow_subnormal=False)).map(torch.from_numpy)


def ragged(count: int) -> Any:
    """Several tensors [B, R], a tensor [B], and a mask with gaps in which every row has a True."""
    shapes = st.tuples(st.integers(1, 4), st.integers(1, 6))
    return shapes.flatmap(
        lambda shape: st.tuples(
            *[numbers(shape)] * count,
            numbers(shape[:1]),
            arrays(np.bool_, shape).map(torch.from_numpy).filter(lambda mask: bool(mask.any(-1).all())),
        )
    )


def groups(values: list[float], size: int) -> Tensor:
    return torch.tensor(values[: len(values) // size * size], dtype=torch.float64)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-9, rtol=1e-9)


def rollout_of(old: Tensor, ref: Tensor, token_scores: Tensor, scores: Tensor, mask: Tensor) -> Rollout:
    rows = len(mask)
    prompts = Prompts(torch.ones(rows, 1, dtype=torch.long), torch.ones(rows, 1, dtype=torch.bool), ["a"] * rows, {})
    nan = torch.full_like(old, torch.nan)
    old, ref, token_scores = (torch.where(mask, x, nan) for x in (old, ref, token_scores))
    cut = torch.zeros(rows, dtype=torch.bool)
    return Rollout(prompts, mask.long(), mask, cut, ["a"] * rows, old, ref, nan, scores, token_scores)


@examples
@given(batch=ragged(3), kl_coef=st.floats(0, 2), kind=st.sampled_from(["k1", "k2", "k3"]))
def test_token_rewards_sum_to_score_and_token_scores_less_the_kl(batch, kl_coef, kind):
    *tensors, scores, mask = batch
    tensors[0], tensors[1] = tensors[0] / 10, tensors[1] / 10
    rollout = rollout_of(*tensors, scores, mask)
    rewards = token_rewards(rollout, scores, kl_coef, kind)
    assert bool((rewards[~mask] == 0).all())
    kl = sum_over_tokens(reference_kl(rollout, kind), mask)
    assert rollout.token_scores is not None
    close(rewards.sum(-1), scores + sum_over_tokens(rollout.token_scores, mask) - kl_coef * kl)


@examples
@given(ragged(2), st.floats(0, 1), st.floats(0, 1), st.integers(1, 4))
def test_padding_of_any_width_and_content_changes_no_advantage(batch, gamma, lam, width):
    rewards, values, _, mask = batch
    config = PPOConfig(gamma=gamma, lam=lam, lam_critic=1.0)
    plain = gae_estimates(rewards, values, mask, config)

    def padded(x: Tensor) -> Tensor:
        return torch.nn.functional.pad(torch.where(mask, x, torch.nan), (0, width), value=torch.nan)

    wide_mask = torch.nn.functional.pad(mask, (0, width))
    for wide, narrow in zip(gae_estimates(padded(rewards), padded(values), wide_mask, config), plain, strict=True):
        close(wide[:, : mask.shape[1]][mask], narrow[mask])
        assert bool((wide[~wide_mask] == 0).all())
    close(plain[1], returns_to_go(rewards, mask, gamma))  # with lambda 1 the critic's targets are the returns


@examples
@given(ragged(1), st.floats(0, 1))
def test_returns_to_go_begin_with_the_sum_and_end_with_the_last_reward(batch, gamma):
    rewards, per_row, mask = batch
    first, last = mask.int().argmax(-1), mask.shape[1] - 1 - mask.flip(-1).int().argmax(-1)
    rows = torch.arange(len(mask))
    close(returns_to_go(rewards, mask, 1.0)[rows, first], sum_over_tokens(rewards, mask))
    close(returns_to_go(rewards, mask, gamma)[rows, last], rewards[rows, last])
    close(returns_to_go(rewards, mask, 0.0), torch.where(mask, rewards, 0))
    close(sum_over_tokens(broadcast_over_tokens(per_row, mask), mask), per_row * mask.sum(-1))


@examples
@given(st.lists(st.floats(-100, 100), min_size=4, max_size=12), st.integers(2, 4), st.floats(-50, 50))
def test_group_advantages_sum_to_zero_and_forget_a_shift(values, size, shift):
    rewards = groups(values, size)
    for estimator in (lambda x: rloo(x, size), lambda x: grpo(x, size, False)):
        advantages = estimator(rewards)
        close(advantages.view(-1, size).sum(-1), torch.zeros(len(rewards) // size, dtype=torch.float64))
        close(estimator(rewards + shift), advantages)
    close(rloo(rewards, size) * (size - 1) / size, grpo(rewards, size, False))
    assert bool((grpo(rewards, size).abs() <= (size - 1) / size**0.5 + 1e-9).all())


@examples
@given(st.lists(st.floats(-100, 100), min_size=1, max_size=12), st.integers(1, 11))
def test_the_running_scale_does_not_depend_on_how_scores_arrive(values, cut):
    scores = torch.tensor(values, dtype=torch.float64)
    whole, parts = RunningScale(), RunningScale()
    whole.update(scores)
    for part in (scores[:cut], scores[cut:]):
        if len(part):
            parts.update(part)
    assert parts.mean == pytest.approx(whole.mean, abs=1e-9)
    assert parts.squares == pytest.approx(whole.squares, abs=1e-6)
    assert whole.count == parts.count == len(values)
    assert whole.squares == pytest.approx(float(scores.var(correction=0)) * len(values), abs=1e-6)


@examples
@given(ragged(0))
def test_weights_of_a_loss_sum_to_one_over_responses(batch):
    _, mask = batch
    rows, width = mask.shape
    weights = loss_weights(mask, "sequence", rows, width)
    assert weights is not None
    close((weights * mask).sum(-1).double(), torch.full((rows,), 1 / rows).double().float().double())
    fixed = loss_weights(torch.ones_like(mask), "fixed", rows, width)
    assert fixed is not None
    assert float((fixed * torch.ones_like(mask)).sum()) == pytest.approx(1)
