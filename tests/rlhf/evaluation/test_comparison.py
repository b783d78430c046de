"""Several policies on the same prompts: their order, their random numbers, win rates, and the page."""

import json
import re
from dataclasses import replace

import pytest
import torch

from rlhf.config.commands import BestOfNJob, EvaluateJob
from rlhf.config.scores import JudgeConfig, RewardConfig
from rlhf.config.shared import EvalConfig, ModelConfig
from rlhf.errors import UserError
from rlhf.evaluation import comparison
from rlhf.evaluation.best_of_n import run_best_of_n
from rlhf.evaluation.command import evaluate_policy
from rlhf.evaluation.comparison import compare_policies
from rlhf.evaluation.tables import comparison_table
from rlhf.models.loading import load_causal_lm, load_tokenizer
from rlhf.report.comparison import render, write_comparison


@pytest.fixture
def compare_job(job, models, tmp_path):
    """The baseline, the best of two and of four of its responses, and two policies with scaled output layers."""
    for name, scale in (("sharp", 1.5), ("flat", 0.5)):
        lm = load_causal_lm(ModelConfig(path=str(models("llama"))))
        with torch.no_grad():
            lm.get_output_embeddings().weight.mul_(scale)
        lm.save_pretrained(tmp_path / name)
        load_tokenizer(str(models("llama"))).save_pretrained(tmp_path / name)
    return EvaluateJob(
        output=str(tmp_path / "comparison"),
        baseline=str(models("llama")),
        model=ModelConfig(path=str(tmp_path / "sharp")),
        policies=[str(tmp_path / "flat")],
        best_of=[2, 4],
        data=job.data,
        generation=job.generation,
        reward=job.reward,
        eval=EvalConfig(prompts=6, samples=3),
    )


def test_each_policy_is_measured_as_if_it_were_alone(compare_job, tmp_path):
    """With the same prompts and random numbers as `rlhf evaluate` of that policy against the baseline."""
    result = compare_policies(compare_job)
    assert list(result["policies"]) == ["start", "best of 2", "best of 4", "sharp", "flat"]
    assert result["by"] == "score"
    for name in ("sharp", "flat"):
        alone = evaluate_policy(
            replace(compare_job, output=None, policies=[], best_of=[], model=ModelConfig(path=str(tmp_path / name)))
        )
        assert result["policies"][name] == alone["after"]
        assert result["policies"]["start"] == alone["before"]
    settings = {name: getattr(compare_job, name) for name in ("data", "generation", "reward", "eval")}
    alone = run_best_of_n(BestOfNJob(n=2, model=ModelConfig(path=compare_job.baseline), **settings))
    won = {name: value for name, value in result["policies"]["best of 2"].items() if name.startswith("win_rate")}
    assert result["policies"]["best of 2"] == alone | won
    assert result["policies"]["best of 4"]["penalised_score"] >= result["policies"]["best of 2"]["penalised_score"]
    assert "kl" not in result["policies"]["best of 2"]
    assert result["policies"]["best of 2"]["kl_bound"] == pytest.approx(0.693147 - 0.5, abs=1e-6)
    assert compare_policies(replace(compare_job, output=None)) == result


def test_win_rates_of_two_policies_add_up_to_one(compare_job):
    result = compare_policies(replace(compare_job, output=None))
    rates = result["win_rates"]
    for name, others in rates.items():
        assert set(others) == set(rates) - {name}
        for other, rate in others.items():
            assert rate["win_rate"] + rates[other][name]["win_rate"] == pytest.approx(1.0)
            assert rate["win_rate_low"] <= rate["win_rate"] <= rate["win_rate_high"]
    assert rates["sharp"]["start"]["win_rate"] == result["policies"]["sharp"]["win_rate"]
    assert rates["best of 4"]["best of 2"]["win_rate"] >= 0.5


def test_the_judge_decides_where_there_is_one(compare_job, reward_folder):
    judge = EvalConfig(prompts=6, judge=JudgeConfig(model=str(reward_folder)))
    result = compare_policies(replace(compare_job, output=None, eval=judge))
    assert result["by"] == "judge"
    assert all("judge" in summary for summary in result["policies"].values())


def test_without_a_baseline_the_first_policy_is_the_reference(compare_job):
    result = compare_policies(replace(compare_job, output=None, baseline=None))
    assert list(result["policies"]) == ["sharp", "best of 2", "best of 4", "flat"]
    assert result["policies"]["sharp"]["kl"] == 0.0
    assert result["policies"]["flat"]["kl"] != 0.0


def test_a_policy_with_another_tokenizer_answers_but_has_no_kl(compare_job, build, tmp_path):
    """Its vocabulary lies in another order, so the reference would read other words."""
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "other"
    AutoModelForCausalLM.from_config(build.config("llama")).save_pretrained(folder)
    tokenizer = build.tokenizer()
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(folder)
    result = compare_policies(replace(compare_job, output=None, best_of=[], policies=[str(folder)]))
    assert "kl" not in result["policies"]["other"]
    assert "score" in result["policies"]["other"]
    page = render({**result, "config": {}}, [])
    assert "other" in page


def test_equal_last_parts_of_paths_are_told_apart(compare_job, models, tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "run").symlink_to(models("llama"))
    paths = [str(tmp_path / folder / "run") for folder in ("a", "b")]
    job = replace(compare_job, output=None, best_of=[], model=ModelConfig(path=paths[0]), policies=[paths[1]])
    result = compare_policies(job)
    assert list(result["policies"]) == ["start", *paths]
    assert result["win_rates"][paths[0]][paths[1]]["win_rate"] == 0.5  # the same model


def test_table_and_page_show_every_policy_and_every_comparison(compare_job, tmp_path):
    result = compare_policies(compare_job)
    columns = [list(column.cells) for column in comparison_table(result).columns]
    assert len(columns) == 6
    assert [row for row in columns[0] if row.startswith("wins against")] == [
        f"wins against {name}" for name in result["policies"]
    ]
    assert columns[1][columns[0].index("wins against start")] == ""
    assert "win rate" not in columns[0]

    path = write_comparison(tmp_path / "comparison")
    assert path.name == "comparison.html"
    page = path.read_text()
    rows = [json.loads(line) for line in (tmp_path / "comparison" / "samples.jsonl").read_text().splitlines()]
    assert len(rows) == 5 * 3
    for name in result["policies"]:
        assert page.count(name) >= 4  # statistics, win rates twice, responses
    assert "≤ 0.193" in page
    assert not re.findall(r"(?:src|href)=\"(?!#)", page)  # nothing else is loaded
    assert write_comparison(tmp_path / "comparison").read_text() == page


def test_the_page_escapes_what_a_model_writes(compare_job):
    result = compare_policies(replace(compare_job, output=None, best_of=[]))
    row = {"index": 0, "prompt": "<b>", "response": "<script>alert(1)</script>", "scores": {"score": None}}
    page = render({**result, "config": {}}, [{**row, "policy": name} for name in result["policies"]])
    assert "<script>" not in page
    assert "&lt;script&gt;" in page


def test_an_evaluation_of_one_policy_has_no_page(compare_job, tmp_path):
    evaluate_policy(replace(compare_job, policies=[], best_of=[]))
    with pytest.raises(UserError, match="holds no comparison of policies"):
        write_comparison(tmp_path / "comparison")


def test_mistakes_are_seen_before_a_model_is_loaded(compare_job, tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "load_causal_lm", None)
    with pytest.raises(UserError, match="model folder /no/such does not exist"):
        compare_policies(replace(compare_job, policies=["/no/such"]))
    assert not (tmp_path / "comparison").exists()
    (tmp_path / "comparison").mkdir()
    (tmp_path / "comparison" / "notes").write_text("mine")
    with pytest.raises(UserError, match="comparison exists"):
        compare_policies(compare_job)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"best_of": [1]}, r"best_of is \[1\], but must be a list of numbers of at least 2"),
        ({"reward": RewardConfig()}, "best_of needs a reward that decides which is the best"),
    ],
)
def test_settings_that_cannot_work_are_rejected(compare_job, changes, message):
    with pytest.raises(UserError, match=message):
        replace(compare_job, **changes)
