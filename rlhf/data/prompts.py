"""Tokenised prompts and batches of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.config.jobs import DataConfig
from rlhf.data.datasets import checked_column, read_column, split_rows
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

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, indices: Sequence[int]) -> Prompts:
        """The prompts with these indices, left-padded to the longest of them."""
        ids, mask = pad([self.ids[i] for i in indices], self.pad_id, "left")
        columns = {name: [values[i] for i in indices] for name, values in self.columns.items()}
        return Prompts(ids, mask, [self.prompts[i] for i in indices], columns)

    def stream(self, start: int, count: int, seed: int) -> list[int]:
        """Indices `start` to `start + count` of the endless shuffled stream of prompts."""
        return ShuffledStream(len(self), seed).take(start, count)


def prepare_prompts(
    tokenizer: Any, rows: Any, config: DataConfig, pad_id: int, path: str | None = None, held_out: bool = False
) -> PromptSet:
    """Check and tokenise the `prompt` column.

    Args:
        path: of the rows, for error messages; default `config.path`.
        held_out: the rows are those held out, for error messages.

    Raises:
        UserError: the column is missing, a prompt is null, empty or longer than `max_prompt_length`.
    """
    path = path or config.path
    prompts = checked_column(rows, "prompt", path)
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
            "data.too_long to truncate" + (", or hold out more with data.eval_fraction" if held_out else "")
        )
    others = {name: read_column(rows, name, path) for name in rows.column_names if name != "prompt"}
    return PromptSet(
        prompts=[prompts[i] for i in used],
        ids=[_truncate_left(ids[i], limit, tokenizer.bos_token_id) for i in used],
        columns={name: [values[i] for i in used] for name, values in others.items()},
        pad_id=pad_id,
    )


def load_prompts(tokenizer: Any, config: DataConfig, seed: int) -> tuple[PromptSet, PromptSet | None]:
    """Training prompts, and held-out prompts or None where nothing is held out."""
    rows, held_out = split_rows(config, seed)
    pad_id = padding_id(tokenizer)
    prompts = prepare_prompts(tokenizer, rows, config, pad_id)
    if not held_out:
        return prompts, None
    return prompts, prepare_prompts(tokenizer, held_out, config, pad_id, config.eval_path, held_out=True)


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
