"""The `evaluate` command from end to end."""

import json
import math
from dataclasses import replace

import pytest
import torch

from rlhf.config.commands import EvaluateJob
from rlhf.config.scores import JudgeConfig
from rlhf.config.shared import EvalConfig, GenerationConfig, ModelConfig
from rlhf.errors import UserError
from rlhf.evaluation import command
from rlhf.evaluation.command import evaluate_policy
from rlhf.evaluation.tables import summary_table
from rlhf.models.loading import load_causal_lm, load_tokenizer


@pytest.fixture
def evaluate_job(job, models, tmp_path):
    """Six held-out prompts; the policy is the baseline with a scaled output layer."""
    lm = load_causal_lm(ModelConfig(path=str(models("llama"))))
    with torch.no_grad():
        lm.get_output_embeddings().weight.mul_(1.5)
    lm.save_pretrained(tmp_path / "policy")
    load_tokenizer(str(models("llama"))).save_pretrained(tmp_path / "policy")
    return EvaluateJob(
        output=str(tmp_path / "evaluation"),
        baseline=str(models("llama")),
        model=ModelConfig(path=str(tmp_path / "policy")),
        data=job.data,
        generation=job.generation,
        reward=job.reward,
        eval=EvalConfig(prompts=6, samples=2),
    )


def test_policy_and_baseline_are_compared_and_written(evaluate_job, tmp_path):
    result = evaluate_policy(evaluate_job)
    before, after = result["before"], result["after"]
    assert before["kl"] == 0.0
    assert after["kl"] != 0.0
    assert before["prompts"] == after["prompts"] == 6.0
    assert "win_rate" not in before
    assert 0 <= after["win_rate_low"] <= after["win_rate"] <= after["win_rate_high"] <= 1
    written = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert {name: written[name] for name in ("before", "after")} == result
    assert written["config"]["model"]["path"] == evaluate_job.model.path
    rows = [json.loads(line) for line in (tmp_path / "evaluation" / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 0, 1, 1]
    assert [row["index"] for row in rows[:2]] == [row["index"] for row in rows[2:]]
    columns = [list(column.cells) for column in summary_table(before, after).columns]
    assert columns[0][columns[0].index("win rate")] == "win rate"
    assert columns[1][columns[0].index("win rate")] == ""
    assert evaluate_policy(replace(evaluate_job, output=None)) == result  # deterministic


def test_policy_against_itself_is_a_draw(evaluate_job):
    result = evaluate_policy(replace(evaluate_job, output=None, model=ModelConfig(path=evaluate_job.baseline)))
    assert result["after"].pop("win_rate") == 0.5
    assert (result["after"].pop("win_rate_low"), result["after"].pop("win_rate_high")) == (0.5, 0.5)
    assert result["after"] == result["before"]


def test_without_a_baseline_the_policy_is_its_own_reference(evaluate_job):
    result = evaluate_policy(replace(evaluate_job, output=None, baseline=None))
    assert set(result) == {"after"}
    assert result["after"]["kl"] == 0.0


def test_judge_alone_suffices_and_no_source_is_an_error(evaluate_job, reward_folder):
    alone = replace(evaluate_job, output=None, reward=type(evaluate_job.reward)())
    judge = JudgeConfig(model=str(reward_folder))
    assert "judge" in evaluate_policy(replace(alone, eval=replace(alone.eval, judge=judge)))["after"]
    with pytest.raises(UserError, match="nothing to score with"):
        evaluate_policy(alone)


def test_existing_folder_is_rejected_before_a_model_is_loaded(evaluate_job, tmp_path, monkeypatch):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "notes").write_text("")

    def load(*_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(command, "load_causal_lm", load)
    with pytest.raises(UserError, match="evaluation exists"):
        evaluate_policy(evaluate_job)


def test_undefined_statistics_are_null_in_the_file(evaluate_job, tmp_path):
    """Responses of one token have no pairs."""

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    result = evaluate_policy(replace(evaluate_job, generation=GenerationConfig(max_new_tokens=1)))
    assert math.isnan(result["after"]["distinct_2"])
    text = (tmp_path / "evaluation" / "evaluation.json").read_text()
    assert json.loads(text, parse_constant=refuse)["after"]["distinct_2"] is None


def test_greedy_responses_need_no_random_numbers(evaluate_job, monkeypatch):
    """With log-probabilities at temperature 1, so that entropy and KL mean the same as those of sampled responses."""
    sampled = evaluate_policy(replace(evaluate_job, output=None))["after"]
    monkeypatch.setattr("rlhf.evaluation.responses.uniform_noise", None)
    job = replace(evaluate_job, output=None, generation=replace(evaluate_job.generation, temperature=0.0))
    greedy = evaluate_policy(job)["after"]
    assert greedy["entropy"] > 0.0
    assert greedy["kl"] != 0.0
    assert greedy["entropy"] != sampled["entropy"]
