"""How often the answers of each origin win, and a Bradley-Terry fit over all origins. Pure functions over numbers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tabular.core.statistics import Interval

PRIOR = 0.1
"""Wins that each of two compared origins has beforehand, so that one that never loses has a finite strength."""


@dataclass(frozen=True)
class Outcome:
    """A pair that was compared."""

    a: str
    """Origin of one answer."""
    b: str
    """Origin of the other."""
    a_wins: float
    """From 0 to 1: the mean over those who compared it, a tie being half a win."""


@dataclass(frozen=True)
class OriginResult:
    """What the comparisons say about one origin."""

    origin: str
    pairs: int
    win_rate: Interval
    """Over its comparisons, whatever the other origin was."""
    strength: Interval
    """Of the Bradley-Terry fit, in nats, with mean 0: `P(x beats y) = sigmoid(strength x - strength y)`."""


def bradley_terry(wins: Any, prior: float = 0.0, iterations: int = 10_000, tolerance: float = 1e-10) -> np.ndarray:
    """The maximum-likelihood strengths of the model `P(i beats j) = sigmoid(strength i - strength j)`.

    Minorise and maximise: `p[i] <- wins of i / sum(n[i, j] / (p[i] + p[j]), j)`. Bradley & Terry (1952), Hunter (2004).

    Args:
        wins: [K, K], how often i won against j; a tie is half a win for each.
        prior: wins that each of two compared origins has beforehand.

    Returns:
        [K] strengths in nats, with mean 0.

    Raises:
        ValueError: an origin won or lost nothing, and there is no prior.
    """
    wins = np.asarray(wins, dtype=float)
    wins = wins + prior * ((wins + wins.T) > 0)
    games = wins + wins.T
    if (wins.sum(1) == 0).any() or (wins.sum(0) == 0).any():
        raise ValueError("an origin that won or lost every comparison has no finite strength; set a prior")
    p = np.ones(len(wins))
    for _ in range(iterations):
        new = wins.sum(1) / (games / (p[:, None] + p[None, :])).sum(1)
        new = new / np.exp(np.log(new).mean())
        converged = np.abs(np.log(new / p)).max() < tolerance
        p = new
        if converged:
            break
    return np.log(p)


def compare_origins(outcomes: Sequence[Outcome], resamples: int = 1000, seed: int = 0) -> list[OriginResult]:
    """Win rates and strengths of all origins, the strongest first, with 95% bootstrap intervals over pairs.

    Pairs of two answers of the same origin do not count.
    """
    used = [outcome for outcome in outcomes if outcome.a != outcome.b]
    if not used:
        return []
    origins = sorted({name for outcome in used for name in (outcome.a, outcome.b)})
    number = {name: i for i, name in enumerate(origins)}
    a = np.array([number[outcome.a] for outcome in used])
    b = np.array([number[outcome.b] for outcome in used])
    points = np.array([outcome.a_wins for outcome in used])

    def table(rows: np.ndarray) -> np.ndarray:
        wins = np.zeros((len(origins), len(origins)))
        np.add.at(wins, (a[rows], b[rows]), points[rows])
        np.add.at(wins, (b[rows], a[rows]), 1 - points[rows])
        return wins

    everything = table(np.arange(len(used)))
    drawn = np.random.default_rng(seed).integers(0, len(used), size=(resamples, len(used)))
    tables = [everything, *map(table, drawn)]
    rates = np.array([_rates(wins) for wins in tables])
    strengths = np.array([_strengths(wins) for wins in tables])
    results = [
        OriginResult(
            origin=name,
            pairs=int(((a == i) | (b == i)).sum()),
            win_rate=_interval(rates[:, i]),
            strength=_interval(strengths[:, i]),
        )
        for name, i in number.items()
    ]
    return sorted(results, key=lambda result: -result.strength.value)


def _rates(wins: np.ndarray) -> np.ndarray:
    """[K] share of its comparisons that each origin won; nan for one without any."""
    total = wins.sum(1) + wins.sum(0)
    return np.divide(wins.sum(1), total, out=np.full(len(wins), np.nan), where=total > 0)


def _strengths(wins: np.ndarray) -> np.ndarray:
    """[K] strengths; nan for origins that a resample has no comparison of."""
    present = (wins.sum(1) + wins.sum(0)) > 0
    strengths = np.full(len(wins), np.nan)
    strengths[present] = bradley_terry(wins[np.ix_(present, present)], PRIOR, tolerance=1e-6)
    return strengths


def _interval(values: np.ndarray) -> Interval:
    """The first value with the middle 95% of the others."""
    low, high = np.nanquantile(values[1:], [0.025, 0.975])
    return Interval(float(values[0]), float(low), float(high))
