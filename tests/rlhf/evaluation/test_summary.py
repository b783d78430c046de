"""Summaries of responses by hand."""

import pytest

from rlhf.evaluation.responses import EvaluatedResponse
from rlhf.evaluation.summary import sample_rows, summarise


def evaluated(score, tokens=("a",), token_kl=(0.0,), token_logprobs=(-1.0,), truncated=False, repetition=0.0, **scores):
    return EvaluatedResponse(
        index=0,
        prompt="p",
        response=" ".join(tokens),
        tokens=list(tokens),
        token_kl=list(token_kl),
        token_logprobs=list(token_logprobs),
        scores={"score": score, **scores},
        truncated=truncated,
        repetition=repetition,
    )


def test_every_statistic_of_a_summary_by_hand():
    responses = [
        evaluated(1.0, ["a", "b", "a"], [0.5, -0.25, 0.25], [-1.0, -2.0, -3.0], truncated=True, repetition=0.5),
        evaluated(-4.0, ["a"], [1.5], [-4.0]),
    ]
    summary = summarise(responses)
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
    assert {name: value for name, value in summary.items() if not name.endswith(("_low", "_high"))} == expected
    assert (summary["score_low"], summary["score_high"]) == (-4.0, 1.0)  # resampled means of two responses reach both


def test_ties_are_half_a_win():
    start = [{"score": 1.0}, {"score": 1.0}, {"score": 1.0}, {"score": 1.0}]
    summary = summarise([evaluated(2.0), evaluated(1.0), evaluated(0.0), evaluated(0.5)], start)
    assert summary["win_rate"] == (1 + 0.5 + 0 + 0) / 4


def test_win_rate_is_by_the_judge_if_there_is_one():
    start = [{"score": 0.0, "judge": 1.0}, {"score": 0.0, "judge": 1.0}]
    summary = summarise([evaluated(9.0, judge=0.0), evaluated(9.0, judge=1.0)], start)
    assert summary["win_rate"] == 0.25
    assert (summary["score"], summary["judge"]) == (9.0, 0.5)


def test_intervals_contain_the_mean_and_narrow_with_more_responses():
    """As with the normal approximation, within a tenth."""
    few, many = ([evaluated(float(i % 2), ["a", "b"]) for i in range(count)] for count in (40, 4000))
    for responses in (few, many):
        summary = summarise(responses)
        assert summary["score_low"] < summary["score"] == 0.5 < summary["score_high"]
        width = summary["score_high"] - summary["score_low"]
        assert width == pytest.approx(2 * 1.96 * 0.5 / len(responses) ** 0.5, rel=0.1)
    assert summarise(few) == summarise(few)


def test_equal_scores_have_an_interval_of_zero_width():
    summary = summarise([evaluated(0.25)] * 5, [{"score": 0.25}] * 5)
    assert [summary[f"win_rate{end}"] for end in ("", "_low", "_high")] == [0.5] * 3
    assert [summary[f"score{end}"] for end in ("", "_low", "_high")] == [0.25] * 3


def test_sample_rows_are_the_first_responses_with_rounded_divergences():
    rows = sample_rows([evaluated(1.0, token_kl=[0.123456]), evaluated(2.0), evaluated(3.0)], step=7, count=2)
    assert [row["scores"]["score"] for row in rows] == [1.0, 2.0]
    assert rows[0] | {"step": 7, "token_kl": [0.1235]} == rows[0]
    assert "token_logprobs" not in rows[0]
