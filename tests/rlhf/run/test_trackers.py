"""Experiment trackers for real, on local stores; those that are not installed are skipped."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from rlhf.config.parsing import to_yaml
from rlhf.run.trackers import init_options, log_samples

ROOT = Path(__file__).parents[3]
ROWS = [{"step": 2, "index": 0, "prompt": "the", "response": " film", "scores": {"score": 1.0, "judge": None}}]


def run(job, change, tmp_path, tracker: str, **environment: str) -> None:
    """A run of its own process, since trackers hold global state."""

    config = tmp_path / "job.yaml"
    config.write_text(to_yaml(change(job, trackers=[tracker])))
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    command = [sys.executable, "-m", "rlhf.cli.main", "ppo", "--config", str(config)]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "nothing more is sent to the trackers" not in done.stderr


@pytest.mark.slow
def test_trackio_has_metrics_and_a_table_of_samples(job, change, tmp_path):
    pytest.importorskip("trackio")
    run(job, change, tmp_path, "trackio", TRACKIO_DIR=str(tmp_path / "trackio"))
    code = (
        "import trackio; r = trackio.Api().runs('rlhf')[0]; "
        "from trackio.sqlite_storage import SQLiteStorage as S; rows = S.get_logs('rlhf', r.name); "
        "print(r.name, sorted({k for row in rows for k in row}))"
    )

    env = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio")}
    printed = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert printed.startswith("run ")
    for name in ("objective/score", "policy/loss", "eval/score", "samples"):
        assert f"'{name}'" in printed


@pytest.mark.slow
def test_mlflow_has_metrics_settings_and_a_table_of_samples(job, change, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    run(job, change, tmp_path, "mlflow", MLFLOW_TRACKING_URI=store)
    client = mlflow.MlflowClient(tracking_uri=store)
    [experiment] = client.search_experiments(filter_string="name = 'rlhf'")
    [tracked] = client.search_runs([experiment.experiment_id])
    assert tracked.info.run_name == "run"
    assert {"objective/score", "eval/score"} <= set(tracked.data.metrics)
    assert tracked.data.params["ppo.lr"] == "0.001"
    assert [item.path for item in client.list_artifacts(tracked.info.run_id)] == ["samples.json"]


@pytest.mark.slow
def test_swanlab_takes_metrics_and_texts(job, change, tmp_path):
    pytest.importorskip("swanlab")
    run(job, change, tmp_path, "swanlab", SWANLAB_MODE="offline", SWANLAB_LOG_DIR=str(tmp_path / "swan"))


def test_only_a_resumed_run_continues_the_run_of_its_name_in_trackio():
    assert init_options("ppo", resumed=True)["trackio"] == {"name": "ppo", "resume": "allow"}
    assert init_options("ppo", resumed=False)["trackio"] == {"name": "ppo", "resume": "never"}


def test_tables_have_a_row_for_each_sample_and_trackers_without_tables_get_none():
    sent = []
    wandb = SimpleNamespace(name="wandb", log_table=lambda name, **table: sent.append((name, table)))
    tensorboard = SimpleNamespace(name="tensorboard")
    log_samples([tensorboard, wandb], 2, ROWS)
    columns = ["step", "index", "prompt", "response", "score", "judge"]
    assert sent == [("samples", {"columns": columns, "data": [[2, 0, "the", " film", 1.0, None]], "step": 2})]
    log_samples([wandb], 2, [])
    assert len(sent) == 1
