"""Demonstrations of supervised fine-tuning: rows of text, messages or prompts with completions as token ids."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxtyping import Bool, Int
from torch import Tensor

from rlhf.data.datasets import checked_column, delimiter_hint
from rlhf.data.disk_rows import DiskRows, pieces
from rlhf.data.encoding import as_messages, encode_prompts, pad, render_chat
from rlhf.errors import UserError

_FORMATS = (["messages"], ["prompt", "completion"], ["text"])
"""Columns of each format; where rows have several, the first is used."""


class Demonstration(NamedTuple):
    """One tokenised example of supervised fine-tuning."""

    ids: list[int]
    trained: list[bool]
    """True on the tokens that the loss is taken over."""

    @property
    def trained_tokens(self) -> int:
        """How many tokens have a loss; the first token of a text is never predicted."""
        return sum(self.trained[1:])


def dataset_formats(rows: Any, path: str | None) -> list[list[str]]:
    """The columns of each format that the rows have, beginning with the format that is used.

    Raises:
        UserError: they have none.
    """
    formats = [columns for columns in _FORMATS if set(columns) <= set(rows.column_names)]
    if not formats:
        raise UserError(
            f"{path} has the columns {', '.join(map(repr, rows.column_names))}, but demonstrations need 'text', "
            "'messages', or 'prompt' and 'completion'" + delimiter_hint(rows)
        )
    return formats


def encode_demonstrations(
    tokenizer: Any, rows: Any, limit: int, path: str | None, limit_setting: str = "training.max_length"
) -> list[Demonstration]:
    """Tokenise demonstrations, cut at `limit` tokens; those without a trained token are left out.

    Args:
        path: of the rows, for error messages.
        limit_setting: the setting that `limit` comes from, for error messages.

    Raises:
        UserError: a column is missing, a value is null or empty, or no demonstration has a trained token.
    """
    examples = _encode(tokenizer, rows, limit, path)
    _check_any(examples, limit, path, limit_setting)
    return examples


def stream_demonstrations(
    tokenizer: Any, rows: Any, limit: int, path: str | None, limit_setting: str = "training.max_length"
) -> Sequence[Demonstration]:
    """The same with token ids on disk, for rows that are there too."""
    encoded = (row for piece, name in pieces(rows, path) for row in _encode(tokenizer, piece, limit, name))
    examples = DiskRows(
        encoded,
        to_lists=lambda example: [example.ids, list(map(int, example.trained))],
        from_lists=lambda lists: Demonstration(lists[0], list(map(bool, lists[1]))),
    )
    _check_any(examples, limit, path, limit_setting)
    return examples


def _encode(tokenizer: Any, rows: Any, limit: int, path: str | None) -> list[Demonstration]:
    """The demonstrations that have a trained token."""
    columns = dataset_formats(rows, path)[0]
    values = [checked_column(rows, name, path) for name in columns]
    examples = []
    for row in zip(*values, strict=True):
        ids, trained = encode_demonstration(tokenizer, dict(zip(columns, row, strict=True)))
        if any(trained[1:limit]):
            examples.append(Demonstration(ids=ids[:limit], trained=trained[:limit]))
    return examples


def _check_any(examples: Sequence[Demonstration], limit: int, path: str | None, limit_setting: str) -> None:
    if not examples:
        raise UserError(f"{path}: no row has a token to train on within {limit_setting} = {limit}; raise it")


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
            messages = [*prompt, *as_messages(completion)]
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


def pad_demonstrations(
    examples: Sequence[Demonstration], pad_id: int
) -> tuple[Int[Tensor, "B L"], Bool[Tensor, "B L"], Bool[Tensor, "B L"]]:
    """Right-padded token ids, the mask of real tokens, and the mask of trained tokens."""
    ids, mask = pad([example.ids for example in examples], pad_id, "right")
    trained, _ = pad([example.trained for example in examples], 0, "right")
    return ids, mask, trained.bool()
