"""The `rlhf` command. Each stage imports what it needs when it is called, so that help comes at once."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from rlhf.errors import UserError, report_user_errors
from rlhf.run.progress import silence_libraries

COMMANDS = {
    "sft": "fine-tune a language model on demonstrations, or train a new one",
    "reward": "train a reward model on preference pairs",
    "ppo": "train a policy with PPO",
    "evaluate": "compare a policy with the model it started from, on held-out prompts",
    "generate": "continue a prompt, a file of prompts, or a chat",
    "report": "write a run's report as one HTML page",
    "demo": "all of it on film reviews, in minutes on a CPU",
}

STOPPED = 130
"""Exit status of a run that was asked to stop before its end, so that `rlhf sft && rlhf ppo` does not go on."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console command; returns the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: rlhf COMMAND [options]\n\ncommands:")
        print("\n".join(f"  {name:<9} {what}" for name, what in COMMANDS.items()))
        print("\n`rlhf COMMAND --help` lists a command's settings; --config file.yaml reads them from a file")
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        from rlhf import __version__

        print(__version__)
        return 0
    with report_user_errors():
        if argv[0] not in COMMANDS:
            import difflib

            near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
            raise UserError(
                f"unknown command {argv[0]!r}; "
                + (f"did you mean {near[0]}?" if near else f"known: {', '.join(COMMANDS)}")
            )
        run: Callable[[list[str]], int | None] = globals()[f"_{argv[0]}"]
        return run(argv[1:]) or 0
    return 2


def _sft(argv: list[str]) -> int:
    from rlhf.config.jobs import SFTJob
    from rlhf.config.parsing import parse

    job = parse(SFTJob, argv, "rlhf sft")
    silence_libraries()
    from rlhf.trainers.sft import train_sft

    return 0 if train_sft(job) else STOPPED


def _reward(argv: list[str]) -> int:
    from rlhf.config.jobs import RewardJob
    from rlhf.config.parsing import parse

    job = parse(RewardJob, argv, "rlhf reward")
    silence_libraries()
    from rlhf.trainers.reward_model import train_reward_model

    return 0 if train_reward_model(job) else STOPPED


def _ppo(argv: list[str]) -> int:
    from rlhf.config.jobs import PPOJob
    from rlhf.config.parsing import parse

    job = parse(PPOJob, argv, "rlhf ppo")
    silence_libraries()
    from rlhf.trainers.ppo import PPOTrainer

    trainer = PPOTrainer(job)
    trainer.train()
    return 0 if trainer.state.step >= job.ppo.steps else STOPPED


def _evaluate(argv: list[str]) -> None:
    """`rlhf evaluate RUN` takes everything from the run; options override it, or stand alone without a RUN."""
    from rlhf.config.jobs import EvaluateJob, evaluation_of
    from rlhf.config.parsing import parse

    if argv and not argv[0].startswith("-"):
        job = evaluation_of(Path(argv[0]), argv[1:])
    else:
        job = parse(EvaluateJob, argv, "rlhf evaluate")
    silence_libraries()
    import json

    from rich.console import Console

    from rlhf.evaluation.command import evaluate_with_samples
    from rlhf.evaluation.tables import responses_table, summary_table

    result, samples = evaluate_with_samples(job)
    console = Console()
    console.print(summary_table(result.get("before"), result["after"]))
    console.print(responses_table(samples, step=1))
    print(json.dumps(result))


def _generate(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("rlhf generate", description="Continue prompts with any model or run folder.")
    parser.add_argument("model", help="run folder, checkpoint folder, model folder or hub id")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", help="a prompt")
    what.add_argument("--file", help="a data file with a column `prompt`")
    what.add_argument("--chat", action="store_true", help="talk: each line is a turn, an empty one ends")
    parser.add_argument("--output", help="write a jsonl file instead of printing")
    parser.add_argument("--count", type=int, default=1, help="responses to each prompt (default 1)")
    parser.add_argument("--max_new_tokens", type=int, default=128)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    silence_libraries()
    from rlhf.cli.generate import complete

    complete(**vars(options))


def _report(argv: list[str]) -> None:
    parser = argparse.ArgumentParser("rlhf report", description="Write a run's report as one self-contained HTML page.")
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--output", type=Path, help="where to write it (default: RUN/report.html)")
    options = parser.parse_args(argv)
    from rlhf.report.report import write_report

    try:
        print(write_report(options.run, options.output))
    except ValueError as error:
        raise UserError(str(error)) from error


def _demo(argv: list[str]) -> int:
    parser = argparse.ArgumentParser("rlhf demo", description="SFT, reward model, PPO and evaluation on film reviews.")
    parser.add_argument("--output", help="folder for everything (default: the first free runs/demo-N)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kl_coef", type=float, help="price of the KL; 0 shows how a reward model is hacked")
    options = parser.parse_args(argv)
    if options.kl_coef is not None and options.kl_coef < 0:
        raise UserError(f"--kl_coef is {options.kl_coef}, but it must be at least 0")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    silence_libraries()
    from rlhf.demo.demo import run_demo

    output = options.output or next(f"runs/demo-{n}" for n in range(1, 10_000) if not Path(f"runs/demo-{n}").exists())
    return 0 if run_demo(output, options.seed, options.kl_coef) else 1


if __name__ == "__main__":
    sys.exit(main())
