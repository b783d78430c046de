"""Preference pairs: a chosen and a rejected completion of a prompt as token ids, for a reward model or for DPO."""

from dataclasses import dataclass
from typing import Any

from rlhf.data.comparisons import ComparedRows
from rlhf.data.datasets import checked_column
from rlhf.data.demonstrations import Demonstration, encode_demonstration
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

    pairs: list[CompletionPair]
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
    pairs: list[CompletionPair] = []
    equal = cut = 0
    for prompt, chosen, rejected in zip(*_read_pairs(rows, path), strict=True):
        ids = [_encode_completion(tokenizer, *text, limit) for text in _split_prompt(prompt, chosen, rejected)]
        if not all(text.trained_tokens for text in ids):
            cut += 1
        elif ids[0].ids == ids[1].ids:
            equal += 1
        else:
            pairs.append(CompletionPair(len(pairs), *ids))
    if not pairs:
        raise UserError(
            f"{path} has no pair to learn from: of {equal} the completions are equal, and {cut} have no completion "
            f"within training.max_length = {limit} tokens; bring others, or raise it"
        )
    return CompletionPairs(pairs, equal, cut)


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
