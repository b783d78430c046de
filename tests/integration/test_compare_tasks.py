"""scripts/compare_tasks.py: the same PPO settings for every task, and the table."""

import importlib
import json
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_task_runs_with_the_same_settings(load_script, tmp_path, monkeypatch, capsys):
    """Training is replaced: what it would be started with is recorded."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    script = load_script(ROOT / "scripts" / "compare_tasks.py")
    jobs = {}

    class Trainer:
        def __init__(self, job):
            jobs[len(jobs)] = job

        def train(self):
            folder = jobs[len(jobs) - 1].output
            Path(folder).mkdir(parents=True)
            same = {"prompts": 4.0, "kl": 1.25, "length": 7.0}
            rows = [{"step": step, "score": score, **same} for step, score in ((0.0, -1.0), (20.0, float(len(jobs))))]
            (Path(folder) / "eval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    methods = importlib.import_module("compare_methods")
    monkeypatch.setattr(methods, "PPOTrainer", Trainer)
    for module, name in ((methods, "train_sft"), (methods, "train_reward_model"), (script, "train_sft")):
        monkeypatch.setattr(module, name, lambda job: None)
    script.main(["--seeds", "2", "--output", str(tmp_path / "tasks")])
    assert {job.ppo for job in jobs.values()} == {script.SETTINGS}
    assert replace(script.SETTINGS, total_episodes=100_000, lr=1e-5, warmup_steps=0) == type(script.SETTINGS)()
    assert [job.seed for job in jobs.values()] == [0] * 5 + [1] * 5
    lines = capsys.readouterr().out.splitlines()
    assert "| praise | -1.00 | 1.00, 6.00 |  | 1.2, 1.2 | 7.0, 7.0 |" in lines
    assert "| guess | -1.00 | 4.00, 9.00 | 0.82 | 1.2, 1.2 | 7.0, 7.0 |" in lines
    before = len(jobs)
    (tmp_path / "tasks" / "seed-0" / "guess" / "seconds").unlink()
    script.main(["--seeds", "1", "--output", str(tmp_path / "tasks"), "--tasks", "praise"])
    assert len(jobs) == before  # finished runs are not repeated
