"""Runs and their folders: train several seeds, evaluate at intervals, save, resume.

RUN/config.yaml            the settings of the run; `tabular run --config RUN/config.yaml` repeats it
RUN/seed_0/episodes.csv    end, return, length of every training episode
RUN/seed_0/metrics.jsonl   {"step": ..., "name": value}: what the learner recorded
RUN/seed_0/evaluations.csv step, mean_return, mean_length, success_rate of the greedy policy
RUN/seed_0/checkpoint.pt   the learner's state
RUN/summary.json           figures over the seeds, with intervals
RUN/*.png, episode.gif     pictures
"""

import json
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from tabular.envs.registry import make_env
from tabular.experiments.algorithms import TABLES, check_settings, load
from tabular.experiments.evaluation import evaluate

Number = float | int

COMPARISON = "comparison.yaml"
"""File of a folder that holds several runs: their names, in order."""

PACKED = "packed list"
"""Key under which `_pack` stores a list as a tensor."""


@dataclass(frozen=True)
class RunConfig:
    """One algorithm on one environment with several seeds. Raises ValueError, with the name, for a value that is out of
    range."""

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
    "steps between evaluations; the learner is saved after each of them"
    episodes: int = 10
    "episodes of an evaluation"
    threshold: Number | None = None
    "return that counts as solved; None: the reward threshold that the environment is registered with, if any"

    def __post_init__(self) -> None:
        for name in ("steps", "evaluate_every", "episodes"):
            value: Any = getattr(self, name)  # config.yaml may have been edited by hand
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}, but must be at least 1")
        check_settings(load(self.algorithm).Config, self.settings)
        if not self.seeds or min(self.seeds) < 0 or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds is {self.seeds}, but must be different numbers from 0")

    def make_env(self, **options: Any) -> gym.Env:
        """The environment as the algorithm sees it: networks get the parts of a Tuple or Dict as one vector."""
        env = make_env(self.env, {**self.env_options, **options})
        has_parts = isinstance(env.observation_space, spaces.Tuple | spaces.Dict | spaces.MultiDiscrete)
        return gym.wrappers.FlattenObservation(env) if has_parts and self.algorithm not in TABLES else env

    def make_learner(self, seed: int) -> Any:
        """A new learner of the algorithm."""
        cls = load(self.algorithm)
        return cls(self.make_env, cls.Config(**self.settings), seed)

    def solved_return(self) -> float | None:
        """The return that counts as solved; None if neither the run nor the environment's registration names one."""
        if self.threshold is not None:
            return float(self.threshold)
        spec = self.make_env().spec
        return spec.reward_threshold if spec is not None else None


@dataclass(frozen=True)
class SeedResult:
    """One seed's learner after training."""

    seed: int
    learner: Any
    evaluations: list[dict[str, Number]]
    "a row of `evaluations.csv` each"


def env_name(env_id: str) -> str:
    """An environment's id without its module and namespace, for folder names: `Maze-v0` for `tabular/Maze-v0`."""
    return env_id.split(":")[-1].split("/")[-1]


def new_folder(name: str) -> Path:
    """`runs/name`, or `runs/name-2`, `runs/name-3`, ... where that exists."""
    folder, number = Path("runs") / name, 2
    while folder.exists():
        folder, number = Path("runs") / f"{name}-{number}", number + 1
    return folder


def create(folder: Path, config: RunConfig) -> None:
    """Makes a run folder with its config.

    Raises:
        ValueError: the folder exists: nothing is overwritten.
    """
    if folder.exists():
        raise ValueError(f"{folder} exists already: take another --output, or continue it with --resume {folder}")
    folder.mkdir(parents=True)
    _write_config(folder, config)


def _write_config(folder: Path, config: RunConfig) -> None:
    import yaml

    content = {**asdict(config), "seeds": list(config.seeds)}
    _write(folder / "config.yaml", yaml.safe_dump(content, sort_keys=False))


def create_comparison(folder: Path, configs: Mapping[str, RunConfig]) -> None:
    """Makes a folder with a run folder for each algorithm.

    Raises:
        ValueError: the folder exists: nothing is overwritten.
    """
    import yaml

    if folder.exists():
        raise ValueError(f"{folder} exists already: take another --output, or continue it with `run --resume {folder}`")
    for name, config in configs.items():
        create(folder / name, config)
    (folder / COMPARISON).write_text(yaml.safe_dump({"algorithms": list(configs)}), encoding="utf-8")


def read_comparison(folder: Path) -> dict[str, RunConfig]:
    """Name -> config of the runs of a comparison.

    Raises:
        ValueError: the folder is damaged.
    """
    import yaml

    file = folder / COMPARISON
    try:
        names = list(yaml.safe_load(file.read_text(encoding="utf-8"))["algorithms"])
    except (TypeError, KeyError, yaml.YAMLError) as error:
        raise ValueError(f"{file} is damaged: {' '.join(str(error).split())}") from error
    return {name: read_config(folder / name) for name in names}


def read_config(folder: Path) -> RunConfig:
    """The config of a run folder.

    Raises:
        ValueError: this is no run folder, or its config is damaged.
    """
    import yaml

    file = folder / "config.yaml"
    if not file.is_file():
        runs = sorted(str(config.parent) for config in folder.glob("*/config.yaml"))
        hint = f"; take one of the runs in it: {', '.join(runs)}" if runs else ""
        raise ValueError(f"{folder} is no run folder: it has no config.yaml{hint}")
    try:
        return _parse_config(yaml.safe_load(file.read_text(encoding="utf-8")))
    except (TypeError, KeyError, AttributeError, ValueError, yaml.YAMLError) as error:
        if (folder / "errors.csv").is_file():
            raise ValueError(f"{folder} is a folder of `tabular predict`: it holds no agent") from error
        raise ValueError(f"{file} is damaged: {' '.join(str(error).split())}") from error


def _parse_config(content: Any) -> RunConfig:
    content["seeds"] = tuple(content["seeds"])
    for name in ("env_options", "settings"):
        if not isinstance(content[name], dict):
            raise ValueError(f"{name} is {content[name]!r}, but must be names with values")
    if not isinstance(content["threshold"], int | float | None):
        raise ValueError(f"threshold is {content['threshold']!r}, but must be a number")
    settings = {name: tuple(value) if isinstance(value, list) else value for name, value in content["settings"].items()}
    return RunConfig(**{**content, "settings": settings})


def extend(folder: Path, config: RunConfig, steps: int) -> RunConfig:
    """The config of a run that is to be trained for more `steps` in all; written to its folder.

    Raises:
        ValueError: the run has at least that many steps.
    """
    if steps <= config.steps:
        raise ValueError(f"--steps is {steps}, but must be above the {config.steps} steps of {folder} to extend it")
    config = replace(config, steps=steps)
    _write_config(folder, config)
    return config


def train(folder: Path, config: RunConfig, progress: Callable[[int], None] = lambda steps: None) -> list[SeedResult]:
    """Trains all seeds of a run folder, each from its last checkpoint.

    The learner is advanced from evaluation to evaluation, whether a run was interrupted or not, so a resumed run equals
    an uninterrupted one wherever the learner's own state does (see its `load_state_dict`).

    Args:
        progress: called with the number of steps done, those of a checkpoint included.
    """
    return [_train_seed(folder, config, seed, progress) for seed in config.seeds]


def _train_seed(folder: Path, config: RunConfig, seed: int, progress: Callable[[int], None]) -> SeedResult:
    learner, evaluations = resume(folder, config, seed)
    progress(min(learner.steps, config.steps))
    while learner.steps < config.steps:
        before = learner.steps
        next_evaluation = min((before // config.evaluate_every + 1) * config.evaluate_every, config.steps)
        learner.advance(next_evaluation - before)
        evaluation_seed = int(np.random.SeedSequence((seed, learner.steps)).generate_state(1)[0])
        result = evaluate(learner, config.make_env, config.episodes, evaluation_seed)
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
    """A seed's learner and its evaluations from the last checkpoint, or a new learner where there is none.

    Raises:
        ValueError: the checkpoint is damaged, or of another run.
    """
    learner = config.make_learner(seed)
    file = folder / f"seed_{seed}" / "checkpoint.pt"
    if not file.is_file():
        return learner, []
    import torch

    try:
        with zipfile.ZipFile(file) as archive:  # torch reads damaged numbers without a word
            damaged = archive.testzip()
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} in it differs")
        state = torch.load(file, weights_only=True)
        learner.load_state_dict(_unpack(state["learner"]))
        return learner, state["evaluations"]
    except Exception as error:  # torch raises many types for a damaged file
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"{file} is damaged, or of another run ({reason}); without it `tabular run --resume {folder}` trains seed "
            f"{seed} again from the start"
        ) from error


def read_results(folder: Path, config: RunConfig) -> list[SeedResult]:
    """The trained learners of a finished run.

    Raises:
        ValueError: a seed is not finished.
    """
    results = []
    for seed in config.seeds:
        learner, evaluations = resume(folder, config, seed)
        if learner.steps < config.steps:
            raise ValueError(
                f"seed {seed} has {learner.steps} of {config.steps} steps: `tabular run --resume {folder}` first"
            )
        results.append(SeedResult(seed, learner, evaluations))
    return results


def save(folder: Path, learner: Any, evaluations: list[dict[str, Number]]) -> None:
    """Writes a seed's folder. Each file is replaced as a whole, the checkpoint last."""
    import torch

    folder.mkdir(exist_ok=True)
    history = learner.history
    episodes = zip(history.ends, history.returns, history.lengths, strict=True)
    _write(folder / "episodes.csv", _csv(["end", "return", "length"], episodes))
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
    """Stores long lists of numbers in (nested) dicts as tensors, which are saved and read a hundred times faster."""
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


def _csv(names: list[str], rows: Iterable[Iterable[Any]]) -> str:
    return "".join(",".join(map(str, row)) + "\n" for row in [names, *rows])


def _write(file: Path, text: str) -> None:
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, file)
