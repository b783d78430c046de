"""DPO: a preference decided by one word is learned, against log-probabilities of transformers text by text."""

import json
import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from rlhf.config.dpo import DPOConfig
from rlhf.config.jobs import DPOJob
from rlhf.config.shared import CheckpointConfig, DataConfig, LoraConfig, ModelConfig
from rlhf.config.training import TrainingConfig
from rlhf.data.datasets import load_rows
from rlhf.data.preferences import encode_completion_pairs
from rlhf.errors import UserError
from rlhf.models.loading import load_causal_lm, load_tokenizer
from rlhf.models.sequence_logprobs import SequenceLogprobs
from rlhf.run.folder import REFERENCE_LOGPROBS
from rlhf.trainers import dpo
from rlhf.trainers.dpo import DPOTask, PairForward, train_dpo

WORDS = ["the", "film", "is", "a", "fine", "dull", "warm", "cold", "story", "with"]


def read(run, name="metrics"):
    rows = [json.loads(line) for line in (run / f"{name}.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k.split("/")[0] not in ("time", "memory")} for row in rows]


@pytest.fixture
def dpo_job(models, tmp_path):
    """60 pairs of completions of two to five words; the chosen one ends with `good`, the rejected one with `bad`."""
    rows = []
    for i in range(60):
        words = [WORDS[(i * 7 + j) % 10] for j in range(1 + i % 4)]
        rejected = [*words, *(["bad", "end"] if i % 3 else ["bad"])]
        rows.append(
            {"prompt": f"{WORDS[i % 10]} ", "chosen": " ".join([*words, "good"]), "rejected": " ".join(rejected)}
        )
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DPOJob(
        output=str(tmp_path / "run"),
        trackers=[],
        model=ModelConfig(path=str(models("llama"))),
        data=DataConfig(path=str(tmp_path / "pairs.jsonl"), eval_fraction=0.2),
        training=TrainingConfig(epochs=2.0, batch_size=12, microbatch_size=12, lr=3e-3),
        checkpoint=CheckpointConfig(every=0),
    )


def plain_logprobs(folder, pairs):
    """[N, 2] log-probabilities of the completions by transformers, text by text, without padding."""
    from transformers import AutoModelForCausalLM

    lm = AutoModelForCausalLM.from_pretrained(folder).eval()

    def logprob(text):
        logits = lm(torch.tensor([text.ids])).logits[0, :-1].log_softmax(-1)
        tokens = torch.tensor(text.ids[1:])
        return logits.gather(1, tokens[:, None])[:, 0][torch.tensor(text.trained[1:])].sum()

    with torch.no_grad():
        return torch.stack([torch.stack([logprob(pair.chosen), logprob(pair.rejected)]) for pair in pairs])


def pairs_of(job):
    tokenizer = load_tokenizer(job.model.path)
    return encode_completion_pairs(tokenizer, load_rows(job.data.path, "train"), 512, "x").pairs


@pytest.mark.parametrize(("rank", "export"), [(0, "adapter"), (4, "merged")])
def test_preference_is_learned_and_the_saved_model_has_the_measured_margin(dpo_job, tmp_path, rank, export):
    """All weights and adapters alike, whose reference is the model without them; rewards by transformers."""
    job = replace(
        dpo_job,
        export=export,
        data=DataConfig(path=dpo_job.data.path, eval_path=dpo_job.data.path),
        model=replace(dpo_job.model, lora=LoraConfig(rank=rank)),
        training=replace(dpo_job.training, lr=3e-3 if rank == 0 else 2e-2),
    )
    assert train_dpo(job)
    rows, last = read(tmp_path / "run"), read(tmp_path / "run", "eval")[-1]
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)  # policy and reference are equal
    assert rows[0]["chosen_reward"] == pytest.approx(0.0, abs=1e-5)
    assert last["accuracy"] > 0.9
    assert last["loss"] < 0.6
    pairs = pairs_of(job)
    before, after = (plain_logprobs(folder, pairs) for folder in (job.model.path, tmp_path / "run" / "model"))
    rewards = (job.dpo.beta * (after - before)).mean(0)
    assert [last["chosen_reward"], last["rejected_reward"]] == pytest.approx(rewards.tolist(), rel=1e-3, abs=1e-4)
    assert last["margin"] == pytest.approx(float(rewards[0] - rewards[1]), rel=1e-3, abs=1e-4)
    assert last["chosen_length"] == sum(pair.chosen.trained_tokens for pair in pairs) / len(pairs)
    assert last["rejected_length"] == sum(pair.rejected.trained_tokens for pair in pairs) / len(pairs)
    stored = load_file(tmp_path / "run" / REFERENCE_LOGPROBS)
    torch.testing.assert_close(stored["training"], before, rtol=1e-4, atol=1e-4)
    assert (tmp_path / "run" / "report.html").exists()


@pytest.mark.parametrize("config", [DPOConfig(label_smoothing=0.1), DPOConfig(loss="ipo", beta=0.5)])
@torch.no_grad()
def test_losses_by_the_definitions_whatever_the_padding(dpo_job, models, config):
    """Of a policy that differs from its reference; each pair alone, without padding, and all in one padded batch."""
    pairs = pairs_of(dpo_job)[:8]
    assert len({pair.length for pair in pairs}) > 2
    reference, policy = (load_causal_lm(dpo_job.model).eval() for _ in range(2))
    for p in policy.parameters():
        p.mul_(1.05)
    forward = PairForward(2, 8, torch.device("cpu"))
    references = forward(SequenceLogprobs(reference), pairs)
    task = DPOTask(pairs, pairs, references, references, forward, config)
    model = SequenceLogprobs(policy)
    ratios = forward(model, pairs) - references
    assert float(ratios.abs().max()) > 0.1
    tokens = torch.tensor([[p.chosen.trained_tokens, p.rejected.trained_tokens] for p in pairs])
    if config.loss == "ipo":
        expected = ((ratios / tokens) @ torch.tensor([1.0, -1.0]) - 1.0) ** 2
    else:
        h = config.beta * (ratios[:, 0] - ratios[:, 1])
        expected = 0.9 * torch.log1p(torch.exp(-h)) + 0.1 * torch.log1p(torch.exp(h))
    whole = float(task.loss(model, pairs)[0])
    assert whole == pytest.approx(float(expected.sum()), rel=1e-4)
    assert sum(float(task.loss(model, [pair])[0]) for pair in pairs) == pytest.approx(whole, rel=1e-4)
    assert task.evaluate(model)["loss"] == pytest.approx(whole / 8, rel=1e-4)


def test_microbatch_size_does_not_change_the_result(dpo_job, tmp_path):
    runs = []
    for size in (1, 5, 12):
        training = replace(dpo_job.training, microbatch_size=size, epochs=0.5)
        train_dpo(replace(dpo_job, output=str(tmp_path / str(size)), training=training))
        runs.append((read(tmp_path / str(size)), read(tmp_path / str(size), "eval")[0]))
    # Before the first step every log-ratio is a rounding error, of either sign, which the accuracy counts.
    for rows, evaluated in runs[1:]:
        for a, b in zip(runs[0][0], rows, strict=True):
            names = [name for name in a if name != "accuracy"]
            assert [a[name] for name in names] == pytest.approx([b[name] for name in names], rel=1e-3, abs=1e-5)
        assert evaluated == pytest.approx(runs[0][1], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("rank", [0, 2])
def test_resumed_run_equals_the_uninterrupted_one_and_reads_the_reference(dpo_job, tmp_path, monkeypatch, rank):
    """Of weights that have changed the reference could not be computed again."""
    whole = replace(
        dpo_job, model=replace(dpo_job.model, lora=LoraConfig(rank=rank)), checkpoint=CheckpointConfig(every=3)
    )
    train_dpo(replace(whole, output=str(tmp_path / "whole")))
    train_dpo(whole)
    folder = tmp_path / "run" / "checkpoints"
    computed = load_file(tmp_path / "run" / REFERENCE_LOGPROBS)

    def refuse(*_):
        raise AssertionError("the reference was computed again")

    monkeypatch.setattr(dpo, "reference_logprobs", refuse)
    train_dpo(replace(whole, resume=str(folder / "step_000003")))
    file = "adapter_model.safetensors" if rank else "model.safetensors"
    a, b = (load_file(tmp_path / name / "model" / file) for name in ("whole", "run"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert read(tmp_path / "run") == read(tmp_path / "whole")
    assert read(tmp_path / "run", "eval") == read(tmp_path / "whole", "eval")
    after = load_file(tmp_path / "run" / REFERENCE_LOGPROBS)
    assert all(torch.equal(computed[name], after[name]) for name in computed)


def test_a_stored_reference_of_other_pairs_is_computed_again(dpo_job, tmp_path, capsys):
    train_dpo(replace(dpo_job, checkpoint=CheckpointConfig(every=3)))
    rows = (tmp_path / "pairs.jsonl").read_text().splitlines()
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows[::-1]) + "\n")
    train_dpo(replace(dpo_job, resume=str(tmp_path / "run" / "checkpoints" / "step_000003")))
    output = capsys.readouterr().out
    assert "belongs to other pairs or to another model; it is computed again" in output
    assert "the data of data.path changed since" in output


def test_dropout_is_off_in_training_and_back_in_the_exported_config(dpo_job, models, tmp_path):
    train_dpo(
        replace(dpo_job, model=ModelConfig(path=str(models("gpt2"))), training=replace(dpo_job.training, epochs=0.5))
    )
    assert read(tmp_path / "run")[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    before, after = (
        json.loads((folder / "config.json").read_text()) for folder in (models("gpt2"), tmp_path / "run/model")
    )
    assert before["attn_pdrop"] == after["attn_pdrop"] > 0


def test_a_run_that_ended_before_its_first_step_can_start_again(dpo_job, tmp_path):
    """Its folder holds the reference's log-probabilities, and nothing else."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / REFERENCE_LOGPROBS).write_bytes(b"not tensors")
    train_dpo(replace(dpo_job, training=replace(dpo_job.training, epochs=0.3)))
    assert "training" in load_file(tmp_path / "run" / REFERENCE_LOGPROBS)


def test_pairs_that_teach_nothing_are_left_out_and_counted(dpo_job, tmp_path, capsys):
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    rows[3]["rejected"] = rows[3]["chosen"]
    rows[7]["prompt"] = " ".join(["the film"] * 20)
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = replace(dpo_job.data, eval_fraction=0.0)
    train_dpo(replace(dpo_job, data=data, training=replace(dpo_job.training, max_length=16, epochs=0.3)))
    output = capsys.readouterr().out
    assert "1 pairs of equal completions and 1 whose prompt leaves no token of a completion within" in output
    assert len(load_file(tmp_path / "run" / REFERENCE_LOGPROBS)["training"]) == 58
    only_equal = [rows[3]] * 20
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in only_equal))
    with pytest.raises(UserError, match="has no pair to learn from: of 20 the completions are equal"):
        train_dpo(replace(dpo_job, output=str(tmp_path / "other"), data=data))
    assert not (tmp_path / "other").exists()
