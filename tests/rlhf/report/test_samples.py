"""The report's samples: colours of tokens by value and advantage, and the histogram of scores."""

import pytest

from rlhf.report.run_files import Run
from rlhf.report.samples import Colouring, colour_tokens, colourings_of, compare_samples
from rlhf.report.score_histogram import excerpt, score_histogram


def sample(step, index, score, text="a b", **more):
    return {"step": step, "index": index, "prompt": "p", "response": text, "scores": {"score": score}, **more}


def run_of(rows):
    return Run("run", [{"step": 1}], [], sorted(rows, key=lambda row: (row["index"], row["step"])), {}, {}, [])


def test_values_are_coloured_around_their_mean_and_advantages_around_zero():
    row = {"tokens": ["a", "b"], "token_kl": [0.0, 0.6], "token_values": [1.0, 3.0], "token_advantages": [-2.0, 2.0]}
    log_ratio, value, advantage = colourings_of([row])
    assert (value.centre, value.levels) == (2.0, (0.25, 0.5, 1.0, 2.0))
    assert (advantage.centre, advantage.levels) == (0.0, (0.5, 1.0, 2.0, 4.0))
    first, second = colour_tokens(row, [log_ratio, value, advantage])
    assert first == ("a", "value-less-3 advantage-less-3", "0 nats, value 1.00, advantage −2.00")
    assert second == ("b", "more-2 value-more-3 advantage-more-3", "+0.600 nats, value 3.00, advantage +2.00")
    assert [value.bound(level) for level in (-2, 0, 2)] == ["1.50", "2.00", "2.50"]
    assert [advantage.bound(level) for level in (-2, 0, 2)] == ["−1.00", "0", "+1.00"]


def test_tokens_without_a_number_have_no_colour():
    row = {"tokens": ["a", "b", "c"], "token_values": [None, 3.0, 1.0], "token_advantages": [1.0]}
    colourings = colourings_of([row])
    assert [c.name for c in colourings] == ["value", "advantage"]
    pieces = colour_tokens(row, colourings)
    assert [style for _, style, _ in pieces] == ["", "value-more-3", "value-less-3"]  # the advantages do not fit


def test_the_start_is_coloured_by_the_critic_alone():
    numbers = {"tokens": ["a"], "token_kl": [0.0], "token_values": [1.0], "token_advantages": [1.0]}
    pairs, colourings = compare_samples(run_of([sample(0, 0, 1.0, **numbers), sample(5, 0, 2.0, **numbers)]), 5)
    before, after = pairs[0][1]
    assert [c.name for c in colourings] == ["log-ratio", "value", "advantage"]
    assert "nats" not in before.tokens[0][2]
    assert after.tokens[0][2].startswith("0 nats, value")


def test_a_colouring_has_no_colour_near_its_centre():
    colouring = Colouring("value", "value", "token_values", "value-", "", "", 1.0, (0.5, 1.0, 2.0, 4.0))
    assert [colouring.style(x) for x in (1.4, 1.5, -3.0, float("nan"))] == ["", "value-more-1", "value-less-4", ""]


def test_the_histogram_puts_each_score_into_one_bar():
    rows = [sample(0, i, i / 10) for i in range(8)] + [sample(9, i, 1 + i / 10) for i in range(8)]
    pairs, _ = compare_samples(run_of(rows), 9)
    name, titles, bars = score_histogram(pairs)
    assert (name, titles) == ("score", ["Before", "After"])
    assert [(bar.low, bar.high) for bar in bars][:2] == [("0", "0.250"), ("0.250", "0.500")]
    assert [len(bar.samples["Before"]) for bar in bars] == [3, 2, 3, 0, 0, 0, 0]
    assert [len(bar.samples["After"]) for bar in bars] == [0, 0, 0, 0, 3, 2, 3]
    assert bars[0].samples["Before"][1].index == 1


@pytest.mark.parametrize("scores", [[], [None, float("nan")], [1.0]])
def test_no_histogram_of_fewer_than_two_scores(scores):
    assert score_histogram(compare_samples(run_of([sample(0, i, s) for i, s in enumerate(scores)]), 0)[0]) is None


def test_equal_scores_are_one_bar():
    _, _, bars = score_histogram(compare_samples(run_of([sample(0, i, -2.5) for i in range(3)]), 0)[0])
    assert [len(bar.samples["Before"]) for bar in bars] == [3]


def test_a_long_response_is_cut_to_a_line():
    assert excerpt("a\n b") == "a b"
    assert excerpt("x" * 100_000) == "x" * 160 + "…"
