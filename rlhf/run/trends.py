"""Over-optimisation: whether the held-out score rose while a judge fell."""

import math
from collections.abc import Mapping, Sequence
from typing import Any


def judge_names(evaluation: Mapping[str, Any]) -> list[str]:
    """The judge sources of a row of `eval.jsonl`: `judge`, and `judge/NAME` for several."""
    return [name for name in evaluation if (name + "/").startswith("judge/") and f"{name}_low" in evaluation]


def overoptimised(evaluations: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each judge that fell while the score rose, from the judge's best evaluation to the last one.

    Both changes must be larger than chance: than the root of the sum of the squared half-widths of the two 95%
    intervals. Responses to the same prompts are compared, so that chance alone rarely gives so much.

    Args:
        evaluations: rows of `eval.jsonl`, by step.
    """
    if not evaluations:
        return []
    last = evaluations[-1]
    sentences = []
    for name in judge_names(last):
        earlier = [row for row in evaluations[:-1] if _number(row, name) is not None]
        if not earlier:
            continue
        best = max(earlier, key=lambda row: row[name])
        if _rose(last, best, name) and _rose(best, last, "score"):
            scores, values = ([f"{row[key]:.3g}" for row in (best, last)] for key in ("score", name))
            sentences.append(
                f"since step {best['step']} the held-out score rose from {scores[0]} to {scores[1]} while {name} fell "
                f"from {values[0]} to {values[1]}: the policy may exploit errors of the reward"
            )
    return sentences


def _rose(before: Mapping[str, Any], after: Mapping[str, Any], name: str) -> bool:
    """Whether a measure is higher in one evaluation than in another one, beyond chance."""
    ends = [_number(row, f"{name}{suffix}") for row in (before, after) for suffix in ("", "_low", "_high")]
    if any(end is None for end in ends):
        return False
    old, old_low, old_high, new, new_low, new_high = (float(end or 0.0) for end in ends)
    return new - old > math.hypot((old_high - old_low) / 2, (new_high - new_low) / 2)


def _number(row: Mapping[str, Any], name: str) -> float | None:
    value = row.get(name)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
