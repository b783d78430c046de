"""`tabular judge`: what the agents of a finished run are worth, where they learnt and where the world is different."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

from tabular.cli import show
from tabular.experiments import evaluation as judging
from tabular.experiments import runs
from tabular.experiments.runs import RunConfig, SeedResult

Number = float | int
Figures = dict[str, judging.Interval]

MAZE_POOL = "tabular/MazePool-v0"


@dataclass(frozen=True)
class Judgement:
    """What is asked of the agents."""

    episodes: int = 100
    "greedy episodes of each agent in each world"
    seed: int = 0
    "of these episodes"
    noise: Number | None = None
    "share of the actions that are replaced by random ones; None: no such world"
    threshold: Number | None = None
    "return that counts as solved; None: the run's own"
    env_options: Mapping[str, Any] | None = None
    "options of a changed world; None: no such world"


def judge(folder: Path, asked: Judgement) -> int:
    """Prints a table with a column for each world, and writes it beside the run. Raises ValueError for a run that is
    not finished and for a world that the agents cannot act in."""
    config = runs.read_config(folder)
    worlds = _worlds(config, asked)
    results = [_finished(folder, config, seed) for seed in config.seeds]
    returns, columns = {}, {}
    for name, world in worlds.items():
        returns[name], columns[name] = _greedy(results, world, asked)
    trained = next(iter(worlds))
    for name in [name for name in worlds if name != trained]:
        columns[name]["return lost"] = judging.interval(returns[trained] - returns[name])
    columns[trained] |= _learning(config, results, asked.threshold)

    seeds, episodes = len(results), show.counted(asked.episodes, "episode")
    title = f"{config.algorithm} on {config.env}, {show.counted(seeds, 'seed')}, {episodes} each"
    show.summary(title, columns, seeds)
    content = {
        "episodes": asked.episodes,
        "seed": asked.seed,
        "worlds": {name: runs.plain(figures) for name, figures in columns.items()},
    }
    file, number = folder / "judgement.json", 2
    while file.exists():
        file, number = folder / f"judgement-{number}.json", number + 1
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    print(f"written: {file}")
    return 0


def _worlds(config: RunConfig, asked: Judgement) -> dict[str, Callable[..., gym.Env]]:
    """Where the agents are judged: where they learnt first, then what was asked for, then mazes never seen."""
    worlds: dict[str, Callable[..., gym.Env]] = {"as trained": config.make_env}
    if asked.noise is not None:
        noise = asked.noise
        worlds[f"noise {noise:g}"] = lambda: judging.ActionNoise(config.make_env(), noise)
    if asked.env_options:
        name = ", ".join(f"{name} {value}" for name, value in asked.env_options.items())
        worlds[name] = replace(config, env_options={**config.env_options, **asked.env_options}).make_env
    elif config.env == MAZE_POOL:
        pool: Any = config.make_env().unwrapped
        unseen = config.env_options.get("maze_seed", 0) + len(pool.mazes)
        worlds["held-out mazes"] = replace(config, env_options={**config.env_options, "maze_seed": unseen}).make_env
    home = config.make_env()
    for name, make in worlds.items():
        env = make()
        for kind, here, there in (
            ("observations", home.observation_space, env.observation_space),
            ("actions", home.action_space, env.action_space),
        ):
            if here != there:
                raise ValueError(f"{name}: the agents learnt with {kind} {here} and cannot act with {there}")
    return worlds


def _finished(folder: Path, config: RunConfig, seed: int) -> SeedResult:
    learner, evaluations = runs.resume(folder, config, seed)
    if learner.steps < config.steps:
        raise ValueError(
            f"seed {seed} stands at {learner.steps} of {config.steps} steps: `tabular run --resume {folder}` first"
        )
    return SeedResult(seed, learner, evaluations)


def _greedy(
    results: list[SeedResult], make: Callable[..., gym.Env], asked: Judgement
) -> tuple[np.ndarray, dict[str, judging.Interval]]:
    """The agents' mean returns [N] and the figures of their greedy policies in one world."""
    found = []
    for result in results:
        seed = int(np.random.SeedSequence((asked.seed, result.seed)).generate_state(1)[0])
        found.append(judging.evaluate(result.learner, make, asked.episodes, seed))
    returns = np.array([one.mean_return for one in found])
    successes = np.array([one.success_rate for one in found])
    figures = {
        "greedy return": judging.interval(returns),
        "greedy return, IQM": judging.interval(returns, judging.iqm),
        "greedy episode length": judging.interval([float(one.lengths.mean()) for one in found]),
    }
    if not np.isnan(successes).any():
        figures["success rate"] = judging.interval(successes)
    return returns, figures


def _learning(config: RunConfig, results: list[SeedResult], threshold: Number | None) -> Figures:
    """The figures of how they learnt."""
    figures = {}
    histories = [result.learner.history for result in results]
    goal = config.goal() if threshold is None else threshold
    if goal is not None:
        steps = [judging.steps_to_threshold(history, goal) for history in histories]
        figures[f"training steps to {goal:g} (median)"] = judging.interval(steps, judging.median)
    areas = [judging.area_under_curve(history, config.steps) for history in histories]
    if not np.isnan(areas).any():
        figures["training return, whole run"] = judging.interval(areas)
    if visited := list(runs.coverage(config, results)):
        figures["state coverage in training"] = judging.interval(visited)
    return figures
