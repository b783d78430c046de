"""A reference that moves: copies every few steps and exponential averages, with adapters, over a resume."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlhf.config.shared import LoraConfig
from rlhf.errors import UserError
from rlhf.models.adapters import REFERENCE, adapter_weights
from rlhf.trainers.ppo import PPOTrainer


def weights_of(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def metrics_of(job):
    rows = (json.loads(line) for line in (Path(job.output) / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in row.items() if k.split("/")[0] not in ("time", "throughput", "memory")} for row in rows]


def test_without_updates_the_reference_stays_the_start(job):
    trainer = PPOTrainer(job)
    before = weights_of(trainer.reference.lm)
    trainer.step()
    assert all(torch.equal(p, before[name]) for name, p in trainer.reference.lm.named_parameters())


@pytest.mark.parametrize("rank", [0, 4])
def test_every_second_step_the_reference_becomes_the_policy(job, change, rank):
    """Then the KL of the next rollout is exactly 0, and that of the rollout after it is not."""
    job = change(
        job, model={"lora": LoraConfig(rank=rank)}, ppo={"reference_update_steps": 2, "total_episodes": 48, "lr": 1e-2}
    )
    trainer = PPOTrainer(job)
    kls = [trainer.step()["objective/kl"] for _ in range(6)]
    assert [kl == 0.0 for kl in kls] == [True, False, True, False, True, False]
    if rank:
        policy, reference = (adapter_weights(trainer.policy.lm, name) for name in ("default", REFERENCE))
        assert policy.keys() == reference.keys()
        assert all(torch.equal(policy[name], reference[name]) for name in policy)
        assert not any(p.requires_grad for p in reference.values())
        assert all(p.requires_grad for p in policy.values())


def test_a_reference_adapter_that_has_not_moved_is_the_start(job, change):
    """Up to the first update every number is that of a reference without adapters."""
    plain = change(job, model={"lora": LoraConfig(rank=4)}, critic={"kind": "adapter"})
    moving = change(plain, output=job.output + "-moving", ppo={"reference_update_steps": 100})
    for each in (plain, moving):
        PPOTrainer(each).train()
    assert metrics_of(plain) == metrics_of(moving)


def test_an_exponential_average_by_hand(job, change):
    trainer = PPOTrainer(change(job, ppo={"reference_update_steps": 1, "reference_update_rate": 0.25, "lr": 1e-2}))
    expected = weights_of(trainer.reference.lm)
    for _ in range(2):
        trainer.step()
        policy = weights_of(trainer.policy.lm)
        expected = {name: 0.75 * weight + 0.25 * policy[name] for name, weight in expected.items()}
    for name, weight in trainer.reference.lm.named_parameters():
        torch.testing.assert_close(weight.detach(), expected[name], rtol=1e-5, atol=1e-7)
    assert float((weights_of(trainer.policy.lm)[name] - expected[name]).abs().max()) > 0


@pytest.mark.parametrize(
    ("rank", "settings"),
    [
        (0, {"reference_update_steps": 1, "reference_update_rate": 0.1}),
        (0, {"reference_update_steps": 2}),
        (4, {"reference_update_steps": 2}),
    ],
)
def test_a_resumed_run_equals_the_uninterrupted_one(job, change, tmp_path, rank, settings):
    from safetensors.torch import load_file

    job = change(
        job,
        model={"lora": LoraConfig(rank=rank)},
        ppo={**settings, "total_episodes": 40, "kl_coef": 1.0},
        checkpoint={"every": 1},
    )
    PPOTrainer(job).train()
    start = Path(job.output) / "checkpoints" / "step_000003"
    resumed = change(job, output=str(tmp_path / "resumed"), resume=str(start))
    PPOTrainer(resumed).train()
    assert metrics_of(resumed) == metrics_of(job)[3:]
    last = Path("checkpoints") / "step_000005"
    for file in ("weights.safetensors", "reference.safetensors"):
        one, two = (load_file(Path(j.output) / last / file) for j in (job, resumed))
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)
    if rank:  # the exported adapter is the policy's alone
        assert not any(REFERENCE in p.name for p in (Path(job.output) / "model").iterdir())


def test_updates_can_begin_in_a_resumed_run(job, change, tmp_path):
    """Its checkpoint has no reference, which until then is the start."""
    PPOTrainer(change(job, checkpoint={"every": 1})).train()
    start = Path(job.output) / "checkpoints" / "step_000001"
    assert not (start / "reference.safetensors").exists()
    resumed = change(
        job,
        output=str(tmp_path / "resumed"),
        resume=str(start),
        ppo={"reference_update_steps": 2, "total_episodes": 32},
    )
    PPOTrainer(resumed).train()
    assert [row["objective/kl"] == 0.0 for row in metrics_of(resumed)] == [False, True, False]


def test_an_average_of_adapters_is_refused(job):
    ppo = replace(job.ppo, reference_update_steps=1, reference_update_rate=0.5)
    with pytest.raises(
        UserError, match=r"reference_update_rate is 0.5, but must be 1 with model.lora.rank, because an"
    ):
        replace(job, model=replace(job.model, lora=LoraConfig(rank=2)), ppo=ppo)
