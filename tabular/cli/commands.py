"""The work of `tabular run`, `compare`, `watch` and `list`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tabular.cli import show
from tabular.core.statistics import Interval
from tabular.envs.registry import SHORT_NAMES, find_env, make_env, options_of
from tabular.experiments import algorithms, frames, plots, runs
from tabular.experiments.figures import draw_all, new_file
from tabular.experiments.pictures import run_pictures
from tabular.experiments.runs import RunConfig, SeedResult
from tabular.experiments.summary import summarise, write_summary
from tabular.text import did_you_mean

OTHER_METHODS = (
    ("solve", "value_iteration", "planning by synchronous sweeps, Bellman (1957)"),
    ("solve", "in_place", "the same, each state from the newest values"),
    ("solve", "prioritised", "the same, the largest error first, Moore & Atkeson (1993)"),
    ("solve", "policy_iteration", "planning by evaluation and improvement, Howard (1960)"),
    ("predict", "td", "TD(lambda), Sutton (1988)"),
    ("predict", "n_step", "n-step TD, Sutton & Barto (2018), section 7.1"),
    ("predict", "monte_carlo", "averages of returns, Sutton & Barto (2018), section 5.1"),
    ("offline", "q_learning", "Q-learning from a log of another policy"),
    ("offline", "double_q_learning", "the same with two tables"),
)
"""Command, name and description of the methods that no run trains."""


@dataclass(frozen=True)
class TrainingRequest:
    """What to train: one algorithm or several on the same environment and seeds."""

    algorithms: tuple[str, ...]
    settings: Mapping[str, str]
    "of the algorithms, as text; each takes those that it has"
    env: str
    "id, short name or a maze's text file"
    env_options: Mapping[str, str]
    steps: int
    seeds: Sequence[int]
    evaluate_every: int
    eval_episodes: int
    threshold: float | None
    output: Path | None
    "run folder; None: a new one in runs/"


def train(request: TrainingRequest) -> int:
    """Trains one algorithm into a run folder, or several into the folder of a comparison.

    Raises:
        ValueError: an unknown algorithm, setting or environment, or a folder that exists; before anything is written.
    """
    configs = _configs(request)
    env_id = next(iter(configs.values())).env
    title = f"{request.algorithms[0] if len(configs) == 1 else 'compare'}-{runs.env_name(env_id)}"
    output = request.output or runs.new_folder(title)
    if len(configs) == 1:
        (config,) = configs.values()
        runs.create(output, config)
        return _train_one(output, config)
    runs.create_comparison(output, configs)
    return _train_several(output, configs)


def resume(folder: Path, steps: int | None = None) -> int:
    """Trains the unfinished seeds of a run, or of all runs of a comparison, from their last checkpoints.

    Args:
        folder: of the run or comparison.
        steps: extends every run to so many steps in all; None: its own number.

    Raises:
        ValueError: the folder holds no run, is damaged, or has as many steps already.
    """
    if (folder / runs.COMPARISON).is_file():
        configs = runs.read_comparison(folder)
        if steps is not None:
            configs = {name: runs.extend(folder / name, config, steps) for name, config in configs.items()}
        return _train_several(folder, configs)
    config = runs.read_config(folder)
    return _train_one(folder, config if steps is None else runs.extend(folder, config, steps))


def _configs(request: TrainingRequest) -> dict[str, RunConfig]:
    """The checked config of each algorithm's run."""
    env_id, env_options = find_env(request.env, request.env_options)
    env = make_env(env_id, env_options)
    names = request.algorithms
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"{repeated[0]} is named twice: each algorithm is compared once")
    classes = {name: algorithms.load(name) for name in names}
    _check_setting_names(request.settings, classes)
    configs = {}
    for name, cls in classes.items():
        texts = {setting: text for setting, text in request.settings.items() if setting in _setting_names(cls)}
        values = asdict(algorithms.settings(cls.Config, texts))
        config = RunConfig(
            algorithm=name,
            env=env_id,
            env_options=env_options,
            settings={setting: value for setting, value in values.items() if setting in texts},
            steps=request.steps,
            seeds=tuple(request.seeds),
            evaluate_every=request.evaluate_every,
            episodes=request.eval_episodes,
            threshold=request.threshold,
        )
        if name not in (fitting := algorithms.fitting(env)):
            raise ValueError(
                f"{name} needs {algorithms.needs(name)}, but {env_id} has observations {env.observation_space} "
                f"and actions {env.action_space}; algorithms that fit: {', '.join(fitting) or 'none'}"
            )
        config.make_learner(request.seeds[0])
        configs[name] = config
    return configs


def _setting_names(cls: Any) -> list[str]:
    return [field.name for field in fields(cls.Config)]


def _check_setting_names(settings: Mapping[str, str], classes: Mapping[str, Any]) -> None:
    """Raises ValueError for a setting that none of the algorithms has."""
    names = sorted({name for cls in classes.values() for name in _setting_names(cls)})
    options = ["env", "steps", "seeds", "seed", "output", "evaluate_every", "eval_episodes", "threshold"]
    for setting in settings:
        if setting not in names:
            hint = did_you_mean(f"--{setting}", [f"--{name}" for name in (*names, *options)])
            raise ValueError(f"unknown option --{setting} for {', '.join(classes)}: {hint}")


def _train_one(folder: Path, config: RunConfig) -> int:
    results = _train_all(folder, {folder: config})[folder]
    summary = summarise(config, results)
    write_summary(folder, summary)
    draw_all(*run_pictures(folder, config, results))
    _show(f"{config.algorithm} on {config.env}, {config.steps} steps", config, {config.algorithm: summary})
    print(f"written: {folder}")
    return 0


def _train_several(folder: Path, configs: Mapping[str, RunConfig]) -> int:
    results = _train_all(folder, {folder / name: config for name, config in configs.items()})
    summaries = {name: summarise(config, results[folder / name]) for name, config in configs.items()}
    config = next(iter(configs.values()))  # the runs differ only in the algorithm and its settings
    _show(f"{config.env}, {config.steps} steps", config, summaries)
    pictures = []
    for name, run_config in configs.items():
        write_summary(folder / name, summaries[name])
        pictures += run_pictures(folder / name, run_config, results[folder / name])
    histories = {name: [result.learner.history for result in results[folder / name]] for name in configs}
    threshold = config.solved_return()
    draw_all(
        *pictures,
        lambda: plots.learning_curves(folder / "learning_curves.png", histories, config.steps, threshold),
        lambda: plots.metric_curves(folder / "metrics.png", histories),
    )
    print(f"written: {folder}")
    return 0


def _show(title: str, config: RunConfig, summaries: Mapping[str, Mapping[str, Interval]]) -> None:
    n_seeds = len(config.seeds)
    note = f"greedy: means of {show.counted(config.episodes, 'episode')} per seed"
    show.summary(f"{title}, {show.counted(n_seeds, 'seed')}", summaries, n_seeds, note)


def _train_all(parent: Path, configs: Mapping[Path, RunConfig]) -> dict[Path, list[SeedResult]]:
    """Trains all runs; a KeyboardInterrupt carries the name of the folder `parent`, which `--resume` continues."""
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


def watch(folder: Path, seed: int | None, episode: int, delay: float, gif: Path | None) -> int:
    """Shows an episode of a saved agent's greedy policy.

    Args:
        folder: of the run.
        seed: which seed's agent; None: the first.
        episode: seed of the episode.
        delay: seconds between two steps.
        gif: write an animation to this file instead of printing.

    Raises:
        ValueError: there is no such agent, or the animation cannot be written.
    """
    config = runs.read_config(folder)
    seed = config.seeds[0] if seed is None else seed
    if seed not in config.seeds:
        raise ValueError(f"{folder} has the seeds {', '.join(map(str, config.seeds))}, not {seed}")
    if not (folder / f"seed_{seed}" / "checkpoint.pt").is_file():
        raise ValueError(f"{folder} has no saved agent of seed {seed} yet")
    learner, _ = runs.resume(folder, config, seed)
    if gif is None:
        show.episode(learner, config.make_env, episode, delay)
        return 0
    if gif.suffix.lower() != ".gif":
        raise ValueError(f"--gif must be a file name that ends in .gif, got {gif}")
    frames.save_gif(new_file(gif), frames.episode_frames(learner, config.make_env, episode))
    print(f"written: {gif}")
    return 0


def show_list(name: str | None) -> int:
    """Prints the environments and algorithms, or the settings of one of them.

    Raises:
        ValueError: nothing has that name.
    """
    if name is None:
        show.environments({env_id: short for short, env_id in SHORT_NAMES.items()})
        show.algorithms(
            [
                *[(*row, "an environment's table") for row in OTHER_METHODS],
                *[("run", name, source, algorithms.needs(name)) for name, source in algorithms.SOURCES.items()],
            ]
        )
        return 0
    if name in algorithms.ALGORITHMS:
        show.options(name, algorithms.describe(algorithms.load(name).Config))
        return 0
    try:
        env_id, _ = find_env(name)
    except ValueError:
        names = [*algorithms.ALGORITHMS, *SHORT_NAMES]
        raise ValueError(f"unknown algorithm or environment {name!r}: {did_you_mean(name, names)}") from None
    show.options(env_id, [(f"env.{option}", default, "") for option, default in options_of(env_id).items()])
    return 0
