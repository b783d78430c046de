"""Preference pairs: a chosen and a rejected completion of a prompt as token ids, for a reward model or for DPO."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.data.comparisons import ComparedRows
from rlhf.data.datasets import checked_column
from rlhf.data.demonstrations import Demonstration, encode_demonstration
from rlhf.data.disk_rows import DiskRows, pieces
from rlhf.data.encoding import as_messages, encode_for_scoring
from rlhf.errors import UserError


@dataclass(frozen=True)
class PreferencePair:
    """Two texts, each the prompt with one completion and an end token."""

    chosen: list[int]
    rejected: list[int]
    clearly: bool = False
    """Whether somebody found the chosen one clearly better."""
    tie: bool = False
    """Whether neither is better."""

    @property
    def length(self) -> int:
        """Tokens of the longer text."""
        return max(len(self.chosen), len(self.rejected))


def encode_pairs(tokenizer: Any, rows: Any, limit: int, path: str | None) -> list[PreferencePair]:
    """Tokenise the columns `prompt` (optional), `chosen` and `rejected`, cut at `limit` tokens.

    Raises:
        UserError: a column is missing, or a value is null or empty.
    """
    prompts, chosen, rejected = _read_pairs(rows, path)
    chosen_ids = encode_for_scoring(tokenizer, prompts, chosen, append_eos=True, max_length=limit)
    rejected_ids = encode_for_scoring(tokenizer, prompts, rejected, append_eos=True, max_length=limit)
    flags = [rows["clearly"], rows["tie"]] if isinstance(rows, ComparedRows) else []
    return [PreferencePair(*pair) for pair in zip(chosen_ids, rejected_ids, *flags, strict=True)]


def stream_pairs(tokenizer: Any, rows: Any, limit: int, path: str | None) -> Sequence[PreferencePair]:
    """The same with token ids on disk, for rows that are there too."""
    return DiskRows(
        (pair for piece, name in pieces(rows, path) for pair in encode_pairs(tokenizer, piece, limit, name)),
        to_lists=lambda pair: [pair.chosen, pair.rejected],
        from_lists=lambda lists: PreferencePair(lists[0], lists[1]),
    )


def _read_pairs(rows: Any, path: str | None) -> tuple[list[Any], list[Any], list[Any]]:
    """Prompts, chosen and rejected completions; prompts are "" where there is no such column."""
    if isinstance(rows, ComparedRows):
        return rows["prompt"], rows["chosen"], rows["rejected"]
    chosen = checked_column(rows, "chosen", path)
    rejected = checked_column(rows, "rejected", path)
    prompts = checked_column(rows, "prompt", path) if "prompt" in rows.column_names else [""] * len(chosen)
    return prompts, chosen, rejected


@dataclass(frozen=True)
class CompletionPair:
    """Two texts whose trained tokens are a completion of the same prompt and its end token."""

    index: int
    """Its place among the pairs that are used."""
    chosen: Demonstration
    rejected: Demonstration

    @property
    def length(self) -> int:
        """Tokens of the longer text."""
        return max(len(self.chosen.ids), len(self.rejected.ids))


@dataclass(frozen=True)
class CompletionPairs:
    """The pairs of a data set that DPO can learn from, and how many others there are."""

    pairs: Sequence[CompletionPair]
    equal: int
    """Pairs whose completions are the same tokens, at least up to the length limit."""
    cut: int
    """Pairs of which a completion begins after the length limit."""


def encode_completion_pairs(tokenizer: Any, rows: Any, limit: int, path: str | None) -> CompletionPairs:
    """Tokenise the columns `prompt` (optional), `chosen` and `rejected`, texts cut at `limit` tokens.

    Where the completions are conversations and no prompt is one, the messages that both begin with are the prompt.

    Raises:
        UserError: a column is missing, a value is null or empty, or no pair is left.
    """
    left_out: Counter[str] = Counter()
    pairs = list(_completion_pairs(tokenizer, [(rows, path)], limit, left_out))
    return _with_a_pair(CompletionPairs(pairs, left_out["equal"], left_out["cut"]), limit, path)


def stream_completion_pairs(tokenizer: Any, rows: Any, limit: int, path: str | None) -> CompletionPairs:
    """The same with token ids on disk, for rows that are there too."""
    left_out: Counter[str] = Counter()
    pairs = DiskRows(
        _completion_pairs(tokenizer, pieces(rows, path), limit, left_out),
        to_lists=lambda pair: [
            [pair.index],
            *(part for text in (pair.chosen, pair.rejected) for part in (text.ids, list(map(int, text.trained)))),
        ],
        from_lists=lambda lists: CompletionPair(
            lists[0][0],
            Demonstration(lists[1], list(map(bool, lists[2]))),
            Demonstration(lists[3], list(map(bool, lists[4]))),
        ),
    )
    return _with_a_pair(CompletionPairs(pairs, left_out["equal"], left_out["cut"]), limit, path)


def _completion_pairs(
    tokenizer: Any, parts: Iterable[tuple[Any, str | None]], limit: int, left_out: Counter[str]
) -> Iterator[CompletionPair]:
    """The pairs that DPO can learn from, of rows with their paths; counts the others."""
    index = 0
    for rows, path in parts:
        for prompt, chosen, rejected in zip(*_read_pairs(rows, path), strict=True):
            ids = [_encode_completion(tokenizer, *text, limit) for text in _split_prompt(prompt, chosen, rejected)]
            if not all(text.trained_tokens for text in ids):
                left_out["cut"] += 1
            elif ids[0].ids == ids[1].ids:
                left_out["equal"] += 1
            else:
                yield CompletionPair(index, *ids)
                index += 1


def _with_a_pair(encoded: CompletionPairs, limit: int, path: str | None) -> CompletionPairs:
    if not encoded.pairs:
        raise UserError(
            f"{path} has no pair to learn from: of {encoded.equal} the completions are equal, and {encoded.cut} have "
            f"no completion within training.max_length = {limit} tokens; bring others, or raise it"
        )
    return encoded


def _split_prompt(prompt: Any, chosen: Any, rejected: Any) -> list[tuple[Any, Any]]:
    """Prompt and completion of both texts, each a text or a list of messages."""
    if not isinstance(chosen, list) and not isinstance(rejected, list):
        return [(prompt, chosen), (prompt, rejected)]
    chosen, rejected = as_messages(chosen), as_messages(rejected)
    if isinstance(prompt, list):
        return [(prompt, chosen), (prompt, rejected)]
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    return [(messages[:shared], messages[shared:]) for messages in (chosen, rejected)]


def _encode_completion(tokenizer: Any, prompt: Any, completion: Any, limit: int) -> Demonstration:
    row = {"text": completion} if prompt == "" else {"prompt": prompt, "completion": completion}
    ids, trained = encode_demonstration(tokenizer, row)
    return Demonstration(ids[:limit], trained[:limit])
