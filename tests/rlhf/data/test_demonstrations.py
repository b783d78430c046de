"""Demonstrations: their formats, trained tokens and limits. Token ids are those of conftest.py."""

import pytest
from tokenizers.processors import TemplateProcessing

from rlhf.data.demonstrations import (
    Demonstration,
    dataset_formats,
    encode_demonstration,
    encode_demonstrations,
    pad_demonstrations,
)
from rlhf.errors import UserError
from rlhf.models.loading import load_tokenizer


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    ("row", "ids", "trained"),
    [
        ({"text": "the film"}, [7, 8, 1], "111"),
        ({"prompt": "the film", "completion": "is good"}, [7, 8, 9, 11, 1], "00111"),
        ({"prompt": [user("the film")], "completion": "good"}, [4, 7, 8, 1, 5, 11, 1], "0000011"),
        ({"prompt": [user("the film")], "completion": [assistant("good")]}, [4, 7, 8, 1, 5, 11, 1], "0000011"),
        ({"messages": [user("the film"), assistant("good")]}, [4, 7, 8, 1, 5, 11, 1], "0000011"),
        (
            {"messages": [user("the"), assistant("good"), user("a film"), assistant("is bad")]},
            [4, 7, 1, 5, 11, 1, 4, 10, 8, 1, 5, 9, 12, 1],
            "00001100000111",
        ),
        (  # an assistant's message in the prompt is not trained on
            {"prompt": [user("the"), assistant("good"), user("a")], "completion": "bad"},
            [4, 7, 1, 5, 11, 1, 4, 10, 1, 5, 12, 1],
            "000000000011",
        ),
    ],
)
def test_token_ids_and_trained_tokens_of_demonstrations(tokenizer, row, ids, trained):
    assert encode_demonstration(tokenizer, row) == (ids, [mark == "1" for mark in trained])


def test_template_that_rewrites_earlier_messages_is_rejected(tokenizer):
    tokenizer.chat_template = "{{ messages | length }}" + tokenizer.chat_template
    with pytest.raises(UserError, match="rewrites earlier messages"):
        encode_demonstration(tokenizer, {"messages": [user("the"), assistant("good")]})


def test_demonstrations_have_one_start_token(bos_tokenizer):
    for row in ({"text": "the film"}, {"prompt": "the", "completion": "film"}):
        assert encode_demonstration(bos_tokenizer, row)[0] == [3, 7, 8, 1]


def rows_of(**columns):
    import datasets

    return datasets.Dataset.from_dict(columns)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"label": ["a"]}, "x has the columns 'label', but demonstrations need 'text', 'messages', or 'prompt' and"),
        ({"prompt": ["a"]}, "x has the columns 'prompt', but demonstrations need"),
        ({"prompt;completion": ["a;b"]}, "delimited by semicolons: save it with commas"),
        ({"text": ["the", None]}, "x, row 2: 'text' is null"),
        ({"text": [3, 4]}, "x, row 1: 'text' is 3, but must be text or a list of messages"),
        ({"text": ["the", " "]}, "x, row 2: 'text' is empty"),
        ({"prompt": ["the", "a"], "completion": ["film", ""]}, "x, row 2: 'completion' is empty"),
        (
            {"prompt": ["the film is good"], "completion": ["a"]},
            "no row has a token to train on within training.max_length = 3",
        ),
    ],
)
def test_demonstrations_without_trained_tokens_are_rejected(models, columns, message):
    with pytest.raises(UserError, match=message):
        encode_demonstrations(load_tokenizer(str(models("llama"))), rows_of(**columns), 3, "x")


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (["text", "completion"], [["text"]]),
        (["text", "completion", "prompt"], [["prompt", "completion"], ["text"]]),
        (["prompt", "text", "messages"], [["messages"], ["text"]]),
    ],
)
def test_format_precedence(columns, expected):
    assert dataset_formats(rows_of(**{name: ["a"] for name in columns}), "x") == expected


def test_demonstrations_are_cut_at_the_limit(models):
    """The first token of a text is never predicted, so it is not trained on."""
    rows = rows_of(prompt=["the", "the film is"], completion=["good film", "good"])
    examples = encode_demonstrations(load_tokenizer(str(models("llama"))), rows, 3, "x")
    assert examples == [([7, 11, 8], [False, True, True])]
    assert examples[0].trained_tokens == 2
    assert Demonstration([7, 8], [True, True]).trained_tokens == 1


def test_end_token_appended_by_the_tokenizer_is_not_duplicated(tokenizer):
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|start|> $A <|end|>", special_tokens=[("<|start|>", 3), ("<|end|>", 1)]
    )
    assert encode_demonstration(tokenizer, {"text": "the film"}).ids == [3, 7, 8, 1]


def test_limit_is_reported_by_its_setting(tokenizer):
    with pytest.raises(UserError, match=r"within ptx.max_length = 1; raise it"):
        encode_demonstrations(tokenizer, rows_of(text=["the film"]), 1, "x", "ptx.max_length")


def test_padded_demonstrations_by_hand():
    examples = [Demonstration([7, 8, 1], [False, True, True]), Demonstration([9, 1], [True, True])]
    ids, mask, trained = pad_demonstrations(examples, 2)
    assert ids.tolist() == [[7, 8, 1], [9, 1, 2]]
    assert mask.tolist() == [[True, True, True], [True, True, False]]
    assert trained.tolist() == [[False, True, True], [True, True, False]]
