"""Supervised fine-tuning on a few lines: what is learnt, what is resumed, what is saved."""

import json
import math
import signal
from dataclasses import replace

import pytest
import torch

from rlhf.config.jobs import (
    CheckpointConfig,
    DataConfig,
    LoraConfig,
    ModelConfig,
    ScratchConfig,
    SFTJob,
    TrainingConfig,
)
from rlhf.data.datasets import split_rows
from rlhf.data.encoding import encode_demonstration
from rlhf.errors import UserError
from rlhf.models.loading import load_tokenizer
from rlhf.trainers import supervised
from rlhf.trainers.sft import dataset_formats, encode, new_lm, train_sft, train_tokenizer, trained_token_count
from rlhf.trainers.supervised import batch_at, steps_of

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
    """The held-out loss by transformers' own means: text by text, without padding."""
    from transformers import AutoModelForCausalLM

    lm, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), load_tokenizer(str(folder))
    total = count = 0
    for row in split_rows(job.data, job.seed)[1]:
        ids, learn = encode_demonstration(tokenizer, row)
        labels = torch.tensor([[i if yes else -100 for i, yes in zip(ids, learn, strict=True)]])
        told = int((labels[:, 1:] != -100).sum())
        with torch.no_grad():
            total += float(lm(torch.tensor([ids]), labels=labels).loss) * told
        count += told
    return total / count


# --------------------------------------------------------------------------------------------------------- whole runs


def test_model_from_nothing_learns_sixty_lines(scratch_job, tmp_path):
    job = replace(
        scratch_job,
        training=TrainingConfig(epochs=12.0, batch_size=8, microbatch_size=8, lr=5e-3, warmup_steps=5, eval_every=50),
    )
    train_sft(job)
    rows, evals = read(tmp_path / "run"), read(tmp_path / "run", "eval")
    assert [row["step"] for row in rows] == list(range(1, 73))
    vocabulary = json.loads((tmp_path / "run" / "model" / "config.json").read_text())["vocab_size"]
    assert rows[0]["loss"] == pytest.approx(math.log(vocabulary), rel=0.05)  # every token is as good as another
    assert sum(row["loss"] for row in rows[-6:]) / 6 < 1.3  # 60 lines of 8 tokens hold half a nat a token
    assert [row["step"] for row in evals] == [50, 72]
    assert evals[-1]["perplexity"] == pytest.approx(math.exp(evals[-1]["loss"]))
    assert evals[-1]["loss"] == pytest.approx(loss_of(tmp_path / "run" / "model", job), rel=1e-4)

    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    lm = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    said = lm.generate(**tokenizer("the film", return_tensors="pt"), do_sample=False, max_new_tokens=20)[0].tolist()
    assert said[-1] == tokenizer.eos_token_id  # texts were taught to end
    assert tokenizer.decode(said, skip_special_tokens=True).split()[2] in ("is", "has")


def test_resumed_run_is_the_uninterrupted_one_bit_for_bit(scratch_job, tmp_path):
    """With dropout, so that the generators must come back as well."""
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


def test_run_that_is_asked_to_stop_saves_and_goes_on_from_there(sft_job, tmp_path, monkeypatch):
    original, told = supervised._optimize, []

    def stop_at_the_second(*given):
        told.append(1)
        if len(told) == 2:
            signal.raise_signal(signal.SIGTERM)
        return original(*given)

    with monkeypatch.context() as patch:
        patch.setattr(supervised, "_optimize", stop_at_the_second)
        train_sft(sft_job)
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir() if not p.is_symlink()] == ["step_000002"]
    assert not (tmp_path / "run" / "model").exists()
    train_sft(replace(sft_job, resume="auto"))
    assert [row["step"] for row in read(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    assert (tmp_path / "run" / "model" / "config.json").exists()


def test_how_a_batch_is_cut_changes_nothing(sft_job, tmp_path):
    """Losses, gradients and what comes of them: tokens of unequal rows weigh alike."""
    runs = []
    for size in (1, 3, 8):
        training = replace(sft_job.training, microbatch_size=size)
        train_sft(replace(sft_job, output=str(tmp_path / str(size)), training=training))
        runs.append(read(tmp_path / str(size)))
    for other in runs[1:]:
        for a, b in zip(runs[0], other, strict=True):
            assert (a["loss"], a["grad_norm"]) == pytest.approx((b["loss"], b["grad_norm"]), rel=1e-4)


def test_loss_and_gradient_are_means_over_the_tokens_of_a_batch(sft_job, models, tmp_path):
    """Of the first batch, by transformers' own means, row by row; the rows are of unequal length."""
    from transformers import AutoModelForCausalLM

    train_sft(replace(sft_job, training=replace(sft_job.training, epochs=0.1, microbatch_size=3, max_grad_norm=1e9)))
    rows = encode(load_tokenizer(str(models("llama"))), split_rows(sft_job.data, 0)[0], 512, "x")
    batch = [rows[i][0] for i in batch_at(0, [len(ids) for ids, _ in rows], 8, 0)]
    assert len(set(map(len, batch))) > 1
    lm = AutoModelForCausalLM.from_pretrained(models("llama"))
    totals = [lm(torch.tensor([ids]), labels=torch.tensor([ids])).loss * (len(ids) - 1) for ids in batch]
    loss = sum(totals) / sum(len(ids) - 1 for ids in batch)
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in lm.parameters()]).norm()
    found = read(tmp_path / "run")[0]
    assert (found["loss"], found["grad_norm"]) == pytest.approx((loss.item(), norm.item()), rel=1e-4)


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
def test_held_out_loss_is_that_of_plain_transformers(sft_job, models, tmp_path, family):
    training = TrainingConfig(epochs=0.1, batch_size=8, microbatch_size=5, lr=1e-9)
    job = replace(sft_job, model=ModelConfig(path=str(models(family))), training=training)
    train_sft(job)
    assert read(tmp_path / "run", "eval")[0]["loss"] == pytest.approx(loss_of(models(family), job), rel=1e-4)


# ------------------------------------------------------------------------------------------------------------ refusals


def test_fewer_rows_than_a_batch_are_refused(sft_job):
    with pytest.raises(UserError, match=r"holds 48 examples to train on, fewer than training.batch_size = 50"):
        train_sft(replace(sft_job, training=replace(sft_job.training, batch_size=50)))


def test_texts_longer_than_the_model_reads_are_refused(sft_job, models, tmp_path):
    (tmp_path / "long.jsonl").write_text("".join(json.dumps({"text": "the film " * 100}) + "\n" for _ in range(10)))
    data = DataConfig(path=str(tmp_path / "long.jsonl"), eval_fraction=0.0)
    with pytest.raises(UserError, match="128"):
        train_sft(replace(sft_job, model=ModelConfig(path=str(models("gpt2"))), data=data))


def test_gradient_that_is_not_finite_ends_the_run(sft_job, tmp_path):
    training = replace(sft_job.training, lr=1e30)
    with pytest.raises(UserError, match=r"gradient is not finite; lower training.lr"):
        train_sft(replace(sft_job, training=training))


def rows_of(**columns):
    import datasets

    return datasets.Dataset.from_dict(columns)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": ["a"]}, "x has the columns 'label', but demonstrations need 'text', 'messages', or 'prompt' and"),
        ({"prompt": ["a"]}, "x has the columns 'prompt', but demonstrations need"),
        ({"prompt;completion": ["a;b"]}, "delimited by semicolons: save it with commas"),
        ({"text": ["the", None]}, "x, row 2: 'text' is null"),
        ({"text": [3, 4]}, "x, row 1: 'text' is 3, but must be text or a list of messages"),
        ({"text": ["the", " "]}, "x, row 2: 'text' is empty"),
        ({"prompt": ["the", "a"], "completion": ["film", ""]}, "x, row 2: 'completion' is empty"),
        ({"prompt": ["the film is good"], "completion": ["a"]}, "no row has a token to learn within .* = 3"),
    ],
)
def test_demonstrations_that_teach_nothing_are_refused(models, columns, message):
    with pytest.raises(UserError, match=message):
        encode(load_tokenizer(str(models("llama"))), rows_of(**columns), 3, "x")


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["text", "completion"], [["text"]]),
        (["text", "completion", "prompt"], [["prompt", "completion"], ["text"]]),
        (["prompt", "text", "messages"], [["messages"], ["text"]]),
    ],
)
def test_the_form_that_says_most_is_learnt(columns, expected):
    assert dataset_formats(rows_of(**{name: ["a"] for name in columns}), "x") == expected


def test_columns_that_are_not_learnt_are_named(sft_job, tmp_path, capsys):
    rows = [{"prompt": "the", "completion": "film is good", "text": "nothing"}] * 8
    (tmp_path / "both.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train_sft(replace(sft_job, data=DataConfig(path=str(tmp_path / "both.jsonl"))))
    assert "both.jsonl has several forms: prompt, completion is learnt, text is not" in capsys.readouterr().out


def test_demonstrations_are_cut_at_the_limit(models):
    """The first token of a text has nothing before it, so it is not learnt from."""
    rows = rows_of(prompt=["the", "the film is"], completion=["good film", "good"])
    found = encode(load_tokenizer(str(models("llama"))), rows, 3, "x")
    assert found == [([7, 11, 8], [False, True, True])]
    assert trained_token_count(found[0]) == 2
    assert trained_token_count(([7, 8], [True, True])) == 1


# ---------------------------------------------------------------------------------------------------- batches, scratch


@pytest.mark.parametrize(("rows", "size"), [(10, 3), (12, 4), (200, 2)])
def test_batches_of_a_pass_hold_every_row_at_most_once_and_every_pass_differs(rows, size):
    lengths, per_pass = [1 + i % 7 for i in range(rows)], rows // size
    passes = [[batch_at(turn * per_pass + i, lengths, size, 0) for i in range(per_pass)] for turn in range(3)]
    for batches in passes:
        seen = [row for batch in batches for row in batch]
        assert all(len(batch) == size for batch in batches)
        assert len(set(seen)) == len(seen) == per_pass * size
    assert passes[0] != passes[1] != passes[2]
    assert [batch_at(i, lengths, size, 9) for i in range(per_pass)] not in passes


def test_rows_of_like_length_share_a_batch():
    lengths = [(37 * i) % 101 for i in range(256)]
    spread = [
        max(lengths[i] for i in b) - min(lengths[i] for i in b) for b in (batch_at(s, lengths, 8, 0) for s in range(32))
    ]
    assert sum(spread) / 32 < 10  # of 100; unsorted batches of 8 span about 78


@pytest.mark.parametrize(
    ("epochs", "rows", "steps"), [(1.0, 48, 6), (1.0, 50, 6), (2.5, 48, 15), (0.01, 48, 1), (0.5, 8, 1)]
)
def test_steps_of_a_run(epochs, rows, steps):
    assert steps_of(TrainingConfig(epochs=epochs, batch_size=8), rows) == steps


@pytest.mark.parametrize("lowercase", [False, True])
def test_new_tokenizer_gives_texts_back(lowercase):
    tokenizer = train_tokenizer(["The film is good"] * 3, ScratchConfig(vocab_size=300, lowercase=lowercase))
    text = "The film é 😀 is\n\tgood"
    assert tokenizer.decode(tokenizer(text).input_ids) == (text.lower() if lowercase else text)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1)
    assert tokenizer("The film is good<|end|>").input_ids[-1] == 0


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "gpt_neox"])
def test_new_model_has_the_sizes_and_the_dropout_asked_for(kind):
    config = ScratchConfig(model_type=kind, vocab_size=270, hidden_size=48, num_heads=3, num_layers=2, max_positions=64)
    tokenizer = train_tokenizer(["the film"], config)
    lm = new_lm(config, tokenizer)
    known = lm.config
    assert (known.hidden_size, known.num_attention_heads, known.num_hidden_layers) == (48, 3, 2)
    assert (known.max_position_embeddings, known.vocab_size, known.eos_token_id) == (64, len(tokenizer), 0)
    assert lm.get_input_embeddings().weight is lm.get_output_embeddings().weight
    assert {value for name, value in vars(known).items() if "dropout" in name or "pdrop" in name} >= {0.1}


def test_unknown_architecture_and_data_without_text_are_refused(scratch_job, prompts_file):
    with pytest.raises(UserError, match="'lama' is no architecture"):
        train_sft(replace(scratch_job, scratch=ScratchConfig(model_type="lama")))
    with pytest.raises(UserError, match="a new tokenizer is trained on a column 'text'"):
        train_sft(replace(scratch_job, data=DataConfig(path=str(prompts_file))))
