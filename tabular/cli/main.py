"""The `tabular` command. Each subcommand imports what it needs when it is called, so that help comes at once."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tabular.core.errors import UserError, report_user_errors

if TYPE_CHECKING:
    from tabular.cli.commands import TrainingRequest
    from tabular.cli.options import CommandParser, Options

COMMANDS = {
    "list": "show environments and algorithms, or the settings of one of them",
    "solve": "compute optimal values and policy, or the values of a policy, from an environment's table",
    "predict": "estimate the values of a policy from episodes, beside the exact ones",
    "run": "train an algorithm on several seeds",
    "compare": "train several algorithms on the same environment and seeds",
    "offline": "learn from a log of another policy's transitions",
    "evaluate": "evaluate the greedy policies of a finished run, also with noise and in other environments",
    "watch": "show the greedy policy of a run step by step",
}

RENAMED = {"judge": "evaluate"}
"""Former names of commands."""

METHODS = ("value_iteration", "in_place", "prioritised", "policy_iteration")

ENV_OPTIONS = "--env.NAME VALUE gives the environment an option (--env.size 21); `tabular list ENV` shows them."

PREDICTION_SETTINGS = """\
settings, by --NAME VALUE:
  alpha           step size (default: 0.1); 0 averages all returns with monte_carlo
  gamma           discount (default: 1.0)
  initial_value   of all states (default: 0.0)
  lam             trace decay of td (default: 0.0)
  n               steps that n_step looks ahead (default: 4)
  first_visit     monte_carlo learns from the first visit of an episode only (default: False)

Several values of alpha, separated by commas, draw the error against alpha; with several values of lam or n, a curve
for each: --alpha 0.1,0.2,0.4 --lam 0,0.5,0.9."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console command; returns the exit status: 0 done, 1 no solution within the limits.

    Raises:
        SystemExit: with status 2 for a user's mistake, after one line on standard error.
    """
    # Small networks are fastest on one thread; several threads that wait for each other on a busy machine are slow.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: tabular COMMAND [options]\n\ncommands:")
        print("\n".join(f"  {name:<9} {what}" for name, what in COMMANDS.items()))
        print("\n`tabular COMMAND --help` lists a command's options; --config file.yaml reads them from a file")
        return 0 if argv else 2
    if argv[0] in ("-V", "--version"):
        print(_version())
        return 0
    with report_user_errors(ValueError):
        command = _command(argv[0])
        try:
            return command(argv[1:])
        except BrokenPipeError:  # of `| head`: all files are written, and nobody reads the output any more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except OSError as error:
            raise UserError(f"{error.filename or argv[0]}: {error.strerror or error}") from error
        except KeyboardInterrupt as interrupt:
            hint = f"; `tabular run --resume {interrupt}` continues from the last checkpoint" if str(interrupt) else ""
            print(f"\ninterrupted{hint}", file=sys.stderr)
            return 130
    return 2


def _command(name: str) -> Callable[[list[str]], int]:
    if name in RENAMED:
        raise UserError(f"`tabular {name}` is called `tabular {RENAMED[name]}` now")
    if name not in COMMANDS:
        from tabular.text import did_you_mean

        raise UserError(f"unknown command {name!r}: {did_you_mean(name, COMMANDS)}")
    return globals()[f"_{name}"]


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("tabular-rlhf")
    except PackageNotFoundError:
        return "unknown (not installed)"


def _list(argv: list[str]) -> int:
    from tabular.cli.options import CommandParser

    parser = CommandParser("list", COMMANDS["list"])
    parser.add_argument("name", metavar="ALGORITHM|ENV", nargs="?", help="show its settings or options")
    options = parser.read(argv)
    from tabular.cli.commands import show_list

    return show_list(options.values["name"])


def _solve(argv: list[str]) -> int:
    from tabular.cli.options import CommandParser, OneOf, fraction, positive, whole_numbers

    parser = CommandParser("solve", COMMANDS["solve"], epilog=ENV_OPTIONS)
    add = parser.add_argument
    add("env", metavar="ENV", help="an environment with a table, see `tabular list`, or a maze's text file")
    add("--gamma", type=fraction, default=0.99, help="discount in [0, 1]")
    add("--method", type=OneOf(*METHODS), metavar="NAME", help=f"{', '.join(METHODS)} (default: {METHODS[0]})")
    add("--policy", type=OneOf("random"), metavar="random", help="evaluate this policy instead of optimising")
    add("--tol", type=positive, default=1e-10, help="largest error of a value (not policy_iteration)")
    add("--sweeps", type=whole_numbers, metavar="K,K,...", help="show the values after these numbers of sweeps from 0")
    add("--plot", type=Path, metavar="FILE", help="draw values and policy into a PNG file")
    options = parser.read(argv, env_options=True)
    if options.values["policy"] is not None and "method" in options.explicit:
        raise UserError("--policy evaluates a policy and takes no --method, which is for optimal values")
    from tabular.cli.solve import solve

    return solve(env_options=options.env_options, **options.values)


def _predict(argv: list[str]) -> int:
    from tabular.cli.options import CommandParser, OneOf, count, seed, seed_count

    usage = "tabular predict METHOD [METHOD ...] --env ENV [options] [--NAME VALUE ...]"
    parser = CommandParser("predict", COMMANDS["predict"], f"{PREDICTION_SETTINGS}\n\n{ENV_OPTIONS}", usage)
    add = parser.add_argument
    add("methods", metavar="METHOD", nargs="*", help="td, n_step, monte_carlo: one or more")
    add("--env", metavar="ENV", help="an environment with a table, or a maze's text file")
    add("--policy", type=OneOf("random", "optimal"), default="random", metavar="NAME", help="random or optimal")
    add("--episodes", type=count, default=100, metavar="N", help="episodes of each seed")
    add("--seeds", type=seed_count, default=20, metavar="N", help="number of seeds")
    add("--seed", type=seed, default=0, help="the first of them")
    add("--output", type=Path, metavar="FOLDER", help="folder to write (default: a new one in runs/)")
    options = parser.read(argv, settings=True, env_options=True)
    values = options.values
    if not values["methods"]:
        raise UserError("`tabular predict` needs a METHOD: one or more of td, n_step, monte_carlo")
    _need_env(values["env"], "RandomWalk")
    from tabular.cli.predict import PredictionRequest, predict_values
    from tabular.cli.step_sizes import compare_step_sizes

    request = PredictionRequest(
        methods=tuple(values["methods"]),
        settings=options.settings,
        env=values["env"],
        env_options=options.env_options,
        policy=values["policy"],
        episodes=values["episodes"],
        seeds=range(values["seed"], values["seed"] + values["seeds"]),
        output=values["output"],
    )
    has_several_values = any("," in text for text in request.settings.values())
    return compare_step_sizes(request) if has_several_values else predict_values(request)


def _run(argv: list[str]) -> int:
    parser = _training_parser("run", "tabular run ALGORITHM --env ENV [options] [--NAME VALUE ...]", seeds=1)
    parser.add_argument("algorithm", metavar="ALGORITHM", nargs="?", help="one of those below; not with --resume")
    parser.add_argument(
        "--resume", type=Path, metavar="RUN", help="continue a run or comparison; with more --steps extend it"
    )
    options = parser.read(argv, settings=True, env_options=True)
    from tabular.cli.commands import resume, train

    if options.values["resume"] is not None:
        settings = [*options.settings, *(f"env.{name}" for name in options.env_options)]
        others = sorted({*options.explicit, *settings} - {"resume", "steps"})
        if others:
            names = ", ".join("ALGORITHM" if name == "algorithm" else f"--{name}" for name in others)
            raise UserError(f"--resume takes everything but --steps from the run's folder: leave {names} out")
        return resume(options.values["resume"], options.values["steps"] if "steps" in options.explicit else None)
    algorithm = options.values["algorithm"]
    if algorithm is None:
        raise UserError("`tabular run` needs an ALGORITHM; `tabular list` shows them")
    return train(_training_request([algorithm], options))


def _compare(argv: list[str]) -> int:
    usage = "tabular compare ALGORITHM ALGORITHM [...] --env ENV [options] [--NAME VALUE ...]"
    parser = _training_parser("compare", usage, seeds=5)
    parser.add_argument("algorithms", metavar="ALGORITHM", nargs="*", help="two or more of those below")
    options = parser.read(argv, settings=True, env_options=True)
    if not options.values["algorithms"]:
        raise UserError("`tabular compare` needs ALGORITHMs; `tabular list` shows them")
    from tabular.cli.commands import train

    return train(_training_request(options.values["algorithms"], options))


def _training_parser(name: str, usage: str, seeds: int) -> "CommandParser":
    from tabular.cli.options import CommandParser, count, finite, seed, seed_count
    from tabular.experiments.algorithms import SOURCES

    algorithms = "\n".join(f"  {algorithm:<18} {source}" for algorithm, source in SOURCES.items())
    own = "--NAME VALUE gives the algorithm a setting (--alpha 0.5); `tabular list ALGORITHM` shows them."
    epilog = f"algorithms:\n{algorithms}\n\n{own}\n{ENV_OPTIONS}"
    parser = CommandParser(name, COMMANDS[name], epilog, usage)
    add = parser.add_argument
    add("--env", metavar="ENV", help="a gymnasium environment, see `tabular list`, or a maze's text file")
    add("--steps", type=count, default=100_000, metavar="N", help="environment steps of each seed")
    add("--seeds", type=seed_count, default=seeds, metavar="N", help="number of seeds")
    add("--seed", type=seed, default=0, help="the first of them")
    add("--output", type=Path, metavar="FOLDER", help="run folder (default: a new one in runs/)")
    add("--evaluate_every", type=count, metavar="N", help="steps between evaluations (default: a tenth of --steps)")
    add("--eval_episodes", type=count, default=10, metavar="N", help="episodes of an evaluation")
    add("--threshold", type=finite, metavar="RETURN", help="return that counts as solved (default: the environment's)")
    return parser


def _training_request(algorithms: Sequence[str], options: "Options") -> "TrainingRequest":
    from tabular.cli.commands import TrainingRequest

    values = options.values
    _need_env(values["env"], "CliffWalking-v1")
    return TrainingRequest(
        algorithms=tuple(algorithms),
        settings=options.settings,
        env=values["env"],
        env_options=options.env_options,
        steps=values["steps"],
        seeds=range(values["seed"], values["seed"] + values["seeds"]),
        evaluate_every=values["evaluate_every"] or max(1, values["steps"] // 10),
        eval_episodes=values["eval_episodes"],
        threshold=values["threshold"],
        output=values["output"],
    )


def _need_env(env: str | None, example: str) -> None:
    if env is None:
        raise UserError(f"--env is missing, for instance --env {example}; `tabular list` shows all environments")


def _offline(argv: list[str]) -> int:
    from tabular.cli.options import CommandParser, OneOf, count, fraction, positive_fraction, seed

    methods = ("q_learning", "double_q_learning")
    parser = CommandParser("offline", COMMANDS["offline"], ENV_OPTIONS)
    add = parser.add_argument
    add("method", metavar="METHOD", nargs="?", type=OneOf(*methods), default=methods[0], help=" or ".join(methods))
    add("--env", metavar="ENV", help="an environment with a table, or a maze's text file")
    add("--epsilon", type=fraction, default=1.0, help="the logged policy acts at random with this probability, "
        "else optimally")  # fmt: skip
    add("--transitions", type=count, default=10_000, metavar="N", help="length of the log")
    add("--epochs", type=count, default=20, metavar="N", help="passes over the log")
    add("--gamma", type=fraction, default=0.95, help="discount in [0, 1]")
    add("--alpha", type=positive_fraction, default=0.5, help="step size in (0, 1]")
    add("--seed", type=seed, default=0, help="of the log and the learner")
    add("--output", type=Path, metavar="FOLDER", help="folder to write (default: a new one in runs/)")
    options = parser.read(argv, env_options=True)
    _need_env(options.values["env"], "maze")
    from tabular.cli.offline import learn_offline

    return learn_offline(env_options=options.env_options, **options.values)


def _evaluate(argv: list[str]) -> int:
    from tabular.cli.options import CommandParser, count, finite, fractions, seed

    epilog = "--env.NAME VALUE evaluates in a changed environment, too: --env.slip 0.2."
    parser = CommandParser("evaluate", COMMANDS["evaluate"], epilog)
    add = parser.add_argument
    add("run", metavar="RUN", type=Path, help="folder of a run or comparison")
    add("--episodes", type=count, default=100, metavar="N", help="episodes of each seed's agent in each environment")
    add("--seed", type=seed, default=0, help="seed of the episodes")
    add("--noise", type=fractions, default=(), metavar="P,P,...", help="also with these shares of the actions "
        "replaced by random ones")  # fmt: skip
    add("--threshold", type=finite, metavar="RETURN", help="return that counts as solved (default: the run's)")
    options = parser.read(argv, env_options=True)
    from tabular.cli.evaluate import EvaluationRequest, evaluate_runs
    from tabular.envs.registry import read_options

    folder = options.values.pop("run")
    request = EvaluationRequest(env_options=read_options(options.env_options), **options.values)
    return evaluate_runs(folder, request)


def _watch(argv: list[str]) -> int:
    from tabular.cli.options import CommandParser, not_negative, seed

    parser = CommandParser("watch", COMMANDS["watch"])
    add = parser.add_argument
    add("run", metavar="RUN", type=Path, help="a run folder")
    add("--seed", type=seed, help="which seed's agent (default: the first)")
    add("--episode", type=seed, default=0, metavar="SEED", help="seed of the episode")
    add("--delay", type=not_negative, default=0.2, metavar="SECONDS", help="between two steps")
    add("--gif", type=Path, metavar="FILE", help="write an animation instead")
    options = parser.read(argv)
    from tabular.cli.commands import watch

    values = options.values
    return watch(
        folder=values["run"],
        seed=values["seed"],
        episode=values["episode"],
        delay=values["delay"],
        gif=values["gif"],
    )


if __name__ == "__main__":
    sys.exit(main())
