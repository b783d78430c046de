"""A run folder: checked, started, written row by row, and resumed."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rlhf.errors import UserError
from rlhf.run import folder as run_folder
from rlhf.run.folder import RunFolder, require_space, versions


class SingleProcess:
    """An accelerator of one process that records what is logged to trackers."""

    def __init__(self, is_main_process=True):
        self.is_main_process, self.device = is_main_process, torch.device("cpu")
        self.num_processes, self.mixed_precision = 1, "no"
        self.logged = []
        self.settings = None

    def wait_for_everyone(self):
        pass

    def init_trackers(self, name, config, init_kwargs):
        self.settings = config

    def log(self, values, step):
        self.logged.append((step, values))


def lines(folder, name="metrics"):
    return [json.loads(line) for line in (folder.path / f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(str(tmp_path / "run"), None)
    folder.path.mkdir()
    return folder


def test_folder_with_content_is_rejected(tmp_path):
    (tmp_path / "run").mkdir()
    RunFolder(str(tmp_path / "run"), None)  # an empty folder is accepted
    (tmp_path / "run" / "notes").write_text("")
    with pytest.raises(UserError, match="run exists; continue it with --resume auto, or name another with --output"):
        RunFolder(str(tmp_path / "run"), None)
    with pytest.raises(UserError, match="exists but is not a run folder"):
        RunFolder(str(tmp_path / "run"), "auto")
    with pytest.raises(UserError, match="notes exists"):
        RunFolder(str(tmp_path / "run" / "notes"), None)


def test_resuming_needs_a_run_folder_or_none(tmp_path):
    assert RunFolder(str(tmp_path / "new"), "auto").path == tmp_path / "new"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")
    assert RunFolder(str(tmp_path / "run"), "auto").path == tmp_path / "run"


def test_check_creates_nothing_and_needs_write_permission(tmp_path, monkeypatch):
    RunFolder(str(tmp_path / "a" / "b"), None)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(run_folder.os, "access", lambda place, mode: False)
    with pytest.raises(UserError, match=f"cannot be written: no permission in {tmp_path}"):
        RunFolder(str(tmp_path / "a" / "b"), None)


def test_metrics_go_to_the_file_and_to_the_trackers(folder):
    accelerator = SingleProcess()
    folder.log(accelerator, 1, {"loss": 0.5})
    folder.log(accelerator, 2, {"loss": 0.25})
    folder.log(accelerator, 2, {"loss": 0.75}, "eval")
    assert lines(folder) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]
    assert lines(folder, "eval") == [{"step": 2, "loss": 0.75}]
    assert accelerator.logged == [(1, {"loss": 0.5}), (2, {"loss": 0.25}), (2, {"eval/loss": 0.75})]


def test_only_the_main_process_writes(folder):
    folder.log(SingleProcess(is_main_process=False), 1, {"loss": 0.5})
    assert list(folder.path.iterdir()) == []


def test_nan_and_infinity_become_null(folder):
    folder.append("samples", [{"a": float("nan"), "b": [float("inf"), 1], "c": {"d": (float("-inf"), "é")}}])
    text = (folder.path / "samples.jsonl").read_text(encoding="utf-8")
    assert text == '{"a": null, "b": [null, 1], "c": {"d": [null, "é"]}}\n'


def test_unfinished_line_is_skipped(folder):
    folder.append("metrics", [{"step": 1}, {"step": 2}])
    with open(folder.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "lo')
    assert folder.read("metrics") == [{"step": 1}, {"step": 2}]
    assert folder.read("nothing") == []


@pytest.fixture
def started(job, change):
    """`started(resume, resumed_step, seed)`: the folder of a run that has just started."""

    def start(resume=None, resumed_step=None, accelerator=None, **settings):
        changed_job = change(job, resume=resume, **settings)
        folder = RunFolder(changed_job.output, resume)
        model = nn.Linear(3, 2)
        model.bias.requires_grad_(False)
        folder.start(changed_job, resumed_step, accelerator or SingleProcess(), model)
        return folder

    return start


def test_config_and_environment_are_written_at_the_start(started, job):
    accelerator = SingleProcess()
    folder = started(accelerator=accelerator)
    environment = json.loads((folder.path / "environment.json").read_text())
    assert (environment["parameters"], environment["trained_parameters"]) == (8, 6)
    assert (environment["device"], environment["processes"], environment["mixed_precision"]) == ("cpu", 1, "no")
    assert environment["versions"] == versions()
    assert {"python", "torch", "transformers"} <= set(environment["versions"])
    assert accelerator.settings["ppo.lr"] == str(job.ppo.lr)
    assert f"lr: {job.ppo.lr}" in (folder.path / "config.yaml").read_text()


def test_other_processes_write_nothing(started):
    folder = started(accelerator=SingleProcess(is_main_process=False))
    assert not folder.path.exists()


@pytest.mark.parametrize(("resumed", "left"), [(2, [0, 1, 2]), (0, [0]), (None, [])])
def test_rows_after_the_checkpoint_are_dropped_on_resume(started, resumed, left):
    folder = started()
    for name in ("metrics", "eval", "samples"):
        folder.append(name, [{"step": step} for step in range(5)])
    with open(folder.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "lo')
    started("auto", resumed)
    for name in ("metrics", "eval", "samples"):
        assert lines(folder, name) == [{"step": step} for step in left]


def test_changed_settings_are_printed_on_resume(started, capsys):
    started()
    capsys.readouterr()
    started("auto", 1, seed=77, ppo={"lr": 0.5})
    printed = capsys.readouterr().out
    assert printed.startswith("settings that changed since this run began:")
    for line in ("-seed: 0", "+seed: 77", "+  lr: 0.5"):
        assert f"\n  {line}" in printed
    started("auto", 1, seed=77, ppo={"lr": 0.5})
    assert "changed" not in capsys.readouterr().out


def test_run_that_does_not_fit_on_the_disk_is_rejected(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda place: SimpleNamespace(free=3 * 2**20))
    require_space(tmp_path / "not" / "there", 3 * 2**20, "a run")
    with pytest.raises(UserError, match=f"{tmp_path} has 3 MB free, but a run takes about 4 MB"):
        require_space(tmp_path / "not" / "there", 4 * 2**20, "a run")


def test_folder_removed_under_a_run_is_created_again(started, capsys):
    folder = started()
    folder.append("metrics", [{"step": 1}])
    config = (folder.path / "config.yaml").read_text()
    shutil.rmtree(folder.path)
    folder.append("metrics", [{"step": 2}])
    assert lines(folder) == [{"step": 2}]
    assert (folder.path / "config.yaml").read_text() == config
    assert "was removed while the run writes to it; it is created again" in capsys.readouterr().err


def test_run_killed_while_its_config_was_written_may_start_again(tmp_path):
    (tmp_path / ".config.yaml.partial").write_text("output: ")
    (tmp_path / ".lock").write_text("")
    for resume in (None, "auto"):
        assert RunFolder(str(tmp_path), resume).path == tmp_path


class BrokenTracker(SingleProcess):
    """An accelerator whose tracker fails, as TensorBoard does on a full disk."""

    def __init__(self):
        super().__init__()
        self.trackers = [None]
        self.has_ended = False

    def log(self, values, step):
        self.logged.append(step)
        raise FileNotFoundError("no events file")

    def end_training(self):
        if self.trackers:
            raise FileNotFoundError("no events file")
        self.has_ended = True


def test_failing_tracker_ends_no_run(folder, capsys):
    accelerator = BrokenTracker()
    for step in (1, 2):
        folder.log(accelerator, step, {"loss": 0.5})
    folder.close(accelerator)
    assert accelerator.logged == [1]
    assert accelerator.has_ended
    assert [row["step"] for row in lines(folder)] == [1, 2]
    errors = capsys.readouterr().err
    assert errors.count("nothing more is sent to the trackers, because of: no events file") == 1
