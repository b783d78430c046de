"""The `rlhf` command. Each subcommand imports what it needs when it is called, so that help is printed at once."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf.errors import INTERRUPTED, UserError, report_user_errors
from rlhf.run.startup import prepare_libraries

if TYPE_CHECKING:
    from rlhf.config.commands import EvaluateJob

COMMANDS = {
    "sft": "fine-tune a language model on demonstrations, or train a new one",
    "reward": "train a reward model on preference pairs",
    "dpo": "train a policy on preference pairs, without a reward model",
    "ppo": "train a policy with PPO",
    "evaluate": "evaluate a policy beside the model it started from, or several policies, on held-out prompts",
    "best-of-n": "sample n responses to each prompt and take the best, as a baseline or as data for sft",
    "compare": "compare pairs of answers in a local page; the preferences train a reward model",
    "generate": "generate responses to a prompt or to the prompts of a file",
    "chat": "talk with a model in the terminal, or with start and trained model side by side",
    "serve-reward": "answer requests for scores over HTTP, with any reward source",
    "status": "print all runs of a folder as a table, with warnings and the time left",
    "watch": "show all runs of a folder in a local page while they go",
    "report": "write the report of a run as one HTML page, or of several runs over common axes",
    "push": "upload a run's model with its card to the Hugging Face hub",
    "replay": "show again why a run skipped an optimizer step",
    "demo": "run all stages on film reviews, in minutes on a CPU",
}

OTHER_COMMANDS = {
    "grpo": "it is `rlhf ppo --ppo.estimator grpo --ppo.samples_per_prompt 8`",
    "rloo": "it is `rlhf ppo --ppo.estimator rloo --ppo.samples_per_prompt 4`",
    **dict.fromkeys(("kto", "orpo", "bco", "cpo"), "there is none here"),
}
"""Commands of other trainers -> what there is here instead."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console command.

    Returns:
        The exit status: 0 done, 1 a goal of the demo was missed, 130 stopped.

    Raises:
        SystemExit: with status 2 for a user's mistake and 130 for an interrupt, after one line on standard error.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: rlhf COMMAND [options]\n\ncommands:")
        print("\n".join(f"  {name:<12} {what}" for name, what in COMMANDS.items()))
        print("\n`rlhf COMMAND --help` lists a command's settings; --config file.yaml reads them from a file")
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        from rlhf import __version__

        print(__version__)
        return 0
    with report_user_errors():
        command = _command(argv[0])
        try:
            return command(argv[1:])
        except BrokenPipeError:  # of `| head`: all files are written, and nobody reads the output any more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
    return 2


def _command(name: str) -> Callable[[list[str]], int]:
    """The function that runs a command."""
    if name not in COMMANDS:
        import difflib

        if name in OTHER_COMMANDS:
            raise UserError(f"unknown command {name!r}; {OTHER_COMMANDS[name]}")
        similar = difflib.get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean {similar[0]}?" if similar else f"there are {', '.join(COMMANDS)}"
        raise UserError(f"unknown command {name!r}; {hint}")
    return globals()[f"_{name.replace('-', '_')}"]


def _sft(argv: list[str]) -> int:
    from rlhf.config.jobs import SFTJob
    from rlhf.config.parsing import parse

    job = parse(SFTJob, argv, "rlhf sft")
    prepare_libraries()
    from rlhf.trainers.sft import train_sft

    return 0 if train_sft(job) else INTERRUPTED


def _reward(argv: list[str]) -> int:
    from rlhf.config.jobs import RewardJob
    from rlhf.config.parsing import parse

    job = parse(RewardJob, argv, "rlhf reward")
    prepare_libraries()
    from rlhf.trainers.reward_model import train_reward_model

    return 0 if train_reward_model(job) else INTERRUPTED


def _dpo(argv: list[str]) -> int:
    from rlhf.config.jobs import DPOJob
    from rlhf.config.parsing import parse

    job = parse(DPOJob, argv, "rlhf dpo")
    prepare_libraries()
    from rlhf.trainers.dpo import train_dpo

    return 0 if train_dpo(job) else INTERRUPTED


def _ppo(argv: list[str]) -> int:
    from rlhf.config.jobs import PPOJob
    from rlhf.config.parsing import parse

    job = parse(PPOJob, argv, "rlhf ppo")
    prepare_libraries()
    from rlhf.trainers.ppo import PPOTrainer

    trainer = PPOTrainer(job)
    trainer.train()
    return 0 if trainer.is_finished else INTERRUPTED


def _evaluate(argv: list[str]) -> int:
    """`rlhf evaluate RUN` takes its settings from the run, and options override them; RUN may be left out.

    With several words, or --best_of, policies are compared.
    """
    from rlhf.config.commands import EvaluateJob
    from rlhf.config.parsing import parse, split_words
    from rlhf.config.run_settings import comparison_of_policies, evaluation_of_run

    policies, options = split_words(EvaluateJob, argv)
    if len(policies) > 1:
        job = comparison_of_policies(policies, options)
    else:
        job = evaluation_of_run(Path(policies[0]), options) if policies else parse(EvaluateJob, argv, "rlhf evaluate")
    prepare_libraries()
    return _print_comparison(job) if job.compares else _print_evaluation(job)


def _print_evaluation(job: "EvaluateJob") -> int:
    import json

    from rich.console import Console

    from rlhf.evaluation.command import evaluate_with_samples
    from rlhf.evaluation.tables import responses_table, summary_table

    result, samples = evaluate_with_samples(job)
    console = Console()
    console.print(summary_table(result.get("before"), result["after"]))
    console.print(responses_table(samples, step=1))
    print(json.dumps(result))
    return 0


def _print_comparison(job: "EvaluateJob") -> int:
    import json

    from rich.console import Console

    from rlhf.evaluation.comparison import compare_policies
    from rlhf.evaluation.tables import comparison_table
    from rlhf.report.comparison import write_comparison

    result = compare_policies(job)
    Console().print(comparison_table(result))
    if job.output is not None:
        print(f"page in {write_comparison(Path(job.output))}")
    print(json.dumps(result))
    return 0


def _best_of_n(argv: list[str]) -> int:
    """`rlhf best-of-n RUN` takes its settings from a PPO run, and options override them; or MODEL and settings."""
    from rlhf.config.commands import BestOfNJob
    from rlhf.config.parsing import parse, split_words
    from rlhf.config.run_settings import best_of_n_of_run, is_ppo_run

    models, options = split_words(BestOfNJob, argv)
    from_run = len(models) == 1 and is_ppo_run(Path(models[0]))
    if from_run:
        job = best_of_n_of_run(Path(models[0]), options)
    else:
        job = parse(BestOfNJob, argv, "rlhf best-of-n", "model.path")
    prepare_libraries()
    import json

    from rich.console import Console

    from rlhf.evaluation.best_of_n import run_best_of_n
    from rlhf.evaluation.tables import statistics_table

    summary = run_best_of_n(job)
    Console().print(statistics_table(f"{summary['prompts']:.0f} prompts", {f"best of {job.n}": summary}))
    print(json.dumps(summary))
    return 0


def _compare(argv: list[str]) -> int:
    from rlhf.config.compare import parse_compare

    job = parse_compare(argv)
    from rlhf.people.command import compare, summarise_file

    if job.summary is None:
        compare(job)
    else:
        summarise_file(job)
    return 0


def _generate(argv: list[str]) -> int:
    from rlhf.config.commands import GenerateJob
    from rlhf.config.parsing import parse

    job = parse(GenerateJob, argv, "rlhf generate", "model")
    prepare_libraries()
    from rlhf.cli.generate import generate

    generate(job)
    return 0


def _chat(argv: list[str]) -> int:
    from rlhf.config.commands import ChatJob
    from rlhf.config.parsing import parse

    job = parse(ChatJob, argv, "rlhf chat", "model")
    prepare_libraries()
    from rlhf.cli.chat import chat

    chat(job)
    return 0


def _serve_reward(argv: list[str]) -> int:
    from rlhf.config.parsing import parse
    from rlhf.config.serving import ServeRewardJob

    job = parse(ServeRewardJob, argv, "rlhf serve-reward")
    prepare_libraries()
    from rlhf.rewards.serving import serve_reward

    serve_reward(job)
    return 0


def _status(argv: list[str]) -> int:
    from rlhf.config.commands import StatusJob
    from rlhf.config.parsing import parse

    job = parse(StatusJob, argv, "rlhf status", "folder")
    from rich.console import Console

    from rlhf.report.status import status_table

    table, messages = status_table(Path(job.folder).expanduser())
    console = Console()
    console.print(table)
    for name, message in messages:
        console.print(f"{name}: {message}", markup=False, highlight=False)
    return 0


def _watch(argv: list[str]) -> int:
    from rlhf.config.commands import WatchJob
    from rlhf.config.parsing import parse

    job = parse(WatchJob, argv, "rlhf watch", "folder")
    from rlhf.watch.command import watch

    watch(job)
    return 0


def _report(argv: list[str]) -> int:
    from rlhf.config.commands import ReportJob
    from rlhf.config.parsing import parse, to_options

    count = next((i for i, word in enumerate(argv) if word.startswith("-")), len(argv))
    words, options = argv[1:count], argv[:1] + argv[count:]
    named = to_options(ReportJob, {"others": words}) if words else []
    job = parse(ReportJob, [*options[:1], *named, *options[1:]], "rlhf report", "run")
    from rlhf.report.report import write_report

    assert job.run is not None
    output = Path(job.output).expanduser() if job.output is not None else None
    try:
        if job.others:
            from rlhf.watch.static import write_overlay

            folders = [Path(name).expanduser() for name in (job.run, *job.others)]
            print(write_overlay(folders, output or Path("runs.html")))
        else:
            print(write_report(Path(job.run).expanduser(), output))
    except OSError as error:
        raise UserError(f"{error.filename or job.output}: {error.strerror or error}") from error
    return 0


def _push(argv: list[str]) -> int:
    from rlhf.config.commands import PushJob
    from rlhf.config.parsing import parse

    job = parse(PushJob, argv, "rlhf push", "run")
    from rlhf.cli.push import push

    push(job)
    return 0


def _replay(argv: list[str]) -> int:
    from rlhf.config.commands import ReplayJob
    from rlhf.config.parsing import parse

    job = parse(ReplayJob, argv, "rlhf replay", "dump")
    prepare_libraries()
    from rich.console import Console

    from rlhf.cli.replay import replay_table, replay_verdict
    from rlhf.trainers.replay import replay

    assert job.dump is not None
    result = replay(Path(job.dump))
    Console().print(replay_table(result))
    print(replay_verdict(result))
    return 0


def _demo(argv: list[str]) -> int:
    from rlhf.config.commands import DemoJob
    from rlhf.config.parsing import parse

    job = parse(DemoJob, argv, "rlhf demo")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    prepare_libraries()
    from rlhf.demo.demo import run_demo

    return 0 if run_demo(job) else 1


if __name__ == "__main__":
    sys.exit(main())
