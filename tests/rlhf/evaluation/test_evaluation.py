"""Held-out evaluation: answers, their summary by hand, and the `evaluate` command from end to end."""

import json
import math
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from rlhf.config.jobs import EvalConfig, EvaluateJob, GenerationConfig, JudgeConfig, ModelConfig
from rlhf.data.datasets import PromptSet
from rlhf.errors import UserError
from rlhf.evaluation import held_out as evaluation
from rlhf.evaluation.held_out import answer, choose, evaluate_policy, samples, summarise, table
from rlhf.models.actor_critic import ActorCritic, LogitTransform, Reference
from rlhf.models.loading import load_causal_lm, load_tokenizer
from rlhf.rollouts.rollout import Sampler


def made(score, tokens=("a",), token_kl=(0.0,), token_logprobs=(-1.0,), truncated=False, repetition=0.0, **scores):
    return {
        "index": 0,
        "prompt": "p",
        "response": " ".join(tokens),
        "tokens": list(tokens),
        "token_kl": list(token_kl),
        "token_logprobs": list(token_logprobs),
        "scores": {"score": score, **scores},
        "truncated": truncated,
        "repetition": repetition,
    }


# ---------------------------------------------------------------------------------------------------------- the summary


def test_every_number_of_a_summary_by_hand():
    answers = [
        made(1.0, ["a", "b", "a"], [0.5, -0.25, 0.25], [-1.0, -2.0, -3.0], truncated=True, repetition=0.5),
        made(-4.0, ["a"], [1.5], [-4.0]),
    ]
    found = summarise(answers)
    expected = {
        "prompts": 2.0,
        "score": -1.5,
        "kl": (0.5 + 1.5) / 2,
        "length": 2.0,
        "eos_fraction": 0.5,
        "repetition": 0.25,
        "distinct_1": 2 / 4,
        "distinct_2": 2 / 2,
        "entropy": (1 + 2 + 3 + 4) / 4,  # nats a token, over all tokens
    }
    assert {name: value for name, value in found.items() if not name.endswith(("_low", "_high"))} == expected
    assert (found["score_low"], found["score_high"]) == (-4.0, 1.0)  # of two answers the resampled means reach both


def test_ties_are_half_a_win():
    start = [{"score": 1.0}, {"score": 1.0}, {"score": 1.0}, {"score": 1.0}]
    found = summarise([made(2.0), made(1.0), made(0.0), made(0.5)], start)
    assert found["win_rate"] == (1 + 0.5 + 0 + 0) / 4


def test_judge_decides_the_wins_where_there_is_one():
    start = [{"score": 0.0, "judge": 1.0}, {"score": 0.0, "judge": 1.0}]
    found = summarise([made(9.0, judge=0.0), made(9.0, judge=1.0)], start)
    assert found["win_rate"] == 0.25
    assert (found["score"], found["judge"]) == (9.0, 0.5)


def test_intervals_contain_the_mean_and_narrow_with_more_answers():
    """As the normal approximation does, within a tenth."""
    few, many = ([made(float(i % 2), ["a", "b"]) for i in range(count)] for count in (40, 4000))
    for answers in (few, many):
        found = summarise(answers)
        assert found["score_low"] < found["score"] == 0.5 < found["score_high"]
        width = found["score_high"] - found["score_low"]
        assert width == pytest.approx(2 * 1.96 * 0.5 / len(answers) ** 0.5, rel=0.1)
    assert summarise(few) == summarise(few)


def test_equal_scores_have_an_interval_without_width():
    found = summarise([made(0.25)] * 5, [{"score": 0.25}] * 5)
    assert [found[f"win_rate{end}"] for end in ("", "_low", "_high")] == [0.5] * 3
    assert [found[f"score{end}"] for end in ("", "_low", "_high")] == [0.25] * 3


def test_kept_samples_are_the_first_ones_with_rounded_divergences():
    kept = samples([made(1.0, token_kl=[0.123456]), made(2.0), made(3.0)], step=7, count=2)
    assert [row["scores"]["score"] for row in kept] == [1.0, 2.0]
    assert kept[0] | {"step": 7, "token_kl": [0.1235]} == kept[0]
    assert "token_logprobs" not in kept[0]


# -------------------------------------------------------------------------------------------------------------- prompts


def test_chosen_prompts_are_the_same_ones_each_time_and_more_of_them_hold_fewer():
    config = EvalConfig(prompts=5)
    assert choose(40, config) == choose(40, config)
    assert len(set(choose(40, config))) == 5
    assert choose(40, config) == sorted(choose(40, config))
    assert set(choose(40, config)) <= set(choose(40, EvalConfig(prompts=12)))
    assert choose(3, config) == [0, 1, 2]


# -------------------------------------------------------------------------------------------------------------- answers


@pytest.fixture(scope="module")
def asked(models):
    """`asked(batch_size, ranks, rank)`: answers of a policy that has moved on from its reference."""
    folder = str(models("llama"))
    policy, reference = (load_causal_lm(ModelConfig(path=folder)) for _ in range(2))
    with torch.no_grad():
        policy.get_output_embeddings().weight.mul_(1.5)
    sampler = Sampler(
        load_tokenizer(folder),
        LogitTransform(0.9, stops=(1, 8, 9)),
        GenerationConfig(max_new_tokens=6, temperature=0.9),
    )
    prompts = PromptSet(
        [f"p{i}" for i in range(9)], [[7 + i] * (1 + i % 3) for i in range(9)], {"n": list(range(9))}, 2
    )

    def source(prompts, completions, columns):
        assert [f"p{n}" for n in columns["n"]] == prompts
        return [float(len(c.split())) + n / 100 for c, n in zip(completions, columns["n"], strict=True)]

    def ask(batch_size=64, ranks=1, rank=0, indices=(0, 2, 3, 5, 6, 7, 8)):
        accelerator = SimpleNamespace(
            num_processes=ranks, process_index=rank, device=torch.device("cpu"), autocast=nullcontext
        )
        who, known = ActorCritic(policy), Reference(reference)
        config = EvalConfig(batch_size=batch_size)
        return answer(who, known, sampler, prompts, list(indices), {"score": source}, config, 3, accelerator)

    ask.reference, ask.tokenizer, ask.prompts = reference, sampler.tokenizer, prompts
    return ask


def assert_close(answers, others):
    """Equal up to the rounding of other batches."""
    for a, b in zip(answers, others, strict=True):
        for name in ("token_kl", "token_logprobs"):
            assert a.pop(name) == pytest.approx(b.pop(name), abs=1e-5)
        assert a == b


def test_answers_belong_to_their_prompts(asked):
    answers = asked()
    assert [a["index"] for a in answers] == [0, 2, 3, 5, 6, 7, 8]
    assert [a["prompt"] for a in answers] == [f"p{i}" for i in (0, 2, 3, 5, 6, 7, 8)]
    for a in answers:
        assert len(a["tokens"]) == len(a["token_kl"]) == len(a["token_logprobs"])
        assert a["scores"]["score"] == len(a["response"].split()) + a["index"] / 100
        assert a["truncated"] == (a["tokens"][-1] not in ("<|end|>", "film", "is"))
    assert {a["truncated"] for a in answers} == {True, False}
    assert max(abs(kl) for a in answers for kl in a["token_kl"]) > 0.1


@torch.no_grad()
def test_divergence_is_the_policy_s_log_probability_less_the_reference_s(asked):
    """At the sampling temperature, token by token."""
    for a in asked():
        prompt, said = asked.prompts.ids[a["index"]], asked.tokenizer.convert_tokens_to_ids(a["tokens"])
        logits = asked.reference(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1]
        known = (logits / 0.9).log_softmax(-1)[range(len(said)), said]
        expected = torch.tensor(a["token_logprobs"]) - known
        torch.testing.assert_close(torch.tensor(a["token_kl"]), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_answers_do_not_depend_on_the_batch_size(asked, batch_size):
    assert_close(asked(batch_size), asked())


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_ranks_shares_together_are_the_whole(asked, monkeypatch, batch_size):
    monkeypatch.setattr(evaluation, "gather_object", lambda answers: answers)
    shares = [asked(batch_size, ranks=2, rank=rank) for rank in range(2)]
    assert abs(len(shares[0]) - len(shares[1])) <= 1
    assert_close(sorted(shares[0] + shares[1], key=lambda a: a["index"]), asked())


# ----------------------------------------------------------------------------------------------------------- end to end


@pytest.fixture
def evaluate_job(job, models, tmp_path):
    """Six held-out prompts; the policy is the baseline with another head."""
    lm = load_causal_lm(ModelConfig(path=str(models("llama"))))
    with torch.no_grad():
        lm.get_output_embeddings().weight.mul_(1.5)
    lm.save_pretrained(tmp_path / "policy")
    load_tokenizer(str(models("llama"))).save_pretrained(tmp_path / "policy")
    return EvaluateJob(
        output=str(tmp_path / "evaluation"),
        baseline=str(models("llama")),
        model=ModelConfig(path=str(tmp_path / "policy")),
        data=job.data,
        generation=job.generation,
        reward=job.reward,
        eval=EvalConfig(prompts=6, samples=2),
    )


def test_policy_and_baseline_are_compared_and_written(evaluate_job, tmp_path):
    result = evaluate_policy(evaluate_job)
    before, after = result["before"], result["after"]
    assert before["kl"] == 0.0
    assert after["kl"] != 0.0
    assert before["prompts"] == after["prompts"] == 6.0
    assert "win_rate" not in before
    assert 0 <= after["win_rate_low"] <= after["win_rate"] <= after["win_rate_high"] <= 1
    written = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert {name: written[name] for name in ("before", "after")} == result
    assert written["config"]["model"]["path"] == evaluate_job.model.path
    rows = [json.loads(line) for line in (tmp_path / "evaluation" / "samples.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 0, 1, 1]
    assert [row["index"] for row in rows[:2]] == [row["index"] for row in rows[2:]]
    columns = [list(column.cells) for column in table(before, after).columns]
    assert columns[0][columns[0].index("win rate")] == "win rate"
    assert columns[1][columns[0].index("win rate")] == ""
    assert evaluate_policy(replace(evaluate_job, output=None)) == result  # the same once more


def test_policy_against_itself_is_a_draw(evaluate_job):
    result = evaluate_policy(replace(evaluate_job, output=None, model=ModelConfig(path=evaluate_job.baseline)))
    assert result["after"].pop("win_rate") == 0.5
    assert (result["after"].pop("win_rate_low"), result["after"].pop("win_rate_high")) == (0.5, 0.5)
    assert result["after"] == result["before"]


def test_without_a_baseline_the_policy_is_its_own_reference(evaluate_job):
    result = evaluate_policy(replace(evaluate_job, output=None, baseline=None))
    assert set(result) == {"after"}
    assert result["after"]["kl"] == 0.0


def test_judge_alone_is_enough_and_nothing_to_score_with_is_an_error(evaluate_job, reward_folder):
    alone = replace(evaluate_job, output=None, reward=type(evaluate_job.reward)())
    judge = JudgeConfig(model=str(reward_folder))
    assert "judge" in evaluate_policy(replace(alone, eval=replace(alone.eval, judge=judge)))["after"]
    with pytest.raises(UserError, match="nothing to score with"):
        evaluate_policy(alone)


def test_existing_folder_is_refused_before_anything_is_computed(evaluate_job, tmp_path, monkeypatch):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / "notes").write_text("")

    def load(*_):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(evaluation, "load_causal_lm", load)
    with pytest.raises(UserError, match="evaluation exists"):
        evaluate_policy(evaluate_job)


def test_numbers_that_are_not_defined_are_null_in_the_file(evaluate_job, tmp_path):
    """Responses of one token have no pairs."""

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    result = evaluate_policy(replace(evaluate_job, generation=GenerationConfig(max_new_tokens=1)))
    assert math.isnan(result["after"]["distinct_2"])
    text = (tmp_path / "evaluation" / "evaluation.json").read_text()
    assert json.loads(text, parse_constant=refuse)["after"]["distinct_2"] is None
