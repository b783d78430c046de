"""Sampling and scoring responses to held-out prompts."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from rlhf.config.scores import RewardConfig
from rlhf.config.shared import EvalConfig, GenerationConfig, ModelConfig
from rlhf.data.prompts import PromptSet
from rlhf.evaluation import responses as evaluation
from rlhf.evaluation.responses import evaluate_responses, held_out_indices
from rlhf.evaluation.summary import selection_score, summarise
from rlhf.models.actor_critic import ActorCritic, Reference
from rlhf.models.distribution import LogitTransform
from rlhf.models.loading import load_causal_lm, load_tokenizer
from rlhf.rollouts.stages import Sampler


def test_held_out_indices_are_fixed_and_nested():
    config = EvalConfig(prompts=5)
    assert held_out_indices(40, config) == held_out_indices(40, config)
    assert len(set(held_out_indices(40, config))) == 5
    assert held_out_indices(40, config) == sorted(held_out_indices(40, config))
    assert set(held_out_indices(40, config)) <= set(held_out_indices(40, EvalConfig(prompts=12)))
    assert held_out_indices(3, config) == [0, 1, 2]


@pytest.fixture(scope="module")
def respond(models):
    """`respond(batch_size, ranks, rank)`: responses of a policy that differs from its reference."""
    folder = str(models("llama"))
    policy, reference = (load_causal_lm(ModelConfig(path=folder)) for _ in range(2))
    with torch.no_grad():
        policy.get_output_embeddings().weight.mul_(1.5)
    sampler = Sampler(
        load_tokenizer(folder),
        LogitTransform(0.9, stop_ids=(1, 8, 9)),
        GenerationConfig(max_new_tokens=6, temperature=0.9),
    )
    prompts = PromptSet(
        [f"p{i}" for i in range(9)], [[7 + i] * (1 + i % 3) for i in range(9)], {"n": list(range(9))}, 2
    )

    def source(prompts, completions, columns):
        assert [f"p{n}" for n in columns["n"]] == prompts
        return [float(len(c.split())) + n / 100 for c, n in zip(completions, columns["n"], strict=True)]

    def evaluate(batch_size=64, ranks=1, rank=0, indices=(0, 2, 3, 5, 6, 7, 8), reward=None):
        accelerator = SimpleNamespace(
            num_processes=ranks, process_index=rank, device=torch.device("cpu"), autocast=nullcontext
        )
        return evaluate_responses(
            ActorCritic(policy),
            Reference(reference),
            sampler,
            prompts=prompts,
            indices=list(indices),
            sources={"score": source},
            reward=reward or RewardConfig(),
            batch_size=batch_size,
            seed=3,
            accelerator=accelerator,
        )

    evaluate.reference = reference
    evaluate.tokenizer = sampler.tokenizer
    evaluate.prompts = prompts
    return evaluate


def assert_close(responses, others):
    """Equal up to the rounding of other batches."""
    for a, b in zip(responses, others, strict=True):
        assert a.token_kl == pytest.approx(b.token_kl, abs=1e-5)
        assert a.token_logprobs == pytest.approx(b.token_logprobs, abs=1e-5)
        assert a == replace(b, token_kl=a.token_kl, token_logprobs=a.token_logprobs)


def test_responses_belong_to_their_prompts(respond):
    responses = respond()
    assert [r.index for r in responses] == [0, 2, 3, 5, 6, 7, 8]
    assert [r.prompt for r in responses] == [f"p{i}" for i in (0, 2, 3, 5, 6, 7, 8)]
    for r in responses:
        assert len(r.tokens) == len(r.token_kl) == len(r.token_logprobs)
        assert r.scores["score"] == len(r.response.split()) + r.index / 100
        assert r.truncated == (r.tokens[-1] not in ("<|end|>", "film", "is"))
    assert {r.truncated for r in responses} == {True, False}
    assert max(abs(kl) for r in responses for kl in r.token_kl) > 0.1


def test_penalised_scores_are_the_scores_after_the_penalties_of_training(respond):
    """Scores themselves stay as they are; without penalties there are no penalised ones."""
    plain = respond(reward=RewardConfig(missing_eos_penalty=None))
    assert all(r.penalised_score is None for r in plain)
    for rules, short in (({}, 0), ({"min_length": 3, "short_penalty": 5.0}, 3)):
        responses = respond(reward=RewardConfig(missing_eos_penalty=2.0, **rules))
        assert [r.scores for r in responses] == [r.scores for r in plain]
        for r in responses:
            expected = -2.0 if r.truncated else -5.0 if len(r.tokens) < short else r.scores["score"]
            assert r.penalised_score == pytest.approx(expected)
    assert "penalised_score" not in summarise(plain)
    mean = sum(r.penalised_score for r in responses) / len(responses)
    assert summarise(responses)["penalised_score"] == pytest.approx(mean)
    assert selection_score(summarise(responses)) == pytest.approx(mean)
    assert selection_score(summarise(plain)) == summarise(plain)["score"]


@torch.no_grad()
def test_token_kl_is_the_policys_log_probability_minus_the_references(respond):
    """At the sampling temperature, token by token."""
    for r in respond():
        prompt = respond.prompts.ids[r.index]
        response = respond.tokenizer.convert_tokens_to_ids(r.tokens)
        logits = respond.reference(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        ref_logprobs = (logits / 0.9).log_softmax(-1)[range(len(response)), response]
        expected = torch.tensor(r.token_logprobs) - ref_logprobs
        torch.testing.assert_close(torch.tensor(r.token_kl), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_responses_do_not_depend_on_the_batch_size(respond, batch_size):
    assert_close(respond(batch_size), respond())


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_shares_of_the_ranks_together_are_all_responses(respond, monkeypatch, batch_size):
    monkeypatch.setattr(evaluation, "gather_object", lambda responses: responses)
    shares = [respond(batch_size, ranks=2, rank=rank) for rank in range(2)]
    assert abs(len(shares[0]) - len(shares[1])) <= 1
    assert_close(sorted(shares[0] + shares[1], key=lambda r: r.index), respond())
