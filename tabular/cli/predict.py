"""`tabular predict`: the values that prediction finds for a policy, beside the exact ones.

The same seed plays the same episodes for every method, so that methods differ in what they make of them alone.
"""

import argparse
import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from jaxtyping import Float, Int
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from tabular.cli import show
from tabular.envs.arrays import compile_table, time_limit
from tabular.envs.registry import find_env, make_env
from tabular.experiments import algorithms, plots, runs
from tabular.experiments import evaluation as judging
from tabular.planning.dynamic_programming import policy_evaluation, value_iteration
from tabular.planning.mdp import MDP, reachable
from tabular.td.prediction import METHODS, PredictionConfig, predict
from tabular.text import did_you_mean

READ_BY = {"lam": "td", "n": "n_step", "first_visit": "monte_carlo"}
"""Settings that one method alone reads; the others are everyone's."""

TABLE_STATES, PICTURE_STATES = 20, 30
"""States that still fit into the printed table and into the picture of the values."""


@dataclass(frozen=True)
class Learnt:
    """What one method came to."""

    errors: Float[np.ndarray, "N E"]
    "RMS error over the states, of each seed: before the first episode and after each one"
    values: Float[np.ndarray, "K S"]
    "estimates after some of the episodes, mean over the seeds"
    spread: Float[np.ndarray, "S"]
    "standard deviation over the seeds of the last estimates"


def compare(args: argparse.Namespace) -> int:
    """Prints values and errors and writes them into a new folder, with pictures. Raises ValueError for what cannot be
    compared, before the folder is made."""
    configs = _configs(args.methods, args.options)
    shared = next(iter(configs.values()))
    env_id, env_options = find_env(args.env, args.env_options)
    make = partial(make_env, env_id, env_options)
    mdp, allowed = _exact(env_id, make(), shared.gamma)
    policy = _policy(args.policy, mdp, allowed)
    states = np.flatnonzero(reachable(mdp, policy))
    exact = policy_evaluation(mdp, policy)[states]
    name = f"predict-{env_id.split('/')[-1]}"
    folder = args.output or runs.new_folder(name)
    if folder.exists():
        raise ValueError(f"{folder} exists already: take another --output")

    seeds = range(args.seed, args.seed + args.seeds)
    marks = _marks(args.episodes)
    learnt = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("seeds"))
    with Progress(*columns, console=show.console()) as bar:
        for method, config in configs.items():
            tracked = bar.track(seeds, description=_label(config))
            learnt[method] = _learn(make, policy, config, args.episodes, tracked, states, exact, marks)

    labels = {method: _label(config) for method, config in configs.items()}
    last = {labels[method]: one.values[-1] for method, one in learnt.items()}
    title = f"{args.policy} policy on {env_id}, gamma {shared.gamma:g}, {show.counted(args.episodes, 'episode')}"
    title += f", {show.counted(args.seeds, 'seed')}"
    show.console().print(title, style="bold", soft_wrap=True)
    if len(states) <= TABLE_STATES:
        show.values("values, mean of the seeds", states, {"exact": exact, **last})
    show.summary("RMS error", {labels[method]: _figures(one.errors) for method, one in learnt.items()}, args.seeds)
    if limit := time_limit(make()):
        print(f"exact: without the limit of {limit} steps; a cut episode goes on in the estimate of its last state")

    folder.mkdir(parents=True)
    asked = {"methods": list(configs), "env": env_id, "env_options": env_options, "policy": args.policy}
    asked |= {"episodes": args.episodes, "seeds": list(seeds), "settings": _read(configs)}
    _write(folder, asked, seeds, learnt, states, exact)
    _draw(folder, labels, learnt, states, exact, marks)
    print(f"written: {folder}")
    return 0


def _configs(methods: Sequence[str], options: Mapping[str, str]) -> dict[str, PredictionConfig]:
    """The config of each method; a setting that none of them reads is refused."""
    for method in methods:
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}: {did_you_mean(method, METHODS)}")
        if methods.count(method) > 1:
            raise ValueError(f"{method} is named twice: each method is compared once")
    known = [field.name for field in fields(PredictionConfig) if field.name != "method"]
    for option in options:
        if option not in known:
            fixed = ["env", "policy", "episodes", "seeds", "seed", "output"]
            raise ValueError(f"unknown option --{option}: {did_you_mean(option, [*known, *fixed])}")
        if READ_BY.get(option, methods[0]) not in methods:
            raise ValueError(f"--{option} is read by {READ_BY[option]} only, which is not among {', '.join(methods)}")
    configs = {}
    for method in methods:
        own = {name: text for name, text in options.items() if READ_BY.get(name, method) == method}
        try:
            configs[method] = algorithms.settings(PredictionConfig, {"method": method, **own})
        except ValueError as error:
            raise ValueError(f"{method}: {error}") from error
    return configs


def _read(configs: Mapping[str, PredictionConfig]) -> dict[str, Any]:
    """The settings that at least one of the methods reads, with their values."""
    return {
        name: value
        for method, config in configs.items()
        for name, value in asdict(config).items()
        if name != "method" and READ_BY.get(name, method) == method
    }


def _label(config: PredictionConfig) -> str:
    own = {
        "td": f"lam {config.lam:g}",
        "n_step": f"n {config.n}",
        "monte_carlo": "first visits" if config.first_visit else "",
    }
    averages = "averages" if config.alpha == 0 else ""
    return ", ".join(part for part in (config.method, own[config.method], averages) if part)


def _exact(env_id: str, env: gym.Env, gamma: float | int) -> tuple[MDP, np.ndarray]:
    """The table, and the actions [S, A] that may be taken. Raises ValueError where a table is not all there is."""
    table = compile_table(env)
    if table is None:
        raise ValueError(
            f"{env_id}: estimates are compared with exact values, which need an environment whose states the agent "
            "sees and whose transition table `P` is all there is to it, like most in `tabular list`. From Python, "
            "tabular.td.prediction.predict estimates values wherever observations and actions are discrete"
        )
    return MDP.from_gym(env, gamma), table.masks


def _policy(name: str, mdp: MDP, allowed: np.ndarray) -> Float[np.ndarray, "S A"]:
    """`random`: all allowed actions alike; `optimal`: the first of the best actions, with gamma 1 one that ends."""
    if name == "random":
        return allowed / allowed.sum(axis=1, keepdims=True)
    found = value_iteration(mdp)
    if not found.converged:
        raise ValueError(f"no optimal policy was found: {found.reason}")
    return np.eye(mdp.n_actions)[found.policy]


def _marks(episodes: int) -> list[int]:
    """The episodes after which values are looked at: 0, the powers of ten, and the last."""
    return sorted({0, *(10**k for k in range(len(str(episodes)))), episodes})


def _learn(
    make: Any,
    policy: Float[np.ndarray, "S A"],
    config: PredictionConfig,
    episodes: int,
    seeds: Iterable[int],
    states: Int[np.ndarray, "K"],
    exact: Float[np.ndarray, "K"],
    marks: Sequence[int],
) -> Learnt:
    """One method on all seeds, judged on the `states`. Raises ValueError if its estimates run away."""
    errors, values = [], []
    for seed in seeds:
        try:
            learnt = predict(make, policy, config, episodes, seed)[:, states]
        except MemoryError:
            size = f"{episodes} episodes of {len(policy)} states"
            raise ValueError(f"{size} do not fit into memory: ask for fewer --episodes") from None
        history = np.concatenate([np.full((1, len(states)), float(config.initial_value)), learnt])
        with np.errstate(over="ignore", invalid="ignore"):
            error = np.sqrt(((history - exact) ** 2).mean(axis=1))
        if not np.isfinite(error).all():
            episode = int((~np.isfinite(error)).argmax())
            smaller = "--alpha or --lam" if config.method == "td" and config.lam > 0 else "--alpha"
            raise ValueError(
                f"{_label(config)}: the estimates grew without bound in episode {episode} of seed {seed}: take a "
                f"smaller {smaller}"
            )
        errors.append(error)
        values.append(history[marks])
    return Learnt(np.array(errors), np.mean(values, axis=0), np.std([last for *_, last in values], axis=0))


def _figures(errors: Float[np.ndarray, "N E"]) -> dict[str, judging.Interval]:
    return {
        "at the start": judging.interval(errors[:, 0]),
        "at the end": judging.interval(errors[:, -1]),
        "mean of all": judging.interval(errors[:, 1:].mean(axis=1)),
    }


def _write(
    folder: Path,
    asked: Mapping[str, Any],
    seeds: Sequence[int],
    learnt: Mapping[str, Learnt],
    states: Int[np.ndarray, "S"],
    exact: Float[np.ndarray, "S"],
) -> None:
    import yaml

    (folder / "config.yaml").write_text(yaml.safe_dump(asked, sort_keys=False), encoding="utf-8")
    errors = (
        (method, seed, episode, error)
        for method, one in learnt.items()
        for seed, curve in zip(seeds, one.errors.tolist(), strict=True)
        for episode, error in enumerate(curve)
    )
    columns = [states, exact, *(one.values[-1] for one in learnt.values())]
    tables = {
        "errors.csv": (["method", "seed", "episode", "rms_error"], errors),
        "values.csv": (["state", "exact", *learnt], zip(*(column.tolist() for column in columns), strict=True)),
    }
    for name, (header, rows) in tables.items():
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([header, *rows])


def _draw(
    folder: Path,
    labels: Mapping[str, str],
    learnt: Mapping[str, Learnt],
    states: Int[np.ndarray, "S"],
    exact: Float[np.ndarray, "S"],
    marks: Sequence[int],
) -> None:
    errors = {labels[method]: one.errors for method, one in learnt.items()}
    plots.draw(lambda: plots.error_curves(folder / "errors.png", errors))
    if len(states) <= PICTURE_STATES:
        values = {labels[method]: (one.values, one.spread) for method, one in learnt.items()}
        plots.draw(lambda: plots.estimates(folder / "values.png", states, exact, values, marks))
