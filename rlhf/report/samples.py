"""The report's samples: responses before and after training side by side, with tokens coloured by log-ratio."""

from dataclasses import dataclass

from rlhf.report.numbers import Row, finite, signed
from rlhf.report.run_files import Run

LEVELS = (0.1, 0.5, 1.0, 2.0)
"""Absolute log-ratios to the reference, in nats, from which a token gets the next stronger colour."""


@dataclass(frozen=True)
class Sample:
    """A response to a held-out prompt at one step."""

    title: str
    row: Row
    tokens: list[tuple[str, str, str]]
    """(text, colour class, tooltip) of each token; empty: show the plain response."""

    @property
    def log_ratio(self) -> float:
        """Log-ratio of the whole response to the reference, in nats."""
        return sum(finite(value) for value in self.row.get("token_kl") or [] if value is not None)


def compare_samples(run: Run, chosen: int) -> list[tuple[Row, list[Sample]]]:
    """For each held-out prompt its first row, and its samples at the first step and at step `chosen`."""
    steps = sorted({row["step"] for row in run.samples})
    if not steps:
        return []
    after = chosen if chosen in steps[1:] else steps[-1]
    titles = {steps[0]: "Before"} | ({after: "After"} if after > 0 else {})
    pairs = []
    for index in sorted({row["index"] for row in run.samples}):
        rows = {row["step"]: row for row in run.samples if row["index"] == index}
        shown = {step: title for step, title in titles.items() if step in rows}
        sides = [
            Sample(title, rows[step], color_tokens(rows[step]) if step == after > 0 else [])
            for step, title in shown.items()
        ]
        if sides:
            pairs.append((sides[0].row, sides))
    return pairs


def color_tokens(row: Row) -> list[tuple[str, str, str]]:
    """Each response token with the CSS class of its log-ratio: `more-3`, `less-1`, or none if it is small."""
    tokens = row.get("tokens") or []
    log_ratios = row.get("token_kl") or []
    if len(tokens) != len(log_ratios):
        return []
    pieces = []
    from_environment = row.get("from_environment") or [False] * len(tokens)
    for token, value, is_reply in zip(tokens, log_ratios, from_environment, strict=True):
        if is_reply:
            pieces.append((str(token), "environment", "written by the environment"))
            continue
        log_ratio = finite(value)
        level = sum(abs(log_ratio) >= edge for edge in LEVELS)
        style = f"{'more' if log_ratio > 0 else 'less'}-{level}" if level else ""
        pieces.append((str(token), style, f"{signed(log_ratio)} nats"))
    return pieces
