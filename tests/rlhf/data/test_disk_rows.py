"""Rows on disk: the same rows, orders and runs as in memory."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from rlhf.config.jobs import DPOJob, RewardJob, SFTJob
from rlhf.config.shared import CheckpointConfig, DataConfig, ModelConfig
from rlhf.config.training import TrainingConfig
from rlhf.data import disk_rows
from rlhf.data.datasets import load_rows
from rlhf.data.demonstrations import encode_demonstrations, stream_demonstrations
from rlhf.data.disk_rows import DiskRows, Joined, Repeated, Selection
from rlhf.data.preferences import encode_completion_pairs, encode_pairs, stream_completion_pairs, stream_pairs
from rlhf.data.prompts import load_prompts
from rlhf.errors import UserError
from rlhf.models.loading import load_tokenizer
from rlhf.run.fingerprint import fingerprint_rows
from rlhf.trainers.dpo import train_dpo
from rlhf.trainers.ppo import PPOTrainer
from rlhf.trainers.reward_model import train_reward_model
from rlhf.trainers.sft import train_sft

TEXTS = ["the film is good", "a bad film", "it is the best film", "dull and bad", "good", "the good film is the best"]


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Four rows at a time, so that a data set has several pieces and the last one is not full."""
    monkeypatch.setattr(disk_rows, "PIECE", 4)


@pytest.fixture
def write(tmp_path):
    """`write(rows)`: a jsonl file."""

    def file(rows, name="rows.jsonl") -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return file


@pytest.fixture
def tokenizer(models):
    return load_tokenizer(str(models("llama")))


def test_rows_come_back_from_disk():
    rows = [([i, i * 1000], list(range(i))) for i in range(7)]
    stored = DiskRows(rows, to_lists=list, from_lists=tuple)
    assert len(stored) == 7
    assert list(stored) == rows
    assert stored[-1] == rows[-1]
    assert stored[1:7:2] == rows[1:7:2]
    with pytest.raises(IndexError):
        stored[7]
    assert Selection(stored, [3, 0])[:] == [rows[3], rows[0]]
    assert len(DiskRows([], to_lists=list, from_lists=tuple)) == 0


def test_a_fingerprint_of_parts_is_that_of_the_whole():
    rows = [[i] for i in range(3000)]
    stored = DiskRows(rows, to_lists=lambda row: [row], from_lists=lambda lists: lists[0])
    assert fingerprint_rows(stored) == fingerprint_rows(rows)
    assert fingerprint_rows(rows[:1234], rows[1234:]) == fingerprint_rows(rows)
    assert fingerprint_rows(stored, rows) == fingerprint_rows(rows + rows)


def test_demonstrations_and_pairs_are_those_in_memory(write, tokenizer):
    texts = write([{"text": text} for text in TEXTS])
    rows = load_rows(texts, "train")
    streamed = load_rows(texts, "train", streaming=True)
    assert list(stream_demonstrations(tokenizer, streamed, 5, texts)) == encode_demonstrations(
        tokenizer, rows, 5, texts
    )

    pairs = write([{"prompt": "the", "chosen": f" {a}", "rejected": f" {b}"} for a, b in pairwise(TEXTS)], "p.jsonl")
    rows, streamed = load_rows(pairs, "train"), load_rows(pairs, "train", streaming=True)
    assert list(stream_pairs(tokenizer, streamed, 6, pairs)) == encode_pairs(tokenizer, rows, 6, pairs)
    expected = encode_completion_pairs(tokenizer, rows, 6, pairs)
    result = stream_completion_pairs(tokenizer, streamed, 6, pairs)
    assert list(result.pairs) == expected.pairs
    assert (result.equal, result.cut) == (expected.equal, expected.cut)


@pytest.mark.parametrize("fraction", [0.0, 0.34])
@pytest.mark.parametrize("kind", ["prompt", "messages", "txt"])
def test_prompts_are_those_in_memory(write, models, tmp_path, fraction, kind):
    tokenizer = load_tokenizer(str(models("llama", chat=True)))
    texts = [*TEXTS, "the film is good and it is the best film of all and so on and so on"]
    if kind == "txt":
        path = str(tmp_path / "prompts.txt")
        Path(path).write_text("\n\n".join(texts) + "\n")
    elif kind == "prompt":
        path = write([{"prompt": text, "answer": i} for i, text in enumerate(texts)])
    else:
        roles = ("user", "assistant")
        path = write([{"messages": [{"role": role, "content": text} for role in roles], "n": 1} for text in texts])
    config = {"path": path, "eval_fraction": fraction, "max_prompt_length": 12, "too_long": "drop"}
    for expected, result in zip(
        load_prompts(tokenizer, DataConfig(**config), 3),
        load_prompts(tokenizer, DataConfig(**config, streaming=True), 3),
        strict=True,
    ):
        if expected is None:
            assert result is None
            continue
        assert (list(result.prompts), list(result.ids)) == (list(expected.prompts), list(expected.ids))
        assert {name: list(values) for name, values in result.columns.items()} == expected.columns
        assert (result.dropped, len(result)) == (expected.dropped, len(expected))
        first = expected.batch([1, 0])
        assert result.batch([1, 0]).prompts == first.prompts
        assert result.stream(2, 9, 5) == expected.stream(2, 9, 5)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"prompt": text} for text in TEXTS[:5]] + [{"prompt": " "}], r"rows 5 to 6, row 2: 'prompt' is empty"),
        ([{"prompt": "film " * 600}] * 6, r"rows 1 to 4: 4 of 4 prompts are longer"),
        ([{"text": "x"}], "has no column 'prompt'"),
    ],
)
def test_a_bad_row_is_named(write, tokenizer, rows, message):
    with pytest.raises(UserError, match=message):
        load_prompts(tokenizer, DataConfig(path=write(rows), streaming=True), 0)


@pytest.mark.parametrize("own_held_out", [False, True])
@pytest.mark.parametrize("shares", [[], [0.75, 0.25]])
def test_several_data_sets_are_those_in_memory(write, tokenizer, shares, own_held_out):
    """One of them has a column that the other lacks."""
    first = write([{"prompt": text, "answer": i} for i, text in enumerate(TEXTS)], "first.jsonl")
    second = write([{"prompt": f"{text} again", "n": [i]} for i, text in enumerate(TEXTS[:4])], "second.jsonl")
    config = {"path": first, "more": [second], "shares": shares, "eval_fraction": 0.34}
    if own_held_out:
        config["eval_path"] = second
    for expected, result in zip(
        load_prompts(tokenizer, DataConfig(**config), 3),
        load_prompts(tokenizer, DataConfig(**config, streaming=True), 3),
        strict=True,
    ):
        assert (list(result.prompts), list(result.ids)) == (list(expected.prompts), list(expected.ids))
        columns = [{name: list(values) for name, values in s.columns.items()} for s in (expected, result)]
        assert columns[0] == columns[1]
        assert (result.counts, result.shares) == (expected.counts, expected.shares)
        assert result.stream(2, 9, 5) == expected.stream(2, 9, 5)
        assert result.batch([0, len(result) - 1]).columns == expected.batch([0, len(result) - 1]).columns
    training = load_prompts(tokenizer, DataConfig(**config, streaming=True), 3)[0]
    assert set(training.columns) == {"answer", "n", "data_set"}
    assert {name: training.batch([0]).columns[name] for name in ("n", "data_set")} == {
        "n": [None],
        "data_set": ["first"],
    }


def test_joined_and_repeated_sequences_are_read_as_lists_are():
    joined = Joined([[1, 2], [], Repeated(7, 3)])
    assert (len(joined), list(joined), joined[1:4], joined[::-2]) == (5, [1, 2, 7, 7, 7], [2, 7, 7], [7, 7, 1])
    assert (joined[-1], joined[-5], joined[2]) == (7, 1, 7)
    for sequence, place in ((joined, 5), (joined, -6), (Repeated(7, 3), 3)):
        with pytest.raises(IndexError):
            sequence[place]


def test_a_json_list_is_refused(write, tokenizer, tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"prompt": "x"}]))
    with pytest.raises(UserError, match="one JSON list, which is read whole; save it as jsonl"):
        load_prompts(tokenizer, DataConfig(path=str(path), streaming=True), 0)


def numbers(folder: str) -> list[dict]:
    rows = [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k.split("/")[0] not in ("time", "throughput", "memory")} for row in rows]


@pytest.mark.parametrize("stage", ["ppo", "sft", "reward", "dpo"])
def test_a_run_is_the_same_with_rows_on_disk(job, change, models, write, tmp_path, stage):
    results = []
    pairs = [{"prompt": "the", "chosen": f" {a}", "rejected": f" {b}"} for a, b in pairwise(TEXTS * 2)]
    for streaming in (False, True):
        output = str(tmp_path / f"out-{streaming}")
        if stage == "ppo":
            PPOTrainer(change(job, output=output, data={"streaming": streaming})).train()
        else:
            rows = [{"text": text} for text in TEXTS * 2] if stage == "sft" else pairs
            kind, train = {
                "sft": (SFTJob, train_sft), "reward": (RewardJob, train_reward_model), "dpo": (DPOJob, train_dpo)
            }[stage]  # fmt: skip
            train(
                kind(
                    output=output,
                    trackers=[],
                    model=ModelConfig(path=str(models("llama"))),
                    data=DataConfig(path=write(rows, f"{stage}.jsonl"), eval_fraction=0.2, streaming=streaming),
                    training=TrainingConfig(epochs=2.0, batch_size=2, microbatch_size=2, max_length=16, lr=1e-3),
                    checkpoint=CheckpointConfig(every=0),
                )
            )
        results.append(numbers(output))
    assert results[0] == results[1]
    assert len(results[0]) >= 3
    assert np.isfinite(results[0][-1].get("loss", results[0][-1].get("policy/loss")))


def test_a_resumed_run_with_rows_on_disk_equals_the_uninterrupted_one(job, change, tmp_path):
    whole = change(job, data={"streaming": True}, checkpoint={"every": 1})
    PPOTrainer(whole).train()
    start = Path(whole.output) / "checkpoints" / "step_000001"
    resumed = change(whole, output=str(tmp_path / "resumed"), resume=str(start))
    PPOTrainer(resumed).train()
    assert numbers(resumed.output) == numbers(whole.output)[1:]
