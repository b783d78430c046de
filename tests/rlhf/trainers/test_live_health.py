"""The health rules while a run goes."""

import json
import random
from pathlib import Path

import pytest

from rlhf.report import health
from rlhf.report.health import METRICS, health_warnings
from rlhf.trainers import live_health
from rlhf.trainers.live_health import LiveHealth
from rlhf.trainers.ppo import PPOTrainer

HEALTHY = {"objective/score": 1.0, "objective/kl": 2.0, "policy/clip_fraction": 0.1, "value/explained_variance": 0.5}


def rows_of(changes: dict[int, dict[str, float]], steps: int = 60) -> list[dict[str, float]]:
    """Rows of a run whose score rises, changed from some steps on."""
    rows, current = [], dict(HEALTHY)
    for step in range(1, steps + 1):
        current |= changes.get(step, {})
        rows.append({"step": step, **current, "objective/score": step / 10, "time/step": 1.0})
    return rows


def test_a_warning_is_new_once_and_again_after_it_went_away():
    """The rule reads the mean of the last tenth: from step 30 on of three steps, later of up to six."""
    live = LiveHealth(60)
    rows = rows_of({30: {"objective/kl": 20.0}, 36: {"objective/kl": 2.0}, 50: {"objective/kl": 30.0}})
    new = {row["step"]: [w.name for w in live.check(int(row["step"]), row)] for row in rows}
    assert {step: names for step, names in new.items() if names} == {31: ["kl_high"], 51: ["kl_high"]}
    assert live.names == ["kl_high"]
    assert live.live == "  1 warning"


@pytest.mark.parametrize("cut", [1, 19, 20, 37, 59])
def test_resuming_continues_as_if_uninterrupted(cut, monkeypatch):
    monkeypatch.setattr(live_health, "OFTEN", 10)
    generator = random.Random(0)
    rows = rows_of({step: {"objective/kl": generator.choice([2.0, 30.0])} for step in range(1, 61)})
    evals = [{"step": step, "score": 1.0, "judge": 0.5} for step in (0, 20, 40)]

    def run(live, part):
        """The new warnings of each step."""
        new = {}
        for row in part:
            so_far = [evaluation for evaluation in evals if evaluation["step"] <= row["step"]]
            new[row["step"]] = [warning.name for warning in live.check(row["step"], row, so_far)]
        return new

    whole = run(LiveHealth(60), rows)
    resumed = LiveHealth(60)
    resumed.resume(json.loads(json.dumps(rows[:cut])), [e for e in evals if e["step"] <= cut])
    assert run(resumed, rows[cut:]) == {step: names for step, names in whole.items() if step > cut}
    assert any(whole.values())


def test_the_rules_read_no_other_metrics():
    """So a run keeps only these in memory."""
    changes = {40: {"objective/kl": 20.0, "policy/clip_fraction": 0.9, "policy/ratio_max": 1e4}}
    changes[50] = {"value/explained_variance": -1.0, "policy/loss": float("nan"), "response/truncated_fraction": 1.0}
    rows = [{"response/truncated_fraction": 0.0, "policy/entropy": 1.0, **row} for row in rows_of(changes)]
    reduced = [{name: row[name] for name in METRICS if name in row} for row in rows]
    warnings = health_warnings(rows, [])
    assert {w.name for w in warnings} == {
        "kl_high", "clip_fraction_high", "ratio_spikes", "critic_useless", "not_finite", "length_explosion"
    }  # fmt: skip
    assert health_warnings(reduced, []) == warnings


def test_a_rule_that_two_metrics_break_counts_once():
    live = LiveHealth(60)
    live.check(1, {"policy/loss": float("nan"), "value/loss": float("nan")})
    assert len(live.warnings) == 2
    assert (live.names, live.live) == (["not_finite"], "  1 warning")
    settings = [live.warnings[0].setting]
    live.check(len(live._rows) + 1, {"objective/score": 1.0})
    settings.append(live.warnings[0].setting)
    assert ["training.lr" in settings[0], "ppo.lr" in settings[1]] == [True, True]


def test_a_young_run_is_not_blamed_for_a_flat_score_and_an_untrained_critic():
    flat = [{**row, "objective/score": 0.0, "value/explained_variance": -0.3} for row in rows_of({}, 25)]
    assert health_warnings(flat, [], done=0.1) == []
    assert {w.name for w in health_warnings(flat, [], done=1.0)} == {"score_flat", "critic_useless"}


@pytest.mark.parametrize(("kl", "setting"), [(0.01, "raise ppo.lr"), (7.0, "lower ppo.lr")])
def test_a_flat_score_is_blamed_on_small_steps_near_the_reference_and_on_large_ones_far_from_it(kl, setting):
    flat = [{**row, "objective/score": 0.0, "objective/kl": kl} for row in rows_of({}, 25)]
    [warning] = health_warnings(flat, [])
    assert warning.name == "score_flat"
    assert warning.setting.startswith(setting)


def test_a_ppo_run_prints_a_warning_once_and_writes_its_name_at_every_step(job, change, monkeypatch, capsys):
    monkeypatch.setattr(health, "ENOUGH_STEPS", 2)
    trainer = PPOTrainer(job)
    step = trainer.step
    monkeypatch.setattr(trainer, "step", lambda: step() | {"objective/kl": 50.0})
    trainer.train()
    printed = capsys.readouterr().out
    assert printed.count("KL above 10 nats (50.0)") == 1
    assert "WARNING: step 2: KL above 10 nats" in printed
    assert "set ppo.kl_target to 6, or raise ppo.kl_coef" in printed
    rows = [json.loads(line) for line in Path(job.output, "metrics.jsonl").read_text().splitlines()]
    names = [row.get("warnings", []) for row in rows]
    assert ["kl_high" in n for n in names] == [False, True, True]
    assert [len(n) for n in names] == [row["health/warnings"] for row in rows]


def test_a_supervised_run_has_no_flat_score():
    rows = [{"step": step, "loss": 1.0, "grad_norm": 1.0} for step in range(1, 41)]
    assert health_warnings(rows, [{"step": 20, "loss": 1.0}, {"step": 40, "loss": 1.0}]) == []
    assert health_warnings(rows, []) == []
