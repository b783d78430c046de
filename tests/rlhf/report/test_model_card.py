"""The model card of an exported model."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from rlhf.config.shared import LoraConfig
from rlhf.report.model_card import model_card
from rlhf.report.run_files import Run, load
from rlhf.trainers.ppo import PPOTrainer

ROWS = [{"step": step, "objective/score": float(step), "time/step": 1.0} for step in range(1, 5)]
EVALS = [
    {"step": 0, "prompts": 64, "score": 0.1, "score_low": 0.0, "score_high": 0.2, "kl": 0.0},
    {"step": 4, "prompts": 64, "score": 0.9, "score_low": 0.8, "score_high": 1.0, "kl": 3.0, "win_rate": 0.75},
]
CONFIG = {
    "model": {"path": "org/base-1B", "lora": {"rank": 0}},
    "data": {"path": "/home/ada/secret-project/prompts.jsonl"},
    "ppo": {"lr": 1e-5},
    "reward": {"function": "/home/ada/rewards.py:brevity", "token_env": "MY_TOKEN"},
    "generation": {"temperature": 0.7, "max_new_tokens": 9, "stop_strings": ["\n", "```"]},
}
VERSIONS = {
    "versions": {"torch": "2.13.0", "tabular-rlhf": "0.2.0"},
    "parameters": 1_000_000,
    "command": "rlhf ppo /home/ada",
}


def card_of(files=(), **changes) -> str:
    run = Run("a_run", ROWS, EVALS, [], CONFIG, VERSIONS, [])
    return model_card(replace(run, **changes), set(files))


def test_metadata_is_what_the_hub_reads():
    data = ModelCard(card_of()).data
    assert (data.base_model, data.library_name, data.pipeline_tag) == ("org/base-1B", "transformers", "text-generation")
    assert "ppo" in data.tags
    assert data.datasets is None
    results = {result.metric_type: result.metric_value for result in data.eval_results}
    assert results == {"score": 0.9, "kl": 3.0, "win_rate": 0.75}
    assert {(result.dataset_type, result.dataset_name) for result in data.eval_results} == {("local", "prompts.jsonl")}


def test_text_has_results_with_intervals_settings_and_versions():
    card = card_of()
    assert "A causal language model of 1M parameters, trained from `org/base-1B` by PPO on `prompts.jsonl`" in card
    assert "The reward is the Python function `brevity`." in card
    assert "| reward's score | 0.100 (0 to 0.200) | 0.900 (0.800 to 1.00) |" in card
    assert "| `ppo.lr` | 1e-05 |" in card
    assert "No second scorer (judge)" in card
    assert "torch 2.13.0" in card


def test_nothing_else_of_the_machine_gets_into_it():
    card = card_of()
    for secret in ("/home", "ada", "secret-project", "MY_TOKEN"):
        assert secret not in card


def test_hostile_names_stay_text():
    name = "<script>alert(1)</script>\n---\nlicense: mit\n# x"
    config = CONFIG | {"data": {"path": "/tmp/" + name.replace("/", "")}, "model": {"path": f"/tmp/`{name}"}}
    card = card_of(name=name, config=config)
    text = ModelCard(card).text
    assert "<script>" not in re.sub("`[^`\n]*`", "", text)  # a code span shows it as text
    assert ModelCard(card).data.license is None
    assert card.count("\n# ") == 1
    stops = card.split("stop_strings=")[1].split(", tokenizer")[0]
    assert "`" not in stops
    assert eval(stops) == ["\n", "```"]


def test_untrained_weights_and_broken_rules_are_limits():
    evals = [EVALS[0], {**EVALS[1], "score": 0.0}]
    card = card_of(evals=evals, rows=[{**row, "policy/loss": None} for row in ROWS])
    assert "These are the weights that the run began with" in card
    assert "policy/loss is not finite in 4 of 4 steps" in card
    assert "| measure | this model |" in card
    assert ModelCard(card).data.eval_results[0].metric_value == 0.1


def test_run_without_evaluations_has_no_model_index():
    card = card_of(evals=[])
    assert "nothing was evaluated" in card
    assert ModelCard(card).data.eval_results is None


@pytest.mark.parametrize("rank", [0, 4])
def test_code_of_an_exported_models_card_runs(job, change, rank, monkeypatch, capsys):
    """The card's own Python, run in the model's folder."""
    PPOTrainer(change(job, model={"lora": LoraConfig(rank=rank)}, generation={"temperature": 0.7})).train()
    folder = Path(job.output) / "model"
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == ("peft" if rank else "transformers")
    code = card.text.split("```python\n")[1].split("```")[0]
    assert ("from peft" in code) == bool(rank)
    monkeypatch.chdir(folder)
    capsys.readouterr()
    torch.manual_seed(0)
    exec(code.replace("A prompt", "the film is"), {})
    assert capsys.readouterr().out
    assert str(Path(job.output).parent) not in card.content
    assert load(Path(job.output)).evals[0]["step"] == 0
