"""How far people agree, with others and with themselves. Pure functions over labels and rows of `rlhf compare`."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tabular.core.statistics import Interval


@dataclass(frozen=True)
class Share:
    """`count` of `total`."""

    count: int
    total: int

    @property
    def interval(self) -> Interval | None:
        """The share with its 95% interval by Wilson (1927); None of nothing."""
        if self.total == 0:
            return None
        from scipy.stats import binomtest  # a second of import that most runs need not wait for

        bounds = binomtest(self.count, self.total).proportion_ci(method="wilson")
        return Interval(self.count / self.total, float(bounds.low), float(bounds.high))


def agreement(units: Sequence[Sequence[Hashable]]) -> Share:
    """In how many pairs of labels of the same unit both are equal.

    Args:
        units: the labels of each unit, by several people; those with one label have no pairs.
    """
    counts = [Counter(labels) for labels in units]
    equal = sum(n * (n - 1) // 2 for count in counts for n in count.values())
    return Share(equal, sum(len(labels) * (len(labels) - 1) // 2 for labels in units))


def krippendorff_alpha(units: Sequence[Sequence[Hashable]]) -> float | None:
    """Krippendorff's alpha for nominal labels: `1 - observed disagreement / expected disagreement`.

    1 is full agreement, 0 that of chance, below 0 worse than chance. With `o[c, k]` the pairs of labels c and k within
    units, each weighted by 1 / (labels of the unit - 1), `n[c]` their sums and n the total:
    `alpha = 1 - (n - 1) * sum(o[c, k], c != k) / sum(n[c] * n[k], c != k)`. Krippendorff (2011), Computing
    Krippendorff's Alpha-Reliability.

    Args:
        units: the labels of each unit, by several people; those with one label do not count.

    Returns:
        None where no unit has two labels, or all labels are equal.
    """
    pairable = [Counter(labels) for labels in units if len(labels) > 1]
    totals = sum(pairable, Counter())
    n = totals.total()
    disagreements = sum((c.total() ** 2 - sum(m * m for m in c.values())) / (c.total() - 1) for c in pairable)
    expected = n * n - sum(m * m for m in totals.values())
    return None if expected == 0 else 1 - (n - 1) * disagreements / expected


def first_answers(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The answers that count: not skipped, and not the second one of the same person to the same pair."""
    return [row for row in rows if not row["repeat"] and row["choice"] != "skip"]


def labels_by_pair(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """For each pair the choices of those who compared it."""
    labels: dict[str, list[str]] = {}
    for row in first_answers(rows):
        labels.setdefault(row["pair"], []).append(row["choice"])
    return list(labels.values())


def self_consistency(rows: Sequence[Mapping[str, Any]]) -> Share:
    """Of the pairs that somebody saw twice, those with the same choice."""
    first = {(row["annotator"], row["pair"]): row["choice"] for row in first_answers(rows)}
    second = [row for row in rows if row["repeat"] and row["choice"] != "skip"]
    pairs = [(first.get((row["annotator"], row["pair"])), row["choice"]) for row in second]
    equal = [a == b for a, b in pairs if a is not None]
    return Share(sum(equal), len(equal))
