"""Memory that runs out while sampling, scoring or updating: smaller passes, the same result, said once."""

from dataclasses import replace

import pytest
import torch

from rlhf.config.ppo import PTXConfig
from rlhf.errors import UserError
from rlhf.rollouts import stages
from rlhf.trainers.ppo import PPOTrainer


@pytest.fixture
def limited(monkeypatch):
    """`limited(trainer, rows, sampled)`: forward passes of more rows, or samples of more prompts, run out of memory."""

    def limit(trainer, rows=10**9, sampled=10**9, when=lambda: True):
        forward, sample = trainer.policy.forward, stages.sample

        def limited_forward(tokens, *args, **kwargs):
            if len(tokens.response_ids) > rows and when():
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return forward(tokens, *args, **kwargs)

        def limited_sample(lm, prompt_ids, *args, max_rows=None, **kwargs):
            if min(max_rows or len(prompt_ids), len(prompt_ids)) > sampled:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
            return sample(lm, prompt_ids, *args, max_rows=max_rows, **kwargs)

        monkeypatch.setattr(trainer.policy, "forward", limited_forward)
        monkeypatch.setattr(stages, "sample", limited_sample)
        return trainer

    return limit


def weights(trainer):
    return {name: p.detach().clone() for name, p in trainer.learner.weights.items()}


def test_smaller_passes_have_the_same_result_and_are_reported_once(job, change, limited, capsys, tmp_path):
    job = change(job, ppo={"minibatch_size": 8, "microbatch_size": 8})
    whole = PPOTrainer(change(job, output=str(tmp_path / "whole")))
    expected = [whole.step() for _ in range(2)]
    trainer = limited(PPOTrainer(job), rows=2, sampled=3)
    metrics = [trainer.step() for _ in range(2)]
    for before, after in zip(weights(whole).values(), weights(trainer).values(), strict=True):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-6)
    for one, other in zip(expected, metrics, strict=True):
        for name in ("objective/score", "policy/loss", "value/loss", "policy/grad_norm"):
            assert other[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5)
    lines = [line for line in capsys.readouterr().err.splitlines() if "out of memory" in line]
    assert lines == [
        "warning: out of memory; generation.max_rows is 4 from here on",
        "warning: out of memory; generation.max_rows is 2 from here on",
        "warning: out of memory; ppo.microbatch_size is 4 from here on, not 8",
        "warning: out of memory; ppo.microbatch_size is 2 from here on, not 4",
    ]


def test_memory_that_runs_out_in_the_update_loses_no_gradient(job, change, limited, tmp_path):
    job = change(job, ppo={"minibatch_size": 8, "microbatch_size": 8, "ppo_epochs": 1})
    whole = PPOTrainer(change(job, output=str(tmp_path / "whole")))
    whole.step()
    trainer = PPOTrainer(job)
    batch = trainer.make_batch(trainer.collect(trainer.next_prompts()))
    limited(trainer, rows=3)
    trainer.update(batch)
    for before, after in zip(weights(whole).values(), weights(trainer).values(), strict=True):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-6)


def test_texts_are_read_in_smaller_passes_too(job, change, limited, tmp_path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text('{"text": "the film is good"}\n' * 8)
    job = replace(change(job, ppo={"microbatch_size": 4}), ptx=PTXConfig(path=str(texts), batch_size=4))
    whole = PPOTrainer(change(job, output=str(tmp_path / "whole")))
    whole.step()
    trainer = limited(PPOTrainer(job), rows=2)
    trainer.step()
    for before, after in zip(weights(whole).values(), weights(trainer).values(), strict=True):
        torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-6)


def test_what_cannot_be_made_smaller_ends_the_run(job, change, limited):
    with pytest.raises(UserError, match=r"out of memory with ppo\.microbatch_size = 1; use shorter responses"):
        limited(PPOTrainer(job), rows=0).step()
    with pytest.raises(UserError, match="out of memory while sampling a single response"):
        limited(PPOTrainer(change(job, output=job.output + "2")), sampled=0).step()
    trainer = PPOTrainer(change(job, output=job.output + "3"))
    with pytest.raises(UserError, match=r"on one of 2 processes; resume with half of it"):
        trainer.learner.forward_size.halve(MemoryError(), processes=2)


def test_other_errors_pass(job, monkeypatch):
    trainer = PPOTrainer(job)

    def fail(*_, **__):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(trainer.policy, "forward", fail)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        trainer.step()
