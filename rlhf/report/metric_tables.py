"""The report's tables: a summary of all metrics, and the measures of the evaluations."""

import numpy as np

from rlhf.report.health import tenth
from rlhf.report.numbers import mean
from rlhf.report.run_files import Run


def metric_table(run: Run) -> list[tuple[str, float, float, float, float]]:
    """(name, mean of the first tenth, mean of the last tenth, minimum, maximum) of every logged number."""
    table = []
    for name in sorted({name for row in run.rows for name in row} - {"step"}):
        values = run.metric(name)
        finite_values = values[np.isfinite(values)]
        if finite_values.size:
            first, last = mean(values[: tenth(run.rows)]), mean(values[-tenth(run.rows) :])
            table.append((name, first, last, float(finite_values.min()), float(finite_values.max())))
    return table


def evaluated_measures(run: Run) -> list[str]:
    """The names of the measures in eval.jsonl, without their intervals, in the order of the file."""
    names = dict.fromkeys(name for row in run.evals for name, value in row.items() if not isinstance(value, bool))
    return [name for name in names if name != "step" and not name.endswith(("_low", "_high"))]
