"""What a source gives for one response: a number, rewards by token, no score, or a failure; and how it is read."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rlhf.errors import UserError


@dataclass(frozen=True)
class TokenRewards:
    """Rewards of single tokens of a response, which sum to its score."""

    values: list[float]
    ends: list[int] | None = None
    """Where the text that each value rewards ends, in characters of the response; None: one value for each token."""

    @property
    def total(self) -> float:
        return sum(self.values, 0.0)


@dataclass(frozen=True)
class Failure:
    """Why a source has no usable score for a response."""

    message: str
    """Names the source, the row and the value."""


Score = float | TokenRewards | Failure | None
"""Of one response by one source; None: the source does not apply to it."""


@dataclass(frozen=True)
class Context:
    """What sources may use besides texts and columns."""

    step: int = 0
    """Finished training steps."""
    completion_ids: list[list[int]] | None = None
    """Token ids of each response, its end token included; None where only texts are scored."""
    token_ends: Callable[[int], list[int]] | None = None
    """Row -> the position in the response's text, in characters, at which each of its tokens ends."""
    first_row: int = 0
    """The number of the first row, for error messages."""


TEXTS_ONLY = Context()
"""The context of texts that no run sampled."""


def describe_row(row: int, prompts: Sequence[Any], completions: Sequence[str], first_row: int = 0) -> str:
    """A row in words, for error messages."""
    return f"the completion {completions[row]!r:.120} (row {first_row + row}, prompt {prompts[row]!r:.80})"


def read_scores(
    returned: Any, source: str, prompts: Sequence[Any], completions: Sequence[str], first_row: int = 0
) -> list[Score]:
    """The scores in what a source returned; a row that has no usable one is a Failure.

    Args:
        returned: a sequence, tensor or array with an entry for each completion: a finite number, None, or a list of
            rewards by token, either numbers or pairs (end offset, number).
        source: the source's name in error messages.

    Raises:
        UserError: it is no sequence, or has another number of entries.
    """
    returned = _as_python(returned)
    if not isinstance(returned, Sequence) or isinstance(returned, str | bytes):
        raise UserError(f"{source} returned {returned!r:.80}, but must return a list of numbers")
    if len(returned) != len(completions):
        raise UserError(f"{source} returned {len(returned)} scores for {len(completions)} completions")
    scores: list[Score] = []
    for row, value in enumerate(returned):
        try:
            scores.append(_read_score(_as_python(value), completions[row]))
        except ValueError as error:
            where = describe_row(row, prompts, completions, first_row)
            scores.append(Failure(f"{source} returned {value!r:.120} for {where}, but {error}"))
    return scores


def _read_score(value: Any, completion: str) -> Score:
    """One entry. Raises ValueError with what a score must be."""
    if value is None:
        return None
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        return _number(value, "a score")
    entries = [_as_python(entry) for entry in value]
    if entries and not any(isinstance(entry, Sequence) and not isinstance(entry, str | bytes) for entry in entries):
        return TokenRewards([_number(entry, "a reward by token") for entry in entries])
    ends, values = [], []
    for entry in entries:
        if not isinstance(entry, Sequence) or isinstance(entry, str | bytes) or len(entry) != 2:
            raise ValueError("rewards by token must be numbers, or pairs (end offset, number)")
        end, number = entry
        if isinstance(end, bool) or not isinstance(end, int) or not 0 <= end <= len(completion):
            raise ValueError(
                f"an end offset must be a whole number from 0 to {len(completion)}, the completion's length"
            )
        ends.append(end)
        values.append(_number(number, "a reward by token"))
    return TokenRewards(values, ends)


def _number(value: Any, what: str) -> float:
    try:
        if not isinstance(value, str | bytes) and math.isfinite(value):
            return float(value)
    except (TypeError, ValueError, OverflowError):  # not a number, several numbers, or too large for a float
        pass
    raise ValueError(f"{what} must be a finite number")


def _as_python(value: Any) -> Any:
    """Tensors and arrays as numbers and lists."""
    return value.tolist() if hasattr(value, "tolist") else value


def as_numbers(scores: Sequence[Score], source: str, prompts: Sequence[Any], completions: Sequence[str]) -> list[float]:
    """Scores as one number each, rewards by token summed.

    Raises:
        UserError: a row failed, or the source does not apply to it.
    """
    numbers = []
    for row, score in enumerate(scores):
        if isinstance(score, Failure):
            raise UserError(score.message)
        if score is None:
            raise UserError(f"{source} has no score (None) for {describe_row(row, prompts, completions)}")
        numbers.append(score.total if isinstance(score, TokenRewards) else score)
    return numbers


def rewards_by_token(rewards: TokenRewards, token_ends: Sequence[int]) -> list[float]:
    """The reward of each token of a response.

    A value with an end offset belongs to the first token that ends there or later, which is the token with the last
    character of the text that is rewarded.

    Args:
        token_ends: where each token ends in the response's text, in characters, ascending.

    Raises:
        ValueError: there is another number of values than of tokens.
    """
    if rewards.ends is None:
        if len(rewards.values) != len(token_ends):
            raise ValueError(f"{len(rewards.values)} rewards by token for the {len(token_ends)} tokens")
        return list(rewards.values)
    by_token = [0.0] * len(token_ends)
    for end, value in zip(rewards.ends, rewards.values, strict=True):
        token = next(i for i, token_end in enumerate(token_ends) if token_end >= end)
        by_token[token] += value
    return by_token
