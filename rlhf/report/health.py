"""Health rules: signs of a failed or over-optimised training, each with its usual cause and the setting to change.

The rules read rows of `metrics.jsonl` and `eval.jsonl`, of a finished run or of a running one: the report, `rlhf
status` and the trainers call the same function. docs/tuning.md shows most symptoms with a picture.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlhf.report.numbers import Row, finite, mean, number, percent, series
from rlhf.run.trends import overoptimised

ENOUGH_STEPS = 20
"""Rules about a trend in training need this many steps; those about single steps need `SEVERAL` of them."""
SEVERAL = 3
MOVED = 1.0
"""KL to the reference, in nats, above which a policy has moved: small steps then are not the cause of a flat score."""
FLAT_AND_NEAR = (
    "The learning rate is too small, or the KL coefficient too large for the size of the scores",
    "raise ppo.lr until policy/approx_kl is .001 to .02, or set reward.normalize",
)
FLAT_AND_FAR = (
    "The policy moved away from the reference without a better score: the steps are too large, or the reward too noisy",
    "lower ppo.lr until policy/approx_kl is .001 to .02, set ppo.target_kl to 0.02, or raise ppo.rollout_batch_size",
)
"""Cause and setting to change where the score did not rise, with the policy near the reference or far from it."""

CUT = "response/truncated_fraction"
LOSSES = ("policy/loss", "value/loss", "policy/grad_norm", "loss", "grad_norm")
METRICS = (
    "step",
    "objective/score",
    "objective/kl",
    "policy/entropy",
    "policy/clip_fraction",
    "policy/ratio_max",
    "value/explained_variance",
    "response/length",
    "response/repetition",
    "response/eos_fraction",
    CUT,
    *LOSSES,
)
"""The metrics that the rules read."""


@dataclass(frozen=True)
class HealthWarning:
    """A rule that a run breaks."""

    name: str
    """Of the rule, such as `kl_high`; `metrics.jsonl` lists these."""
    symptom: str
    """A sentence with the numbers of the run."""
    cause: str
    setting: str
    """What to change: settings by their dotted names."""

    @property
    def remedy(self) -> str:
        """Cause and setting as one sentence."""
        return f"{self.cause}; {self.setting}."

    def __str__(self) -> str:
        return f"{self.symptom} {self.remedy}"


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


def compare(rows: Sequence[Row], evals: Sequence[Row]) -> Comparison:
    """The first evaluation and the best later one: the last one marked as best, or else the one with the best score."""
    if len(evals) >= 2:
        later = evals[1:]
        marked = [row for row in later if row.get("best") is True]
        best = max(later, key=selection_score)
        return Comparison(evals[0], marked[-1] if marked else best, held_out=True)
    names = {"score": "objective/score", "kl": "objective/kl", "entropy": "policy/entropy"}
    names |= {name: f"response/{name}" for name in ("length", "repetition", "eos_fraction")}
    ends = rows[: tenth(rows)], rows[-tenth(rows) :]
    first, last = ({name: mean(series(part, metric)) for name, metric in names.items()} for part in ends)
    return Comparison({"step": rows[0]["step"], **first}, {"step": rows[-1]["step"], **last}, held_out=False)


def selection_score(row: Row) -> float:
    """The score by which the run chose its best weights; -inf where there is none."""
    return float(np.nan_to_num(finite(row.get("penalised_score", row.get("score"))), nan=-math.inf))


def health_warnings(rows: Sequence[Row], evals: Sequence[Row], done: float = 1.0) -> list[HealthWarning]:
    """The rules that a run breaks. A measure that was not logged breaks none.

    Args:
        rows: of metrics.jsonl, at least one.
        evals: of eval.jsonl.
        done: how much of the run is done, from 0 to 1. In its first half a score that has not risen yet is no warning,
            and a critic has the first fifth to learn.
    """
    warnings = _about_steps(rows)
    if len(evals) >= 2 or len(rows) >= ENOUGH_STEPS:
        warnings += _about_outcome(rows, compare(rows, evals), done)
    if len(rows) >= ENOUGH_STEPS:
        warnings += _about_trends(rows, done)
    return [*warnings, *_about_overoptimisation(evals)]


def _about_outcome(rows: Sequence[Row], outcome: Comparison, done: float) -> list[HealthWarning]:
    """Rules about the change from the start to the best checkpoint."""

    def before(name: str) -> float:
        return finite(outcome.before.get(name))

    def after(name: str) -> float:
        return finite(outcome.after.get(name))

    def change(name: str) -> str:
        return f"from {number(before(name))} to {number(after(name))}"

    warnings = []
    kl = np.fmax(after("kl"), _at_end(rows, "objective/kl"))
    start, best = selection_score(outcome.before), selection_score(outcome.after)
    is_flat = -math.inf < best <= start  # a supervised run has no score
    if is_flat and outcome.after["step"] > outcome.before["step"] and done >= 0.5:
        scores = f"{number(start)} before, {number(best)} after"
        start_is_best = outcome.held_out
        consequence = ", so the initial weights remain the best" if start_is_best else ""
        warnings.append(
            HealthWarning(
                "score_flat",
                f"The score did not rise: {scores}{consequence}.",
                *(FLAT_AND_FAR if kl > MOVED else FLAT_AND_NEAR),
            )
        )
    if kl > 10:
        warnings.append(
            HealthWarning(
                "kl_high",
                f"KL above 10 nats ({number(kl)}): the reward may not be valid that far from the reference.",
                "Too little holds the policy near its start",
                "set ppo.kl_target to 6, or raise ppo.kl_coef",
            )
        )
    if after("length") < 0.6 * before("length"):
        fraction = percent(after("length") / before("length"))
        warnings.append(
            HealthWarning(
                "length_collapse",
                f"Responses shrank to {fraction} of their initial length: the reward may favour short ones.",
                "Short stock phrases score best",
                "set reward.min_length with reward.short_penalty",
            )
        )
    if after("distinct_2") < min(0.8, before("distinct_2")) and after("distinct_2") < 0.9 * before("distinct_2"):
        warnings.append(
            HealthWarning(
                "repetition",
                f"Distinct-2 fell {change('distinct_2')}: look for repeated phrases in the samples.",
                "The policy repeats what scores well",
                "raise ppo.kl_coef or lower ppo.kl_target, or penalise repetition in the reward (rule repetition)",
            )
        )
    if after("entropy") < 0.2 * before("entropy"):
        warnings.append(
            HealthWarning(
                "entropy_collapse",
                f"Entropy fell {change('entropy')}: exploration has nearly ended.",
                "The steps are large, and nothing holds the policy",
                "lower ppo.lr, set ppo.kl_target, then ppo.ent_coef from 0.001 to 0.01",
            )
        )
    return warnings


def _about_overoptimisation(evals: Sequence[Row]) -> list[HealthWarning]:
    return [
        HealthWarning(
            "overoptimised",
            f"{sentence[0].upper()}{sentence[1:]}.",
            "The reward has a loophole",
            "lower ppo.kl_target, or change the reward or its penalties (reward.min_length, reward.truncated)",
        )
        for sentence in overoptimised(evals)
    ]


def _about_trends(rows: Sequence[Row], done: float) -> list[HealthWarning]:
    """Rules about the newest tenth of the steps."""
    warnings = []
    explained = _at_end(rows, "value/explained_variance")
    if explained < 0 and done >= 0.2:
        warnings.append(
            HealthWarning(
                "critic_useless",
                f"Explained variance negative at the end ({number(explained)}): the critic is worse than a constant.",
                "The critic's learning rate is too high, or it starts from nothing",
                "lower critic.lr, set critic.pretraining_steps or critic.init to reward, or ppo.estimator to rloo",
            )
        )
    first, last = mean(series(rows[: tenth(rows)], CUT)), _at_end(rows, CUT)
    if last > 0.9 and last > first + 0.3:
        warnings.append(
            HealthWarning(
                "length_explosion",
                f"{percent(last)} of the responses are cut at the maximum length, {percent(first)} at the start.",
                "The reward grows with length, and nothing asks for an end",
                "set reward.missing_eos_penalty, or reward.truncated to overlong",
            )
        )
    return warnings


def _about_steps(rows: Sequence[Row]) -> list[HealthWarning]:
    """Rules about single steps."""
    warnings = []
    clipped = series(rows, "policy/clip_fraction") > 0.3
    if clipped.mean() > 0.05 and clipped.sum() >= SEVERAL:
        warnings.append(
            HealthWarning(
                "clip_fraction_high",
                f"Clip fraction above 0.3 in {clipped.sum()} of {clipped.size} steps: the updates are too large.",
                "There are too many passes over a batch, or the steps are too large",
                "lower ppo.ppo_epochs or ppo.lr, or set ppo.target_kl to 0.02",
            )
        )
    spikes = series(rows, "policy/ratio_max") > 100
    if spikes.mean() > 0.05 and spikes.sum() >= SEVERAL:
        warnings.append(
            HealthWarning(
                "ratio_spikes",
                f"The largest ratio is above 100 in {spikes.sum()} of {spikes.size} steps.",
                "The steps are too large",
                "lower ppo.lr or ppo.max_grad_norm, or raise ppo.warmup_steps",
            )
        )
    for name in LOSSES:
        steps = [row["step"] for row in rows if name in row and math.isnan(finite(row[name]))]
        if steps:
            extent = f"{len(steps)} of {len(rows)} steps, first at step {steps[0]}"
            warnings.append(
                HealthWarning(
                    "not_finite",
                    f"{name} is not finite in {extent}.",
                    "A loss or a score is too large, or the precision too low",
                    "look at the step with rlhf replay, lower ppo.lr, and bound the scores with reward.clip"
                    if any("objective/score" in row for row in rows)
                    else "lower training.lr, or set model.dtype to float32 or model.mixed_precision to bf16",
                )
            )
    return warnings


def tenth(rows: Sequence[Row]) -> int:
    """The number of steps in the first and last tenth of a run, at least 1."""
    return max(1, len(rows) // 10)


def _at_end(rows: Sequence[Row], metric: str) -> float:
    """The mean of a metric over the last tenth of training."""
    return mean(series(rows[-tenth(rows) :], metric))
