"""Preference pairs. Token ids are those of conftest.py."""

import datasets
import pytest

from rlhf.data.preferences import encode_completion_pairs, encode_pairs
from rlhf.errors import UserError


def test_pairs_are_prompt_and_completion_with_one_end_token(tokenizer):
    rows = datasets.Dataset.from_dict(
        {"prompt": ["the film ", "a "], "chosen": ["is good", "film"], "rejected": ["is bad", "bad"]}
    )
    pairs = encode_pairs(tokenizer, rows, 100, "x")
    assert [(p.chosen, p.rejected) for p in pairs] == [([7, 8, 9, 11, 1], [7, 8, 9, 12, 1]), ([10, 8, 1], [10, 12, 1])]
    assert encode_pairs(tokenizer, rows, 4, "x")[0].chosen == [7, 8, 9, 1]

    turns = [[{"role": "user", "content": "the"}, {"role": "assistant", "content": word}] for word in ("good", "bad")]
    chats = datasets.Dataset.from_dict({"chosen": turns[:1], "rejected": turns[1:]})
    assert [(p.chosen, p.rejected) for p in encode_pairs(tokenizer, chats, 100, "x")] == [
        ([4, 7, 1, 5, 11, 1], [4, 7, 1, 5, 12, 1])
    ]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"chosen": ["a"]}, "x has no column 'rejected'; it has 'chosen'"),
        ({"chosen": ["a", ""], "rejected": ["b", "b"]}, "x, row 2: 'chosen' is empty"),
        ({"chosen": ["a", "a"], "rejected": ["b", None]}, "x, row 2: 'rejected' is null"),
        ({"prompt": [None], "chosen": ["a"], "rejected": ["b"]}, "x, row 1: 'prompt' is null"),
    ],
)
def test_null_and_empty_values_are_rejected(tokenizer, columns, message):
    with pytest.raises(UserError, match=message):
        encode_pairs(tokenizer, datasets.Dataset.from_dict(columns), 100, "x")


def test_trained_tokens_of_completion_pairs_are_the_completions_and_their_end_tokens(tokenizer):
    rows = datasets.Dataset.from_dict(
        {"prompt": ["the film ", "a "], "chosen": ["is good", "film"], "rejected": ["is bad", "film"]}
    )
    encoded = encode_completion_pairs(tokenizer, rows, 100, "x")
    (pair,) = encoded.pairs
    assert (encoded.equal, encoded.cut) == (1, 0)
    assert pair.chosen == ([7, 8, 9, 11, 1], [False, False, True, True, True])
    assert pair.rejected == ([7, 8, 9, 12, 1], [False, False, True, True, True])
    # Without prompts, all tokens of both texts are trained.
    (pair,) = encode_completion_pairs(tokenizer, rows.select([0]).remove_columns("prompt"), 100, "x").pairs
    assert pair.chosen == ([9, 11, 1], [True, True, True])


def test_messages_that_both_conversations_begin_with_are_the_prompt(tokenizer):
    """With an earlier answer of the assistant, and beside a column with the prompt as text, as UltraFeedback has it."""
    start = [
        {"role": "user", "content": "the"},
        {"role": "assistant", "content": "film"},
        {"role": "user", "content": "is"},
    ]
    chosen, rejected = ([*start, {"role": "assistant", "content": word}] for word in ("good", "bad"))
    alone = datasets.Dataset.from_dict({"chosen": [chosen], "rejected": [rejected]})
    (pair,) = encode_completion_pairs(tokenizer, alone, 100, "x").pairs
    # <|assistant|>, which the generation prompt ends with, is not trained; the answer and its <|end|> are.
    assert pair.chosen.ids == [4, 7, 1, 5, 8, 1, 4, 9, 1, 5, 11, 1]
    assert pair.chosen.trained == [False] * 10 + [True, True]
    assert pair.rejected.trained == pair.chosen.trained
    beside = alone.add_column("prompt", ["is"])
    assert encode_completion_pairs(tokenizer, beside, 100, "x").pairs == [pair]
    split = datasets.Dataset.from_dict({"prompt": [start], "chosen": [chosen[3:]], "rejected": [rejected[3:]]})
    assert encode_completion_pairs(tokenizer, split, 100, "x").pairs == [pair]
