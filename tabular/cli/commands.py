"""What `tabular run`, `compare`, `watch` and `list` do."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tabular.cli import show
from tabular.envs.registry import SHORT_NAMES, find_env, make_env, options_of
from tabular.envs.table import TableEnv, grid_of
from tabular.experiments import algorithms, frames, plots, runs
from tabular.experiments.evaluation import Interval
from tabular.experiments.runs import RunConfig, SeedResult
from tabular.planning.mdp import MDP, reachable
from tabular.text import did_you_mean


def train(args: argparse.Namespace, names: Sequence[str]) -> int:
    """`run` and `compare`: everything is checked before the first folder is made."""
    env_id, env_options = find_env(args.env, args.env_options)
    env = make_env(env_id, env_options)
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{twice[0]} is named twice: each algorithm is compared once")
    classes = {name: algorithms.load(name) for name in names}
    _check_names(args.options, classes)
    configs = {}
    for name, cls in classes.items():
        own = {option: text for option, text in args.options.items() if option in _settings(cls)}
        config = RunConfig(
            algorithm=name,
            env=env_id,
            env_options=env_options,
            settings=_changed(algorithms.settings(cls.Config, own), own),
            steps=args.steps,
            seeds=tuple(range(args.seed, args.seed + args.seeds)),
            evaluate_every=args.evaluate_every or max(1, args.steps // 10),
            episodes=args.eval_episodes,
            threshold=args.threshold,
        )
        if name not in (fitting := algorithms.fitting(env)):
            raise ValueError(
                f"{name} fits {algorithms.fits(name)}, but {env_id} has observations {env.observation_space} "
                f"and actions {env.action_space}; algorithms that fit: {', '.join(fitting) or 'none'}"
            )
        config.make_learner(args.seed)
        configs[name] = config

    title = "-".join([names[0] if len(names) == 1 else "compare", env_id.split("/")[-1]])
    output = args.output or runs.new_folder(title)
    if len(configs) == 1:
        (config,) = configs.values()
        runs.create(output, config)
        return _train_one(output, config)
    runs.create_comparison(output, configs)
    return _train_several(output, configs)


def resume(folder: Path) -> int:
    """`run --resume`: the seeds of a run, or of all runs of a comparison, that are not finished, from where they were
    saved."""
    if (folder / runs.COMPARISON).is_file():
        return _train_several(folder, runs.read_comparison(folder))
    return _train_one(folder, runs.read_config(folder))


def _train_several(folder: Path, configs: Mapping[str, RunConfig]) -> int:
    results = _train_all(folder, {folder / name: config for name, config in configs.items()})
    summaries = {name: runs.summarise(config, results[folder / name]) for name, config in configs.items()}
    config = next(iter(configs.values()))  # they differ in the algorithm and its settings only
    _show(f"{config.env}, {config.steps} steps", config, summaries)
    pictures = []
    for name, config in configs.items():
        runs.write_summary(folder / name, summaries[name])
        pictures += _draw_run(folder / name, config, results[folder / name])
    histories = {name: [result.learner.history for result in results[folder / name]] for name in configs}
    plots.draw(
        *pictures,
        lambda: plots.learning_curves(folder / "learning_curves.png", histories, config.steps, config.goal()),
        lambda: plots.metric_curves(folder / "metrics.png", histories),
    )
    print(f"written: {folder}")
    return 0


def _train_one(folder: Path, config: RunConfig) -> int:
    results = _train_all(folder, {folder: config})[folder]
    summary = runs.summarise(config, results)
    runs.write_summary(folder, summary)
    plots.draw(*_draw_run(folder, config, results))
    _show(f"{config.algorithm} on {config.env}, {config.steps} steps", config, {config.algorithm: summary})
    print(f"written: {folder}")
    return 0


def _show(title: str, config: RunConfig, summaries: Mapping[str, Mapping[str, Interval]]) -> None:
    seeds, note = len(config.seeds), f"greedy: means of {show.counted(config.episodes, 'episode')} a seed"
    show.summary(f"{title}, {show.counted(seeds, 'seed')}", summaries, seeds, note)


def _settings(cls: Any) -> list[str]:
    return [field.name for field in fields(cls.Config)]


def _check_names(options: Mapping[str, str], classes: Mapping[str, Any]) -> None:
    """Each option must be a setting of one of the algorithms at least."""
    known = {name for cls in classes.values() for name in _settings(cls)}
    fixed = ["env", "steps", "seeds", "seed", "output", "evaluate_every", "eval_episodes", "threshold"]
    for option in options:
        if option not in known:
            hint = did_you_mean(option, [*sorted(known), *fixed])
            raise ValueError(f"unknown option --{option} for {', '.join(classes)}: {hint}")


def _changed(config: Any, own: Mapping[str, str]) -> dict[str, Any]:
    return {name: value for name, value in asdict(config).items() if name in own}


def _train_all(parent: Path, configs: Mapping[Path, RunConfig]) -> dict[Path, list[SeedResult]]:
    """Trains all runs; an interruption names the folder `parent`, with which they are carried on."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"))
    bar = Progress(*columns, TimeRemainingColumn(), console=show.console())
    results = {}
    with bar:
        for folder, config in configs.items():
            task = bar.add_task(config.algorithm, total=config.steps * len(config.seeds))
            try:
                results[folder] = runs.train(folder, config, lambda steps, task=task: bar.advance(task, steps))
            except KeyboardInterrupt:
                raise KeyboardInterrupt(str(parent)) from None
    return results


def _draw_run(folder: Path, config: RunConfig, results: list[SeedResult]) -> list[Callable[[], None]]:
    """The pictures of a run; of the first seed's agent where one agent is shown."""
    first, histories = results[0].learner, {config.algorithm: [result.learner.history for result in results]}

    def film() -> None:
        episode, ended = frames.film_episode(first, config.make_env, config.seeds[0])
        frames.save_gif(folder / "episode.gif", episode)
        frames.save_strip(folder / "episode.png", episode)
        if not ended:
            print(f"{folder / 'episode.gif'}: cut after {len(episode) - 1} steps, the greedy policy had not ended")

    return [
        lambda: plots.learning_curves(folder / "learning_curve.png", histories, config.steps, config.goal()),
        lambda: plots.metric_curves(folder / "metrics.png", histories),
        lambda: _draw_grid(folder, config, first),
        lambda: plots.draw(film, quiet=True),
    ]


def _draw_grid(folder: Path, config: RunConfig, learner: Any) -> None:
    """An agent's values and policy on a grid world, and where it was if it counted: a table has all that as it is, a
    network is asked in each state."""
    env: Any = config.make_env().unwrapped
    grid = grid_of(env)
    if grid is None:
        return
    whose = f"{config.algorithm} on {config.env}, seed {config.seeds[0]}"
    table = getattr(learner, "action_values", None)
    if table is not None and len(table) == len(grid.positions):
        visits = learner.visits
        best = table == table.max(axis=1, keepdims=True)
        title = f"{whose}: values and greedy policy"
        counts = visits.astype(float)
        plots.grid_values(folder / "visits.png", grid, counts, None, visits > 0, f"{whose}: visits", "visits")
        plots.grid_values(folder / "policy.png", grid, table.max(axis=1), best, visits > 0, title)
    elif table is None:
        from tabular.deep.trajectories import action_probability

        acts = reachable(MDP.from_gym(env, 1.0))
        values, chosen = np.zeros(len(acts)), np.zeros((len(acts), env.action_space.n), dtype=bool)
        chances = np.ones(len(acts)) if hasattr(learner, "policy") else None
        for state in np.flatnonzero(acts):
            env.s = int(state)
            observation, info = (env.observe(), env.info()) if isinstance(env, TableEnv) else (env.s, {})
            mask = info.get("action_mask")
            action = learner.act(observation, mask)
            chosen[state, action] = True
            if chances is not None:
                chances[state] = action_probability(
                    learner.envs, learner.network.actor, learner.policy, observation, int(action), mask
                )
            values[state] = learner.value(observation, mask)
        arrows = "greedy policy" if chances is None else "most probable actions"
        title = f"{whose}: values and {arrows}"
        plots.grid_values(folder / "policy.png", grid, np.nan_to_num(values), chosen, acts, title, chances=chances)


def watch(folder: Path, seed: int | None, episode: int, delay: float, gif: Path | None) -> int:
    """`watch`: an episode of a saved agent's greedy policy."""
    config = runs.read_config(folder)
    seed = config.seeds[0] if seed is None else seed
    if seed not in config.seeds:
        raise ValueError(f"{folder} has the seeds {', '.join(map(str, config.seeds))}, not {seed}")
    if not (folder / f"seed_{seed}" / "checkpoint.pt").is_file():
        raise ValueError(f"{folder} has no saved agent of seed {seed} yet")
    learner, _ = runs.resume(folder, config, seed)
    if gif is not None and gif.suffix.lower() != ".gif":
        raise ValueError(f"--gif {gif}: give it a name that ends in .gif")
    if gif is not None:
        frames.save_gif(plots.new_file(gif), frames.episode_frames(learner, config.make_env, episode))
        print(f"written: {gif}")
    else:
        show.episode(learner, config.make_env, episode, delay)
    return 0


def show_list(name: str | None) -> int:
    """`list`: environments and algorithms, or the settings of one of them."""
    if name in algorithms.ALGORITHMS:
        show.options(name, algorithms.describe(algorithms.load(name).Config))
        return 0
    if name is not None:
        try:
            env_id, _ = find_env(name)
        except ValueError:
            known = [*algorithms.ALGORITHMS, *SHORT_NAMES]
            raise ValueError(f"unknown algorithm or environment {name!r}: {did_you_mean(name, known)}") from None
        show.options(env_id, [(f"env.{option}", default, "") for option, default in options_of(env_id).items()])
        return 0
    show.environments({env_id: short for short, env_id in SHORT_NAMES.items()})
    show.algorithms([(name, algorithms.fits(name), source) for name, source in algorithms.SOURCES.items()])
    return 0
