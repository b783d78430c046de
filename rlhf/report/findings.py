"""The report's findings: the change from start to best checkpoint, warnings, and a summary of all metrics."""

import math
from dataclasses import dataclass

import numpy as np

from rlhf.report.numbers import Row, finite, mean, number, percent
from rlhf.report.run_files import Run
from rlhf.run.trends import overoptimised


@dataclass(frozen=True)
class Comparison:
    """The evaluations of a run at its start and at its best checkpoint."""

    before: Row
    after: Row
    held_out: bool
    """False if there are fewer than two evaluations: means over the first and last tenth of training instead."""

    def change(self, name: str) -> float:
        """How much a measure changed; nan if one of its values is missing."""
        return finite(self.after.get(name)) - finite(self.before.get(name))


def _selection_score(row: Row) -> float:
    """The score by which the run chose its best weights; -inf where there is none."""
    return float(np.nan_to_num(finite(row.get("penalised_score", row.get("score"))), nan=-math.inf))


def compare(run: Run) -> Comparison:
    """The first evaluation and the best later one: the last one marked as best, or else the one with the best score."""
    if len(run.evals) >= 2:
        later = run.evals[1:]
        marked = [row for row in later if row.get("best") is True]
        best = max(later, key=_selection_score)
        return Comparison(run.evals[0], marked[-1] if marked else best, held_out=True)
    names = {"score": "objective/score", "kl": "objective/kl", "entropy": "policy/entropy"}
    names |= {name: f"response/{name}" for name in ("length", "repetition", "eos_fraction")}
    first = {name: mean(run.metric(metric)[: _tenth(run)]) for name, metric in names.items()}
    last = {name: mean(run.metric(metric)[-_tenth(run) :]) for name, metric in names.items()}
    return Comparison({"step": run.rows[0]["step"], **first}, {"step": run.rows[-1]["step"], **last}, held_out=False)


def _tenth(run: Run) -> int:
    return max(1, len(run.rows) // 10)


def warnings(run: Run, outcome: Comparison) -> list[str]:
    """Signs of a failed or over-optimised training, as sentences. A measure that was not logged gives no warning."""
    return [*_warnings_about_outcome(run, outcome), *_warnings_about_training(run)]


def _warnings_about_outcome(run: Run, outcome: Comparison) -> list[str]:
    """Warnings from the measures at the start and at the best checkpoint."""

    def before(name: str) -> float:
        return finite(outcome.before.get(name))

    def after(name: str) -> float:
        return finite(outcome.after.get(name))

    def change(name: str) -> str:
        return f"from {number(before(name))} to {number(after(name))}"

    messages = []
    if after("score") <= before("score") and outcome.after["step"] > outcome.before["step"]:
        scores = f"{number(before('score'))} before, {number(after('score'))} after"
        start_is_best = outcome.held_out and _selection_score(outcome.after) <= _selection_score(outcome.before)
        consequence = ", so the initial weights remain the best" if start_is_best else ""
        messages.append(f"The score did not rise: {scores}{consequence}.")
    kl = np.fmax(after("kl"), _at_end(run, "objective/kl"))
    if kl > 10:
        messages.append(f"KL above 10 nats ({number(kl)}): the reward may not be valid that far from the reference.")
    if after("length") < 0.6 * before("length"):
        fraction = percent(after("length") / before("length"))
        messages.append(f"Responses shrank to {fraction} of their initial length: the reward may favour short ones.")
    if after("distinct_2") < min(0.8, before("distinct_2")) and after("distinct_2") < 0.9 * before("distinct_2"):
        messages.append(f"Distinct-2 fell {change('distinct_2')}: look for repeated phrases in the samples.")
    if after("entropy") < 0.2 * before("entropy"):
        messages.append(f"Entropy fell {change('entropy')}: exploration has nearly ended.")
    return messages + [f"{sentence[0].upper()}{sentence[1:]}." for sentence in overoptimised(run.evals)]


def _warnings_about_training(run: Run) -> list[str]:
    """Warnings from the metrics of the training steps."""
    messages = []
    clipped = run.metric("policy/clip_fraction") > 0.3
    if clipped.mean() > 0.05:
        steps = f"{clipped.sum()} of {clipped.size} steps"
        messages.append(f"Clip fraction above 0.3 in {steps}: the updates are too large; lower lr or ppo_epochs.")
    explained = _at_end(run, "value/explained_variance")
    if explained < 0:
        value = number(explained)
        messages.append(f"Explained variance negative at the end ({value}): the critic is worse than a constant.")
    for name in ("policy/loss", "value/loss", "policy/grad_norm"):
        steps = [row["step"] for row in run.rows if name in row and math.isnan(finite(row[name]))]
        if steps:
            extent = f"{len(steps)} of {len(run.rows)} steps, first at step {steps[0]}"
            messages.append(f"{name} is not finite in {extent}.")
    return messages


def _at_end(run: Run, metric: str) -> float:
    """The mean of a metric over the last tenth of training."""
    return mean(run.metric(metric)[-_tenth(run) :])


def metric_table(run: Run) -> list[tuple[str, float, float, float, float]]:
    """(name, mean of the first tenth, mean of the last tenth, minimum, maximum) of every logged number."""
    table = []
    for name in sorted({name for row in run.rows for name in row} - {"step"}):
        values = run.metric(name)
        finite_values = values[np.isfinite(values)]
        if finite_values.size:
            first, last = mean(values[: _tenth(run)]), mean(values[-_tenth(run) :])
            table.append((name, first, last, float(finite_values.min()), float(finite_values.max())))
    return table


def evaluated_measures(run: Run) -> list[str]:
    """The names of the measures in eval.jsonl, without their intervals, in the order of the file."""
    names = dict.fromkeys(name for row in run.evals for name, value in row.items() if not isinstance(value, bool))
    return [name for name in names if name != "step" and not name.endswith(("_low", "_high"))]
