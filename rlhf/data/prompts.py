"""Tokenised prompts and batches of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rlhf.config.jobs import DataConfig
from rlhf.data.datasets import (
    LINES,
    checked_column,
    has_held_out_rows,
    holds_lines,
    load_held_out_rows,
    load_rows,
    read_column,
    split_indices,
)
from rlhf.data.encoding import encode_prompts, pad, padding_id
from rlhf.data.streams import ShuffledStream
from rlhf.errors import UserError
from rlhf.records import Prompts


@dataclass(frozen=True)
class PromptSet:
    """Tokenised prompts, in the data set's order."""

    prompts: list[Any]
    """Each a text or a list of messages."""
    ids: list[list[int]]
    columns: dict[str, list[Any]]
    """The data set's other columns, for reward functions."""
    pad_id: int
    path: str | None = None
    """The file, folder or data set that they come from."""
    dropped: int = 0
    """How many other prompts were left out, because they are too long."""

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: Sequence[int]) -> Prompts:
        """The prompts with these indices, left-padded to the longest of them."""
        ids, mask = pad([self.ids[i] for i in indices], self.pad_id, "left")
        columns = {name: [values[i] for i in indices] for name, values in self.columns.items()}
        return Prompts(ids, mask, [self.prompts[i] for i in indices], columns)

    def select(self, indices: Sequence[int]) -> "PromptSet":
        """The prompts with these indices as a set of their own, from which none was dropped."""
        return replace(
            self,
            dropped=0,
            prompts=[self.prompts[i] for i in indices],
            ids=[self.ids[i] for i in indices],
            columns={name: [values[i] for i in indices] for name, values in self.columns.items()},
        )

    def stream(self, start: int, count: int, seed: int) -> list[int]:
        """Indices `start` to `start + count` of the endless shuffled stream of prompts."""
        return ShuffledStream(len(self), seed).take(start, count)


def prepare_prompts(
    tokenizer: Any, rows: Any, config: DataConfig, pad_id: int, path: str | None = None, held_out: bool = False
) -> PromptSet:
    """Check and tokenise the prompts of rows.

    Args:
        path: of the rows, for error messages; default `config.path`.
        held_out: the rows are those held out, for error messages.

    Raises:
        UserError: there is no column of prompts, or a prompt is null, empty or longer than `max_prompt_length`.
    """
    path = path or config.path
    prompts, column = _read_prompts(rows, path)
    ids = encode_prompts(tokenizer, prompts)
    limit = config.max_prompt_length
    long = [i for i, row in enumerate(ids) if len(row) > limit]
    if long and config.too_long == "error":
        raise UserError(
            f"{path}: {len(long)} of {len(ids)} prompts are longer than data.max_prompt_length = {limit} tokens "
            f"(row {long[0] + 1} has {len(ids[long[0]])}); raise the limit, or set data.too_long to drop or truncate"
        )
    empty = [i for i, row in enumerate(ids) if not row]
    if empty:
        raise UserError(f"{path}, row {empty[0] + 1}: the prompt has no tokens")
    used = [i for i, row in enumerate(ids) if config.too_long != "drop" or len(row) <= limit]
    if not used:
        kind = "held-out prompt" if held_out else "prompt"
        raise UserError(
            f"{path}: every {kind} is longer than data.max_prompt_length = {limit} tokens; raise it, or set "
            "data.too_long to truncate"
        )
    others = {name: read_column(rows, name, path) for name in rows.column_names if name != column}
    return PromptSet(
        prompts=[prompts[i] for i in used],
        ids=[_truncate_left(ids[i], limit, tokenizer.bos_token_id) for i in used],
        columns={name: [values[i] for i in used] for name, values in others.items()},
        pad_id=pad_id,
        path=path,
        dropped=len(ids) - len(used),
    )


def _read_prompts(rows: Any, path: str | None) -> tuple[list[Any], str | None]:
    """The prompts of rows and the name of their column; None where they are the beginnings of the column `messages`.

    That column stays, for reward functions that read the rest of a conversation.
    """
    if holds_lines(path):
        return checked_column(rows, LINES, path), LINES
    if "messages" not in rows.column_names or "prompt" in rows.column_names:
        return checked_column(rows, "prompt", path), "prompt"
    prompts = []
    for i, messages in enumerate(checked_column(rows, "messages", path)):
        is_user = [isinstance(message, dict) and message.get("role") == "user" for message in messages]
        if not any(is_user):
            raise UserError(
                f"{path}, row {i + 1}: 'messages' has no user's turn, up to which a conversation is the prompt; add "
                "one, or a column 'prompt'"
            )
        prompts.append(messages[: len(is_user) - is_user[::-1].index(True)])
    return prompts, None


def load_prompts(tokenizer: Any, config: DataConfig, seed: int) -> tuple[PromptSet, PromptSet | None]:
    """Training prompts, and held-out prompts or None where nothing is held out.

    Prompts that are too long are dropped before a fraction of the others is held out.
    """
    pad_id = padding_id(tokenizer)
    prompts = prepare_prompts(tokenizer, load_rows(config.path or "", config.split), config, pad_id)
    if has_held_out_rows(config):
        rows = load_held_out_rows(config)
        return prompts, prepare_prompts(tokenizer, rows, config, pad_id, config.eval_path, held_out=True)
    training, held_out = split_indices(len(prompts), config.eval_fraction, seed)
    if not held_out:
        return prompts, None
    return replace(prompts.select(training), dropped=prompts.dropped), prompts.select(held_out)


def load_held_out_prompts(tokenizer: Any, config: DataConfig, seed: int) -> PromptSet:
    """The held-out prompts alone; all prompts of `path` where nothing is held out."""
    if has_held_out_rows(config):
        rows = load_held_out_rows(config)
        return prepare_prompts(tokenizer, rows, config, padding_id(tokenizer), config.eval_path, held_out=True)
    prompts, held_out = load_prompts(tokenizer, config, seed)
    return prompts if held_out is None else held_out


def make_prompts(tokenizer: Any, prompts: Sequence[Any], columns: dict[str, list[Any]] | None = None) -> Prompts:
    """Texts, lists of messages or lists of token ids as one batch.

    Raises:
        UserError: there are none, or one is empty or of another type.
    """
    if not len(prompts):
        raise UserError("there are no prompts")
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str | list) or not prompt:
            raise UserError(f"prompt {i} is {prompt!r}, but must be text, a list of messages or a list of token ids")
    token_ids = {i: prompt for i, prompt in enumerate(prompts) if isinstance(prompt[0], int)}
    texts = [tokenizer.decode(prompt) if i in token_ids else prompt for i, prompt in enumerate(prompts)]
    encoded = [token_ids.get(i, ids) for i, ids in enumerate(encode_prompts(tokenizer, texts))]
    ids, mask = pad(encoded, padding_id(tokenizer), "left")
    return Prompts(ids, mask, texts, columns or {})


def _truncate_left(ids: list[int], limit: int, bos: int | None) -> list[int]:
    """The last `limit` tokens of a prompt, its start token included where it has one."""
    if len(ids) <= limit:
        return ids
    start = ids[:1] if ids[0] == bos and limit > 1 else []
    return start + ids[len(ids) - limit + len(start) :]
