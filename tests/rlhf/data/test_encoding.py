"""Token ids of prompts, demonstrations and scored texts, written out."""

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from rlhf.data.encoding import encode_demonstration, encode_for_scoring, encode_prompts, pad
from rlhf.errors import UserError
from rlhf.models.loading import load_tokenizer


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def test_prompts_have_one_start_token_and_no_end_token(tokenizer, bos_tokenizer):
    """Whether the tokenizer writes it, or the chat template does, or both would."""
    chat = [user("a film")]
    assert encode_prompts(tokenizer, ["the film", chat]) == [[7, 8], [4, 10, 8, 1, 5]]
    bos_tokenizer.chat_template = "<|start|>" + bos_tokenizer.chat_template
    assert encode_prompts(bos_tokenizer, ["the film", chat]) == [[3, 7, 8], [3, 4, 10, 8, 1, 5]]


def test_end_token_appended_by_the_tokenizer_is_removed_from_prompts(tokenizer):
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|start|> $A <|end|>", special_tokens=[("<|start|>", 3), ("<|end|>", 1)]
    )
    assert tokenizer("the film").input_ids == [3, 7, 8, 1]
    assert encode_prompts(tokenizer, ["the film"]) == [[3, 7, 8]]
    assert encode_demonstration(tokenizer, {"text": "the film"})[0] == [3, 7, 8, 1]


def test_messages_without_a_chat_template_are_rejected(models):
    plain = load_tokenizer(str(models("llama")))
    with pytest.raises(UserError, match=r"no chat template; set one with --model.chat_template"):
        encode_prompts(plain, [[user("the film")]])


@pytest.mark.parametrize("message", [{"role": "user"}, {"content": "the"}, {"role": "user", "content": ["the"]}, "the"])
def test_malformed_messages_are_rejected(tokenizer, message):
    with pytest.raises(UserError, match="a message must be"):
        encode_prompts(tokenizer, [[message]])


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


@pytest.mark.parametrize(
    ("prompt", "completion", "ids"),
    [
        ("the film ", "is good", [7, 8, 9, 11, 1]),
        ("the film ", "is good<|end|>", [7, 8, 9, 11, 1]),
        ("", "good", [11, 1]),
        ([user("the film")], "good", [4, 7, 8, 1, 5, 11, 1]),
        ([user("the film")], [assistant("good")], [4, 7, 8, 1, 5, 11, 1]),
        ("", [user("the film"), assistant("good")], [4, 7, 8, 1, 5, 11, 1]),
    ],
)
def test_scored_texts_end_with_exactly_one_end_token(tokenizer, prompt, completion, ids):
    assert encode_for_scoring(tokenizer, [prompt], [completion], True, 100) == [ids]
    assert encode_for_scoring(tokenizer, [prompt], [completion], True, len(ids)) == [ids]
    # One token too long: the end is cut, and the end token stays the last.
    assert encode_for_scoring(tokenizer, [prompt], [completion], True, len(ids) - 1) == [[*ids[:-2], 1]]


def test_scored_texts_have_no_end_token_without_append_eos(tokenizer):
    assert encode_for_scoring(tokenizer, ["the "], ["film is"], False, 100) == [[7, 8, 9]]
    assert encode_for_scoring(tokenizer, ["the "], ["film is"], False, 2) == [[7, 8]]


def test_end_token_before_a_line_break_is_not_duplicated(bos_tokenizer):
    bos_tokenizer.chat_template = bos_tokenizer.chat_template.replace("<|end|>", "<|end|>\n")
    turns = [{"role": "user", "content": "the film"}]
    assert encode_for_scoring(bos_tokenizer, [turns], ["is good"], True, 99) == [[4, 7, 8, 1, 5, 9, 11, 1]]


def test_pad_left_and_right():
    ids, mask = pad([[5, 6], [7]], 2, "left")
    assert torch.equal(ids, torch.tensor([[5, 6], [2, 7]]))
    assert torch.equal(mask, torch.tensor([[True, True], [False, True]]))
    ids, mask = pad([[5, 6], [7]], 2, "right")
    assert torch.equal(ids, torch.tensor([[5, 6], [7, 2]]))
    assert torch.equal(mask, torch.tensor([[True, True], [True, False]]))
