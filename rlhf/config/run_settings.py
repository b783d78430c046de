"""Settings of a finished PPO run as those of `rlhf evaluate` and `rlhf best-of-n`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rlhf.config.commands import BestOfNJob, EvaluateJob
from rlhf.config.parsing import parse, read_yaml, to_options
from rlhf.config.shared import LoraConfig
from rlhf.errors import UserError


def is_ppo_run(folder: Path) -> bool:
    """Whether a folder is that of a PPO run."""
    return (folder / "config.yaml").is_file() and "ppo" in read_yaml(folder / "config.yaml")


def evaluation_of_run(run: Path, argv: Sequence[str]) -> EvaluateJob:
    """The evaluation of a finished PPO run: its model against the model it started from, on its held-out prompts.

    Args:
        run: folder of a PPO run.
        argv: options that override the run's settings.

    Raises:
        UserError: the folder is not one of a PPO run, its config names a function whose file lies in it, or an option
            is wrong.
    """
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run} is no run folder (it has no config.yaml); to evaluate a model use --model.path")
    if not is_ppo_run(run):
        raise UserError(f"{run} is no PPO run; name a model with --model.path, and the data and scores to use")
    return parse(
        EvaluateJob, [*_options_of_run(run, argv, EvaluateJob), *_baseline_of_run(run), *argv], "rlhf evaluate"
    )


def comparison_of_policies(policies: Sequence[str], argv: Sequence[str]) -> EvaluateJob:
    """The comparison of several policies, with the data, scores and baseline of the first PPO run among them.

    Args:
        policies: run folders, models or hub ids.
        argv: options that override the run's settings, or that set them where no policy is a PPO run.
    """
    run = next((Path(policy) for policy in policies if is_ppo_run(Path(policy))), None)
    settings = [] if run is None else [*_options_of_run(run, argv, EvaluateJob), *_baseline_of_run(run)]
    first, *others = policies
    named = to_options(EvaluateJob, {"model": {"path": first}, "policies": others})
    return parse(EvaluateJob, [*settings, *named, *argv], "rlhf evaluate")


def _baseline_of_run(run: Path) -> list[str]:
    return to_options(EvaluateJob, {"baseline": read_yaml(run / "config.yaml")["model"]["path"]})


def best_of_n_of_run(run: Path, argv: Sequence[str]) -> BestOfNJob:
    """The best of n responses of a PPO run's model to its prompts, by its reward; `argv` overrides its settings."""
    return parse(BestOfNJob, [*_options_of_run(run, argv, BestOfNJob), *argv], "rlhf best-of-n")


def _options_of_run(run: Path, argv: Sequence[str], kind: type) -> list[str]:
    """A PPO run's model, seed, data, sampling, reward and evaluation as options, to which `argv` will be added."""
    settings = read_yaml(run / "config.yaml")
    shared = {name: settings[name] for name in ("seed", "data", "generation", "reward", "eval")}
    _check_functions_outside(run, settings, argv)
    model = {**settings["model"], "path": str(run / "model"), "lora": asdict(LoraConfig()), "shard": False}
    if kind is EvaluateJob and "environment" in settings:
        shared["environment"] = settings["environment"]
    return to_options(kind, {**shared, "model": model})


def _check_functions_outside(run: Path, settings: Mapping[str, Any], argv: Sequence[str]) -> None:
    """Refuse what a run folder, which may come from somebody else, could do by its config unless an option names it.

    That is to run code that lies in the folder, and to send a secret of this machine to a server.
    """
    options = {word.split("=")[0] for word in argv}
    sources = _sources_of_run(settings)
    code = {f"--{prefix}.function": block.get("function") for prefix, block in sources}
    code["--environment.path"] = (settings.get("environment") or {}).get("path")
    for option, name in code.items():
        file = Path((name or "").rpartition(":")[0]).expanduser()
        is_inside = file.suffix == ".py" and file.resolve().is_relative_to(run.resolve())
        if name and is_inside and option not in options:
            raise UserError(
                f"{run / 'config.yaml'} names the function {name}, whose file lies in the run folder; read it, and "
                f"give it as {option} {name} to run it"
            )
    for prefix, block in sources:
        token, option = block.get("token_env"), f"--{prefix}.token_env"
        if token and option not in options:
            raise UserError(
                f"{run / 'config.yaml'} sends the environment variable {token} to {block.get('url')}; if that is "
                f"right, give it as {option} {token}"
            )


def _sources_of_run(settings: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """(dotted name, settings) of every source in the settings of a run."""
    reward, evaluation = settings["reward"], settings["eval"]
    judge = evaluation.get("judge") or {}
    groups = {"reward.sources": reward.get("sources"), "eval.judge.sources": judge.get("sources")}
    named = [(f"{group}.{name}", block) for group, blocks in groups.items() for name, block in (blocks or {}).items()]
    return [("reward", reward), ("eval.judge", judge), *named]
