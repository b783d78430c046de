"""Token ids of prompts and scored texts, written out; they are those of conftest.py."""

import pytest
import torch
from tokenizers.processors import TemplateProcessing

from rlhf.data.encoding import encode_for_scoring, encode_prompts, pad
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


def test_messages_without_a_chat_template_are_rejected(models):
    plain = load_tokenizer(str(models("llama")))
    with pytest.raises(UserError, match=r"no chat template; set one with --model.chat_template"):
        encode_prompts(plain, [[user("the film")]])


@pytest.mark.parametrize("message", [{"role": "user"}, {"content": "the"}, {"role": "user", "content": ["the"]}, "the"])
def test_malformed_messages_are_rejected(tokenizer, message):
    with pytest.raises(UserError, match="a message must be"):
        encode_prompts(tokenizer, [[message]])


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
