"""Groups of equal reward: which they are, that they have no part in the loss, and how they are replaced."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlhf.config.ppo import PPOConfig
from rlhf.config.scores import RewardConfig
from rlhf.records import Prompts, Rollout, select
from rlhf.trainers import ppo as ppo_module
from rlhf.trainers.advantages import make_batch
from rlhf.trainers.equal_groups import equal_groups, refill, task_scores
from rlhf.trainers.loss import Normalizers
from rlhf.trainers.ppo import PPOTrainer
from rlhf.trainers.update import UpdateContext

GROUPS = {"estimator": "grpo", "samples_per_prompt": 2}


def rollout_of(scores, lengths=None, task=None, token_scores=None, first=0):
    """Responses with these scores; the number of each stands in its ids, its prompt and its completion."""
    lengths = lengths or [2] * len(scores)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    rows = first + torch.arange(len(scores))
    ids = rows[:, None].expand_as(mask) * mask
    logprobs = -0.1 * (1 + rows[:, None]) * mask
    prompts = Prompts(rows[:, None], torch.ones(len(scores), 1, dtype=torch.bool), [f"p{i}" for i in rows.tolist()], {})
    return Rollout(
        prompts=prompts,
        response_ids=ids,
        response_mask=mask,
        truncated=torch.zeros(len(scores), dtype=torch.bool),
        completions=[f"c{i}" for i in rows.tolist()],
        old_logprobs=logprobs,
        ref_logprobs=logprobs * 0.5,
        old_values=torch.zeros(mask.shape),
        scores=torch.tensor(scores),
        token_scores=token_scores,
        task_scores=None if task is None else torch.tensor(task),
    )


def test_a_group_is_equal_by_the_scores_of_the_task():
    """Penalties for length make the first group's rewards differ and the last group's equal."""
    rollout = rollout_of([0.0, -1.0, 0.3, 0.4, -1.0, -1.0], task=[0.5, 0.5, 0.3, 0.4, 0.1, 0.9])
    assert equal_groups(rollout, 2).tolist() == [True, False, False]
    assert equal_groups(replace(rollout, task_scores=None), 2).tolist() == [False, False, True]
    assert equal_groups(rollout_of([0.1] * 3 + [0.2] * 3), 3).tolist() == [True, True]


def test_rewards_of_single_tokens_are_part_of_the_score():
    token_scores = torch.tensor([[1.0, 0.0], [0.5, 9.0], [0.0, 0.0], [0.0, 2.0]])
    rollout = rollout_of([0.0, 0.5, 1.0, 1.0], lengths=[2, 1, 2, 2], token_scores=token_scores)
    assert task_scores(rollout).tolist() == [1.0, 1.0, 1.0, 3.0]  # the 9 stands on padding
    assert equal_groups(rollout, 2).tolist() == [True, False]


def test_responses_without_a_score_do_not_count():
    """The source failed on them; one response alone is compared with nothing."""
    errors = [None, None, "failed", None, "failed", "failed", "failed", "failed", None]
    rollout = replace(rollout_of([1.0, 1.0, 5.0, 1.0, 5.0, 6.0, 0.0, 1.0, 2.0]), errors=errors)
    assert equal_groups(rollout, 3).tolist() == [True, True, True]
    assert equal_groups(replace(rollout, errors=None), 3).tolist() == [False, False, False]
    assert equal_groups(replace(rollout_of([1.0, 2.0, 9.0]), errors=[None, None, "failed"]), 3).tolist() == [False]


@pytest.mark.parametrize("aggregation", ["token", "sequence"])
@pytest.mark.parametrize("estimator", ["rloo", "grpo"])
def test_the_loss_is_that_of_the_batch_without_the_equal_groups(job, change, estimator, aggregation):
    """Value and gradient, in microbatches of two; denominators count what is left."""
    settings = {"estimator": estimator, "samples_per_prompt": 2, "loss_aggregation": aggregation, "kl_coef": 0.5}
    settings |= {"kl_placement": "loss", "kl_estimator": "k3", "skip_equal_groups": True, "minibatch_size": 8}
    trainer = PPOTrainer(change(job, ppo=settings))
    rollout = trainer.collect(trainer.next_prompts())
    scores = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.5, 0.5, 2.0, 1.0])
    rollout = replace(rollout, scores=scores, task_scores=scores)
    left = torch.tensor([2, 3, 6, 7])

    def loss_and_gradient(batch):
        normalizers = Normalizers.of(batch)
        trainer.learner.optimizer.zero_grad()
        total = torch.zeros(())
        for rows in torch.arange(len(batch)).split(2):
            part = trainer.learner.loss(select(batch, rows), normalizers, UpdateContext(0, 0.5)).total
            part.backward()
            total = total + part.detach()
        return total, torch.cat([p.grad.flatten() for p in trainer.policy.lm.parameters()])

    whole, part = (make_batch(x, trainer.job.ppo, 0.5, trainer.job.reward) for x in (rollout, select(rollout, left)))
    loss, gradient = loss_and_gradient(whole)
    other_loss, other_gradient = loss_and_gradient(part)
    assert float(loss) == pytest.approx(float(other_loss), rel=1e-5)
    torch.testing.assert_close(gradient, other_gradient, rtol=1e-4, atol=1e-6)
    assert float(gradient.norm()) > 0


def test_nothing_is_left_out_unless_asked_for():
    rollout = rollout_of([1.0, 1.0, 0.0, 1.0])
    batches = {
        skip: make_batch(
            rollout,
            PPOConfig(rollout_batch_size=4, minibatch_size=4, microbatch_size=4, skip_equal_groups=skip, **GROUPS),
            0.1,
            RewardConfig(),
        )
        for skip in (False, True)
    }
    assert torch.equal(batches[False].loss_mask, rollout.response_mask)
    assert batches[True].loss_mask.any(-1).tolist() == [False, False, True, True]


def fresh_from(streams):
    """A `collect` that gives prepared groups in their order, and remembers what was drawn."""
    calls = []

    def collect(number, count):
        calls.append((number, count))
        scores: list[float] = []
        while len(scores) < 2 * count and streams:
            scores += streams.pop(0)
        return rollout_of(scores, first=100 * len(calls))

    collect.calls = calls
    return collect


def test_equal_groups_are_replaced_by_further_ones_in_their_order():
    rollout = rollout_of([1.0, 1.0, 0.0, 1.0, 2.0, 2.0, 3.0, 4.0])
    collect = fresh_from([[5.0, 5.0], [5.0, 6.0], [7.0, 8.0]])
    result = refill(rollout, 2, rounds=3, ranks=1, collect=collect)
    assert collect.calls == [(0, 2), (2, 1)]  # two are missing; one of the first two is equal again
    assert (result.prompts, result.equal) == (7, 3)
    assert result.rollout.scores.tolist() == [5.0, 6.0, 0.0, 1.0, 7.0, 8.0, 3.0, 4.0]
    assert result.rollout.completions == ["c102", "c103", "c2", "c3", "c200", "c201", "c6", "c7"]
    assert result.rollout.prompts.prompts == ["p102", "p103", "p2", "p3", "p200", "p201", "p6", "p7"]
    assert result.rollout.response_ids[:, 0].tolist() == [102, 103, 2, 3, 200, 201, 6, 7]


def test_fresh_groups_take_their_places_in_the_order_in_which_they_were_drawn():
    collect = fresh_from([[5.0, 6.0, 7.0, 8.0]])  # two groups of one call
    rollout = refill(rollout_of([1.0, 1.0, 0.0, 1.0, 2.0, 2.0]), 2, rounds=1, ranks=1, collect=collect).rollout
    assert rollout.scores.tolist() == [5.0, 6.0, 0.0, 1.0, 7.0, 8.0]


def test_refilling_is_bounded_and_what_is_left_stays():
    collect = fresh_from([[1.0, 1.0]] * 10)
    result = refill(rollout_of([1.0, 1.0, 0.0, 1.0]), 2, rounds=3, ranks=1, collect=collect)
    assert collect.calls == [(0, 1), (1, 1), (2, 1)]
    assert (result.prompts, result.equal) == (5, 4)
    assert result.rollout.scores.tolist() == [1.0, 1.0, 0.0, 1.0]
    unequal = refill(rollout_of([1.0, 2.0]), 2, rounds=3, ranks=1, collect=collect)
    assert (unequal.prompts, unequal.equal) == (1, 0)


def test_processes_share_the_further_responses_evenly():
    """Three responses to a prompt cannot be shared by two processes, those to two prompts can; one is not needed."""
    collect = fresh_from([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    result = refill(rollout_of([1.0] * 3 + [0.0, 1.0, 2.0]), 3, rounds=1, ranks=2, collect=collect)
    assert collect.calls == [(0, 2)]
    assert result.rollout.scores.tolist() == [1.0, 2.0, 3.0, 0.0, 1.0, 2.0]
    assert result.prompts == 4


@pytest.fixture
def half_equal(job, change, tmp_path):
    """A reward that tells the responses to every second prompt apart."""
    (tmp_path / "half.py").write_text(
        "calls = []\n"
        "def f(prompts, completions, **columns):\n"
        "    calls.extend(prompts)\n"
        "    return [0.0 if len(p.split()) % 2 else float(i % 2) for i, p in enumerate(prompts)]\n"
    )
    return change(job, reward={"function": f"{tmp_path / 'half.py'}:f"}, ppo={**GROUPS, "minibatch_size": 8})


def metrics_of(job):
    rows = (json.loads(line) for line in (Path(job.output) / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if k.split("/")[0] not in ("time", "throughput", "memory")} for row in rows]


def test_the_share_of_equal_groups_is_always_logged(half_equal):
    PPOTrainer(half_equal).train()
    rows = metrics_of(half_equal)
    assert any(0 < row["objective/equal_groups"] < 1 for row in rows)
    assert all("objective/prompts_drawn" not in row for row in rows)


@pytest.mark.parametrize("old_logprobs", ["recomputed", "sampler"])
def test_refilled_steps_train_on_unequal_groups_and_count_the_prompts(half_equal, change, monkeypatch, old_logprobs):
    """Prompts are used once, in the order of their stream; the first ratio of a refilled rollout is exactly 1."""
    job = change(
        half_equal, ppo={"skip_equal_groups": True, "refill_rounds": 20, "old_logprobs": old_logprobs, "ppo_epochs": 1}
    )
    batches = []

    def keep(*arguments):
        batches.append(make_batch(*arguments))
        return batches[-1]

    monkeypatch.setattr(ppo_module, "make_batch", keep)
    trainer = PPOTrainer(job)
    trainer.train()
    rows = metrics_of(job)
    drawn = [int(row["objective/prompts_drawn"]) for row in rows]
    assert max(drawn) > 4
    assert trainer.state.extra_prompts == sum(drawn) - 4 * len(rows)
    for batch, row in zip(batches, rows, strict=True):
        assert not equal_groups(batch.rollout, 2).any()
        assert batch.loss_mask.any(-1).all()
        assert row["objective/equal_groups"] == pytest.approx(1 - 4 / row["objective/prompts_drawn"], abs=0.2)
        if old_logprobs == "recomputed":
            assert row["policy/ratio_max"] == 1.0
    stream = trainer.data.prompts.stream(0, sum(drawn), job.seed)
    used = [trainer.data.prompts.prompts[i] for i in stream]
    trained = [p for batch in batches for p in batch.rollout.prompts.prompts[::2]]
    assert Counter(trained) <= Counter(used)  # each place of the stream once
    assert len(trained) == 12


def test_a_resumed_run_with_refills_equals_the_uninterrupted_one(half_equal, change, tmp_path):
    from safetensors.torch import load_file

    job = change(half_equal, ppo={"skip_equal_groups": True, "refill_rounds": 2}, checkpoint={"every": 1})
    PPOTrainer(job).train()
    start = Path(job.output) / "checkpoints" / "step_000001"
    assert json.loads((start / "state.json").read_text())["extra_prompts"] > 0
    resumed = change(job, output=str(tmp_path / "resumed"), resume=str(start))
    PPOTrainer(resumed).train()
    assert metrics_of(resumed) == metrics_of(job)[1:]
    last = Path("checkpoints") / "step_000003" / "weights.safetensors"
    one, two = (load_file(Path(j.output) / last) for j in (job, resumed))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_minibatch_of_equal_groups_alone_moves_nothing(job, change, tmp_path):
    """Not by momentum and not by weight decay."""
    (tmp_path / "same.py").write_text("def f(prompts, completions, **columns):\n    return [1.0] * len(prompts)\n")
    settings = {**GROUPS, "skip_equal_groups": True, "weight_decay": 1.0}
    trainer = PPOTrainer(change(job, reward={"function": f"{tmp_path / 'same.py'}:f"}, ppo=settings))
    before = {name: p.detach().clone() for name, p in trainer.policy.named_parameters()}
    metrics = trainer.step()
    assert metrics["objective/equal_groups"] == 1.0
    assert metrics["policy/optimizer_steps"] == 0.0
    assert all(torch.equal(p, before[name]) for name, p in trainer.policy.named_parameters())
