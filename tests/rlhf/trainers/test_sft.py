"""Supervised fine-tuning on a few lines: trained, resumed, saved."""

import json
import math
import signal
from dataclasses import replace

import pytest
import torch

from rlhf.config.jobs import SFTJob
from rlhf.config.shared import CheckpointConfig, DataConfig, LoraConfig, ModelConfig, ScratchConfig
from rlhf.config.training import TrainingConfig
from rlhf.data.datasets import split_rows
from rlhf.data.demonstrations import encode_demonstration, encode_demonstrations
from rlhf.data.streams import ShuffledStream
from rlhf.errors import UserError
from rlhf.models.loading import load_tokenizer
from rlhf.trainers import supervised
from rlhf.trainers.sft import train_sft

THINGS = ["the film", "a story", "it", "the end", "a good film", "the dull story"]

VERDICTS = ["is good", "is bad", "is warm", "is cold", "is fine", "is dull and cold", "has no heart"]

ENDS = ["", " with no end"]


def read(run, name="metrics"):
    return [json.loads(line) for line in (run / f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture
def lines(tmp_path):
    path = tmp_path / "lines.jsonl"
    texts = [thing + " " + verdict + end for thing in THINGS for verdict in VERDICTS for end in ENDS][:60]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def sft_job(lines, models, tmp_path):
    """Six steps over 48 of 60 lines, from a tiny model."""
    return SFTJob(
        output=str(tmp_path / "run"),
        trackers=[],
        model=ModelConfig(path=str(models("llama"))),
        data=DataConfig(path=str(lines), eval_fraction=0.2),
        training=TrainingConfig(epochs=1.0, batch_size=8, microbatch_size=8, lr=1e-2),
        checkpoint=CheckpointConfig(every=0),
    )


@pytest.fixture
def scratch_job(sft_job):
    scratch = ScratchConfig(model_type="gpt2", vocab_size=400, hidden_size=64, num_heads=2, num_layers=1, dropout=0.1)
    return replace(sft_job, model=ModelConfig(), scratch=scratch)


def loss_of(folder, job):
    """The held-out loss by transformers, text by text, without padding."""
    from transformers import AutoModelForCausalLM

    lm, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), load_tokenizer(str(folder))
    total = count = 0
    for row in split_rows(job.data, job.seed)[1]:
        ids, trained = encode_demonstration(tokenizer, row)
        labels = torch.tensor([[i if yes else -100 for i, yes in zip(ids, trained, strict=True)]])
        trained_count = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            total += float(lm(torch.tensor([ids]), labels=labels).loss) * trained_count
        count += trained_count
    return total / count


def test_new_model_learns_sixty_lines(scratch_job, tmp_path):
    job = replace(
        scratch_job,
        training=TrainingConfig(epochs=12.0, batch_size=8, microbatch_size=8, lr=5e-3, warmup_steps=5, eval_every=50),
    )
    train_sft(job)
    rows, evals = read(tmp_path / "run"), read(tmp_path / "run", "eval")
    assert [row["step"] for row in rows] == list(range(1, 73))
    vocabulary = json.loads((tmp_path / "run" / "model" / "config.json").read_text())["vocab_size"]
    assert rows[0]["loss"] == pytest.approx(math.log(vocabulary), rel=0.05)  # uniform over the vocabulary
    assert sum(row["loss"] for row in rows[-6:]) / 6 < 1.3  # 60 lines of 8 tokens hold half a nat a token
    assert [row["step"] for row in evals] == [50, 72]
    assert evals[-1]["perplexity"] == pytest.approx(math.exp(evals[-1]["loss"]))
    assert evals[-1]["loss"] == pytest.approx(loss_of(tmp_path / "run" / "model", job), rel=1e-4)

    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    lm = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    generated = lm.generate(**tokenizer("the film", return_tensors="pt"), do_sample=False, max_new_tokens=20)[
        0
    ].tolist()
    assert generated[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(generated, skip_special_tokens=True).split()[2] in ("is", "has")


def test_resumed_run_equals_the_uninterrupted_one(scratch_job, tmp_path):
    """With dropout, so that the random generators must be restored as well."""
    from safetensors.torch import load_file

    whole = replace(scratch_job, checkpoint=CheckpointConfig(every=3))
    train_sft(whole)
    start = tmp_path / "run" / "checkpoints" / "step_000003"
    train_sft(replace(whole, output=str(tmp_path / "resumed"), resume=str(start)))
    a, b = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("run", "resumed"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    rows = [
        [{k: v for k, v in row.items() if k.split("/")[0] not in ("time", "memory")} for row in read(tmp_path / name)]
        for name in ("run", "resumed")
    ]
    assert rows[1] == rows[0][3:]
    assert read(tmp_path / "resumed", "eval") == read(tmp_path / "run", "eval")


def test_stopped_run_saves_a_checkpoint_and_resumes(sft_job, tmp_path, monkeypatch):
    take_step, calls = supervised._take_step, []

    def stop_at_the_second(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGTERM)
        return take_step(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(supervised, "_take_step", stop_at_the_second)
        train_sft(sft_job)
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir() if not p.is_symlink()] == ["step_000002"]
    assert not (tmp_path / "run" / "model").exists()
    train_sft(replace(sft_job, resume="auto"))
    assert [row["step"] for row in read(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    assert (tmp_path / "run" / "model" / "config.json").exists()


def test_microbatch_size_does_not_change_the_result(sft_job, tmp_path):
    """Losses and gradients are means over tokens, whatever rows share a microbatch."""
    runs = []
    for size in (1, 3, 8):
        training = replace(sft_job.training, microbatch_size=size)
        train_sft(replace(sft_job, output=str(tmp_path / str(size)), training=training))
        runs.append(read(tmp_path / str(size)))
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            assert (a["loss"], a["grad_norm"]) == pytest.approx((b["loss"], b["grad_norm"]), rel=1e-4)


def test_loss_and_gradient_are_means_over_the_tokens_of_a_batch(sft_job, models, tmp_path):
    """Of the first batch, by transformers, row by row; the rows are of unequal length."""
    from transformers import AutoModelForCausalLM

    train_sft(replace(sft_job, training=replace(sft_job.training, epochs=0.1, microbatch_size=3, max_grad_norm=1e9)))
    rows = encode_demonstrations(load_tokenizer(str(models("llama"))), split_rows(sft_job.data, 0)[0], 512, "x")
    batch = [rows[i][0] for i in ShuffledStream(len(rows), seed=0).batch(0, 8, [len(ids) for ids, _ in rows])]
    assert len(set(map(len, batch))) > 1
    lm = AutoModelForCausalLM.from_pretrained(models("llama"))
    totals = [lm(torch.tensor([ids]), labels=torch.tensor([ids])).loss * (len(ids) - 1) for ids in batch]
    loss = sum(totals) / sum(len(ids) - 1 for ids in batch)
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in lm.parameters()]).norm()
    metrics = read(tmp_path / "run")[0]
    assert (metrics["loss"], metrics["grad_norm"]) == pytest.approx((loss.item(), norm.item()), rel=1e-4)


def test_adapter_is_saved_as_peft_loads_it(sft_job, models, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    job = replace(sft_job, model=ModelConfig(path=str(models("llama")), lora=LoraConfig(rank=2)))
    train_sft(job)
    folder = tmp_path / "run" / "model"
    assert (folder / "adapter_config.json").exists()
    assert not list(folder.glob("model*.safetensors"))
    lm = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(models("llama")), folder)
    lm.merge_and_unload().save_pretrained(tmp_path / "merged")
    load_tokenizer(str(models("llama"))).save_pretrained(tmp_path / "merged")
    logged = read(tmp_path / "run", "eval")[-1]["loss"]
    assert loss_of(tmp_path / "merged", job) == pytest.approx(logged, rel=1e-4)
    assert logged < loss_of(models("llama"), job) - 0.1


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_held_out_loss_equals_that_of_transformers(sft_job, models, tmp_path, family):
    training = TrainingConfig(epochs=0.1, batch_size=8, microbatch_size=5, lr=1e-9)
    job = replace(sft_job, model=ModelConfig(path=str(models(family))), training=training)
    train_sft(job)
    assert read(tmp_path / "run", "eval")[0]["loss"] == pytest.approx(loss_of(models(family), job), rel=1e-4)


def test_fewer_rows_than_a_batch_are_rejected(sft_job):
    with pytest.raises(UserError, match=r"holds 48 examples to train on, fewer than training.batch_size = 50"):
        train_sft(replace(sft_job, training=replace(sft_job.training, batch_size=50)))


def test_texts_longer_than_the_context_are_rejected(sft_job, models, tmp_path):
    (tmp_path / "long.jsonl").write_text("".join(json.dumps({"text": "the film " * 100}) + "\n" for _ in range(10)))
    data = DataConfig(path=str(tmp_path / "long.jsonl"), eval_fraction=0.0)
    with pytest.raises(UserError, match="128"):
        train_sft(replace(sft_job, model=ModelConfig(path=str(models("gpt2"))), data=data))


def test_gradient_that_is_not_finite_ends_the_run(sft_job, tmp_path):
    training = replace(sft_job.training, lr=1e30)
    with pytest.raises(UserError, match=r"gradient's norm is (nan|inf); lower training.lr"):
        train_sft(replace(sft_job, training=training))


def test_unused_columns_are_printed(sft_job, tmp_path, capsys):
    rows = [{"prompt": "the", "completion": "film is good", "text": "nothing"}] * 8
    (tmp_path / "both.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train_sft(replace(sft_job, data=DataConfig(path=str(tmp_path / "both.jsonl"))))
    assert (
        "both.jsonl has several formats: prompt, completion is trained on, text is not used" in capsys.readouterr().out
    )


def test_unknown_architecture_and_data_without_text_are_rejected(scratch_job, prompts_file):
    with pytest.raises(UserError, match="'lama', which is not an architecture"):
        train_sft(replace(scratch_job, scratch=ScratchConfig(model_type="lama")))
    with pytest.raises(UserError, match="a new tokenizer is trained on a column 'text'"):
        train_sft(replace(scratch_job, data=DataConfig(path=str(prompts_file))))
