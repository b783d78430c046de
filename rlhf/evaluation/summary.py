"""Statistics of evaluated responses, and the rows of `samples.jsonl`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rlhf.evaluation.responses import EvaluatedResponse
from rlhf.run.metrics import distinct_n
from tabular.core.statistics import bootstrap_interval


def summarise(
    responses: Sequence[EvaluatedResponse], start_scores: Sequence[Mapping[str, float | None]] | None = None
) -> dict[str, float]:
    """Means over responses, with 95% bootstrap intervals of the scores.

    Lengths are in tokens, distinct-n in words. A key `NAME_low` and `NAME_high` hold the interval of NAME. Scores are
    those of the sources, and `set/SET/score` those of the prompts of one data set, where there are several;
    `penalised_score`, where training has penalties, is what it maximises.

    Args:
        start_scores: the scores of the policy before training on the same prompts; adds the win rate against them,
            by the first judge where there is one, else by the reward source. A tie is half a win.
    """
    lengths = [len(r.token_logprobs) for r in responses]
    summary: dict[str, float] = {"prompts": float(len(responses))}
    for name in responses[0].scores:
        summary |= _mean_with_interval(name, _present(r.scores[name] for r in responses))
    for data_set in sorted({r.data_set for r in responses if r.data_set is not None}):
        for name in responses[0].scores:
            part = _present(r.scores[name] for r in responses if r.data_set == data_set)
            summary |= _mean_with_interval(f"set/{data_set}/{name}", part)
    summary |= _mean_with_interval("penalised_score", _present(r.penalised_score for r in responses))
    if all(r.token_kl is not None for r in responses):
        summary["kl"] = float(np.mean([sum(_present(r.token_kl or [])) for r in responses]))
    words = [r.response.split() for r in responses]
    summary |= {
        "length": float(np.mean(lengths)),
        "eos_fraction": float(np.mean([not r.truncated for r in responses])),
        "repetition": float(np.mean([r.repetition for r in responses])),
        "distinct_1": distinct_n(words, 1),
        "distinct_2": distinct_n(words, 2),
        "entropy": float(-sum(sum(r.token_logprobs) for r in responses) / sum(lengths)),
    }
    if start_scores is not None:
        summary |= win_rate([r.scores for r in responses], start_scores)
    return summary


def preference_name(scores: Mapping[str, float | None]) -> str:
    """The source that decides which of two responses is better: the first judge where there is one, else the reward."""
    return next((name for name in scores if name.startswith("judge")), "score")


def win_rate(
    scores: Sequence[Mapping[str, float | None]], others: Sequence[Mapping[str, float | None]]
) -> dict[str, float]:
    """The share of prompts on which the first response is better than the other one, with its interval.

    A tie is half a win.

    Args:
        scores: of one response to each prompt, by source.
        others: of the other policy's responses to the same prompts.
    """
    name = preference_name(scores[0])
    # A missing score is nan here, and no comparison with it counts.
    ours = np.array([row[name] for row in scores], dtype=float)
    theirs = np.array([row[name] for row in others], dtype=float)
    wins = ((ours > theirs) + 0.5 * (ours == theirs))[~np.isnan(ours - theirs)]
    return _mean_with_interval("win_rate", wins.tolist())


def _present(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def selection_score(summary: Mapping[str, float]) -> float:
    """The score by which the best weights are chosen: after the penalties of training, where it has any."""
    return summary.get("penalised_score", summary["score"])


def _mean_with_interval(name: str, values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    interval = bootstrap_interval(values)
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def sample_rows(responses: Sequence[EvaluatedResponse], step: int, count: int) -> list[dict[str, Any]]:
    """The first `count` responses as rows of `samples.jsonl`, with divergence, value and advantage of each token."""
    return [
        {
            "step": step,
            "index": r.index,
            "prompt": r.prompt,
            "response": r.response,
            "tokens": r.tokens,
            "scores": r.scores,
            "truncated": r.truncated,
            "token_kl": _rounded(r.token_kl),
            **({} if r.token_values is None else {"token_values": _rounded(r.token_values)}),
            **({} if r.token_advantages is None else {"token_advantages": _rounded(r.token_advantages)}),
            **({} if r.from_environment is None else {"from_environment": r.from_environment}),
        }
        for r in responses[:count]
    ]


def _rounded(values: Sequence[float | None] | None) -> list[float | None] | None:
    return None if values is None else [None if value is None else round(value, 4) for value in values]
