"""Mixes: the weighted sum of several sources, with each source's raw scores beside it."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import Any

from rlhf.errors import UserError
from rlhf.rewards.functions import FunctionReward, SourceTimeoutError
from rlhf.rewards.results import (
    TEXTS_ONLY,
    Context,
    Failure,
    Score,
    TokenRewards,
    describe_row,
    read_scores,
    rewards_by_token,
)


@dataclass(frozen=True)
class MixedScores:
    """The scores of a batch of responses by a mix, or by one source."""

    totals: list[float]
    """The weighted sum of the sources that apply; 0 where one failed."""
    by_token: list[list[float] | None]
    """The part of each total that belongs to single tokens; None where there is none."""
    by_source: dict[str, list[float]]
    """Raw scores by the source's name; nan where it does not apply or failed."""
    errors: list[str | None]
    """Why a response has no total; None where it has one."""


class Mix:
    """The weighted sum of named sources.

    A source that returns None does not apply to that response and is left out of its sum. One of weight 0 is measured,
    and never affects the sum, not even by failing where failures are skipped.
    """

    def __init__(self, sources: Mapping[str, Any], weights: Mapping[str, float]):
        self.sources = sources
        self.weights = weights

    def __call__(self, prompts: list[Any], completions: list[str], columns: dict[str, list[Any]]) -> list[float]:
        """The weighted sum for each completion.

        Raises:
            UserError: a source fails, or none applies to a completion.
        """
        return self.score(prompts, completions, columns).totals

    def score(
        self,
        prompts: list[Any],
        completions: list[str],
        columns: dict[str, list[Any]],
        context: Context = TEXTS_ONLY,
        skip: bool = False,
    ) -> MixedScores:
        """The weighted sums, and what they are made of.

        Sources that wait, for servers or in async functions, do so at the same time, while the others compute.

        Args:
            skip: put failures into `errors` instead of raising them.

        Raises:
            UserError: without `skip`, a source fails, or none applies to a completion.
        """
        texts = (prompts, completions, columns)
        scores: dict[str, list[Score]] = {}
        failures: list[BaseException] = []

        def compute(name: str) -> None:
            try:
                scores[name] = self._score(name, texts, context, skip)
            except BaseException as error:
                failures.append(error)

        # Daemons, so that neither an interrupt nor an error need wait for a server that hangs.
        waiting = [name for name, source in self.sources.items() if getattr(source, "waits", False)]
        threads = [threading.Thread(target=compute, args=(name,), daemon=True) for name in waiting]
        for thread in threads:
            thread.start()
        for name in self.sources:
            if name not in waiting:
                scores[name] = self._score(name, texts, context, skip)
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]
        rows = [
            self._sum({name: scores[name][row] for name in self.sources}, row, texts, context)
            for row in range(len(completions))
        ]
        errors = [error for _, _, error in rows]
        if not skip and any(errors):
            raise UserError(next(filter(None, errors)))
        return MixedScores(
            totals=[total for total, _, _ in rows],
            by_token=[by_token for _, by_token, _ in rows],
            by_source={name: [_number_or_nan(score) for score in scores[name]] for name in self.sources},
            errors=errors,
        )

    def _score(self, name: str, texts: Sequence[Any], context: Context, skip: bool) -> list[Score]:
        """One source's scores; failures name the source by its name in the mix too."""
        prefix = f"source {name}: " if name else ""
        try:
            scores = _score(self.sources[name], texts, context, skip)
        except UserError as error:
            raise UserError(f"{prefix}{error}") from error
        return [Failure(prefix + score.message) if isinstance(score, Failure) else score for score in scores]

    def _sum(
        self, scores: Mapping[str, Score], row: int, texts: Sequence[Any], context: Context
    ) -> tuple[float, list[float] | None, str | None]:
        """Of one response: the sum, its part by token, and why there is none."""
        total = 0.0
        by_token: list[float] | None = None
        applies = False
        for name, score in scores.items():
            weight = self.weights[name]
            if isinstance(score, Failure) and weight != 0:
                return 0.0, None, score.message
            if score is None or isinstance(score, Failure):
                continue
            if isinstance(score, TokenRewards) and context.token_ends is not None:
                try:
                    rewards = rewards_by_token(score, context.token_ends(row))
                except ValueError as error:
                    if weight == 0:
                        continue
                    where = describe_row(row, texts[0], texts[1], context.first_row)
                    return 0.0, None, f"{self.sources[name]} returned {error} of {where}"
                if weight != 0:
                    before = by_token or [0.0] * len(rewards)
                    by_token = [a + weight * b for a, b in zip(before, rewards, strict=True)]
            if weight != 0:
                applies = True
                total += weight * (score.total if isinstance(score, TokenRewards) else score)
        if not applies:
            where = describe_row(row, texts[0], texts[1], context.first_row)
            names = ", ".join(name or str(self.sources[name]) for name in self.sources if self.weights[name] != 0)
            return 0.0, None, f"nothing scores {where}: {names} returned None, which means that it does not apply"
        return total, by_token, None


def score_texts(
    source: Any,
    prompts: list[Any],
    completions: list[str],
    columns: dict[str, list[Any]],
    context: Context = TEXTS_ONLY,
    skip: bool = False,
) -> MixedScores:
    """The scores by any source, as a mix has them; `by_source` is empty unless it is a mix."""
    if isinstance(source, Mix):
        return source.score(prompts, completions, columns, context, skip)
    scores = Mix({"": source}, {"": 1.0}).score(prompts, completions, columns, context, skip)
    return MixedScores(scores.totals, scores.by_token, {}, scores.errors)


def numbers_where_it_applies(
    source: Any,
    prompts: list[Any],
    completions: list[str],
    columns: dict[str, list[Any]],
    context: Context = TEXTS_ONLY,
    skip: bool = False,
) -> list[float | None]:
    """The numbers by one source that need not score every completion: None where it does not apply.

    Args:
        skip: None where it fails, too.

    Raises:
        UserError: without `skip`, it fails.
    """
    numbers: list[float | None] = []
    for score in _score(source, (prompts, completions, columns), context, skip):
        if isinstance(score, Failure) and not skip:
            raise UserError(score.message)
        number = _number_or_nan(score)
        numbers.append(None if isnan(number) else number)
    return numbers


def _number_or_nan(score: Score) -> float:
    if score is None or isinstance(score, Failure):
        return nan
    return score.total if isinstance(score, TokenRewards) else score


def _score(source: Any, texts: Sequence[Any], context: Context, skip: bool) -> list[Score]:
    """A source's scores. With `skip`, a call that fails becomes the failure of its rows.

    A function that raises is called again for each row alone, so that only the rows that it fails on are lost.
    """
    prompts, completions, columns = texts
    try:
        if not hasattr(source, "score"):  # any callable that gives numbers
            return read_scores(source(*texts), "the reward source", prompts, completions)
        return source.score(*texts, context)
    except UserError as error:
        if not skip:
            raise
        if len(completions) == 1 or isinstance(error, SourceTimeoutError) or not isinstance(source, FunctionReward):
            rows = range(len(completions))
            return [Failure(f"{error}; {describe_row(row, texts[0], texts[1], context.first_row)}") for row in rows]
    scores: list[Score] = []
    for row in range(len(completions)):
        ids = None if context.completion_ids is None else [context.completion_ids[row]]
        alone = ([prompts[row]], [completions[row]], {name: [values[row]] for name, values in columns.items()})
        scores += _score(source, alone, Context(context.step, ids, first_row=context.first_row + row), skip)
    return scores
