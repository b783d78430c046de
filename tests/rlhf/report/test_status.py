"""The table of all runs of a folder."""

import json

import pytest
import yaml

from rlhf.cli.main import main
from rlhf.errors import UserError
from rlhf.report.status import run_folders, status_of
from rlhf.run.lock import lock, unlock

PPO = {"ppo": {"total_episodes": 100, "rollout_batch_size": 8}}


def make_run(folder, rows, config=PPO):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def steps(count, **more):
    return [
        {"step": i + 1, "objective/score": i / 10, "objective/kl": float(i), "time/step": 2.0} | more
        for i in range(count)
    ]


def test_status_by_hand(tmp_path, monkeypatch):
    run = make_run(tmp_path / "a", steps(6))
    status = status_of(run, tmp_path)
    assert (status.name, status.state, status.step, status.total) == ("a", "stopped", 6, 13)  # 100 / 8, rounded up
    assert (status.score, status.kl, status.warnings) == (0.5, 5.0, [])
    assert status.seconds_left != status.seconds_left  # nan: it does not run
    (run / "model").mkdir()
    assert status_of(run, tmp_path).state == "finished"

    def locked(folder):
        raise UserError("another process is writing")

    monkeypatch.setattr("rlhf.report.status.check_unlocked", locked)
    running = status_of(run, tmp_path)
    assert (running.state, running.seconds_left) == ("running", 14.0)  # 7 steps of 2 seconds


def test_warnings_are_those_of_the_report(tmp_path):
    run = make_run(tmp_path / "a", steps(30, **{"objective/kl": 50.0, "value/explained_variance": -1.0}))
    warnings = status_of(run, tmp_path).warnings
    assert any("KL above 10 nats" in warning.symptom for warning in warnings)
    assert any("Explained variance negative" in warning.symptom for warning in warnings)


def test_a_supervised_run_has_a_loss_and_no_total(tmp_path):
    run = make_run(tmp_path / "sft", [{"step": 1, "loss": 2.5}], config={"training": {}})
    status = status_of(run, tmp_path)
    assert (status.total, status.loss) == (None, 2.5)
    assert status.score != status.score


def test_the_command_lists_runs_below_a_folder_and_their_warnings(tmp_path, capsys):
    make_run(tmp_path / "a", steps(3))
    make_run(tmp_path / "demo" / "ppo", steps(30, **{"objective/kl": 50.0}))
    make_run(tmp_path / "empty", [])
    (tmp_path / "notes").mkdir()
    assert [str(run.relative_to(tmp_path)) for run in run_folders(tmp_path)] == ["a", "demo/ppo", "empty"]
    assert main(["status", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "3/13" in out
    assert "30/13" in out
    assert "demo/ppo: KL above 10 nats (50.0)" in " ".join(out.split())
    assert "has no training steps" in " ".join(out.split())


def test_a_folder_without_runs_is_reported(tmp_path):
    with pytest.raises(UserError, match="has no runs: no folder in it has"):
        run_folders(tmp_path)
    with pytest.raises(UserError, match="there is no folder"):
        run_folders(tmp_path / "none")


def test_a_run_that_this_process_writes_is_not_kept_out(tmp_path):
    """The lock is for other processes; its owner sees its own run as stopped."""
    run = make_run(tmp_path / "a", steps(3))
    lock(run)
    assert status_of(run, tmp_path).state == "stopped"
    unlock(run)
