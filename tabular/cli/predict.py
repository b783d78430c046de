"""`tabular predict`: estimates of a policy's values beside the exact ones.

The same seed plays the same episodes for every method, so methods differ only in what they learn from them.
"""

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from jaxtyping import Float, Int
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from tabular.cli import show
from tabular.core.statistics import Interval
from tabular.envs.arrays import compile_table, time_limit
from tabular.envs.registry import find_env, make_env
from tabular.experiments import algorithms, runs, value_plots
from tabular.experiments.figures import draw_all
from tabular.experiments.statistics import seed_interval
from tabular.planning.dynamic_programming import policy_evaluation, value_iteration
from tabular.planning.mdp import MDP, reachable
from tabular.td.prediction import METHODS, PredictionConfig, predict
from tabular.text import did_you_mean

METHOD_OF = {"lam": "td", "n": "n_step", "first_visit": "monte_carlo"}
"""Settings that only one method has; all methods have the others."""

TABLE_STATES = 20
"""States that fit into the printed table."""

PICTURE_STATES = 30
"""States that fit into the picture of the values."""


@dataclass(frozen=True)
class PredictionRequest:
    """What to predict: the values of a policy in an environment with a table, by one method or several."""

    methods: tuple[str, ...]
    settings: Mapping[str, str]
    "of the methods, as text; several values of one are separated by commas"
    env: str
    "id, short name or a maze's text file"
    env_options: Mapping[str, str]
    policy: str
    "random or optimal"
    episodes: int
    seeds: Sequence[int]
    output: Path | None
    "folder to write; None: a new one in runs/"


@dataclass(frozen=True)
class Problem:
    """A policy in an environment, and its exact values."""

    env_id: str
    env_options: Mapping[str, Any]
    make_env: Callable[[], gym.Env]
    policy: Float[np.ndarray, "S A"]
    "probability of each action"
    states: Int[np.ndarray, "K"]
    "the states that the policy can be in"
    exact: Float[np.ndarray, "K"]
    "their exact values"


@dataclass(frozen=True)
class MethodResult:
    """The estimates of one method."""

    errors: Float[np.ndarray, "N E"]
    "RMS error over the states, of each seed: before the first episode and after each one"
    values: Float[np.ndarray, "K S"]
    "estimates after some of the episodes, mean over the seeds"
    deviation: Float[np.ndarray, "S"]
    "standard deviation over the seeds of the last estimates"


def predict_values(request: PredictionRequest) -> int:
    """Prints values and errors and writes them into a new folder, with pictures.

    Raises:
        ValueError: something that cannot be predicted or compared; before the folder is made.
    """
    configs = _configs(request.methods, request.settings)
    gamma = next(iter(configs.values())).gamma
    problem = make_problem(request, gamma)
    folder = output_folder(request, problem.env_id)
    snapshots = _snapshots(request.episodes)
    results = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("seeds"))
    with Progress(*columns, console=show.console()) as bar:
        for method, config in configs.items():
            seeds = bar.track(request.seeds, description=_label(config))
            results[method] = _learn(problem, config, request.episodes, seeds, snapshots)

    labels = {method: _label(config) for method, config in configs.items()}
    _show(request, problem, gamma, {labels[method]: result for method, result in results.items()})
    folder.mkdir(parents=True)
    write_config(folder, request, problem, list(configs), _settings_in_use(configs))
    _write_tables(folder, request.seeds, problem, results)
    draw_all(*_pictures(folder, problem, {labels[method]: result for method, result in results.items()}, snapshots))
    print(f"written: {folder}")
    return 0


def make_problem(request: PredictionRequest, gamma: float | int) -> Problem:
    """The request's policy and its exact values. Raises ValueError where they do not exist."""
    env_id, env_options = find_env(request.env, request.env_options)
    make = partial(make_env, env_id, env_options)
    table = compile_table(make())
    if table is None:
        raise ValueError(
            f"{env_id}: estimates are compared with exact values, which need an environment whose states the agent "
            "sees and whose transition table `P` describes it completely, like most in `tabular list`. From Python, "
            "tabular.td.prediction.predict estimates values wherever observations and actions are discrete"
        )
    mdp = MDP.from_gym(make(), gamma)
    policy = _policy(request.policy, mdp, table.masks)
    states = np.flatnonzero(reachable(mdp, policy))
    return Problem(
        env_id=env_id,
        env_options=env_options,
        make_env=make,
        policy=policy,
        states=states,
        exact=policy_evaluation(mdp, policy)[states],
    )


def output_folder(request: PredictionRequest, env_id: str) -> Path:
    """The folder to write. Raises ValueError if it exists."""
    folder = request.output or runs.new_folder(f"predict-{runs.env_name(env_id)}")
    if folder.exists():
        raise ValueError(f"{folder} exists already: take another --output")
    return folder


def title_of(request: PredictionRequest, problem: Problem, gamma: float | int) -> str:
    """Policy, environment, discount, and how much was played."""
    title = f"{request.policy} policy on {problem.env_id}, gamma {gamma:g}, {show.counted(request.episodes, 'episode')}"
    return f"{title}, {show.counted(len(request.seeds), 'seed')}"


def _show(
    request: PredictionRequest, problem: Problem, gamma: float | int, results: Mapping[str, MethodResult]
) -> None:
    show.console().print(title_of(request, problem, gamma), style="bold", soft_wrap=True)
    if len(problem.states) <= TABLE_STATES:
        last = {label: result.values[-1] for label, result in results.items()}
        show.values("values, mean of the seeds", problem.states, {"exact": problem.exact, **last})
    figures = {label: _figures(result.errors) for label, result in results.items()}
    show.summary("RMS error", figures, len(request.seeds))
    if limit := time_limit(problem.make_env()):
        print(
            f"exact: without the limit of {limit} steps; a cut episode is continued by the estimate of its last state"
        )


def check_settings_of(methods: Sequence[str], settings: Mapping[str, str]) -> None:
    """Raises ValueError for unknown methods, and for a setting that none of them has."""
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}: {did_you_mean(method, METHODS)}")
        if methods.count(method) > 1:
            raise ValueError(f"{method} is named twice: each method is compared once")
    names = [field.name for field in fields(PredictionConfig) if field.name != "method"]
    for setting in settings:
        if setting not in names:
            options = ["env", "policy", "episodes", "seeds", "seed", "output"]
            hint = did_you_mean(f"--{setting}", [f"--{name}" for name in (*names, *options)])
            raise ValueError(f"unknown option --{setting}: {hint}")
        if METHOD_OF.get(setting, methods[0]) not in methods:
            raise ValueError(
                f"--{setting} is a setting of {METHOD_OF[setting]} only, which is not among {', '.join(methods)}"
            )


def _configs(methods: Sequence[str], settings: Mapping[str, str]) -> dict[str, PredictionConfig]:
    """The config of each method."""
    check_settings_of(methods, settings)
    configs = {}
    for method in methods:
        texts = {name: text for name, text in settings.items() if METHOD_OF.get(name, method) == method}
        try:
            configs[method] = algorithms.settings(PredictionConfig, {"method": method, **texts})
        except ValueError as error:
            raise ValueError(f"{method}: {error}") from error
    return configs


def _settings_in_use(configs: Mapping[str, PredictionConfig]) -> dict[str, Any]:
    """The settings that at least one of the methods has, with their values."""
    return {
        name: value
        for method, config in configs.items()
        for name, value in asdict(config).items()
        if name != "method" and METHOD_OF.get(name, method) == method
    }


def _label(config: PredictionConfig) -> str:
    setting = {
        "td": f"lam {config.lam:g}",
        "n_step": f"n {config.n}",
        "monte_carlo": "first visits" if config.first_visit else "",
    }
    averages = "averages" if config.alpha == 0 else ""
    return ", ".join(part for part in (config.method, setting[config.method], averages) if part)


def _policy(name: str, mdp: MDP, masks: np.ndarray) -> Float[np.ndarray, "S A"]:
    """`random`: all allowed actions with the same probability; `optimal`: the first of the best actions, with gamma 1
    one that ends the episode."""
    if name == "random":
        return masks / masks.sum(axis=1, keepdims=True)
    solution = value_iteration(mdp)
    if not solution.converged:
        raise ValueError(f"there is no optimal policy to follow: {solution.reason}")
    return np.eye(mdp.n_actions)[solution.policy]


def _snapshots(episodes: int) -> list[int]:
    """The episodes after which values are shown: 0, the powers of ten, and the last."""
    return sorted({0, *(10**k for k in range(len(str(episodes)))), episodes})


def _learn(
    problem: Problem, config: PredictionConfig, episodes: int, seeds: Iterable[int], snapshots: Sequence[int]
) -> MethodResult:
    """One method on all seeds. Raises ValueError if its estimates diverge."""
    errors, values = [], []
    for seed in seeds:
        history = estimate(problem, config, episodes, seed)
        error = rms_error(history, problem.exact)
        if not np.isfinite(error).all():
            episode = int((~np.isfinite(error)).argmax())
            smaller = "--alpha or --lam" if config.method == "td" and config.lam > 0 else "--alpha"
            raise ValueError(
                f"{_label(config)}: the estimates diverged in episode {episode} of seed {seed}: "
                f"take a smaller {smaller}"
            )
        errors.append(error)
        values.append(history[snapshots])
    return MethodResult(
        errors=np.array(errors),
        values=np.mean(values, axis=0),
        deviation=np.std([last for *_, last in values], axis=0),
    )


def estimate(problem: Problem, config: PredictionConfig, episodes: int, seed: int) -> Float[np.ndarray, "E K"]:
    """The estimates before the first episode and after each one, in the problem's states."""
    try:
        values = predict(problem.make_env, problem.policy, config, episodes, seed)[:, problem.states]
    except MemoryError:
        size = f"{episodes} episodes of {len(problem.policy)} states"
        raise ValueError(f"{size} do not fit into memory: take fewer --episodes") from None
    return np.concatenate([np.full((1, len(problem.states)), float(config.initial_value)), values])


def rms_error(history: Float[np.ndarray, "E K"], exact: Float[np.ndarray, "K"]) -> Float[np.ndarray, "E"]:
    """Root mean square over the states; infinite or nan where the estimates diverged."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.sqrt(((history - exact) ** 2).mean(axis=1))


def _figures(errors: Float[np.ndarray, "N E"]) -> dict[str, Interval]:
    return {
        "at the start": seed_interval(errors[:, 0]),
        "at the end": seed_interval(errors[:, -1]),
        "mean of all": seed_interval(errors[:, 1:].mean(axis=1)),
    }


def write_config(
    folder: Path, request: PredictionRequest, problem: Problem, methods: Sequence[str], settings: Mapping[str, Any]
) -> None:
    """`config.yaml`, with which `tabular predict --config` repeats the prediction."""
    import yaml

    content = {
        "methods": list(methods),
        "env": problem.env_id,
        "env_options": dict(problem.env_options),
        "policy": request.policy,
        "episodes": request.episodes,
        "seeds": list(request.seeds),
        "settings": dict(settings),
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def _write_tables(folder: Path, seeds: Sequence[int], problem: Problem, results: Mapping[str, MethodResult]) -> None:
    errors = (
        (method, seed, episode, error)
        for method, result in results.items()
        for seed, curve in zip(seeds, result.errors.tolist(), strict=True)
        for episode, error in enumerate(curve)
    )
    write_csv(folder / "errors.csv", ["method", "seed", "episode", "rms_error"], errors)
    columns = [problem.states, problem.exact, *(result.values[-1] for result in results.values())]
    rows = zip(*(column.tolist() for column in columns), strict=True)
    write_csv(folder / "values.csv", ["state", "exact", *results], rows)


def write_csv(file: Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """A header and rows, separated by commas."""
    with file.open("w", encoding="utf-8", newline="") as text:
        csv.writer(text, lineterminator="\n").writerows([header, *rows])


def _pictures(
    folder: Path, problem: Problem, results: Mapping[str, MethodResult], snapshots: Sequence[int]
) -> list[Callable[[], None]]:
    errors = {label: result.errors for label, result in results.items()}
    pictures: list[Callable[[], None]] = [lambda: value_plots.error_curves(folder / "errors.png", errors)]
    if len(problem.states) <= PICTURE_STATES:
        values = {label: (result.values, result.deviation) for label, result in results.items()}
        pictures.append(
            lambda: value_plots.estimates(folder / "values.png", problem.states, problem.exact, values, snapshots)
        )
    return pictures
