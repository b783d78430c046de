"""Mixes by hand: weighted sums, sources that do not apply, weight 0, rewards by token, and failures."""

import asyncio
import math

import pytest

from rlhf.config.scores import RewardConfig
from rlhf.errors import UserError
from rlhf.rewards.failures import check_errors
from rlhf.rewards.functions import FunctionReward
from rlhf.rewards.mixes import Mix, numbers_where_it_applies, score_texts
from rlhf.rewards.results import Context

TEXTS = (["p", "q", "r"], ["a", "bb", "ccc"], {"n": [1, 2, 3]})


def source(returned, name="f"):
    """A function that returns the entries of `returned` for the rows that it is called with."""
    return FunctionReward(lambda completions, n: [returned[i - 1] for i in n], name)


def mix(weights=None, **returned):
    return Mix(
        {name: source(values, name) for name, values in returned.items()}, weights or dict.fromkeys(returned, 1.0)
    )


def test_the_total_is_the_weighted_sum_and_the_raw_scores_stand_beside_it():
    scores = mix({"a": 2.0, "b": -0.5}, a=[1, 2, 3], b=[10, 20, 30]).score(*TEXTS)
    assert scores.totals == [2 - 5, 4 - 10, 6 - 15]
    assert scores.by_source == {"a": [1, 2, 3], "b": [10, 20, 30]}
    assert scores.errors == [None] * 3


def test_a_source_that_does_not_apply_is_left_out_of_the_sum():
    scores = mix({"a": 2.0, "b": 1.0}, a=[1, None, 3], b=[None, 20, 30]).score(*TEXTS)
    assert scores.totals == [2.0, 20.0, 36.0]
    assert math.isnan(scores.by_source["a"][1])
    assert math.isnan(scores.by_source["b"][0])


def test_a_row_to_which_no_source_applies_is_an_error_that_names_it():
    """A source of weight 0 does not count as one."""
    message = r"nothing scores the completion 'bb' \(row 1, prompt 'q'\): a, b returned None"
    with pytest.raises(UserError, match=message):
        mix({"a": 1.0, "b": 1.0, "c": 0.0}, a=[1, None, 3], b=[1, None, 3], c=[1, 1, 1]).score(*TEXTS)
    with pytest.raises(UserError, match=r"nothing scores the completion 'a' .*: reward function f returned None"):
        score_texts(source([None, 1, 1]), *TEXTS)


def test_a_source_of_weight_0_is_measured_and_never_changes_the_sum():
    scores = mix({"a": 1.0, "b": 0.0}, a=[1, 2, 3], b=[1e9, None, [(1, 5.0)]]).score(*TEXTS)
    assert scores.totals == [1, 2, 3]
    assert scores.by_source["b"][0] == 1e9
    assert scores.by_source["b"][2] == 5.0
    failing = mix({"a": 1.0, "b": 0.0}, a=[1, 2, 3], b=[math.nan, "x", 1])
    assert failing.score(*TEXTS, skip=True).errors == [None] * 3
    assert failing.score(*TEXTS, skip=True).totals == [1, 2, 3]


def test_rewards_by_token_are_weighted_and_aligned_and_their_sum_is_the_total():
    """Tokens of 'bb' end after 1 and 2 characters and an end token; 5.0 is the reward of text[:2]."""
    ends = [[1, 1], [1, 2, 2], [3, 3]]
    context = Context(token_ends=ends.__getitem__)
    scores = mix({"a": 2.0, "b": 1.0}, a=[1, [(2, 5.0), (1, 0.5)], [1, 2]], b=[1, 10, [3, 4]]).score(*TEXTS, context)
    assert scores.totals == [3.0, 21.0, 13.0]
    assert scores.by_token == [None, [1.0, 10.0, 0.0], [5.0, 8.0]]
    with pytest.raises(UserError, match=r"reward function a returned 3 rewards by token for the 2 tokens of .*'ccc'"):
        mix(a=[1, 2, [1, 2, 3]]).score(*TEXTS, context)


def test_async_sources_wait_at_the_same_time():
    """Each waits for the other one, so that one after the other would wait forever."""
    here, there = asyncio.Event(), asyncio.Event()

    async def first(completions):
        here.set()
        await there.wait()
        return [1] * len(completions)

    async def second(completions):
        there.set()
        await here.wait()
        return [2] * len(completions)

    sources = {f.__name__: FunctionReward(f, f.__name__, timeout=60.0) for f in (first, second)}
    assert Mix(sources, {"first": 1.0, "second": 1.0}).score(*TEXTS).totals == [3, 3, 3]


def test_a_source_beside_the_score_need_not_apply_everywhere():
    assert numbers_where_it_applies(source([None, 2, [1, 2]]), *TEXTS) == [None, 2.0, 3.0]
    assert numbers_where_it_applies(lambda prompts, completions, columns: [1, 2, 3], *TEXTS) == [1.0, 2.0, 3.0]
    broken = source([None, math.nan, 3])
    assert numbers_where_it_applies(broken, *TEXTS, skip=True) == [None, None, 3.0]
    with pytest.raises(UserError, match="returned nan for the completion 'bb'"):
        numbers_where_it_applies(broken, *TEXTS)


# ------------------------------------------------------------------------------------------------------------ failures


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([1, math.nan, 3], r"source a: reward function a returned nan for the completion 'bb' \(row 1, prompt 'q'\)"),
        ([1, 2, "x"], r"source a: reward function a returned 'x' for the completion 'ccc' \(row 2, prompt 'r'\)"),
        ([1, 2], "source a: reward function a raised IndexError"),
    ],
)
def test_a_failure_names_the_source_the_row_and_the_value(returned, message):
    with pytest.raises(UserError, match=message):
        mix(a=returned, b=[1, 2, 3]).score(*TEXTS)


def test_skipped_failures_leave_the_other_rows_as_they_are():
    scores = mix(a=[1, math.inf, 3], b=[10, 20, 30]).score(*TEXTS, skip=True)
    assert scores.totals == [11, 0, 33]
    assert [error is None for error in scores.errors] == [True, False, True]
    assert "returned inf for the completion 'bb' (row 1, prompt 'q')" in scores.errors[1]
    assert math.isnan(scores.by_source["a"][1])
    assert scores.by_source["b"] == [10, 20, 30]


def test_of_a_function_that_raises_only_the_rows_that_it_raises_on_are_lost():
    def picky(completions, n, step):
        if 2 in n:
            raise ValueError(f"no {n}")
        return [step + i for i in n]

    scores = score_texts(FunctionReward(picky, "picky"), *TEXTS, Context(step=100), skip=True)
    assert scores.totals == [101, 0, 103]
    assert scores.errors[0] is scores.errors[2] is None
    assert "picky raised ValueError: no [2]" in scores.errors[1]
    assert "the completion 'bb' (row 1, prompt 'q')" in scores.errors[1]


def test_too_many_failures_end_the_run():
    config = RewardConfig(function="f.py:g", on_error="skip", max_error_fraction=0.5)
    check_errors(None, config)
    check_errors([None, None], config)
    check_errors(["broken", None], config)
    message = r"2 of 3 responses have no score, more than reward.max_error_fraction = 0.5 allows; the first: broken"
    with pytest.raises(UserError, match=message):
        check_errors(["broken", "too", None], config)
