"""The summary of a run: figures over its seeds, each with an interval, as a table and as `summary.json`."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tabular.core.statistics import Interval, iqm, mean, median
from tabular.experiments.evaluation import state_coverage
from tabular.experiments.exact import exact_action_values
from tabular.experiments.runs import RunConfig, SeedResult
from tabular.experiments.statistics import (
    NOT_REACHED,
    area_under_curve,
    final_length,
    final_return,
    seed_interval,
    steps_to_threshold,
)
from tabular.planning.mdp import MDP


def summarise(config: RunConfig, results: list[SeedResult]) -> dict[str, Interval]:
    """Name -> statistic over the seeds with its 95% bootstrap interval. Figures that do not exist in this environment
    (no success, no episode that ended) are left out."""
    histories = [result.learner.history for result in results]
    final = [result.evaluations[-1] for result in results]
    figures = {
        "greedy return": ([row["mean_return"] for row in final], mean),
        "greedy return, IQM": ([row["mean_return"] for row in final], iqm),
        "greedy episode length": ([row["mean_length"] for row in final], mean),
        "success rate": ([row["success_rate"] for row in final], mean),
        "training return, last 100": ([final_return(history) for history in histories], mean),
        "training episode length, last 100": ([final_length(history) for history in histories], mean),
        "training return, whole run": ([area_under_curve(history, config.steps) for history in histories], mean),
    }
    threshold = config.solved_return()
    if threshold is not None:
        steps = [steps_to_threshold(history, threshold) for history in histories]
        figures[f"steps to {threshold:g} (median)"] = steps, median
    visited = coverage(config, results)
    if visited:
        figures["state coverage"] = visited, mean
    exact = exact_action_values(config, getattr(results[0].learner.config, "gamma", 1))
    if exact is not None:
        q_values, used = exact
        errors = [float(np.abs(result.learner.action_values - q_values)[used].max()) for result in results]
        figures["largest error of an action value"] = errors, mean
    return {
        name: seed_interval(values, statistic)
        for name, (values, statistic) in figures.items()
        if not np.isnan(values).any()
    }


def coverage(config: RunConfig, results: list[SeedResult]) -> list[float]:
    """Each seed's share of the states that it visited while it learned; empty where the environment has no table."""
    if any(getattr(result.learner, "table", None) is None for result in results):
        return []
    mdp = MDP.from_gym(config.make_env(), 1.0)
    return [state_coverage(result.learner.visits, mdp) for result in results]


def to_json(figures: Mapping[str, Interval]) -> dict[str, dict[str, Any]]:
    """Figures for a JSON file; "never" for a threshold that was not reached."""
    return {
        name: {part: "never" if value == NOT_REACHED else value for part, value in asdict(figure).items()}
        for name, figure in figures.items()
    }


def write_summary(folder: Path, summary: Mapping[str, Interval]) -> None:
    """Writes `summary.json`."""
    (folder / "summary.json").write_text(json.dumps(to_json(summary), indent=2) + "\n", encoding="utf-8")
