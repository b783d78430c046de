"""One frozen base in four roles: policy, critic, reference and reward model."""

import json
from pathlib import Path

import pytest
import torch

from rlhf.config.jobs import RewardJob
from rlhf.config.shared import CheckpointConfig, DataConfig, LoraConfig, ModelConfig
from rlhf.config.training import TrainingConfig
from rlhf.errors import UserError
from rlhf.rewards.adapters import AdapterReward
from rlhf.rewards.models import ModelReward
from rlhf.trainers.ppo import PPOTrainer
from rlhf.trainers.reward_model import train_reward_model

LORA = LoraConfig(rank=2)


@pytest.fixture
def reward_job(models, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"chosen": f"the film is good {w}", "rejected": f"the film is bad {w}"} for w in ("warm", "dull", "fine")]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows * 8))
    return RewardJob(
        output=str(tmp_path / "reward"),
        export="adapter",
        trackers=[],
        model=ModelConfig(path=str(models("llama")), lora=LORA),
        data=DataConfig(path=str(pairs), eval_fraction=0.25),
        training=TrainingConfig(batch_size=4, microbatch_size=4, lr=1e-2, epochs=2.0),
        checkpoint=CheckpointConfig(every=0),
    )


@pytest.fixture
def reward_run(reward_job):
    train_reward_model(reward_job)
    return reward_job.output


def roles(job, change, reward_run):
    return change(
        job,
        model={"lora": LORA},
        critic={"kind": "adapter"},
        reward={"model": reward_run, "function": None},
        data={"eval_fraction": 0.0},
    )


def test_one_copy_of_the_weights_scores_as_a_reward_model_of_its_own(job, change, reward_run):
    """Also after a step, which moves the policy and the critic over the same base."""
    trainer = PPOTrainer(roles(job, change, reward_run))
    alone = ModelReward(reward_run, "cpu")
    assert isinstance(trainer.source, AdapterReward)
    bases = [p for n, p in trainer.policy.named_parameters() if n.endswith("embed_tokens.weight")]
    assert len(bases) == 1
    assert trainer.reference.lm is trainer.policy.lm is trainer.source.model
    texts = (["the film is"] * 4, [" good", " bad and dull", " warm", " no end in sight"], {})
    expected = alone(*texts)
    assert trainer.source(*texts) == pytest.approx(expected, abs=1e-4)
    assert max(expected) - min(expected) > 0.01
    assert trainer.step()["objective/kl"] == 0.0
    assert trainer.step()["objective/kl"] != 0.0
    assert trainer.source(*texts) == pytest.approx(expected, abs=1e-4)


def test_the_reward_adapter_is_neither_trained_nor_exported(job, change, reward_run):
    trainer = PPOTrainer(roles(job, change, reward_run))
    assert not any(trainer.source.name in name for name in trainer.learner.weights)
    before = {n: p.detach().clone() for n, p in trainer.policy.named_parameters() if trainer.source.name in n}
    trainer.train()
    after = dict(trainer.policy.named_parameters())
    assert before
    assert all(torch.equal(p, after[n]) for n, p in before.items())
    exported = Path(job.output) / "model"
    assert sorted(p.name for p in exported.iterdir() if p.is_dir()) == ["critic"]
    assert (exported / "adapter_model.safetensors").exists()


def test_a_reward_adapter_is_merged_where_the_policy_cannot_carry_it(job, change, reward_run):
    whole = PPOTrainer(change(job, reward={"model": reward_run, "function": None}))
    assert type(whole.source) is ModelReward
    assert whole.source.std != 1.0  # the statistics beside the adapter are read


def test_folders_that_hold_no_reward_adapter_are_refused(job, change, reward_job, tmp_path):
    with pytest.raises(UserError, match=r"export is adapter, but model\.lora\.rank is 0"):
        RewardJob(export="adapter", model=ModelConfig(path="m"), data=DataConfig(path="d"))
    trained = PPOTrainer(change(job, model={"lora": LORA}, output=str(tmp_path / "policy")))
    trained.train()
    with pytest.raises(UserError, match="is an adapter of a language model, which is no reward model"):
        PPOTrainer(change(job, reward={"model": str(tmp_path / "policy"), "function": None}))
    from dataclasses import replace

    stacked = replace(reward_job, model=ModelConfig(path=str(tmp_path / "policy"), lora=LORA))
    with pytest.raises(UserError, match="is an adapter itself: the new adapter would belong to merged"):
        train_reward_model(stacked)
