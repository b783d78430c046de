"""Where each token of a response ends in the response's text, to which rewards by token are aligned."""

from collections.abc import Sequence
from typing import Any

WINDOW = 16
"""Tokens that are decoded before each token, which is enough for the spaces and the bytes of a character."""


def token_ends(tokenizer: Any, ids: Sequence[int], text: str) -> list[int]:
    """The position in a response's text, in characters, after each of its tokens; ascending, the last one its length.

    A character of several tokens ends with the last of them. Special tokens have no text.

    Args:
        ids: the response's tokens.
        text: the response as it is scored: without special tokens, cut at a stop string.
    """
    if not ids:
        return []
    windows = [list(ids[max(0, t - WINDOW) : t + 1]) for t in range(len(ids))]
    longer = tokenizer.batch_decode(windows, skip_special_tokens=True)
    shorter = tokenizer.batch_decode([window[:-1] for window in windows], skip_special_tokens=True)
    ends: list[int] = []
    end = 0
    for with_token, without_token in zip(longer, shorter, strict=True):
        end += len(_complete(with_token)) - len(_complete(without_token))
        ends.append(min(max(end, ends[-1] if ends else 0), len(text)))
    if ends:
        ends[-1] = len(text)
    return ends


def _complete(text: str) -> str:
    """Decoded text without the first bytes of a character that is not complete."""
    return text.rstrip("\N{REPLACEMENT CHARACTER}")
