"""A run folder: claimed, written line by line, and gone on with."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rlhf.errors import UserError
from rlhf.run import folder as run_folder
from rlhf.run.distributed import open_accelerator
from rlhf.run.folder import RunFolder, require_space, versions, write_text


class Alone:
    """An accelerator that keeps what trackers are told."""

    def __init__(self, is_main_process=True):
        self.is_main_process, self.device = is_main_process, torch.device("cpu")
        self.num_processes, self.mixed_precision = 1, "no"
        self.told, self.settings = [], None

    def wait_for_everyone(self):
        pass

    def init_trackers(self, name, config):
        self.settings = config

    def log(self, values, step):
        self.told.append((step, values))


def lines(folder, name="metrics"):
    return [json.loads(line) for line in (folder.path / f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture
def folder(tmp_path):
    found = RunFolder(str(tmp_path / "run"), None)
    found.path.mkdir()
    return found


# ------------------------------------------------------------------------------------------------------------- claiming


def test_folder_that_holds_anything_is_not_written_into(tmp_path):
    (tmp_path / "run").mkdir()
    RunFolder(str(tmp_path / "run"), None)  # an empty one is as good as none
    (tmp_path / "run" / "notes").write_text("")
    with pytest.raises(UserError, match="run exists; continue it with --resume auto, or name another with --output"):
        RunFolder(str(tmp_path / "run"), None)
    with pytest.raises(UserError, match="exists but is no run folder"):
        RunFolder(str(tmp_path / "run"), "auto")
    with pytest.raises(UserError, match="notes exists"):
        RunFolder(str(tmp_path / "run" / "notes"), None)


def test_folder_of_a_run_can_be_gone_on_with_and_need_not_exist(tmp_path):
    assert RunFolder(str(tmp_path / "new"), "auto").path == tmp_path / "new"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("")
    assert RunFolder(str(tmp_path / "run"), "auto").path == tmp_path / "run"


def test_claiming_makes_nothing_and_needs_leave_to_write(tmp_path, monkeypatch):
    RunFolder(str(tmp_path / "a" / "b"), None)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(run_folder.os, "access", lambda place, mode: False)
    with pytest.raises(UserError, match=f"cannot be written: no permission in {tmp_path}"):
        RunFolder(str(tmp_path / "a" / "b"), None)


# -------------------------------------------------------------------------------------------------------------- writing


def test_numbers_go_to_the_file_and_to_the_trackers(folder):
    accelerator = Alone()
    folder.log(accelerator, 1, {"loss": 0.5})
    folder.log(accelerator, 2, {"loss": 0.25})
    folder.log(accelerator, 2, {"loss": 0.75}, "eval")
    assert lines(folder) == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]
    assert lines(folder, "eval") == [{"step": 2, "loss": 0.75}]
    assert accelerator.told == [(1, {"loss": 0.5}), (2, {"loss": 0.25}), (2, {"eval/loss": 0.75})]


def test_only_the_main_process_writes(folder):
    folder.log(Alone(is_main_process=False), 1, {"loss": 0.5})
    assert list(folder.path.iterdir()) == []


def test_numbers_that_json_does_not_have_become_null(folder):
    folder.append("samples", [{"a": float("nan"), "b": [float("inf"), 1], "c": {"d": (float("-inf"), "é")}}])
    text = (folder.path / "samples.jsonl").read_text(encoding="utf-8")
    assert text == '{"a": null, "b": [null, 1], "c": {"d": [null, "é"]}}\n'


def test_line_that_a_kill_cut_short_is_left_out(folder):
    folder.append("metrics", [{"step": 1}, {"step": 2}])
    with open(folder.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "lo')
    assert folder.read("metrics") == [{"step": 1}, {"step": 2}]
    assert folder.read("nothing") == []


def test_text_is_replaced_in_one_move(tmp_path, monkeypatch):
    write_text(tmp_path / "config.yaml", "old")

    def kill(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_folder.os, "replace", kill)
        with pytest.raises(KeyboardInterrupt):
            write_text(tmp_path / "config.yaml", "new")
    assert (tmp_path / "config.yaml").read_text() == "old"
    write_text(tmp_path / "config.yaml", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


# ------------------------------------------------------------------------------------------------------------- starting


@pytest.fixture
def begun(job, change):
    """`begun(resume, resumed_step, seed)`: the folder of a run that has just begun."""

    def begin(resume=None, resumed_step=None, accelerator=None, **settings):
        settled = change(job, resume=resume, **settings)
        folder = RunFolder(settled.output, resume)
        model = nn.Linear(3, 2)
        model.bias.requires_grad_(False)
        folder.start(settled, resumed_step, accelerator or Alone(), model)
        return folder

    return begin


def test_what_is_known_before_the_first_step_is_written(begun, job):
    accelerator = Alone()
    folder = begun(accelerator=accelerator)
    facts = json.loads((folder.path / "environment.json").read_text())
    assert (facts["parameters"], facts["trained_parameters"]) == (8, 6)
    assert (facts["device"], facts["processes"], facts["mixed_precision"]) == ("cpu", 1, "no")
    assert facts["versions"] == versions()
    assert {"python", "torch", "transformers"} <= set(facts["versions"])
    assert accelerator.settings["ppo.lr"] == str(job.ppo.lr)
    assert f"lr: {job.ppo.lr}" in (folder.path / "config.yaml").read_text()


def test_other_processes_write_nothing(begun):
    folder = begun(accelerator=Alone(is_main_process=False))
    assert not folder.path.exists()


@pytest.mark.parametrize(("resumed", "left"), [(2, [0, 1, 2]), (0, [0]), (None, [])])
def test_rows_after_the_checkpoint_are_dropped_for_they_come_again(begun, resumed, left):
    folder = begun()
    for name in ("metrics", "eval", "samples"):
        folder.append(name, [{"step": step} for step in range(5)])
    with open(folder.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "lo')
    begun("auto", resumed)
    for name in ("metrics", "eval", "samples"):
        assert lines(folder, name) == [{"step": step} for step in left]


def test_settings_that_changed_since_the_run_began_are_told(begun, capsys):
    begun()
    capsys.readouterr()
    begun("auto", 1, seed=77, ppo={"lr": 0.5})
    told = capsys.readouterr().out
    assert told.startswith("settings that changed since this run began:")
    for line in ("-seed: 0", "+seed: 77", "+  lr: 0.5"):
        assert f"\n  {line}" in told
    begun("auto", 1, seed=77, ppo={"lr": 0.5})
    assert "changed" not in capsys.readouterr().out


# ------------------------------------------------------------------------------------------- the machine and its limits


def test_tracker_that_is_not_installed_is_refused(tmp_path):
    with pytest.raises(UserError, match="trackers names no_such_tracker, which is not installed"):
        open_accelerator(str(tmp_path), None, ["no_such_tracker"], 0)


def test_processes_that_do_not_find_each_other_are_refused(tmp_path, monkeypatch):
    """Each would train alone and overwrite the others' files."""
    open_accelerator(str(tmp_path), None, [], 0)  # one process, whatever the environment says from here on
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="launcher started 3 processes, but only 1 of them"):
        open_accelerator(str(tmp_path), None, [], 0)


def test_seed_sets_every_generator(tmp_path):
    drawn = []
    for seed in (5, 5, 6):
        open_accelerator(str(tmp_path), None, [], seed)
        drawn.append(torch.rand(3).tolist())
    assert drawn[0] == drawn[1] != drawn[2]


def test_run_that_the_disk_cannot_hold_is_not_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder.shutil, "disk_usage", lambda place: SimpleNamespace(free=3 * 2**20))
    require_space(tmp_path / "not" / "there", 3 * 2**20, "a run")
    with pytest.raises(UserError, match=f"{tmp_path} has 3 MB free, but a run takes about 4 MB"):
        require_space(tmp_path / "not" / "there", 4 * 2**20, "a run")
