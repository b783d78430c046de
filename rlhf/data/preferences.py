"""Preference pairs: a chosen and a rejected completion of the same prompt as token ids."""

from dataclasses import dataclass
from typing import Any

from rlhf.data.datasets import checked_column
from rlhf.data.encoding import encode_for_scoring


@dataclass(frozen=True)
class PreferencePair:
    """Two texts, each the prompt with one completion and an end token."""

    chosen: list[int]
    rejected: list[int]

    @property
    def length(self) -> int:
        """Tokens of the longer text."""
        return max(len(self.chosen), len(self.rejected))


def encode_pairs(tokenizer: Any, rows: Any, limit: int, path: str | None) -> list[PreferencePair]:
    """Tokenise the columns `prompt` (optional), `chosen` and `rejected`, cut at `limit` tokens.

    Raises:
        UserError: a column is missing, or a value is null or empty.
    """
    chosen = checked_column(rows, "chosen", path)
    rejected = checked_column(rows, "rejected", path)
    prompts = checked_column(rows, "prompt", path) if "prompt" in rows.column_names else [""] * len(chosen)
    chosen_ids = encode_for_scoring(tokenizer, prompts, chosen, append_eos=True, max_length=limit)
    rejected_ids = encode_for_scoring(tokenizer, prompts, rejected, append_eos=True, max_length=limit)
    return [PreferencePair(*pair) for pair in zip(chosen_ids, rejected_ids, strict=True)]
