"""Runs and their folders: train several seeds, evaluate on the way, save, resume exactly.

RUN/config.yaml            what was asked for; enough to do it again
RUN/seed_0/episodes.csv    end, return, length: every training episode
RUN/seed_0/metrics.jsonl   {"step": ..., "name": value}: what the learner noted
RUN/seed_0/evaluations.csv step, mean_return, mean_length, success_rate of the greedy policy
RUN/seed_0/checkpoint.pt   everything needed to carry on
RUN/summary.json           the figures over the seeds, with intervals
RUN/*.png, episode.gif     pictures
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from tabular.envs.registry import make_env
from tabular.experiments import evaluation as judging
from tabular.experiments.algorithms import TABLES, check_settings, load

Number = float | int

COMPARISON = "comparison.yaml"
"""File of a folder that holds several runs: their names, in order."""

PACKED = "packed list"
"""Key of a list that `_pack` made a tensor."""


@dataclass(frozen=True)
class RunConfig:
    """One algorithm on one environment with several seeds."""

    algorithm: str
    "a name of `tabular.experiments.algorithms.ALGORITHMS`"
    env: str
    "a gymnasium id"
    env_options: dict[str, Any] = field(default_factory=dict)
    "keyword arguments of `gymnasium.make`"
    settings: dict[str, Any] = field(default_factory=dict)
    "settings of the algorithm that differ from its defaults"
    steps: int = 100_000
    "environment steps of each seed"
    seeds: tuple[int, ...] = (0,)
    "one learner each"
    evaluate_every: int = 5_000
    "steps between evaluations, after each of which everything is saved"
    episodes: int = 10
    "episodes of an evaluation"
    threshold: Number | None = None
    "return that counts as solved; None: what the environment's registration says, if anything"

    def __post_init__(self) -> None:
        for name in ("steps", "evaluate_every", "episodes"):
            value: Any = getattr(self, name)  # of a file that somebody may have edited
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be at least 1, got {value!r}")
        check_settings(load(self.algorithm).Config, self.settings)
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must be different numbers from 0, got {self.seeds}")

    def make_env(self, **options: Any) -> gym.Env:
        """The environment as the algorithm sees it: networks get a Tuple's or Dict's parts as one vector."""
        env = make_env(self.env, {**self.env_options, **options})
        joined = isinstance(env.observation_space, spaces.Tuple | spaces.Dict | spaces.MultiDiscrete)
        return gym.wrappers.FlattenObservation(env) if joined and self.algorithm not in TABLES else env

    def make_learner(self, seed: int) -> Any:
        cls = load(self.algorithm)
        return cls(self.make_env, cls.Config(**self.settings), seed)

    def goal(self) -> float | None:
        """The return that counts as solved, None if nobody says."""
        spec = self.make_env().spec
        registered = spec.reward_threshold if spec is not None else None
        return float(self.threshold) if self.threshold is not None else registered


@dataclass(frozen=True)
class SeedResult:
    """What one seed came to."""

    seed: int
    learner: Any
    evaluations: list[dict[str, Number]]


def new_folder(name: str) -> Path:
    """`runs/name`, or with the first number behind it that is free."""
    folder, number = Path("runs") / name, 2
    while folder.exists():
        folder, number = Path("runs") / f"{name}-{number}", number + 1
    return folder


def create(folder: Path, config: RunConfig) -> None:
    """Makes a run folder with its config. Raises ValueError if there is something of this name: nothing is ever
    overwritten."""
    import yaml

    if folder.exists():
        raise ValueError(f"{folder} exists already: take another --output, or carry on with --resume {folder}")
    folder.mkdir(parents=True)
    text = yaml.safe_dump({**asdict(config), "seeds": list(config.seeds)}, sort_keys=False)
    (folder / "config.yaml").write_text(text, encoding="utf-8")


def create_comparison(folder: Path, configs: Mapping[str, RunConfig]) -> None:
    """Makes a folder with a run folder for each algorithm. Raises ValueError if there is something of this name."""
    import yaml

    if folder.exists():
        raise ValueError(f"{folder} exists already: take another --output, or carry on with `run --resume {folder}`")
    for name, config in configs.items():
        create(folder / name, config)
    (folder / COMPARISON).write_text(yaml.safe_dump({"algorithms": list(configs)}), encoding="utf-8")


def read_comparison(folder: Path) -> dict[str, RunConfig]:
    """Name -> config of the runs of a comparison. Raises ValueError if the folder is damaged."""
    import yaml

    file = folder / COMPARISON
    try:
        names = list(yaml.safe_load(file.read_text(encoding="utf-8"))["algorithms"])
    except (TypeError, KeyError, yaml.YAMLError) as error:
        raise ValueError(f"{file} is damaged: {' '.join(str(error).split())}") from error
    return {name: read_config(folder / name) for name in names}


def read_config(folder: Path) -> RunConfig:
    """The config of a run folder. Raises ValueError if it is none."""
    import yaml

    file = folder / "config.yaml"
    if not file.is_file():
        inside = sorted(str(config.parent) for config in folder.glob("*/config.yaml"))
        hint = f"; take one of the runs in it: {', '.join(inside)}" if inside else ""
        raise ValueError(f"{folder} is no run folder: it has no config.yaml{hint}")
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        content["seeds"] = tuple(content["seeds"])
        for name in ("env_options", "settings"):
            if not isinstance(content[name], dict):
                raise ValueError(f"{name} must be names with values, got {content[name]!r}")
        if not isinstance(content["threshold"], int | float | None):
            raise ValueError(f"threshold must be a number, got {content['threshold']!r}")
        settings = {
            name: tuple(value) if isinstance(value, list) else value for name, value in content["settings"].items()
        }
        return RunConfig(**{**content, "settings": settings})
    except (TypeError, KeyError, AttributeError, ValueError, yaml.YAMLError) as error:
        if (folder / "errors.csv").is_file():
            raise ValueError(f"{folder} is of `tabular predict`: there is no agent in it") from error
        raise ValueError(f"{file} is damaged: {' '.join(str(error).split())}") from error


def train(folder: Path, config: RunConfig, progress: Callable[[int], None] = lambda steps: None) -> list[SeedResult]:
    """Trains all seeds of a run folder, each from where it stands; `progress` hears of the steps done.

    The chunks between evaluations are the same whether a run was interrupted or not, so a resumed run equals an
    uninterrupted one wherever the learner's own state does (see its `load_state_dict`).
    """
    return [_train_seed(folder, config, seed, progress) for seed in config.seeds]


def _train_seed(folder: Path, config: RunConfig, seed: int, progress: Callable[[int], None]) -> SeedResult:
    learner, evaluations = resume(folder, config, seed)
    progress(min(learner.steps, config.steps))
    while learner.steps < config.steps:
        before = learner.steps
        goal = min((before // config.evaluate_every + 1) * config.evaluate_every, config.steps)
        learner.advance(goal - before)
        evaluation_seed = int(np.random.SeedSequence((seed, learner.steps)).generate_state(1)[0])
        result = judging.evaluate(learner, config.make_env, config.episodes, evaluation_seed)
        evaluations.append(
            {
                "step": learner.steps,
                "mean_return": result.mean_return,
                "mean_length": float(result.lengths.mean()),
                "success_rate": result.success_rate,
            }
        )
        save(folder / f"seed_{seed}", learner, evaluations)
        progress(min(learner.steps, config.steps) - min(before, config.steps))
    return SeedResult(seed, learner, evaluations)


def resume(folder: Path, config: RunConfig, seed: int) -> tuple[Any, list[dict[str, Number]]]:
    """A seed's learner as it was saved, or a new one, and its evaluations so far."""
    learner = config.make_learner(seed)
    file = folder / f"seed_{seed}" / "checkpoint.pt"
    if not file.is_file():
        return learner, []
    import torch

    try:
        state = torch.load(file, weights_only=True)
        learner.load_state_dict(_unpack(state["learner"]))
        return learner, state["evaluations"]
    except Exception as error:  # torch raises what it likes for a damaged file
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"{file} is damaged, or of another run ({what}); without it `tabular run --resume {folder}` learns seed "
            f"{seed} anew"
        ) from error


def save(folder: Path, learner: Any, evaluations: list[dict[str, Number]]) -> None:
    """Writes a seed's folder. Each file is replaced as a whole, the checkpoint last."""
    import torch

    folder.mkdir(exist_ok=True)
    history = learner.history
    rows = zip(history.ends, history.returns, history.lengths, strict=True)
    _write(folder / "episodes.csv", _csv(["end", "return", "length"], rows))
    metrics: dict[int, dict[str, Any]] = {}
    for name, points in history.metrics.items():
        for step, value in points:
            metrics.setdefault(step, {"step": step})[name] = value if math.isfinite(value) else None
    _write(folder / "metrics.jsonl", "".join(json.dumps(metrics[step]) + "\n" for step in sorted(metrics)))
    names = ["step", "mean_return", "mean_length", "success_rate"]
    _write(folder / "evaluations.csv", _csv(names, ([row[name] for name in names] for row in evaluations)))
    torch.save({"learner": _pack(learner.state_dict()), "evaluations": evaluations}, folder / "checkpoint.tmp")
    os.replace(folder / "checkpoint.tmp", folder / "checkpoint.pt")


def _pack(state: Any) -> Any:
    """Long lists of numbers in (nested) dicts as tensors, which are saved and read a hundred times faster."""
    import torch

    if isinstance(state, dict):
        return {key: _pack(value) for key, value in state.items()}
    for kind, dtype in ((float, torch.float64), (int, torch.int64)):
        if isinstance(state, list) and len(state) > 100 and all(type(value) is kind for value in state):
            return {PACKED: torch.tensor(state, dtype=dtype)}
    return state


def _unpack(state: Any) -> Any:
    """Undoes `_pack`."""
    if isinstance(state, dict):
        return state[PACKED].tolist() if PACKED in state else {key: _unpack(value) for key, value in state.items()}
    return state


def _csv(names: list[str], rows: Any) -> str:
    return "".join(",".join(map(str, row)) + "\n" for row in [names, *rows])


def _write(file: Path, text: str) -> None:
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, file)


def summarise(config: RunConfig, results: list[SeedResult]) -> dict[str, judging.Interval]:
    """The figures over the seeds: name -> statistic with its 95% bootstrap interval; those that make no sense here
    (no goal, no episode that ended) are left out."""
    histories = [result.learner.history for result in results]
    final = [result.evaluations[-1] for result in results]
    figures: dict[str, tuple[list[float], str]] = {
        "greedy return": ([row["mean_return"] for row in final], "mean"),
        "greedy return, IQM": ([row["mean_return"] for row in final], "iqm"),
        "greedy episode length": ([row["mean_length"] for row in final], "mean"),
        "success rate": ([row["success_rate"] for row in final], "mean"),
        "training return, last 100": ([judging.final_return(history) for history in histories], "mean"),
        "training episode length, last 100": ([judging.final_length(history) for history in histories], "mean"),
        "training return, whole run": ([judging.area_under_curve(h, config.steps) for h in histories], "mean"),
    }
    goal = config.goal()
    if goal is not None:
        steps = [judging.steps_to_threshold(history, goal) for history in histories]
        figures[f"steps to {goal:g} (median)"] = steps, "median"
    visited = list(coverage(config, results))
    if visited:
        figures["state coverage"] = visited, "mean"
    return {
        name: judging.interval(values, judging.STATISTICS[statistic])
        for name, (values, statistic) in figures.items()
        if not np.isnan(values).any()
    }


def coverage(config: RunConfig, results: list[SeedResult]) -> Iterator[float]:
    """Each seed's share of the states that it visited while learning; nothing where the environment is no table."""
    from tabular.planning.mdp import MDP

    for result in results:
        if getattr(result.learner, "table", None) is not None:
            yield judging.state_coverage(result.learner.visits, MDP.from_gym(config.make_env(), 1.0))


def plain(summary: dict[str, judging.Interval]) -> dict[str, dict[str, Any]]:
    """Figures for a JSON file; "never" for a threshold that was not reached."""
    return {
        name: {part: "never" if value == judging.NEVER else value for part, value in asdict(figure).items()}
        for name, figure in summary.items()
    }


def write_summary(folder: Path, summary: dict[str, judging.Interval]) -> None:
    """`summary.json`."""
    _write(folder / "summary.json", json.dumps(plain(summary), indent=2) + "\n")
