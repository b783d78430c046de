"""The scores of the samples as a histogram, before against after training; each bar lists its samples."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhf.report.charts import round_step
from rlhf.report.numbers import Row, finite, number
from rlhf.report.samples import Sample

BARS = 8
EXCERPT = 160
"""Characters of a response in the list of a bar."""


@dataclass(frozen=True)
class ScoredSample:
    """A sample in a bar of the histogram."""

    index: int
    """of its prompt"""
    title: str
    score: float
    excerpt: str


@dataclass(frozen=True)
class Bar:
    """The samples with a score in [low, high), by the title of their side."""

    low: str
    high: str
    samples: dict[str, list[ScoredSample]]


def score_histogram(pairs: Sequence[tuple[Row, Sequence[Sample]]]) -> tuple[str, list[str], list[Bar]] | None:
    """The name of the score, the titles of the sides, and the bars from the lowest scores to the highest.

    None where fewer than two samples have a score. The score is that of training, or else the first that there is.
    """
    sides = [side for _, sides in pairs for side in sides]
    names = dict.fromkeys(name for side in sides for name in _scores(side))
    if not names:
        return None
    name = "score" if "score" in names else next(iter(names))
    scored = [
        ScoredSample(int(side.row["index"]), side.title, score, excerpt(side.row.get("response", "")))
        for side in sides
        if math.isfinite(score := finite(_scores(side).get(name)))
    ]
    if len(scored) < 2:
        return None
    values = np.array([sample.score for sample in scored])
    step = round_step((float(values.max() - values.min()) or abs(float(values[0])) or 1.0) / BARS)
    places = np.floor(values / step + 1e-9).astype(int)
    titles = list(dict.fromkeys(sample.title for sample in scored))
    bars = []
    for place in range(places.min(), places.max() + 1):
        own = sorted((s for s, p in zip(scored, places, strict=True) if p == place), key=lambda s: s.score)
        samples = {title: [sample for sample in own if sample.title == title] for title in titles}
        bars.append(Bar(number(place * step), number((place + 1) * step), samples))
    return name, titles, bars


def excerpt(text: object) -> str:
    """The beginning of a response on one line."""
    line = " ".join(str(text)[: 2 * EXCERPT].split())
    return line if len(line) <= EXCERPT else line[:EXCERPT] + "…"


def _scores(side: Sample) -> Row:
    scores = side.row.get("scores")
    return scores if isinstance(scores, dict) else {}
