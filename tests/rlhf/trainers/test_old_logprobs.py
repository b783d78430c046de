"""`ppo.old_logprobs: sampler`: the numbers of a forward pass over the responses, without that forward pass."""

from dataclasses import replace

import pytest
import torch

from rlhf import make_rollout
from rlhf.config.shared import LoraConfig
from rlhf.errors import UserError
from rlhf.models import actor_critic
from rlhf.rollouts import stages
from rlhf.rollouts.checks import check_reference_matches_policy
from rlhf.trainers.ppo import PPOTrainer

CRITICS = {
    "shared": {},
    "shared, adapted policy": {"model": {"lora": LoraConfig(rank=2)}},
    "separate": {"critic": {"kind": "separate", "head_init": "normal"}},
    "adapter": {"critic": {"kind": "adapter", "head_init": "normal"}, "model": {"lora": LoraConfig(rank=2)}},
}
SOURCES = ("recomputed", "sampler")


def make_trainer(job, change, old_logprobs, **settings):
    ppo = settings.pop("ppo", {})
    return PPOTrainer(change(job, **settings, ppo=ppo | {"old_logprobs": old_logprobs}))


def move_weights(trainer):
    """Move all trained weights away from their start, so that adapters and heads that start at 0 matter."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in trainer.learner.weights.values():
            p.add_(0.05 * torch.randn(p.shape, generator=generator))
    trainer.state.step = 1  # at step 0 the policy has to equal its reference


@pytest.mark.parametrize("engine", ["growing", "static"])
@pytest.mark.parametrize("critic", CRITICS)
def test_sampler_s_logprobs_and_values_equal_the_recomputed_ones(job, change, critic, engine):
    generation = {
        "engine": engine,
        "temperature": 0.7,
        "max_rows": 3,
        "stop_strings": ["film", "good", "dull story"],
        "suppress_ids": [8],
        "min_new_tokens": 1,
    }
    settings = {"generation": generation, "reward": {"truncated": "bootstrap"}} | CRITICS[critic]
    rollouts = []
    for old_logprobs in SOURCES:
        trainer = make_trainer(job, change, old_logprobs, **settings)
        move_weights(trainer)
        rollouts.append(trainer.generate(trainer.next_prompts()))
    expected, rollout = rollouts
    mask = expected.response_mask
    assert mask.sum(-1).unique().numel() > 2
    assert expected.truncated.any()
    assert not expected.truncated.all()
    assert float(expected.old_values[mask].std()) > 0.01
    assert torch.equal(rollout.response_ids, expected.response_ids)
    for name in ("old_logprobs", "old_values", "ref_logprobs", "bootstrap_values"):
        torch.testing.assert_close(getattr(rollout, name), getattr(expected, name), rtol=0, atol=1e-4)
    assert torch.equal(rollout.old_logprobs, rollout.sampler_logprobs)
    assert not bool(rollout.old_values[~mask].any())


def test_values_are_zero_without_a_critic(job, change):
    trainer = make_trainer(job, change, "sampler", ppo={"estimator": "rloo", "samples_per_prompt": 2})
    rollout = trainer.generate(trainer.next_prompts())
    assert torch.equal(rollout.old_values, torch.zeros_like(rollout.old_logprobs))


@pytest.mark.parametrize("critic", ["shared", "separate"])
@pytest.mark.parametrize("old_logprobs", SOURCES)
def test_scoring_reads_the_responses_with_reference_and_separate_critic_alone(
    job, change, monkeypatch, critic, old_logprobs
):
    trainer = make_trainer(job, change, old_logprobs, critic={"kind": critic})
    models = []
    response_states = actor_critic.response_states

    def recorded(lm, tokens):
        models.append(lm)
        return response_states(lm, tokens)

    monkeypatch.setattr(actor_critic, "response_states", recorded)
    trainer.collect(trainer.next_prompts(), for_update=True)
    counts = {
        "policy": models.count(trainer.policy.lm),
        "reference": models.count(trainer.reference.lm),
        "critic": models.count(trainer.policy.critic_lm),
    }
    n_groups = 4  # 8 responses in microbatches of 2
    assert counts == {
        "policy": n_groups if old_logprobs == "recomputed" else 0,
        "reference": n_groups,
        "critic": n_groups if critic == "separate" else 0,
    }


def test_nothing_is_stored_for_the_first_forward_of_an_update(job, change):
    trainer = make_trainer(job, change, "sampler", ppo={"microbatch_size": 4})
    calls = []
    trainer.learner.model.register_forward_hook(lambda *args: calls.append(1))
    trainer.collect(trainer.next_prompts(), for_update=True)
    assert not calls
    assert trainer.learner._stored_forward is None
    assert not trainer.learner.can_store_forward
    metrics = trainer.step()
    assert len(calls) == 4  # 2 epochs of 2 minibatches
    assert metrics["policy/optimizer_steps"] == 4


@pytest.mark.parametrize("settings", [{}, {"estimator": "rloo", "samples_per_prompt": 2}, {"kl_coef": 0.5}])
def test_training_gives_the_same_run_up_to_rounding(job, change, settings):
    results = []
    for old_logprobs in SOURCES:
        trainer = make_trainer(job, change, old_logprobs, ppo=settings)
        results.append(([trainer.step(), trainer.step()], trainer.learner.weights))
    (expected, expected_weights), (metrics, weights) = results
    for a, b in zip(expected, metrics, strict=True):
        assert a.keys() == b.keys()
        for name in (n for n in a if not n.startswith(("time/", "throughput/", "memory/"))):
            assert b[name] == pytest.approx(a[name], rel=1e-2, abs=1e-3), name
    for name, weight in expected_weights.items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-3, atol=1e-4)


def change_sampled_logprobs(monkeypatch, ended, truncated):
    """Add numbers to the log-probabilities that the sampler computes for responses that ended or were truncated."""
    sample = stages.sample

    def changed(*args, **kwargs):
        sampled = sample(*args, **kwargs)
        offsets = torch.where(sampled.truncated, truncated, ended).unsqueeze(-1)
        return replace(sampled, logprobs=sampled.logprobs + torch.where(sampled.mask, offsets, 0.0))

    monkeypatch.setattr(stages, "sample", changed)


def test_mismatch_is_measured_in_the_first_minibatch_over_the_tokens_in_the_loss(job, change, monkeypatch):
    change_sampled_logprobs(monkeypatch, ended=0.25, truncated=7.0)
    trainer = make_trainer(job, change, "sampler", ppo={"lr": 0.05}, reward={"truncated": "mask"})
    trainer.state.step = 1  # the start of a run would refuse such a mismatch
    batch = trainer.make_batch(trainer.collect(trainer.next_prompts()))
    assert batch.rollout.truncated[:4].any()
    assert batch.loss_mask[:4].any()
    metrics = trainer.update(batch)
    assert metrics["policy/sampler_mismatch"] == pytest.approx(0.25, abs=1e-5)
    assert metrics["policy/approx_kl"] > 0.25**2  # later minibatches see changed weights


def test_a_run_does_not_start_with_a_sampler_that_differs_from_the_reference(job, change, monkeypatch):
    trainer = make_trainer(job, change, "sampler")
    change_sampled_logprobs(monkeypatch, ended=0.01, truncated=0.01)  # rounding in bfloat16
    rollout = trainer.generate(trainer.next_prompts())
    change_sampled_logprobs(monkeypatch, ended=0.1, truncated=0.1)
    with pytest.raises(UserError, match=r"differ from the reference's by 0\.11 nats a token.* to recomputed"):
        trainer.generate(trainer.next_prompts())
    with pytest.raises(UserError, match="policy and reference differ by"):
        check_reference_matches_policy(rollout)


def test_logprobs_of_text_that_was_not_sampled_are_recomputed(job, change):
    responses = [[9, 10, 1], [12, 13, 14, 15], [8, 1], [20, 21, 22]] * 2
    rollouts, metrics = [], []
    for old_logprobs in SOURCES:
        trainer = make_trainer(job, change, old_logprobs)
        rollouts.append(make_rollout(trainer, ["the film is"] * 8, responses, scores=[0.0, 1.0] * 4))
        metrics.append(trainer.learn(rollouts[-1]))
    expected, rollout = rollouts
    assert torch.equal(rollout.old_logprobs, expected.old_logprobs)
    assert torch.equal(rollout.old_values, expected.old_values)
    assert float(rollout.old_logprobs[0, 0]) < 0
    assert "policy/sampler_mismatch" not in metrics[1]
    assert metrics[1]["policy/loss"] == metrics[0]["policy/loss"]


def test_a_custom_loop_can_recompute_what_was_sampled(job, change, monkeypatch):
    trainer = make_trainer(job, change, "sampler")
    change_sampled_logprobs(monkeypatch, ended=0.01, truncated=0.01)
    sampled = trainer.generate(["the film is", "a story"] * 4)
    recomputed = trainer.compute_logprobs_and_values(sampled)
    mask = sampled.response_mask
    torch.testing.assert_close(recomputed.old_logprobs[mask] + 0.01, sampled.old_logprobs[mask], rtol=0, atol=1e-5)
