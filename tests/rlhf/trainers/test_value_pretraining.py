"""Value pretraining, and runs that are killed with more state than weights."""

import json
from pathlib import Path

import pytest
import torch

from rlhf.config.shared import LoraConfig
from rlhf.trainers.ppo import PPOTrainer


def rows_of(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def json_safe(row):
    return {k: v for k, v in row.items() if k.split("/")[0] not in ("time", "throughput", "memory")}


@pytest.fixture
def pretrained(job, change):
    return change(
        job,
        critic={"pretraining_steps": 4, "lr": 1e-2, "kind": "separate"},
        ppo={"lr": 1e-3},
        checkpoint={"every": 1},
    )


def test_pretraining_trains_the_critic_and_not_the_policy(pretrained):
    trainer = PPOTrainer(pretrained)
    start = {n: p.detach().clone() for n, p in trainer.learner.weights.items()}
    trainer._start()
    rows = rows_of(trainer.run.path / "pretraining.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert rows[-1]["value/loss"] < rows[0]["value/loss"]
    learner = trainer.learner
    assert all(torch.equal(p, start[n]) for n, p in learner.policy_weights.items())
    assert not any(torch.equal(p, start[n]) for n, p in learner.critic_weights.items() if "layers" in n and p.dim() > 1)
    assert trainer.state.step == 0
    assert trainer.step()["objective/kl"] == 0.0


def test_pretraining_stops_once_explained_variance_stops_rising(pretrained, change, monkeypatch):
    from rlhf.trainers import value_pretraining as pretraining

    told = iter([0.1, 0.2, 0.205, 0.2, 0.5])
    monkeypatch.setattr(pretraining, "explained_variance", lambda *_: torch.tensor(next(told)))
    trainer = PPOTrainer(change(pretrained, critic={"pretraining_steps": 9, "pretraining_patience": 2}))
    trainer._start()
    assert trainer.state.pretraining_rollouts == 4  # .1, .2, then two without a rise of .01


def test_pretraining_targets_are_monte_carlo_returns(pretrained, change, monkeypatch):
    """Whatever lambdas the training will use."""
    aims = []
    trainer = PPOTrainer(change(pretrained, ppo={"lam": 0.3, "lam_critic": 0.6}, critic={"pretraining_steps": 1}))
    original = trainer.learner.update
    monkeypatch.setattr(
        trainer.learner, "update", lambda batch, *a, **k: (aims.append(batch), original(batch, *a, **k))[1]
    )
    trainer._start()
    batch = aims[0]
    mask = batch.rollout.response_mask
    for i in range(len(batch)):  # gamma is 1 and the KL 0: every token's return is the score
        torch.testing.assert_close(batch.returns[i, mask[i]], batch.rollout.scores[i].expand(int(mask[i].sum())))


def test_a_resumed_run_does_not_pretrain_again(pretrained, tmp_path, change):
    whole = PPOTrainer(change(pretrained, output=str(tmp_path / "whole")))
    whole.train()
    part = change(pretrained, output=str(tmp_path / "part"))
    trainer = PPOTrainer(part)
    trainer._start()  # killed after the pretraining, whose checkpoint is of step 0
    again = PPOTrainer(change(part, resume="auto"))
    again.train()
    for file in ("metrics", "eval", "pretraining"):
        rows = [[json_safe(row) for row in rows_of(tmp_path / which / f"{file}.jsonl")] for which in ("whole", "part")]
        assert rows[0] == rows[1], file
    assert all(torch.equal(p, again.learner.weights[n]) for n, p in whole.learner.weights.items())


EVERYTHING = {
    "separate critic, KL penalty, running scale, texts": {
        "critic": {"kind": "separate", "lr": 3e-3},
        "ppo": {"policy_loss": "kl_penalty", "kl_penalty_target": 1e-4, "kl_target": 1.0, "lr": 3e-3},
        "reward": {"running_scale": True, "clip": 2.0},
    },
    "two adapters": {
        "critic": {"kind": "adapter"},
        "model": {"lora": LoraConfig(rank=2)},
        "ppo": {"kl_placement": "loss", "kl_estimator": "full", "lr": 3e-3},
    },
    "grpo": {"ppo": {"estimator": "grpo", "samples_per_prompt": 2, "lr": 3e-3}},
    "remax": {"ppo": {"estimator": "remax", "lr": 3e-3}},
}


@pytest.mark.parametrize("name", EVERYTHING)
def test_killed_and_resumed_is_uninterrupted_with_every_part_of_the_state(job, change, tmp_path, name):
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"the film is {w} and warm"}) + "\n" for w in ("good", "bad", "fine")))
    settings = dict(EVERYTHING[name])
    if "texts" in name:
        settings["ptx"] = {"path": str(texts), "batch_size": 2}
    whole = change(job, output=str(tmp_path / "whole"), checkpoint={"every": 1}, **settings)
    first = PPOTrainer(whole)
    first.train()
    part = change(whole, output=str(tmp_path / "part"))
    stopped = PPOTrainer(part)
    stopped._start()
    stopped._log(stopped.step())
    stopped.save()
    stopped.step()  # of which no checkpoint knows, then the kill
    resumed = PPOTrainer(change(part, resume="auto"))
    resumed.train()
    rows = [[json_safe(row) for row in rows_of(tmp_path / which / "metrics.jsonl")] for which in ("whole", "part")]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 3
    assert all(torch.equal(p, resumed.learner.weights[n]) for n, p in first.learner.weights.items())
