"""The report's samples: responses before and after training side by side, with tokens coloured by one of three numbers.

The log-ratio to the reference says what training changed, the critic's value what it expects from there on, the
advantage whether a token turned out better than that.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhf.report.numbers import Row, finite, number, signed
from rlhf.report.run_files import Run

LEVELS = (0.1, 0.5, 1.0, 2.0)
"""Absolute log-ratios to the reference, in nats, from which a token gets the next stronger colour."""
DEVIATIONS = (0.25, 0.5, 1.0, 2.0)
"""The same for values and advantages, in root mean squares over all tokens shown."""


@dataclass(frozen=True)
class Colouring:
    """A number by which tokens are coloured, and from which distance to its centre they get a stronger colour."""

    name: str
    title: str
    column: str
    """of samples.jsonl"""
    prefix: str
    """of its CSS classes"""
    below: str
    above: str
    centre: float = 0.0
    levels: tuple[float, ...] = LEVELS

    def style(self, value: float) -> str:
        """The CSS class of a token: `more-3`, `less-1`, or none where the value is near the centre or missing."""
        distance = value - self.centre
        level = sum(abs(distance) >= edge for edge in self.levels)
        return f"{self.prefix}{'more' if distance > 0 else 'less'}-{level}" if level else ""

    def bound(self, level: int) -> str:
        """The number at which a level begins, for the legend; negative levels are those below the centre."""
        distance = self.levels[abs(level) - 1] if level else 0.0
        text = number if self.centre else signed
        return text(self.centre + (distance if level > 0 else -distance))


@dataclass(frozen=True)
class Sample:
    """A response to a held-out prompt at one step."""

    title: str
    row: Row
    tokens: list[tuple[str, str, str]]
    """(text, colour classes, tooltip) of each token; empty: show the plain response."""

    @property
    def log_ratio(self) -> float:
        """Log-ratio of the whole response to the reference, in nats; 0 where it is missing."""
        return sum(finite(value) for value in self.row.get("token_kl") or [] if value is not None)


def colourings_of(rows: Sequence[Row]) -> list[Colouring]:
    """The numbers that the tokens of these rows have, with levels that fit their size."""
    log_ratio = Colouring(
        "log-ratio",
        "log-ratio to the reference",
        "token_kl",
        "",
        "less likely than under the reference",
        "more likely, in nats (or more)",
    )
    value = Colouring("value", "value", "token_values", "value-", "below the mean value", "above")
    advantage = Colouring(
        "advantage", "advantage", "token_advantages", "advantage-", "worse than the critic expected", "better"
    )
    colourings = [log_ratio] if any(row.get(log_ratio.column) for row in rows) else []
    for colouring in (value, advantage):
        numbers = np.array([finite(number) for row in rows for number in row.get(colouring.column) or []])
        numbers = numbers[np.isfinite(numbers)]
        if numbers.size:
            centre = float(numbers.mean()) if colouring is value else 0.0
            scale = float(np.sqrt(np.mean((numbers - centre) ** 2))) or 1.0
            levels = tuple(scale * deviation for deviation in DEVIATIONS)
            texts = (colouring.name, colouring.title, colouring.column, colouring.prefix)
            colourings.append(Colouring(*texts, colouring.below, colouring.above, centre, levels))
    return colourings


def compare_samples(run: Run, chosen: int) -> tuple[list[tuple[Row, list[Sample]]], list[Colouring]]:
    """For each held-out prompt its first row, and its samples at the first step and at step `chosen`.

    Returns:
        The prompts with their samples, and the numbers by which tokens are coloured.
    """
    steps = sorted({row["step"] for row in run.samples})
    if not steps:
        return [], []
    after = chosen if chosen in steps[1:] else steps[-1]
    titles = {steps[0]: "Before"} | ({after: "After"} if after > 0 else {})
    colourings = colourings_of([row for row in run.samples if row["step"] in titles])
    critics = [c for c in colourings if c.column != "token_kl"]  # before training, every log-ratio is 0
    pairs = []
    for index in sorted({row["index"] for row in run.samples}):
        rows = {row["step"]: row for row in run.samples if row["index"] == index}
        shown = {step: title for step, title in titles.items() if step in rows}
        sides = [
            Sample(title, rows[step], colour_tokens(rows[step], colourings if step == after > 0 else critics))
            for step, title in shown.items()
        ]
        if sides:
            pairs.append((sides[0].row, sides))
    return pairs, colourings


def colour_tokens(row: Row, colourings: Sequence[Colouring]) -> list[tuple[str, str, str]]:
    """Each response token with its CSS classes and its numbers; none where no list of numbers fits the tokens."""
    tokens = row.get("tokens") or []
    columns = [(c, row.get(c.column) or []) for c in colourings]
    columns = [(colouring, values) for colouring, values in columns if len(values) == len(tokens)]
    if not columns:
        return []
    pieces = []
    from_environment = row.get("from_environment") or [False] * len(tokens)
    for i, (token, is_reply) in enumerate(zip(tokens, from_environment, strict=True)):
        if is_reply:
            pieces.append((str(token), "environment", "written by the environment"))
            continue
        numbers = [(colouring, finite(values[i])) for colouring, values in columns]
        styles = [colouring.style(value) for colouring, value in numbers]
        tips = [_tip(colouring, value) for colouring, value in numbers]
        pieces.append((str(token), " ".join(filter(None, styles)), ", ".join(tips)))
    return pieces


def _tip(colouring: Colouring, value: float) -> str:
    if colouring.column == "token_kl":
        return f"{signed(value)} nats"
    return f"{colouring.name} {number(value) if colouring.name == 'value' else signed(value)}"
