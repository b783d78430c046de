"""On a CPU that is slower at bfloat16, a run computes in float32 and says so."""

import pytest
import torch
from accelerate.state import AcceleratorState

from rlhf.run import precision
from rlhf.trainers.ppo import PPOTrainer


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Each test starts without the accelerator of the one before."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.fixture
def slowdown(monkeypatch):
    """`slowdown(40.0)`: bfloat16 products take 40 times as long."""
    return lambda value: monkeypatch.setattr(precision, "bf16_slowdown", lambda: value)


@pytest.mark.parametrize(("factor", "computed"), [(40.0, "no"), (0.5, "bf16")])
def test_bf16_is_computed_in_float32_where_that_is_faster(job, change, slowdown, capsys, factor, computed):
    slowdown(factor)
    trainer = PPOTrainer(change(job, model={"mixed_precision": "bf16"}))
    trainer.train()
    message = capsys.readouterr().err
    assert trainer.accelerator.mixed_precision == computed
    assert ("take 40.0 times as long as float32 ones on this CPU: computing in float32" in message) == (factor > 1)
    assert "mixed_precision: bf16" in (trainer.run.path / "config.yaml").read_text()  # as set, for the next machine


def test_the_launchers_bf16_is_replaced_too(slowdown, monkeypatch):
    slowdown(40.0)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert precision.usable_precision(None, cpu=True) == "no"
    assert precision.usable_precision("bf16", cpu=False) == "bf16"
    assert [precision.usable_precision(kind, cpu=True) for kind in ("no", "fp16")] == ["no", "fp16"]
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION")
    assert precision.usable_precision(None, cpu=True) is None


@pytest.mark.parametrize(("dtype", "warns"), [("bfloat16", True), ("auto", False), ("float32", False)])
def test_bfloat16_weights_that_are_slow_get_a_warning(job, change, slowdown, capsys, dtype, warns):
    """The tiny model's own type, which `auto` takes, is float32."""
    slowdown(40.0)
    PPOTrainer(change(job, model={"dtype": dtype}))
    message = "WARNING: the weights of the model are bfloat16, whose matrix products take 40.0 times as long"
    assert (message in capsys.readouterr().err) == warns


def test_the_slowdown_is_a_ratio_of_measured_times(monkeypatch):
    seconds = iter([0.0, 0.004, 0.0, 0.002, 0.0, 0.003, 0.0, 0.005, 0.0, 0.004] + [0.0, 0.001] * 5)
    monkeypatch.setattr(precision.time, "perf_counter", lambda: next(seconds))
    assert precision.bf16_slowdown.__wrapped__() == pytest.approx(2.0)
    assert precision.bf16_slowdown.__wrapped__  # cached: a run measures once
    seconds = iter([0.0, 1.0, 0.0, 0.001, 0.0, 0.001, 0.0, 0.001, 0.0, 0.001, 0.0, 0.001])
    assert precision._product_seconds(torch.bfloat16) == 1.0  # a slow product is measured once
