"""Checkpoints: complete or absent, and resumed bit for bit."""

import json
import random

import numpy as np
import pytest
import torch
from torch import nn

from rlhf.errors import UserError
from rlhf.run import checkpoint
from rlhf.run.checkpoint import TrainState, find, list_checkpoints, load, load_weights, read_state, save, save_best


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
        self.state = load(folder, self.weights, self.optimizer, self.accelerator)

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
    assert resumed.state == TrainState(3, 24, {"coef": 0.125}, best_step=2, best_score=0.1)
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
    assert find(tmp_path / "moved", str(latest)) == latest


@pytest.mark.parametrize(("keep", "left"), [(None, [2, 4, 6, 8]), (1, [8]), (2, [6, 8]), (9, [2, 4, 6, 8])])
def test_only_the_oldest_checkpoints_are_deleted(training, tmp_path, keep, left):
    for step in (2, 4, 6, 8):
        training.save(tmp_path, step, keep)
    assert names(tmp_path) == [f"step_{step:06d}" for step in left]


def test_newest_checkpoint_is_by_step_number(training, tmp_path):
    for step in (999_999, 1_000_000):
        training.save(tmp_path, step, keep=1)
    assert find(tmp_path, "auto").name == "step_1000000"


def test_new_checkpoint_is_not_deleted_for_later_steps_of_an_earlier_run(training, tmp_path):
    """After resuming from step 2, the newest checkpoint is step 4, not the step 6 of the earlier run."""
    for step in (2, 6):
        training.save(tmp_path, step)
    folder = training.save(tmp_path, 4, keep=1)
    assert folder.exists()
    assert (tmp_path / "checkpoints" / "latest").resolve() == folder.resolve()
    assert find(tmp_path, "auto") == folder


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
    assert find(tmp_path, "auto").name == "step_000001"
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


@pytest.mark.parametrize("part", ["weights.safetensors", "optimizer.pt", "rng.pt", "state.json"])
@pytest.mark.parametrize("resume", ["auto", "named"])
def test_missing_part_is_reported(training, tmp_path, part, resume):
    folder = training.save(tmp_path, 1)
    (folder / part).unlink()
    with pytest.raises(UserError, match=f"cannot resume from {folder}: {part} is missing"):
        find(tmp_path, "auto" if resume == "auto" else str(folder))


def test_nothing_to_resume(tmp_path):
    assert find(tmp_path, None) is None
    assert find(tmp_path, "auto") is None
    with pytest.raises(UserError, match=r"cannot resume from .*nowhere: weights.safetensors is missing"):
        find(tmp_path, str(tmp_path / "nowhere"))


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
    assert "the best weights were not saved" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "checkpoints" / "best").iterdir()) == ["step", "weights.safetensors"]
    load_weights(tmp_path / "checkpoints" / "best" / "weights.safetensors", training.weights)
    assert all(torch.equal(a, b) for a, b in zip(best, training.numbers(), strict=True))
    assert names(tmp_path) == ["step_000001"]


def test_state_is_readable_text(training, tmp_path):
    folder = training.save(tmp_path, 7)
    assert json.loads((folder / "state.json").read_text())["step"] == 7


@pytest.mark.parametrize("part", ["state.json", "weights.safetensors", "optimizer.pt", "rng.pt"])
def test_damaged_part_is_reported(training, tmp_path, part):
    folder = training.save(tmp_path, 1)
    (folder / part).write_bytes((folder / part).read_bytes()[:20])
    with pytest.raises(UserError, match=f"{part} is damaged or does not fit this run .*; name an earlier checkpoint"):
        training.load(folder)
