"""Reward modelling: a preference decided by one word is learned, and the saved model scores as the trained one."""

import json
import math
from dataclasses import replace

import pytest
import torch

from rlhf.config.jobs import RewardJob
from rlhf.config.shared import CheckpointConfig, DataConfig, LoraConfig, ModelConfig
from rlhf.config.training import TrainingConfig
from rlhf.data.datasets import split_rows
from rlhf.errors import UserError
from rlhf.models.loading import load_causal_lm, load_tokenizer
from rlhf.rewards.models import ModelReward
from rlhf.trainers.reward_model import SequenceScorer, new_reward_model, pairwise_loss, train_reward_model

FAMILIES = ["llama", "gpt2", "qwen2", "gpt_neox", "opt", "mistral", "qwen3", "gemma2", "phi3", "falcon", "bloom"]

WORDS = ["the", "film", "is", "a", "fine", "dull", "warm", "cold", "story", "with"]


def read(run, name="metrics"):
    return [json.loads(line) for line in (run / f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture
def reward_job(models, tmp_path):
    """80 pairs of completions of two to five words; the chosen one ends with `good`, the rejected one with `bad`."""
    rows = []
    for i in range(80):
        words = [WORDS[(i * 7 + j) % 10] for j in range(1 + i % 4)]
        answers = {"chosen": "good", "rejected": "bad"}
        rows.append(
            {"prompt": f"{WORDS[i % 10]} "} | {name: " ".join([*words, word]) for name, word in answers.items()}
        )
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RewardJob(
        output=str(tmp_path / "run"),
        trackers=[],
        model=ModelConfig(path=str(models("llama"))),
        data=DataConfig(path=str(tmp_path / "pairs.jsonl"), eval_fraction=0.2),
        training=TrainingConfig(epochs=2.0, batch_size=16, microbatch_size=16, lr=5e-3),
        checkpoint=CheckpointConfig(every=0),
    )


def held_out(job):
    """Prompts and completions of the held-out pairs, the chosen ones first."""
    rows = split_rows(job.data, job.seed)[1]
    return list(rows["prompt"]) * 2, [*rows["chosen"], *rows["rejected"]]


def plain_scores(folder, texts):
    """Scores by transformers, text by text."""
    from transformers import AutoModelForSequenceClassification

    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder).eval(), load_tokenizer(str(folder))
    with torch.no_grad():
        return torch.stack([model(torch.tensor([tokenizer(text).input_ids])).logits[0, 0] for text in texts])


@pytest.mark.parametrize("rank", [0, 4])
def test_preference_is_learned_and_the_saved_model_scores_as_the_trained_one(reward_job, tmp_path, rank):
    """All weights and adapters alike: whole weights are saved, normalised to mean 0 and deviation 1."""
    model = replace(reward_job.model, lora=LoraConfig(rank=rank))
    train_reward_model(replace(reward_job, model=model))
    rows, last = read(tmp_path / "run"), read(tmp_path / "run", "eval")[-1]
    assert rows[0]["loss"] > 0.3
    assert last["accuracy"] == 1.0
    assert last["loss"] < 0.05
    assert rows[-1]["accuracy"] == 1.0
    folder = tmp_path / "run" / "model"
    config = json.loads((folder / "config.json").read_text())
    assert config["append_eos"] is True
    assert {name: config[f"pairwise_{name}"] for name in ("accuracy", "loss", "margin")} == pytest.approx(
        {name: last[name] for name in ("accuracy", "loss", "margin")}
    )

    prompts, answers = held_out(reward_job)
    assert len(answers) == 32
    normal = torch.tensor(ModelReward(str(folder), "cpu")(prompts, answers, {}))
    assert abs(float(normal.mean())) < 1e-4
    assert float(normal.std()) == pytest.approx(1.0, abs=1e-4)
    raw = torch.tensor(ModelReward(str(folder), "cpu", normalize=False)(prompts, answers, {}))
    texts = [prompt + answer + "<|end|>" for prompt, answer in zip(prompts, answers, strict=True)]
    torch.testing.assert_close(plain_scores(folder, texts), raw, rtol=1e-4, atol=1e-4)
    chosen, rejected = raw.chunk(2)
    assert float((chosen - rejected).mean()) == pytest.approx(last["margin"], rel=1e-4)


def test_the_run_reports_its_quality_on_the_held_out_pairs(reward_job, tmp_path):
    train_reward_model(reward_job)
    quality = json.loads((tmp_path / "run" / "reward_quality.json").read_text())
    assert set(quality) == {"held_out"}  # no people: the pairs are no file of `rlhf compare`
    assert quality["held_out"]["accuracy"] | {"low": 0} == {
        "count": 16,
        "total": 16,
        "value": 1.0,
        "low": 0,
        "high": 1.0,
    }
    assert "Calibration" in (tmp_path / "run" / "report.html").read_text()


def test_statistics_are_of_the_training_pairs_if_none_are_held_out(reward_job, tmp_path):
    job = replace(reward_job, data=replace(reward_job.data, eval_fraction=0.0))
    train_reward_model(job)
    rows = split_rows(job.data, job.seed)[0]
    source = ModelReward(str(tmp_path / "run" / "model"), "cpu")
    scores = torch.tensor(source(list(rows["prompt"]) * 2, [*rows["chosen"], *rows["rejected"]], {}))
    assert abs(float(scores.mean())) < 1e-4
    assert float(scores.std()) == pytest.approx(1.0, abs=1e-4)
    assert not (tmp_path / "run" / "eval.jsonl").exists()


def test_microbatch_size_does_not_change_the_result(reward_job, tmp_path):
    runs = []
    for size in (1, 5, 16):
        training = replace(reward_job.training, microbatch_size=size, epochs=0.5)
        train_reward_model(replace(reward_job, output=str(tmp_path / str(size)), training=training))
        runs.append((read(tmp_path / str(size)), read(tmp_path / str(size), "eval")[0]))
    names = ("loss", "accuracy", "margin", "grad_norm")
    for rows, evaluated in runs[1:]:
        for a, b in zip(runs[0][0], rows, strict=True):
            assert [a[name] for name in names] == pytest.approx([b[name] for name in names], rel=1e-4, abs=1e-6)
        assert evaluated == pytest.approx(runs[0][1], rel=1e-4, abs=1e-6)


def test_resumed_run_equals_the_uninterrupted_one(reward_job, tmp_path):
    from safetensors.torch import load_file

    whole = replace(reward_job, checkpoint=CheckpointConfig(every=3))
    train_reward_model(whole)
    start = tmp_path / "run" / "checkpoints" / "step_000003"
    train_reward_model(replace(whole, output=str(tmp_path / "resumed"), resume=str(start)))
    a, b = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("run", "resumed"))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_loss_is_the_negative_log_likelihood_of_the_preferences():
    chosen, rejected = torch.tensor([1.0, 0.0, -2.0]), torch.tensor([1.0, 2.0, -5.0])
    expected = math.log(2) + math.log(1 + math.exp(2)) + math.log(1 + math.exp(-3))
    assert float(pairwise_loss(chosen, rejected)) == pytest.approx(expected, rel=1e-6)


def test_margins_and_ties_by_hand():
    """log(1 + e^-(1 - .5)), (log(1 + e^-1) + log(1 + e)) / 2 and log(1 + e^-2); a tie has no margin."""
    chosen, rejected = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([0.0, 0.0, -1.0])
    margins, ties = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([False, True, False])
    expected = 0.474077 + 0.813262 + 0.126928
    assert float(pairwise_loss(chosen, rejected, margins, ties)) == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_new_model_is_the_language_models_trunk_with_a_random_head(reward_job, models, family):
    """It scores at the last real token of right-padded texts, as transformers does if padding is not the end token."""
    job = replace(reward_job, model=ModelConfig(path=str(models(family))))
    torch.manual_seed(0)
    model = new_reward_model(job).eval()
    lm = load_causal_lm(job.model).eval()
    texts = [[7, 8, 9, 1], [10, 1], [11, 12, 1]]
    ids = torch.tensor([row + [2] * (4 - len(row)) for row in texts])
    scores = SequenceScorer(model)(ids, ids != 2)
    assert scores.shape == (3,)
    for row, score in zip(texts, scores, strict=True):
        hidden = lm.base_model(torch.tensor([row])).last_hidden_state[0, -1]
        torch.testing.assert_close(score, model.score(hidden)[0], rtol=1e-4, atol=1e-4)
    reference_scores = model(ids, attention_mask=(ids != 2).long()).logits[:, 0]
    torch.testing.assert_close(scores, reference_scores, rtol=1e-4, atol=1e-4)
    assert 0.5 < float(model.score.weight.std()) * (model.score.in_features + 1) ** 0.5 < 1.5


def test_fewer_pairs_than_a_batch_are_rejected(reward_job):
    with pytest.raises(UserError, match=r"holds 64 examples to train on, fewer than training.batch_size = 65"):
        train_reward_model(replace(reward_job, training=replace(reward_job.training, batch_size=65)))


def compared_rows(rows):
    """Pairs as answers of `rlhf compare`, every fourth a tie, every third clearly better."""
    for i, row in enumerate(rows):
        tie = i % 4 == 0
        yield row | {
            "pair": str(i),
            "a": row["chosen"],
            "b": row["rejected"],
            "choice": "tie" if tie else "a",
            "chosen": None if tie else row["chosen"],
            "rejected": None if tie else row["rejected"],
            "clearly": not tie and i % 3 == 0,
            "repeat": False,
        }


def test_a_file_of_compared_answers_trains_as_it_is(reward_job, tmp_path, capsys):
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    (tmp_path / "compared.jsonl").write_text("".join(json.dumps(row) + "\n" for row in compared_rows(rows)))
    job = replace(reward_job, data=replace(reward_job.data, path=str(tmp_path / "compared.jsonl")))
    results = {}
    for name, changes in {"drop": {}, "half": {"ties": "half"}, "margin": {"clear_margin": 5.0}}.items():
        train_reward_model(replace(job, output=str(tmp_path / name), **changes))
        results[name] = read(tmp_path / name)
    assert read(tmp_path / "drop", "eval")[-1]["accuracy"] == 1.0
    assert "60 preferences (20 clear); left out: 20 ties, 0 skipped, 0 repeated" in capsys.readouterr().out
    assert len(results["half"]) > len(results["drop"])  # more rows, more steps
    assert results["margin"][0]["loss"] > results["drop"][0]["loss"] + 0.3
    assert results["margin"][-1]["margin"] > results["drop"][-1]["margin"]


def test_settings_of_compared_answers_need_a_file_of_them(reward_job):
    for changes in ({"ties": "half"}, {"clear_margin": 1.0}):
        with pytest.raises(UserError, match=r"pairs.jsonl is no file of `rlhf compare`; remove them"):
            train_reward_model(replace(reward_job, **changes))
