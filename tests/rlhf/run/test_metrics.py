"""Metrics of a step by hand."""

import math
from dataclasses import replace

import pytest
import torch

from rlhf.records import PPOBatch, Prompts, Rollout
from rlhf.run.metrics import PhaseTimer, distinct_n, repetition, rollout_metrics, sum_microbatches, sum_over_ranks


def batch_of_two():
    """Responses of three tokens and of one; padding holds large numbers, so that using it would show."""
    padding = 1e6
    mask = torch.tensor([[True, True, True], [True, False, False]])
    prompts = Prompts(torch.tensor([[7], [8]]), torch.ones(2, 1, dtype=torch.bool), ["the", "film"], {})
    rollout = Rollout(
        prompts=prompts,
        response_ids=torch.tensor([[7, 7, 7], [1, 0, 0]]),
        response_mask=mask,
        truncated=torch.tensor([True, False]),
        completions=["the the the", ""],
        old_logprobs=torch.tensor([[-1.0, -2.0, -3.0], [-0.5, padding, padding]]),
        ref_logprobs=torch.tensor([[-1.0, -2.5, -2.0], [-1.5, -padding, padding]]),
        old_values=torch.tensor([[1.0, 2.0, 3.0], [6.0, padding, padding]]),
        scores=torch.tensor([1.0, -3.0]),
    )
    rewards = torch.tensor([[0.0, 0.5, 1.0], [-3.0, padding, padding]])
    returns = torch.tensor([[1.0, 2.0, 3.0], [2.0, padding, padding]])
    return PPOBatch(rollout, rewards, torch.zeros(2, 3), returns, rollout.response_mask)


def test_every_statistic_of_a_rollout_by_hand():
    metrics = rollout_metrics(batch_of_two(), 0.05)
    k3 = sum(math.exp(-d) - 1 + d for d in (0.0, 0.5, -1.0, 1.0))
    expected = {
        "objective/score": -1.0,
        "objective/kl": (0.0 + 0.5 - 1.0 + 1.0) / 2,
        "objective/kl_k3": k3 / 2,
        "objective/reward": (0.0 + 0.5 + 1.0 - 3.0) / 2,
        "objective/entropy": (1.0 + 2.0 + 3.0 + 0.5) / 2,
        "objective/kl_coef": 0.05,
        "value/explained_variance": 1 - 3.0 / 0.5,  # errors 0, 0, 0, -4 against returns 1, 2, 3, 2
        "value/mean": 3.0,
        "response/length": 2.0,
        "response/eos_fraction": 0.5,
        "response/truncated_fraction": 0.5,
        "response/repetition": (1 / 2 + 0) / 2,
    }
    assert metrics == pytest.approx(expected, rel=1e-6)


def test_constant_returns_have_no_variance_to_explain():
    batch = batch_of_two()
    constant = replace(batch, returns=torch.where(batch.rollout.response_mask, 2.0, batch.returns))
    assert math.isnan(rollout_metrics(constant, 0.0)["value/explained_variance"])


@pytest.mark.parametrize(
    ("ids", "length", "expected"),
    [
        ([5, 5, 5, 5], 4, 2 / 3),  # pairs 55 55 55: two occurred before
        ([5, 6, 5, 6], 4, 1 / 3),  # 56 65 56
        ([5, 6, 6, 5], 4, 0.0),  # 56 66 65: pairs are ordered
        ([5, 6, 7, 8], 4, 0.0),
        ([5, 6, 5, 6], 3, 0.0),  # padding forms no pairs
        ([0, 0, 0, 0], 3, 1 / 2),
        ([5, 0, 0, 0], 1, 0.0),
        ([5, 5, 5, 5], 2, 0.0),
    ],
)
def test_repetition_is_the_share_of_pairs_that_occurred_before(ids, length, expected):
    mask = torch.arange(4) < length
    other = torch.tensor([150_000, 149_999, 150_000, 149_999])  # a neighbour with large ids changes nothing
    metrics = repetition(torch.stack([torch.tensor(ids), other]), torch.stack([mask, torch.ones(4, dtype=torch.bool)]))
    torch.testing.assert_close(metrics, torch.tensor([expected, 1 / 3]))


def test_repetition_of_single_tokens_is_zero():
    assert repetition(torch.tensor([[5], [5]]), torch.ones(2, 1, dtype=torch.bool)).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("responses", "n", "expected"),
    [
        ([["a", "b", "a"]], 1, 2 / 3),
        ([["a", "b"], ["a", "b"]], 1, 2 / 4),
        ([["a", "b"], ["a", "b"]], 2, 1 / 2),
        ([["a", "b"], ["b", "a"]], 2, 1.0),  # no pairs across responses
        ([["a"], ["a", "b", "c"]], 2, 1.0),
    ],
)
def test_distinct_n_is_the_share_of_distinct_n_grams(responses, n, expected):
    assert distinct_n(responses, n) == expected


def test_distinct_n_without_an_n_gram_is_nan():
    assert math.isnan(distinct_n([["a"], []], 2))


def test_metrics_sum_over_microbatches_except_maxima():
    parts = [
        {"a": torch.tensor(1.5), "b_max": torch.tensor(2.0)},
        {"a": torch.tensor(-0.5), "b_max": torch.tensor(-1.0)},
    ]
    assert sum_microbatches(parts) == {"a": torch.tensor(1.0), "b_max": torch.tensor(2.0)}


def test_metrics_sum_over_ranks_except_maxima():
    class TwoRanks:
        num_processes = 2

        def gather(self, values):
            return torch.cat([values, values * -3])

    metrics = sum_over_ranks(TwoRanks(), {"z_max": torch.tensor(-2.0), "a": torch.tensor(1.0)})
    assert metrics == {"a": torch.tensor(-2.0), "z_max": torch.tensor(6.0)}


def test_timer_adds_up_the_times_of_one_phase(monkeypatch):
    from rlhf.run import metrics as run_metrics

    times = iter([0.0, 2.0, 10.0, 13.0])
    monkeypatch.setattr(run_metrics.time, "perf_counter", lambda: next(times))
    clock = PhaseTimer()
    with clock("score"):
        pass
    with pytest.raises(RuntimeError), clock("score"):
        raise RuntimeError
    assert clock.seconds == {"score": 5.0}
