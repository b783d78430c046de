"""Models and moments that leave the GPU while they are not used: the numbers of a run do not change.

There is no GPU here. Copies in the CPU's memory stand for those on one, so that weights which were left behind, or
changes which were not copied back, would be noticed.
"""

import importlib.util
import json

import pytest
import torch

from rlhf.config.shared import LoraConfig
from rlhf.errors import UserError
from rlhf.models.offload import OffloadedModel
from rlhf.trainers.ppo import PPOTrainer


@pytest.fixture
def two_places(monkeypatch):
    """What is offloaded is at other addresses while it is used."""
    to = torch.Tensor.to

    def copied(tensor, *places, **options):
        moved = to(tensor, *places, **options)
        return tensor.clone() if "non_blocking" in options and moved is tensor else moved

    monkeypatch.setattr(torch.Tensor, "to", copied)


def weights_after(job):
    trainer = PPOTrainer(job)
    trainer.train()
    rows = [json.loads(line) for line in (trainer.run.path / "metrics.jsonl").read_text().splitlines()]
    return trainer, {name: p.detach().clone() for name, p in trainer.learner.weights.items()}, rows


@pytest.mark.parametrize(
    "settings",
    [
        {"offload_reference": True},
        {"offload_optimizer": True},
        {"offload_reference": True, "offload_optimizer": True, "kl_estimator": "full"},
        {"offload_reference": True, "reference_update_steps": 1, "reference_update_rate": 0.5},
    ],
    ids=str,
)
def test_a_run_with_offload_equals_one_without(job, change, two_places, tmp_path, settings):
    plain = {name: value for name, value in settings.items() if not name.startswith("offload")}
    shared = {"total_episodes": 24, "lr": 1e-2, "kl_coef": 0.5}
    _, expected, expected_rows = weights_after(change(job, ppo=shared | plain, output=str(tmp_path / "plain")))
    trainer, weights, rows = weights_after(change(job, ppo=shared | settings, output=str(tmp_path / "offload")))
    for name, weight in weights.items():
        assert torch.equal(weight, expected[name]), name
    for row, other in zip(rows, expected_rows, strict=True):
        assert row["objective/kl"] == other["objective/kl"]
    assert rows[-1]["objective/kl"] != 0
    assert trainer.reference is not None
    assert trainer.reference.is_offloaded == settings.get("offload_reference", False)
    assert (trainer.learner.moments is not None) == settings.get("offload_optimizer", False)


def test_a_resumed_run_with_offloaded_moments_equals_the_uninterrupted_one(job, change, two_places, tmp_path):
    settings = {"ppo": {"total_episodes": 24, "lr": 1e-2, "offload_optimizer": True}, "checkpoint": {"every": 1}}
    _, expected, _ = weights_after(change(job, **settings, output=str(tmp_path / "whole")))
    resumed = change(job, **settings, resume=str(tmp_path / "whole" / "checkpoints" / "step_000002"))
    _, weights, _ = weights_after(change(resumed, output=str(tmp_path / "resumed")))
    for name, weight in weights.items():
        assert torch.equal(weight, expected[name]), name


def test_gradients_are_freed_after_an_update(job):
    trainer = PPOTrainer(job)
    trainer.step()
    assert all(p.grad is None for p in trainer.learner.weights.values())


def test_offloaded_weights_return_to_their_place_after_an_error(two_places):
    model = torch.nn.Linear(2, 2)
    offloaded = OffloadedModel(model, "cpu")
    places = [p.data_ptr() for p in model.parameters()]
    with offloaded.on_device():
        assert [p.data_ptr() for p in model.parameters()] != places
    with pytest.raises(RuntimeError, match="shape"), offloaded.on_device():
        model(torch.zeros(3))
    assert [p.data_ptr() for p in model.parameters()] == places


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (
            {"ppo": {"offload_reference": True}, "model": {"lora": LoraConfig(rank=2)}},
            r"ppo\.offload_reference is True, but it has no effect because model\.lora\.rank is set",
        ),
        (
            {"ppo": {"offload_optimizer": True}, "model": {"shard": True}},
            r"ppo\.offload_optimizer is True, but it has no effect because model\.shard is true",
        ),
        (
            {"ppo": {"offload_reference": True, "kl_estimator": "full", "kl_placement": "loss"}},
            r"with ppo\.kl_estimator full and ppo\.kl_placement loss the update reads the reference's output head",
        ),
    ],
)
def test_what_cannot_be_offloaded_is_refused(job, change, groups, message):
    with pytest.raises(UserError, match=message):
        change(job, **groups)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_a_run_with_8_bit_moments_resumes_with_8_bit_moments_alone(job, change, tmp_path):
    settings = {"ppo": {"total_episodes": 24, "lr": 1e-2, "adam_8bit": True}, "checkpoint": {"every": 1}}
    first = change(job, **settings, output=str(tmp_path / "whole"))
    _, expected, _ = weights_after(first)
    checkpoint = str(tmp_path / "whole" / "checkpoints" / "step_000002")
    resumed = change(first, resume=checkpoint, output=str(tmp_path / "resumed"))
    _, weights, _ = weights_after(resumed)
    for name, weight in weights.items():
        assert torch.equal(weight, expected[name]), name
    other = change(resumed, ppo={"adam_8bit": False}, output=str(tmp_path / "other"))
    with pytest.raises(UserError, match="was written with adam_8bit true, and AdamW's moments cannot be converted"):
        PPOTrainer(other).train()
