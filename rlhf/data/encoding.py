"""Text and chat messages as token ids. Chat templates are applied here alone."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from rlhf.errors import UserError


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


def encode_reply(tokenizer: Any, reply: str, chat: bool, last_id: int) -> list[int]:
    """Token ids of an environment's reply between two turns of the policy.

    Args:
        chat: the reply is a user's message, and what the chat template writes from the end of the policy's turn to the
            beginning of its next one is part of it.
        last_id: the last token of the policy's turn, which the template may write too.
    """
    if not chat:
        return tokenizer(reply, add_special_tokens=False).input_ids
    answer = "\N{OBJECT REPLACEMENT CHARACTER}"
    messages = [("user", "?"), ("assistant", answer), ("user", reply)]
    text = render_chat(tokenizer, [{"role": role, "content": content} for role, content in messages], True)
    between = text.partition(answer)[2]
    end = tokenizer.decode([last_id])
    if last_id in tokenizer.all_special_ids and between.startswith(end):
        between = between[len(end) :]
    return tokenizer(between, add_special_tokens=False).input_ids


def as_messages(completion: Any) -> list[dict[str, Any]]:
    """A completion as messages: text becomes one message of the assistant."""
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
            messages = (prompt if isinstance(prompt, list) else []) + as_messages(completion)
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
