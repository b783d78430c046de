"""Checkpoints: complete or absent, and resumed bit for bit."""

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rlhf.errors import UserError
from rlhf.run import checkpoint
from rlhf.run.checkpoint import (
    TrainState,
    best_saved_step,
    find,
    list_checkpoints,
    load,
    load_generators,
    load_weights,
    read_state,
    save,
    save_best,
)


@pytest.fixture(scope="module")
def accelerator():
    from accelerate import Accelerator

    return Accelerator(cpu=True)


class Training:
    """Two layers, and an optimizer with state."""

    def __init__(self, accelerator, width=3):
        torch.manual_seed(0)
        self.accelerator = accelerator
        self.model = nn.Sequential(nn.Linear(2, width), nn.Linear(width, 1))
        self.weights = dict(self.model.named_parameters())
        self.optimizer = torch.optim.AdamW(self.weights.values(), lr=0.1, weight_decay=0.1)
        self.state = TrainState()

    def step(self):
        """One step on data that the global generators draw, as a user's reward function may."""
        self.optimizer.zero_grad()
        x = torch.randn(4, 2) * float(np.random.rand())  # noqa: NPY002
        self.model(x).square().mean().backward()
        self.optimizer.step()
        self.state.step += 1

    def save(self, run, step=None, keep=None):
        self.state.step = self.state.step if step is None else step
        return save(run, self.state, self.weights, self.optimizer, self.accelerator, keep)

    def load(self, folder):
        self.state = load(folder, self.weights, self.optimizer, self.accelerator, {})
        load_generators(folder, self.accelerator)

    def numbers(self):
        return [p.detach().clone() for p in self.weights.values()]


@pytest.fixture
def training(accelerator):
    return Training(accelerator)


def names(run):
    return [folder.name for folder in list_checkpoints(run)]


def test_resumed_run_equals_the_uninterrupted_one(training, accelerator, tmp_path):
    """Weights, the optimizer's state, the train state and every random generator are restored bit for bit."""
    for _ in range(3):
        training.step()
    training.state.kl_coef = {"coef": 0.125}
    training.state.episodes, training.state.best_step, training.state.best_score = 24, 2, 0.1
    folder = training.save(tmp_path)
    for _ in range(2):
        training.step()
    resumed = Training(accelerator)
    random.seed(1)
    resumed.load(folder)
    assert random.getstate() == torch.load(folder / "rng.pt")[0]["python"]  # beartype draws from it too, in tests
    assert resumed.state == TrainState(3, 24, kl_coef={"coef": 0.125}, best_step=2, best_score=0.1)
    for _ in range(2):
        resumed.step()
    for a, b in zip(training.numbers(), resumed.numbers(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(*(t.optimizer.state_dict()["state"].values() for t in (training, resumed)), strict=True):
        assert all(torch.equal(a[name], b[name]) for name in ("step", "exp_avg", "exp_avg_sq"))


def test_optimizer_settings_are_those_of_the_resumed_run(training, accelerator, tmp_path):
    training.step()
    folder = training.save(tmp_path)
    resumed = Training(accelerator)
    changed = {"betas": (0.5, 0.6), "eps": 0.25, "weight_decay": 0.125, "fused": True}
    resumed.optimizer.param_groups[0].update(changed)
    resumed.load(folder)
    assert {name: resumed.optimizer.param_groups[0][name] for name in changed} == changed
    resumed.step()


def test_latest_is_a_relative_link_to_the_newest(training, tmp_path):
    """So that a run folder can be moved."""
    for step in (1, 2):
        assert training.save(tmp_path / "run", step) == tmp_path / "run" / "checkpoints" / f"step_{step:06d}"
    (tmp_path / "run").rename(tmp_path / "moved")
    latest = tmp_path / "moved" / "checkpoints" / "latest"
    assert latest.is_symlink()
    assert read_state(latest).step == 2
    assert find(tmp_path / "moved", str(latest), training.accelerator) == latest


@pytest.mark.parametrize(("keep", "left"), [(None, [2, 4, 6, 8]), (1, [8]), (2, [6, 8]), (9, [2, 4, 6, 8])])
def test_only_the_oldest_checkpoints_are_deleted(training, tmp_path, keep, left):
    for step in (2, 4, 6, 8):
        training.save(tmp_path, step, keep)
    assert names(tmp_path) == [f"step_{step:06d}" for step in left]


def test_newest_checkpoint_is_by_step_number(training, tmp_path):
    for step in (999_999, 1_000_000):
        training.save(tmp_path, step, keep=1)
    assert find(tmp_path, "auto", training.accelerator).name == "step_1000000"


def test_new_checkpoint_is_not_deleted_for_later_steps_of_an_earlier_run(training, tmp_path):
    """After resuming from step 2, the newest checkpoint is step 4, not the step 6 of the earlier run."""
    for step in (2, 6):
        training.save(tmp_path, step)
    folder = training.save(tmp_path, 4, keep=1)
    assert folder.exists()
    assert (tmp_path / "checkpoints" / "latest").resolve() == folder.resolve()
    assert find(tmp_path, "auto", training.accelerator) == folder


def test_unfinished_checkpoint_is_ignored_and_replaced(training, tmp_path, monkeypatch):
    """A run killed between two parts leaves a partial folder, which the next checkpoint of that step replaces."""
    training.save(tmp_path, 1)

    class Killed(BaseException):
        pass

    def kill(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", kill)
        with pytest.raises(Killed):
            training.save(tmp_path, 2)
    assert (tmp_path / "checkpoints" / ".step_000002.partial" / "weights.safetensors").exists()
    assert names(tmp_path) == ["step_000001"]
    assert find(tmp_path, "auto", training.accelerator).name == "step_000001"
    assert read_state(tmp_path / "checkpoints" / "latest").step == 1
    training.save(tmp_path, 2, keep=1)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["latest", "step_000002"]


def test_same_step_is_replaced(training, tmp_path):
    training.save(tmp_path, 3)
    training.step()
    folder = training.save(tmp_path, 3)
    stored = Training(training.accelerator)
    load_weights(folder / "weights.safetensors", stored.weights)
    assert all(torch.equal(a, b) for a, b in zip(stored.numbers(), training.numbers(), strict=True))


PARTS = ("weights.safetensors", "optimizer.pt", "rng.pt", "state.json")


def remove(path):
    path.unlink()
    return f"{path.name} is missing"


def truncate(path):
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-1])
    return f"{path.name} has {size - 1} bytes instead of {size}"


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) * 2 // 3] ^= 1
    path.write_bytes(content)
    return f"{path.name} is not what was written"


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("damage", [remove, truncate, flip_a_bit])
def test_any_damage_is_noticed_and_the_newest_whole_checkpoint_is_used(training, tmp_path, capsys, part, damage):
    earlier, folder = training.save(tmp_path, 1), training.save(tmp_path, 2)
    message = damage(folder / part)
    with pytest.raises(UserError, match=f"cannot resume from {folder}: {re.escape(message)}"):
        find(tmp_path, str(folder), training.accelerator)
    assert find(tmp_path, "auto", training.accelerator) == earlier
    assert message in capsys.readouterr().err
    damage(earlier / part)
    with pytest.raises(UserError, match=r"every checkpoint in .* is damaged"):
        find(tmp_path, "auto", training.accelerator)


def test_damaged_manifest_is_noticed(training, tmp_path, capsys):
    earlier, folder = training.save(tmp_path, 1), training.save(tmp_path, 2)
    for content in ("{", "[]", '{"state.json": 7}'):
        (folder / "manifest.json").write_text(content)
        assert find(tmp_path, "auto", training.accelerator) == earlier
        assert "manifest.json is damaged" in capsys.readouterr().err


def test_checkpoint_without_a_manifest_is_used_after_a_warning(training, tmp_path, capsys):
    folder = training.save(tmp_path, 1)
    (folder / "manifest.json").unlink()
    assert find(tmp_path, "auto", training.accelerator) == folder
    assert "has no manifest.json, so that damage to it would not be noticed" in capsys.readouterr().err


def test_only_what_a_run_wrote_is_listed_and_deleted(training, tmp_path):
    """A folder of the user's with a similar name stays, and disturbs nothing."""
    checkpoints = tmp_path / "checkpoints"
    for name in ("step_1", "step_000001_backup", "step_000002"):
        (checkpoints / name).mkdir(parents=True)
    (checkpoints / "step_000003.tar").write_text("an archive")
    for step in (4, 5):
        training.save(tmp_path, step, keep=1)
    assert names(tmp_path) == ["step_000005"]
    left = sorted(path.name for path in checkpoints.iterdir())
    assert left == ["latest", "step_000001_backup", "step_000002", "step_000003.tar", "step_000005", "step_1"]


def test_nothing_to_resume(accelerator, tmp_path):
    assert find(tmp_path, None, accelerator) is None
    assert find(tmp_path, "auto", accelerator) is None
    with pytest.raises(UserError, match=r"cannot resume from .*nowhere: weights.safetensors is missing"):
        find(tmp_path, str(tmp_path / "nowhere"), accelerator)


def test_weights_of_another_model_are_rejected(training, accelerator, tmp_path):
    folder = training.save(tmp_path, 1)
    with pytest.raises(UserError, match=r"0.weight has shape \(3, 2\), not \(5, 2\)"):
        Training(accelerator, width=5).load(folder)
    other = Training(accelerator)
    other.weights["adapter"] = nn.Parameter(torch.zeros(1))
    with pytest.raises(UserError, match="does not fit this model: 1 weights differ, such as adapter"):
        other.load(folder)
    before = training.numbers()
    with pytest.raises(UserError, match="is missing"):
        load_weights(tmp_path / "none.safetensors", training.weights)
    assert all(torch.equal(a, b) for a, b in zip(before, training.numbers(), strict=True))


def test_optimizer_of_another_run_is_rejected(training, tmp_path):
    folder = training.save(tmp_path, 1)
    training.optimizer = torch.optim.AdamW(list(training.weights.values())[:1])
    with pytest.raises(UserError, match=r"optimizer.pt is damaged or does not fit this run"):
        training.load(folder)


def test_best_weights_are_saved_beside_the_checkpoints(training, tmp_path, monkeypatch, capsys):
    training.save(tmp_path, 1)
    save_best(tmp_path, training.weights, 7)
    best = training.numbers()
    training.step()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_weights", full)
    save_best(tmp_path, training.weights, 7)  # the disk is full: the earlier weights stay
    assert "the best weights were not saved" in capsys.readouterr().err
    best_files = sorted(p.name for p in (tmp_path / "checkpoints" / "best").iterdir())
    assert best_files == ["manifest.json", "step", "weights.safetensors"]
    assert best_saved_step(tmp_path) == 7
    load_weights(tmp_path / "checkpoints" / "best" / "weights.safetensors", training.weights)
    assert all(torch.equal(a, b) for a, b in zip(best, training.numbers(), strict=True))
    assert names(tmp_path) == ["step_000001"]


@pytest.mark.parametrize("part", ["weights.safetensors", "step"])
def test_damaged_best_weights_are_not_used(training, tmp_path, capsys, part):
    assert best_saved_step(tmp_path) is None
    save_best(tmp_path, training.weights, 7)
    message = truncate(tmp_path / "checkpoints" / "best" / part)
    assert best_saved_step(tmp_path) is None
    assert message in capsys.readouterr().err


def test_full_disk_leaves_the_earlier_checkpoint_and_a_warning(tmp_path):
    """A limit on the size of files fails in the writers of safetensors and torch as a full disk does."""
    code = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from accelerate import Accelerator
from test_checkpoint import Training, best_saved_step, names, save_best
training, run = Training(Accelerator(cpu=True), width=2000), Path({str(tmp_path)!r})
training.step()
training.save(run, 1)
save_best(run, training.weights, 1)
for limit in (20_000, 50_000):  # within the weights, 32 kB, and within the optimizer, 64 kB
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    assert training.save(run, 2) is None
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["best", "latest", "step_000001"]
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
save_best(run, training.weights, 2)
assert best_saved_step(run) == 1
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("warning: no checkpoint at step 2") == 2
    assert result.stderr.count("warning: the best weights were not saved") == 1


def test_state_is_readable_text(training, tmp_path):
    folder = training.save(tmp_path, 7)
    assert json.loads((folder / "state.json").read_text())["step"] == 7


@pytest.mark.parametrize("part", ["state.json", "weights.safetensors", "optimizer.pt", "rng.pt"])
def test_damaged_part_is_reported(training, tmp_path, part):
    folder = training.save(tmp_path, 1)
    (folder / part).write_bytes((folder / part).read_bytes()[:20])
    with pytest.raises(UserError, match=f"{part} is damaged or does not fit this run .*; name an earlier checkpoint"):
        training.load(folder)
