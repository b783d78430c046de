"""Tokenised prompts and batches of them."""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from rlhf.config.shared import DataConfig
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
from rlhf.data.disk_rows import Column, DiskRows, Joined, Repeated, Selection, pieces
from rlhf.data.encoding import encode_prompts, pad, padding_id
from rlhf.data.streams import MixedStream, ShuffledStream
from rlhf.errors import UserError
from rlhf.records import Prompts

_shuffled = lru_cache(maxsize=4)(ShuffledStream)
_mixed = lru_cache(maxsize=4)(MixedStream)
"""The same stream for the same arguments, so that its order is not made anew at every step."""

DATA_SET = "data_set"
"""The column with the name of a prompt's data set, where there are several."""


@dataclass(frozen=True)
class PromptSet:
    """Tokenised prompts, in the data set's order."""

    prompts: Sequence[Any]
    """Each a text or a list of messages."""
    ids: Sequence[list[int]]
    columns: Mapping[str, Sequence[Any]]
    """The data set's other columns, for reward functions."""
    pad_id: int
    path: str | None = None
    """The file, folder or data set that they come from."""
    dropped: int = 0
    """How many other prompts were left out, because they are too long."""
    counts: dict[str, int] = field(default_factory=dict)
    """Prompts of each data set that this one consists of, by their names and in their order; empty for a single one."""
    shares: tuple[float, ...] = ()
    """Share of the stream of prompts that each of them has."""

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: Sequence[int]) -> Prompts:
        """The prompts with these indices, left-padded to the longest of them."""
        ids, mask = pad([self.ids[i] for i in indices], self.pad_id, "left")
        columns = {name: [values[i] for i in indices] for name, values in self.columns.items()}
        return Prompts(ids, mask, [self.prompts[i] for i in indices], columns)

    def select(self, indices: Sequence[int]) -> "PromptSet":
        """The prompts with these indices as a single set of their own, from which none was dropped."""
        return replace(
            self,
            dropped=0,
            counts={},
            shares=(),
            prompts=_select(self.prompts, indices),
            ids=_select(self.ids, indices),
            columns={name: _select(values, indices) for name, values in self.columns.items()},
        )

    def stream(self, start: int, count: int, seed: int) -> list[int]:
        """Indices `start` to `start + count` of the endless shuffled stream of prompts."""
        if self.counts:
            return _mixed(tuple(self.counts.values()), self.shares, seed).take(start, count)
        return _shuffled(len(self), seed).take(start, count)

    def repeated(self, value: Any) -> Sequence[Any]:
        """A column of one value."""
        return [value] * len(self) if isinstance(self.ids, list) else Repeated(value, len(self))

    @classmethod
    def mixed(cls, sets: Mapping[str, "PromptSet"], shares: Sequence[float]) -> "PromptSet":
        """Several sets as one, with a column `data_set`; columns that a set does not have are None there.

        Args:
            shares: of the stream, for each set; empty: in proportion to their sizes.
        """
        parts = list(sets.values())
        columns = dict.fromkeys(name for part in parts for name in part.columns)
        total = sum(map(len, parts))
        return cls(
            prompts=_joined([part.prompts for part in parts]),
            ids=_joined([part.ids for part in parts]),
            columns={
                name: _joined([part.columns.get(name) or part.repeated(None) for part in parts]) for name in columns
            }
            | {DATA_SET: _joined([part.repeated(name) for name, part in sets.items()])},
            pad_id=parts[0].pad_id,
            path=", ".join(part.path or "" for part in parts),
            dropped=sum(part.dropped for part in parts),
            counts={name: len(part) for name, part in sets.items()},
            shares=tuple(shares) or tuple(len(part) / total for part in parts),
        )


def _joined(parts: Sequence[Sequence[Any]]) -> Sequence[Any]:
    """Several lists as a list, and others as a view."""
    in_memory = all(isinstance(part, list) for part in parts)
    return [value for part in parts for value in part] if in_memory else Joined(parts)


def _select(values: Sequence[Any], indices: Sequence[int]) -> Sequence[Any]:
    """Some values of a list as a list, and of others as a view."""
    return [values[i] for i in indices] if isinstance(values, list) else Selection(values, indices)


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
    if config.streaming:
        return _stream_prompts(tokenizer, rows, config, pad_id, path, held_out)
    prompts, column = _read_prompts(rows, path, are_lines=holds_lines(path))
    ids, used = _encode_used(tokenizer, prompts, config, path)
    _check_any(len(used), config, path, held_out)
    others = {name: read_column(rows, name, path) for name in rows.column_names if name != column}
    return PromptSet(
        prompts=[prompts[i] for i in used],
        ids=ids,
        columns={name: [values[i] for i in used] for name, values in others.items()},
        pad_id=pad_id,
        path=path,
        dropped=len(prompts) - len(used),
    )


def _stream_prompts(
    tokenizer: Any, rows: Any, config: DataConfig, pad_id: int, path: str | None, held_out: bool
) -> PromptSet:
    """The same with texts, columns and token ids on disk."""
    used = array("q")
    column: str | None = None

    def encoded() -> Iterator[list[int]]:
        nonlocal column
        first = 0
        for piece, name in pieces(rows, path):
            prompts, column = _read_prompts(piece, name, are_lines=holds_lines(path))
            ids, used_here = _encode_used(tokenizer, prompts, config, name)
            used.extend(first + i for i in used_here)
            first += len(prompts)
            yield from ids

    ids = DiskRows(encoded(), to_lists=lambda row: [row], from_lists=lambda lists: lists[0])
    _check_any(len(used), config, path, held_out)
    indices = np.array(used, dtype=np.int64)
    names = [name for name in rows.column_names if name != column]
    return PromptSet(
        prompts=Column(rows, indices, _last_users_turn if column is None else itemgetter(column)),
        ids=ids,
        columns={name: Column(rows, indices, itemgetter(name)) for name in names},
        pad_id=pad_id,
        path=path,
        dropped=len(rows) - len(used),
    )


def _check_any(used: int, config: DataConfig, path: str | None, held_out: bool) -> None:
    if not used:
        kind = "held-out prompt" if held_out else "prompt"
        raise UserError(
            f"{path}: every {kind} is longer than data.max_prompt_length = {config.max_prompt_length} tokens; raise "
            "it, or set data.too_long to truncate"
        )


def _encode_used(
    tokenizer: Any, prompts: Sequence[Any], config: DataConfig, path: str | None
) -> tuple[list[list[int]], list[int]]:
    """The token ids of the prompts that are used, and which they are."""
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
    return [_truncate_left(ids[i], limit, tokenizer.bos_token_id) for i in used], used


def _read_prompts(rows: Any, path: str | None, are_lines: bool) -> tuple[list[Any], str | None]:
    """The prompts of rows and the name of their column; None where they are the beginnings of the column `messages`.

    That column stays, for reward functions that read the rest of a conversation.
    """
    if are_lines:
        return checked_column(rows, LINES, path), LINES
    if "messages" not in rows.column_names or "prompt" in rows.column_names:
        return checked_column(rows, "prompt", path), "prompt"
    prompts = []
    for i, messages in enumerate(checked_column(rows, "messages", path)):
        if not any(_is_user(message) for message in messages):
            raise UserError(
                f"{path}, row {i + 1}: 'messages' has no user's turn, up to which a conversation is the prompt; add "
                "one, or a column 'prompt'"
            )
        prompts.append(_last_users_turn({"messages": messages}))
    return prompts, None


def _is_user(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") == "user"


def _last_users_turn(row: Mapping[str, Any]) -> list[Any]:
    """The messages of a row up to the last one of the user."""
    is_user = list(map(_is_user, row["messages"]))
    return row["messages"][: len(is_user) - is_user[::-1].index(True)]


def load_prompts(tokenizer: Any, config: DataConfig, seed: int) -> tuple[PromptSet, PromptSet | None]:
    """Training prompts, and held-out prompts or None where nothing is held out.

    Prompts that are too long are dropped before a fraction of the others is held out. Of several data sets each holds
    out its fraction, unless the held-out prompts are a file or a split of their own.
    """
    if config.more:
        return _load_mixture(tokenizer, config, seed)
    pad_id = padding_id(tokenizer)
    rows = load_rows(config.path or "", config.split, config.streaming)
    prompts = prepare_prompts(tokenizer, rows, config, pad_id)
    if has_held_out_rows(config):
        rows = load_held_out_rows(config)
        return prompts, prepare_prompts(tokenizer, rows, config, pad_id, config.eval_path, held_out=True)
    training, held_out = split_indices(len(prompts), config.eval_fraction, seed)
    if not held_out:
        return prompts, None
    return replace(prompts.select(training), dropped=prompts.dropped), prompts.select(held_out)


def _load_mixture(tokenizer: Any, config: DataConfig, seed: int) -> tuple[PromptSet, PromptSet | None]:
    """The data sets of `data.path` and `data.more` as one."""
    paths = [config.path or "", *config.more]
    fraction = 0.0 if has_held_out_rows(config) else config.eval_fraction
    sets: dict[str, PromptSet] = {}
    held_out: dict[str, PromptSet] = {}
    for name, path in zip(_data_set_names(paths), paths, strict=True):
        single = DataConfig(
            path=path,
            split=config.split if path == config.path else "train",
            eval_fraction=fraction,
            max_prompt_length=config.max_prompt_length,
            too_long=config.too_long,
            streaming=config.streaming,
        )
        sets[name], test = load_prompts(tokenizer, single, seed)
        if DATA_SET in sets[name].columns:
            raise UserError(
                f"{path} has a column {DATA_SET!r}, which names the data set where there are several; rename it"
            )
        if test is not None:
            held_out[name] = test
    prompts = PromptSet.mixed(sets, config.shares)
    if has_held_out_rows(config):
        return prompts, load_held_out_prompts(tokenizer, config, seed)
    return prompts, PromptSet.mixed(held_out, ()) if held_out else None


def _data_set_names(paths: Sequence[str]) -> list[str]:
    """The file's name without its ending for each path; whole paths where two names are equal."""
    names = [Path(path).stem for path in paths]
    names = [path if names.count(name) > 1 else name for name, path in zip(names, paths, strict=True)]
    for path in paths:
        if names.count(path) > 1:
            raise UserError(
                f"data.path and data.more name {path} twice; name each data set once, and give it its share"
            )
    return names


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
