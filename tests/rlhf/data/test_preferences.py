"""Preference pairs. Token ids are those of conftest.py."""

import datasets
import pytest

from rlhf.data.preferences import encode_pairs
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
