"""The health rules while a run goes: which of them it breaks now, printed when it begins to."""

from collections.abc import Mapping, Sequence
from typing import Any

from rlhf.report.health import METRICS, HealthWarning, health_warnings

OFTEN = 500
"""Runs are checked after every step up to twice this one; later at every five-hundredth of their length so far."""


class LiveHealth:
    """The rules that a run breaks, checked after each step, or after several in a long run.

    Attributes:
        warnings: those of the last check.
    """

    def __init__(self, total_steps: int) -> None:
        self.warnings: list[HealthWarning] = []
        self._total_steps = total_steps
        self._rows: list[dict[str, Any]] = []
        self._earlier_evals: dict[int, Mapping[str, Any]] = {}

    def resume(self, rows: Sequence[Mapping[str, Any]], evals: Sequence[Mapping[str, Any]]) -> None:
        """Begin after these rows of `metrics.jsonl` and `eval.jsonl`, as if they had been checked step by step."""
        self._rows = [_read_by_rules(row) for row in rows]
        self._earlier_evals = {row["step"]: row for row in evals}
        last = next((count for count in range(len(rows), 0, -1) if _is_checked(count)), 0)
        self.warnings = self._check(self._rows[:last], [row for row in evals if row["step"] <= last])

    def check(
        self, step: int, metrics: Mapping[str, Any], evals: Sequence[Mapping[str, Any]] = ()
    ) -> list[HealthWarning]:
        """Check the rules after a step, and return the warnings that the step before did not have.

        Args:
            metrics: of the step.
            evals: the evaluations since the start or the last `resume`, as rows of `eval.jsonl`.
        """
        earlier = {warning.name for warning in self.warnings}
        self._rows.append(_read_by_rules({"step": step, **metrics}))
        if _is_checked(len(self._rows)):
            every = self._earlier_evals | {row["step"]: row for row in evals}
            self.warnings = self._check(self._rows, list(every.values()))
        return [warning for warning in self.warnings if warning.name not in earlier]

    def _check(self, rows: Sequence[Mapping[str, Any]], evals: Sequence[Mapping[str, Any]]) -> list[HealthWarning]:
        return health_warnings(rows, evals, done=rows[-1]["step"] / self._total_steps) if rows else []

    @property
    def names(self) -> list[str]:
        """The names of the broken rules, for `metrics.jsonl`."""
        return list(dict.fromkeys(warning.name for warning in self.warnings))

    @property
    def live(self) -> str:
        """The number of broken rules for the progress line; empty without any."""
        count = len(self.names)
        return f"  {count} warning{'s' if count > 1 else ''}" if count else ""


def _is_checked(steps: int) -> bool:
    """Whether the rules are checked after this many steps: a check reads all rows, so its cost grows with them."""
    return steps % max(1, steps // OFTEN) == 0


def _read_by_rules(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in METRICS if name in row}
