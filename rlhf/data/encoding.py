"""Text and chat messages as token ids. The one place that applies chat templates."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rlhf.errors import UserError


class Demonstration(NamedTuple):
    """One tokenised example of supervised fine-tuning."""

    ids: list[int]
    trained: list[bool]
    """True on the tokens that the loss is taken over."""


def render_chat(tokenizer: Any, messages: list[Any], generation_prompt: bool) -> str:
    """Messages as text, by the tokenizer's chat template.

    Raises:
        UserError: there is no template, it fails, or a message is not `{"role": ..., "content": "text"}`.
    """
    if not tokenizer.chat_template:
        raise UserError(
            "the data holds messages, but the tokenizer has no chat template; "
            "set one with --model.chat_template file.jinja, or use plain text prompts"
        )
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str) or "role" not in message:
            raise UserError(f"a message must be {{'role': ..., 'content': 'text'}}, got {message!r}")
    try:
        return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)
    except Exception as error:  # a template is a program, and may raise anything
        raise UserError(f"the chat template cannot render these messages: {type(error).__name__}: {error}") from error


def encode_prompts(tokenizer: Any, prompts: Sequence[Any]) -> list[list[int]]:
    """Token ids of prompts to generate from: one start token where the tokenizer has one, no end token.

    Args:
        prompts: each a text or a list of messages.
    """
    encoded: list[list[int]] = [[]] * len(prompts)
    chats = [i for i, prompt in enumerate(prompts) if isinstance(prompt, list)]
    plain = [i for i, prompt in enumerate(prompts) if isinstance(prompt, str)]
    if chats:  # a chat template writes the start token itself: the tokenizer must not add a second one
        texts = [render_chat(tokenizer, prompts[i], True) for i in chats]
        for i, ids in zip(chats, tokenizer(texts, add_special_tokens=False).input_ids, strict=True):
            encoded[i] = ids
    if plain:
        eos = tokenizer.eos_token_id
        for i, ids in zip(plain, tokenizer([prompts[i] for i in plain]).input_ids, strict=True):
            encoded[i] = ids[:-1] if len(ids) > 1 and ids[-1] == eos else ids
    return encoded


def encode_demonstration(tokenizer: Any, row: dict[str, Any]) -> Demonstration:
    """One row of demonstrations as token ids with the mask of trained tokens.

    Trained are all tokens of a `text`, the completion of `prompt, completion`, the assistant's messages of `messages`.
    """
    eos = [tokenizer.eos_token_id]
    if "messages" in row:
        return _encode_messages(tokenizer, row["messages"])
    if "completion" in row:
        prompt, completion = row["prompt"], row["completion"]
        if isinstance(prompt, list):
            messages = [*prompt, *_as_messages(completion)]
            return _encode_messages(tokenizer, messages, first_trained=len(prompt))
        prompt_ids = encode_prompts(tokenizer, [prompt])[0]
        completion_ids = tokenizer(completion, add_special_tokens=False).input_ids + eos
        return Demonstration(
            ids=prompt_ids + completion_ids, trained=[False] * len(prompt_ids) + [True] * len(completion_ids)
        )
    ids = encode_prompts(tokenizer, [row["text"]])[0] + eos
    return Demonstration(ids=ids, trained=[True] * len(ids))


def _encode_messages(tokenizer: Any, messages: list[dict[str, Any]], first_trained: int = 0) -> Demonstration:
    """Messages with the tokens of the assistant's messages trained, from message `first_trained` on."""
    text = render_chat(tokenizer, messages, False)
    spans = []  # characters [start, end) of each trained message
    for i, message in enumerate(messages):
        if i >= first_trained and message["role"] == "assistant":
            before = render_chat(tokenizer, messages[:i], True)
            through = render_chat(tokenizer, messages[: i + 1], False)
            if not (through.startswith(before) and text.startswith(through)):
                raise UserError(
                    "the tokenizer's chat template rewrites earlier messages, so the assistant's tokens cannot be "
                    "located; use the columns prompt and completion instead"
                )
            spans.append((len(before), len(through)))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    trained = [any(a <= start < b for a, b in spans) for start, _ in encoded["offset_mapping"]]
    return Demonstration(ids=encoded.input_ids, trained=trained)


def _as_messages(completion: Any) -> list[dict[str, Any]]:
    return completion if isinstance(completion, list) else [{"role": "assistant", "content": completion}]


def encode_for_scoring(
    tokenizer: Any, prompts: Sequence[Any], completions: Sequence[Any], append_eos: bool, max_length: int
) -> list[list[int]]:
    """Token ids of each prompt with its completion, as a reward model's input.

    Args:
        prompts: each a text or a list of messages; "" where the completion is a whole conversation.
        completions: each a text or a list of messages.
        append_eos: end each with exactly one end token.
        max_length: cut longer ones, the end token aside.
    """
    encoded = []
    for prompt, completion in zip(prompts, completions, strict=True):
        if isinstance(prompt, list) or isinstance(completion, list):
            messages = (prompt if isinstance(prompt, list) else []) + _as_messages(completion)
            # A template may write a line break after the end token, and a second end token would then be appended.
            text = render_chat(tokenizer, messages, False).rstrip()
            ids = tokenizer(text, add_special_tokens=False).input_ids
        else:
            ids = tokenizer(prompt + completion).input_ids
        eos = tokenizer.eos_token_id
        ids = ids[: max_length - append_eos]
        encoded.append([*ids, eos] if append_eos and (not ids or ids[-1] != eos) else ids)
    return encoded


def pad(rows: Sequence[Sequence[int]], pad_id: int, side: str) -> tuple[Tensor, Tensor]:
    """Token lists as a matrix [B, L], and the mask that is True on their tokens."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        columns = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        ids[i, columns] = torch.tensor(row, dtype=torch.long)
        mask[i, columns] = True
    return ids, mask


def padding_id(tokenizer: Any) -> int:
    """The token id for padding. Masks hide padding, so a tokenizer without a padding token may use any id."""
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
