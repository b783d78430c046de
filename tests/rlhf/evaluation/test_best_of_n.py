"""The best of n responses: which one it is, its statistics, and the data set that `rlhf sft` reads."""

import json
import math
from dataclasses import replace

import pytest
import torch

from rlhf.config.commands import BestOfNJob, EvaluateJob
from rlhf.config.jobs import SFTJob
from rlhf.config.scores import JudgeConfig, RewardConfig
from rlhf.config.shared import CheckpointConfig, DataConfig, EvalConfig, GenerationConfig
from rlhf.config.training import TrainingConfig
from rlhf.errors import UserError
from rlhf.evaluation import best_of_n
from rlhf.evaluation.best_of_n import run_best_of_n
from rlhf.evaluation.command import evaluate_policy
from rlhf.trainers.sft import train_sft
from tabular.core.kl import best_of_n_kl_bound


@pytest.fixture
def best_job(job, tmp_path):
    """Four responses to each of eight held-out prompts, by the share of `good`."""
    return BestOfNJob(
        n=4,
        model=job.model,
        data=job.data,
        generation=replace(job.generation, max_new_tokens=12),
        reward=job.reward,
        eval=EvalConfig(prompts=6),
    )


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_bound_is_the_kl_of_the_best_of_two_uniform_numbers():
    """Of two the density is 2x, whose KL to the uniform one is the integral of 2x log 2x: log 2 - 1/2."""
    x = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    assert best_of_n_kl_bound(2) == pytest.approx(float((2 * x * (2 * x).log()).mean()), abs=1e-6)
    assert best_of_n_kl_bound(1) == 0.0
    assert best_of_n_kl_bound(16) == pytest.approx(math.log(16) - 15 / 16)


def test_the_best_of_one_is_the_evaluated_model(best_job):
    job = EvaluateJob(
        model=best_job.model,
        data=best_job.data,
        generation=best_job.generation,
        reward=best_job.reward,
        eval=best_job.eval,
    )
    plain = evaluate_policy(job)["after"]
    best = run_best_of_n(replace(best_job, n=1))
    assert best.pop("kl_bound") == 0.0
    assert best == {name: value for name, value in plain.items() if name not in ("kl", "entropy")}


def test_more_responses_have_a_better_best_and_a_larger_bound(best_job):
    summaries = [run_best_of_n(replace(best_job, n=n)) for n in (1, 4, 16)]
    scores = [summary["penalised_score"] for summary in summaries]
    assert scores[0] < scores[1] < scores[2]
    assert [s["kl_bound"] for s in summaries] == [best_of_n_kl_bound(n) for n in (1, 4, 16)]
    assert run_best_of_n(replace(best_job, n=4)) == summaries[1]  # deterministic


def test_the_written_rows_are_the_best_of_their_candidates(best_job, tmp_path):
    """Of the prompts to train on, in their order; cut responses are no demonstrations and are left out."""
    output = tmp_path / "best.jsonl"
    summary = run_best_of_n(replace(best_job, output=str(output), candidates=True, limit=20))
    assert summary["prompts"] == 20
    rows = read(output)
    assert 5 < len(rows) <= 20
    for row in rows:
        assert set(row) == {"prompt", "completion", "score", "candidates"}
        assert len(row["candidates"]) == 4
        for candidate in row["candidates"]:
            words = candidate["completion"].split()
            plain = words.count("good") / max(1, len(words))
            assert candidate["score"] == pytest.approx(-1.0 if candidate["truncated"] else plain)
        best = max(row["candidates"], key=lambda candidate: candidate["score"])
        assert (row["completion"], row["score"]) == (best["completion"], best["score"])
        assert not best["truncated"]
    plain = tmp_path / "plain.jsonl"
    run_best_of_n(replace(best_job, output=str(plain), limit=20))
    assert read(plain) == [{name: row[name] for name in ("prompt", "completion", "score")} for row in rows]


def test_sft_reads_the_written_file_as_it_is(best_job, tmp_path):
    """Text prompts and chats; trained are the completions alone."""
    output = tmp_path / "best.jsonl"
    run_best_of_n(replace(best_job, output=str(output)))
    job = SFTJob(
        output=str(tmp_path / "sft"),
        trackers=[],
        model=best_job.model,
        data=DataConfig(path=str(output)),
        training=TrainingConfig(batch_size=8, lr=1e-2, epochs=3.0),
        checkpoint=CheckpointConfig(every=0),
    )
    assert train_sft(job)
    losses = [row["loss"] for row in read(tmp_path / "sft" / "metrics.jsonl")]
    assert losses[-1] < losses[0]


def test_chats_are_written_as_messages(best_job, models, tmp_path):
    chats = [{"prompt": [{"role": "user", "content": f"the {w}"}]} for w in ("film", "story", "end", "good")]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
    output = tmp_path / "best.jsonl"
    model = replace(best_job.model, path=str(models("llama", chat=True)))
    data = replace(best_job.data, path=str(tmp_path / "chats.jsonl"), eval_fraction=0.0)
    run_best_of_n(replace(best_job, model=model, data=data, output=str(output), n=16))
    rows = read(output)
    assert rows
    assert all(row["prompt"] in [chat["prompt"] for chat in chats] for row in rows)


def test_the_judge_scores_the_best_responses_alone(best_job, tmp_path, reward_folder):
    (tmp_path / "judge.py").write_text(
        "calls = []\ndef f(prompts, completions, **columns):\n"
        "    calls.extend(completions)\n    return [float(len(calls))] * len(prompts)\n"
    )
    judge = JudgeConfig(function=f"{tmp_path / 'judge.py'}:f")
    summary = run_best_of_n(replace(best_job, eval=replace(best_job.eval, judge=judge)))
    assert summary["judge"] == summary["prompts"] == 6


def test_prompts_in_chunks_are_all_answered(best_job, tmp_path, monkeypatch):
    whole = run_best_of_n(best_job)
    monkeypatch.setattr(best_of_n, "PROMPTS_AT_ONCE", 4)
    chunks = run_best_of_n(best_job)
    assert chunks["prompts"] == whole["prompts"] == 6
    assert chunks != whole  # the second chunk has random numbers of its own


def test_an_existing_file_is_left_alone(best_job, tmp_path, monkeypatch):
    output = tmp_path / "best.jsonl"
    output.write_text("mine")
    monkeypatch.setattr(best_of_n, "load_tokenizer", None)
    with pytest.raises(UserError, match=r"output file .* exists; name another with --output"):
        run_best_of_n(replace(best_job, output=str(output)))
    assert output.read_text() == "mine"


def test_nothing_is_written_where_every_response_is_cut_or_empty(best_job, tmp_path):
    """A single token either ends the response or is cut."""
    output = tmp_path / "best.jsonl"
    generation = GenerationConfig(max_new_tokens=1)
    with pytest.raises(UserError, match="every best response is cut off or empty"):
        run_best_of_n(replace(best_job, output=str(output), limit=2, generation=generation))
    assert list(tmp_path.glob("*best*")) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n": 0}, "n is 0, but must be positive"),
        ({"limit": 0}, "limit is 0, but must be null or positive"),
        ({"candidates": True}, "candidates is true, but output is not set"),
        ({"reward": RewardConfig()}, "nothing decides which response is the best: set reward.model or reward.function"),
        ({"generation": GenerationConfig(temperature=0.0)}, "generation.temperature is 0.0, but must be positive"),
    ],
)
def test_settings_that_cannot_work_are_rejected(best_job, changes, message):
    with pytest.raises(UserError, match=message):
        replace(best_job, **changes)
