"""A replayed optimizer step as text: a table of its responses, and what is wrong with them."""

import math
from typing import Any

from rlhf.trainers.replay import Replay

SHOWN = 12
"""Responses in the table; those whose gradient is not finite come first, by the size of their scores."""


def replay_table(replay: Replay) -> Any:
    """The responses with the worst gradients as a table for the terminal."""
    from rich.table import Table

    table = Table(title=f"step {replay.step}: the responses of the skipped optimizer step")
    for name in ("row", "score", "largest advantage", "loss", "gradient norm"):
        table.add_column(name, justify="right")
    table.add_column("response", overflow="ellipsis", no_wrap=True, max_width=40)
    worst = sorted(replay.rows, key=lambda row: (row.is_finite, -(row.grad_norm if row.is_finite else abs(row.score))))
    for row in worst[:SHOWN]:
        numbers = (row.score, row.largest_advantage, row.loss, row.grad_norm)
        table.add_row(str(row.row), *(f"{value:.3g}" for value in numbers), repr(row.completion))
    return table


def replay_verdict(replay: Replay) -> str:
    """In a sentence, how many responses and weights have a gradient that is not finite."""
    if not replay.weights:
        return f"the gradient is finite on this machine; its norm is {replay.grad_norm:.3g}"
    broken = [row for row in replay.rows if not row.is_finite]
    before_forward = bool(broken) and all(not math.isfinite(row.largest_advantage) for row in broken)
    what = "advantages" if before_forward else "gradients"
    largest = max(replay.rows, key=lambda row: abs(row.score))
    return (
        f"{len(broken)} of {len(replay.rows)} responses have {what} that are not finite "
        f"or overflow; so do {len(replay.weights)} weights, the first of them {replay.weights[0]}; the "
        f"largest score is {largest.score:.3g}, in row {largest.row}"
    )
