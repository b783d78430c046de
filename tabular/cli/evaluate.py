"""`tabular evaluate`: the greedy policies of a finished run, in the training environment and in changed ones."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from jaxtyping import Float

from tabular.cli import show
from tabular.core.statistics import Interval, iqm, median
from tabular.envs.arrays import compile_table
from tabular.experiments import runs
from tabular.experiments.algorithms import load
from tabular.experiments.evaluation import ActionNoise, evaluate
from tabular.experiments.figures import draw_all
from tabular.experiments.plots import interval_bars, noise_curves
from tabular.experiments.runs import RunConfig, SeedResult
from tabular.experiments.statistics import area_under_curve, seed_interval, steps_to_threshold
from tabular.experiments.summary import coverage, to_json
from tabular.planning.dynamic_programming import value_iteration
from tabular.planning.mdp import MDP, with_random_actions

Number = float | int
Figures = dict[str, Interval]

MAZE_POOL = "tabular/MazePool-v0"

BAR_FIGURES = ("success rate", "greedy return")
"""What the bars of the picture show: the first of these that the environment has."""

TRAINED = "as trained"
"""Name of the training environment."""


@dataclass(frozen=True)
class EvaluationRequest:
    """How to evaluate the agents of a run."""

    episodes: int = 100
    "greedy episodes of each agent in each environment"
    seed: int = 0
    "of these episodes"
    noise: tuple[Number, ...] = ()
    "shares of the actions that are replaced by random ones, an environment each"
    threshold: Number | None = None
    "return that counts as solved; None: the run's own"
    env_options: Mapping[str, Any] = field(default_factory=dict)
    "options of a changed environment; none: no such environment"


@dataclass(frozen=True)
class Condition:
    """An environment to evaluate in."""

    make_env: Callable[..., gym.Env]
    noise: Number = 0
    "share of random actions"


def evaluate_runs(folder: Path, request: EvaluationRequest) -> int:
    """Evaluates a run, or each run of a comparison: prints a row for each environment, writes `evaluation.json` into
    the run's folder and draws `evaluation.png`.

    Raises:
        ValueError: a run that is not finished, or an environment that the agents cannot act in.
    """
    comparison = (folder / runs.COMPARISON).is_file()
    folders = [folder / name for name in runs.read_comparison(folder)] if comparison else [folder]
    results = {}
    for run in folders:
        config = runs.read_config(run)
        results[config.algorithm] = _evaluate_run(run, config, request)
    picture = _free_file(folder, "evaluation", ".png")
    draw_all(lambda: _draw(picture, results, request))
    if picture.exists():
        print(f"written: {picture}")
    return 0


def _draw(file: Path, results: Mapping[str, "RunEvaluation"], request: EvaluationRequest) -> None:
    """Returns against the noise, if there is noise; else, of one run, a bar for each of several environments."""
    if request.noise:
        noise_curves(file, list(dict.fromkeys((0, *request.noise))), {n: r.noisy_returns for n, r in results.items()})
    elif len(results) == 1:
        (result,) = results.values()
        name = next(name for name in BAR_FIGURES if name in result.figures[TRAINED])
        if len(result.figures) > 1:
            interval_bars(file, {condition: figures[name] for condition, figures in result.figures.items()}, name)


@dataclass(frozen=True)
class RunEvaluation:
    """The evaluation of one run."""

    figures: dict[str, Figures]
    "of each environment"
    noisy_returns: Float[np.ndarray, "K N"]
    "mean returns with each noise, 0 first, of each seed"


def _evaluate_run(folder: Path, config: RunConfig, request: EvaluationRequest) -> RunEvaluation:
    """Prints and writes one run's evaluation."""
    conditions = _conditions(config, request)
    results = runs.read_results(folder, config)
    gamma = load(config.algorithm).Config(**config.settings).gamma
    returns: dict[str, np.ndarray] = {}
    discounted: dict[str, np.ndarray] = {}
    columns: dict[str, Figures] = {}
    for name, condition in conditions.items():
        returns[name], discounted[name], columns[name] = _greedy_figures(results, condition, request, gamma)
    for name in conditions:
        if name != TRAINED:
            columns[name]["return lost"] = seed_interval(returns[TRAINED] - returns[name])
            if gamma < 1:
                columns[name]["discounted return lost"] = seed_interval(discounted[TRAINED] - discounted[name])
    training = _learning_figures(config, results, request.threshold)

    episodes = show.counted(request.episodes, "episode")
    title = f"{config.algorithm} on {config.env}, {show.counted(len(results), 'seed')}"
    show.summary(f"{title}, {episodes} each", _by_figure(columns), len(results))
    show.summary(f"training of {title}", {"training": training}, len(results))
    saved = {**columns, TRAINED: columns[TRAINED] | training}
    content = {
        "episodes": request.episodes,
        "seed": request.seed,
        "environments": {name: to_json(figures) for name, figures in saved.items()},
    }
    file = _free_file(folder, "evaluation", ".json")
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"written: {file}")
    noisy = [returns[name] for name, condition in conditions.items() if condition.noise or name == TRAINED]
    return RunEvaluation(columns, np.array(noisy))


def _by_figure(columns: Mapping[str, Figures]) -> dict[str, Figures]:
    """Figure -> environment -> interval: the rows of the printed table are environments, of which there may be many."""
    names = dict.fromkeys(name for figures in columns.values() for name in figures)
    return {
        name: {condition: figures[name] for condition, figures in columns.items() if name in figures}
        for name in names
        if name != "greedy return, IQM"
    }


def _free_file(folder: Path, stem: str, suffix: str) -> Path:
    """`stem.suffix`, or `stem-2.suffix`, ... where that exists: nothing is overwritten."""
    file, number = folder / f"{stem}{suffix}", 2
    while file.exists():
        file, number = folder / f"{stem}-{number}{suffix}", number + 1
    return file


def _conditions(config: RunConfig, request: EvaluationRequest) -> dict[str, Condition]:
    """Name -> environment: the training environment, with each noise, with changed options, and mazes not trained on.

    Raises:
        ValueError: the agents cannot act in one of them.
    """
    conditions = {TRAINED: Condition(config.make_env)}
    for noise in dict.fromkeys(request.noise):
        if noise > 0:
            make_noisy = lambda noise=noise: ActionNoise(config.make_env(), noise)  # noqa: E731
            conditions[f"noise {noise:g}"] = Condition(make_noisy, noise)
    if request.env_options:
        name = ", ".join(f"{name} {value}" for name, value in request.env_options.items())
        changed = replace(config, env_options={**config.env_options, **request.env_options})
        conditions[name] = Condition(changed.make_env)
    elif config.env == MAZE_POOL:
        pool: Any = config.make_env().unwrapped
        first_unseen = config.env_options.get("maze_seed", 0) + len(pool.mazes)
        held_out = replace(config, env_options={**config.env_options, "maze_seed": first_unseen})
        conditions["held-out mazes"] = Condition(held_out.make_env)
    trained_env = config.make_env()
    for name, condition in conditions.items():
        env = condition.make_env()
        for kind, trained_space, space in (
            ("observations", trained_env.observation_space, env.observation_space),
            ("actions", trained_env.action_space, env.action_space),
        ):
            if trained_space != space:
                raise ValueError(f"{name}: the agents were trained with {kind} {trained_space}, and cannot use {space}")
    return conditions


def _greedy_figures(
    results: list[SeedResult], condition: Condition, request: EvaluationRequest, gamma: Number
) -> tuple[np.ndarray, np.ndarray, Figures]:
    """The agents' mean returns [N], their mean discounted returns [N], and the figures of their greedy policies."""
    evaluations = []
    for result in results:
        seed = int(np.random.SeedSequence((request.seed, result.seed)).generate_state(1)[0])
        evaluations.append(evaluate(result.learner, condition.make_env, request.episodes, seed, gamma))
    returns = np.array([evaluation.mean_return for evaluation in evaluations])
    discounted = np.array([float(evaluation.discounted_returns.mean()) for evaluation in evaluations])
    successes = np.array([evaluation.success_rate for evaluation in evaluations])
    figures = {
        "greedy return": seed_interval(returns),
        "greedy return, IQM": seed_interval(returns, iqm),
        "greedy episode length": seed_interval([float(evaluation.lengths.mean()) for evaluation in evaluations]),
    }
    if not np.isnan(successes).any():
        figures["success rate"] = seed_interval(successes)
    if gamma < 1:
        figures[f"discounted return, gamma {gamma:g}"] = seed_interval(discounted)
    optimum = _optimal_value(condition, gamma)
    if optimum is not None:
        figures["optimal return" if gamma == 1 else "optimal discounted return"] = seed_interval([optimum])
    return returns, discounted, figures


def _optimal_value(condition: Condition, gamma: Number) -> float | None:
    """The exact value at the start of the best policy, from the environment's table; None where there is no table or
    no solution. The best policy knows how many of its actions are random, but no time limit."""
    env = condition.make_env()
    inner = env.env if isinstance(env, ActionNoise) else env
    table = compile_table(inner)
    if table is None or not table.masks.all():
        return None
    try:
        mdp = with_random_actions(MDP.from_gym(inner, gamma), condition.noise)
        return float(mdp.start @ value_iteration(mdp).values)
    except ValueError:  # with gamma 1, no policy surely ends
        return None


def _learning_figures(config: RunConfig, results: list[SeedResult], threshold: Number | None) -> Figures:
    """The figures of the training itself."""
    figures = {}
    histories = [result.learner.history for result in results]
    threshold = config.solved_return() if threshold is None else threshold
    if threshold is not None:
        steps = [steps_to_threshold(history, threshold) for history in histories]
        figures[f"training steps to {threshold:g} (median)"] = seed_interval(steps, median)
    areas = [area_under_curve(history, config.steps) for history in histories]
    if not np.isnan(areas).any():
        figures["training return, whole run"] = seed_interval(areas)
    if visited := coverage(config, results):
        figures["state coverage in training"] = seed_interval(visited)
    return figures
