"""The file of `rlhf compare` as training data: what is used, what is left out, and what is held out."""

import json

import pytest

from rlhf.config.shared import DataConfig
from rlhf.data.comparisons import ComparedRows, split_preferences
from rlhf.data.preferences import encode_completion_pairs, encode_pairs
from rlhf.errors import UserError


def answer(pair, choice="a", repeat=False, clearly=False, **more):
    return {
        "pair": pair,
        "prompt": "the film ",
        "chosen": {"a": "is good", "b": "is bad"}.get(choice),
        "rejected": {"a": "is bad", "b": "is good"}.get(choice),
        "choice": choice,
        "clearly": clearly,
        "a": "is good",
        "b": "is bad",
        "repeat": repeat,
        **more,
    }


@pytest.fixture
def write(tmp_path):
    def to_file(rows, **settings):
        path = tmp_path / "preferences.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return DataConfig(path=str(path), **{"eval_fraction": 0.0} | settings)

    return to_file


ROWS = [
    answer("1", "a", clearly=True),
    answer("2", "b"),
    answer("3", "tie"),
    answer("4", "skip"),
    answer("1", "b", repeat=True),
    answer("1", "b"),  # of somebody else
]


def test_ties_skips_and_repeats_are_left_out_and_counted(write):
    rows, held_out, note = split_preferences(write(ROWS), 0)
    assert held_out is None
    assert note.endswith("preferences.jsonl: 3 preferences (1 clear); left out: 1 ties, 1 skipped, 1 repeated")
    assert list(zip(rows["chosen"], rows["clearly"], rows["tie"], strict=True)) == [
        ("is good", True, False),
        ("is bad", False, False),
        ("is bad", False, False),
    ]


def test_ties_are_used_on_request(write, tokenizer):
    rows, _, note = split_preferences(write(ROWS), 0, with_ties=True)
    assert "3 preferences (1 clear) and 1 ties; left out: 1 skipped, 1 repeated" in note
    pairs = encode_pairs(tokenizer, rows, 100, "x")
    assert [(pair.clearly, pair.tie) for pair in pairs] == [
        (True, False),
        (False, False),
        (False, True),
        (False, False),
    ]
    assert [pair.chosen[3] for pair in pairs] == [11, 12, 11, 12]  # good, bad
    assert len(encode_completion_pairs(tokenizer, rows, 100, "x").pairs) == 4


def test_all_answers_to_a_pair_are_on_one_side_of_the_split(write):
    rows = [answer(str(i // 3), annotator=f"person {i % 3}") for i in range(60)]
    training, held_out, _ = split_preferences(write(rows, eval_fraction=0.25), 0)
    assert isinstance(training, ComparedRows)
    assert isinstance(held_out, ComparedRows)
    assert not set(training["pair"]) & set(held_out["pair"])
    assert (len(training), len(held_out)) == (45, 15)
    assert split_preferences(write(rows, eval_fraction=0.25), 1)[1]["pair"] != held_out["pair"]


def test_no_tie_is_held_out(write):
    rows = [answer(str(i), "tie" if i % 2 else "a") for i in range(40)]
    training, held_out, _ = split_preferences(write(rows, eval_fraction=0.5), 0, with_ties=True)
    assert any(training["tie"])
    assert not any(held_out["tie"])


def test_empty_completions_are_preferences_too(write, tokenizer):
    config = write([answer("1", "b", a="is good", b="")])
    [pair] = encode_pairs(tokenizer, split_preferences(config, 0)[0], 100, "x")
    assert (pair.chosen, pair.rejected) == ([7, 8, 1], [7, 8, 9, 11, 1])


def test_other_files_are_split_as_they_are(write):
    rows = [{"chosen": f"good {i}", "rejected": "bad"} for i in range(10)]
    training, held_out, note = split_preferences(write(rows, eval_fraction=0.2), 0)
    assert (len(training), len(held_out), note) == (8, 2, "")
    assert not isinstance(training, ComparedRows)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([answer("1", "tie"), answer("2", "skip")], r"has no preferences \(1 ties, 1 skipped\); compare more pairs"),
        ([{"prompt": "p", "choice": "a"}], "has a column 'choice', but no 'pair'; is it a file of `rlhf compare`"),
    ],
)
def test_files_without_preferences_are_rejected(write, rows, message):
    with pytest.raises(UserError, match=message):
        split_preferences(write(rows), 0)
