"""The round of docs/compare.md: a scripted person's preferences train a reward model, and PPO's answers win."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_answers_of_the_trained_model_win_the_blind_comparison(load_script, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    script = load_script(ROOT / "scripts" / "compare_round.py")
    result = script.run(tmp_path / "round", seed=0, pairs=300, episodes=1920)
    assert result.win_rate.low > 0.5
    rows = [json.loads(line) for line in (tmp_path / "round" / "preferences.jsonl").read_text().splitlines()]
    assert {row["choice"] for row in rows} >= {"a", "b", "tie"}
    assert any(row["repeat"] for row in rows)
