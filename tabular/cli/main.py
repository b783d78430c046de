"""The `tabular` command: solve, predict, run, compare, judge, watch, list."""

import argparse
import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

# Everything heavy is imported where it is used: --help and a mistyped option should answer at once.

METHODS = ("value_iteration", "in_place", "prioritised", "policy_iteration")

PREDICTION_SETTINGS = (
    "Settings, by --NAME VALUE: alpha (default: 0.1; step size, 0 averages all returns with monte_carlo), gamma (1.0; "
    "discount), initial_value (0.0; of all states), lam (0.0; trace decay of td), n (4; steps that n_step looks ahead)"
    ", first_visit (False; monte_carlo learns from the first visit of an episode only). --env.NAME VALUE gives the "
    "environment an option: --env.n_states 19"
)


class UserError(ValueError):
    """A mistake in the call; the message says what to do."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns the exit code: 0 done, 1 no solution within the limits, 2 a mistake in the call."""
    # Small networks are fastest on one thread, and two that wait for each other on a busy machine are slow indeed.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    words = list(sys.argv[1:] if argv is None else argv)
    top, parsers = _parsers()
    if not words:
        top.print_help()
        return 2
    try:
        if words[0].startswith("-"):
            top.parse_args(words)
        name, parser = words[0], parsers.get(words[0])
        if parser is None:
            near = difflib.get_close_matches(name, parsers)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(parsers)}"
            raise UserError(f"unknown command {name!r}: {hint}")
        known, own = _take_options(words[1:], parser)
        args = parser.parse_intermixed_args(known)
        args.command = name
        args.options, args.env_options = _sort_options(own, args)
        commands = {"solve": _solve, "predict": _predict, "run": _run, "compare": _run, "judge": _judge}
        return (commands | {"watch": _watch, "list": _list})[name](args)
    except ValueError as error:
        print(f"tabular: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # of `| head`: what was to be written is written, and nobody listens any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"tabular: {error.filename or words[0]}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        hint = f"; what was saved is carried on with `tabular run --resume {stop}`" if str(stop) else ""
        print(f"\ntabular: interrupted{hint}", file=sys.stderr)
        return 130


class _Defaults(argparse.ArgumentDefaultsHelpFormatter):
    """Says the defaults that there are."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(message)


def _parsers() -> tuple[argparse.ArgumentParser, Mapping[str, argparse.ArgumentParser]]:
    """The parser that knows the commands' names, and that of each command."""
    top = _Parser(prog="tabular", description="Classical reinforcement learning, small and exact.")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")
    env_option = "--env.NAME VALUE gives the environment an option (--env.size 21); `tabular list ENV` shows them"

    def command(name: str, text: str, epilog: str | None = None) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=text,
            description=text,
            allow_abbrev=False,
            formatter_class=_Defaults,
            epilog=epilog,
        )

    solve = command("solve", "compute optimal values and policy from the environment's table", env_option)
    solve.add_argument("env", metavar="ENV", help="a gymnasium environment, see `tabular list`, or a maze's text file")
    solve.add_argument("--gamma", type=_share, default=0.99, help="discount in [0, 1]")
    solve.add_argument("--method", choices=METHODS, default="value_iteration", help="how to solve it")
    solve.add_argument("--tol", type=_tol, default=1e-10, help="largest error of a value (not policy_iteration)")
    solve.add_argument("--plot", type=Path, metavar="FILE", help="draw values and policy into a PNG file")
    solve.add_argument("--seed", type=_seed, default=0, help="unused: planning draws nothing")

    predict = command("predict", "estimate the values of a policy from episodes, beside the exact ones")
    predict.add_argument("methods", metavar="METHOD", nargs="*", help="td, n_step, monte_carlo: one or more")
    predict.add_argument("--env", metavar="ENV", help="an environment with a table, or a maze's text file")
    predict.add_argument("--policy", choices=("random", "optimal"), default="random", help="whose values")
    predict.add_argument("--episodes", type=_count, default=100, help="episodes of each seed")
    predict.add_argument("--seeds", type=_count, default=20, help="how many")
    predict.add_argument("--seed", type=_seed, default=0, help="the first of them")
    predict.add_argument("--output", type=Path, metavar="DIR", help="folder (default: a new one in runs/)")
    predict.usage = "%(prog)s METHOD [METHOD ...] --env ENV [OPTION ...] [--NAME VALUE ...]"
    predict.epilog = PREDICTION_SETTINGS

    run = command("run", "train an algorithm on several seeds and report with intervals")
    run.add_argument("algorithms", metavar="ALGORITHM", nargs="?", help="see `tabular list`; not with --resume")
    run.add_argument("--resume", type=Path, metavar="RUN", help="carry on with the folder of a run or comparison")
    compare = command("compare", "train several algorithms on the same environment and seeds")
    compare.add_argument("algorithms", metavar="ALGORITHM", nargs="+", help="see `tabular list`")
    for training in (run, compare):
        training.add_argument("--env", metavar="ENV", help="a gymnasium environment, or a maze's text file")
        training.add_argument("--steps", type=_count, default=100_000, help="environment steps of each seed")
        training.add_argument("--seeds", type=_count, default=5 if training is compare else 1, help="how many")
        training.add_argument("--seed", type=_seed, default=0, help="the first of them")
        training.add_argument("--output", type=Path, metavar="DIR", help="run folder (default: a new one in runs/)")
        training.add_argument("--evaluate-every", type=_count, help="steps (default: a tenth of them)")
        training.add_argument("--eval-episodes", type=_count, default=10, help="episodes of an evaluation")
        training.add_argument("--threshold", type=_finite, help="return that counts as solved")
        own = "--NAME VALUE gives the algorithm a setting (--alpha 0.5); `tabular list ALGORITHM` shows them"
        training.epilog = f"{own}. {env_option}"

    judge = command("judge", "judge a finished run's greedy policies, also in a changed world")
    judge.add_argument("run", metavar="RUN", type=Path, help="a run folder")
    judge.add_argument("--episodes", type=_count, default=100, help="of each seed's agent in each world")
    judge.add_argument("--seed", type=_seed, default=0, help="seed of the episodes")
    judge.add_argument("--noise", type=_share, help="also with this share of the actions replaced by random ones")
    judge.add_argument("--threshold", type=_finite, help="return that counts as solved (default: the run's)")
    judge.epilog = "--env.NAME VALUE: also in a changed environment, for instance --env.slip 0.2"

    watch = command("watch", "show the greedy policy of a run step by step")
    watch.add_argument("run", metavar="RUN", type=Path, help="a run folder")
    watch.add_argument("--seed", type=_seed, help="which seed's agent (default: the first)")
    watch.add_argument("--episode", type=_seed, default=0, help="seed of the episode")
    watch.add_argument("--delay", type=_delay, default=0.2, help="seconds between steps")
    watch.add_argument("--gif", type=Path, metavar="FILE", help="write an animation instead")

    listing = command("list", "show environments and algorithms, or the settings of one")
    listing.add_argument("name", metavar="ALGORITHM or ENV", nargs="?", help="show its settings")
    return top, commands.choices


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None


def _finite(text: str) -> float:
    if not abs(number := _number(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"must be finite, got {text}")
    return number


def _delay(text: str) -> float:
    if (delay := _finite(text)) < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, got {text}")
    return delay


def _share(text: str) -> float:
    if not 0 <= (share := _number(text)) <= 1:
        raise argparse.ArgumentTypeError(f"must be in [0, 1], got {text}")
    return share


def _tol(text: str) -> float:
    if not 0 < (tol := _number(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"must be positive and finite, got {text}")
    return tol


def _whole(text: str, least: int = 0) -> int:
    digits = text.replace("_", "")
    if not digits.isdigit() or int(digits) < least:
        raise argparse.ArgumentTypeError(f"must be a whole number from {least}, got {text!r}")
    return int(digits)


def _seed(text: str) -> int:
    if (seed := _whole(text)) >= 2**32:
        raise argparse.ArgumentTypeError(f"must be below 2^32, got {text}")
    return seed


def _count(text: str) -> int:
    return _whole(text, 1)


def _take_options(words: Sequence[str], parser: argparse.ArgumentParser) -> tuple[list[str], dict[str, str]]:
    """The words that argparse knows, and the other options: `--alpha 0.5 --env.size=21` -> `{"alpha": "0.5",
    "env.size": "21"}`. Before argparse, which would take the value of an option that it does not know for a name."""
    actions, known, own, waiting = parser._option_string_actions, [], {}, list(words)
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word.partition("=")
        if not name.startswith("--"):
            known.append(word)
            continue
        action = actions.get(name.replace("_", "-"))
        if not equals and (action is None or action.nargs != 0):
            if not waiting or waiting[0].startswith("--"):
                raise UserError(
                    f"option {name} " + ("misses its value" if action else "is unknown, or misses its value")
                )
            value = waiting.pop(0)
        if action is None:
            own[name[2:].replace("-", "_")] = value
        else:
            known.append(name.replace("_", "-") + (f"={value}" if action.nargs != 0 else ""))
    return known, own


def _sort_options(own: Mapping[str, str], args: argparse.Namespace) -> tuple[dict[str, str], dict[str, str]]:
    """Settings of algorithms and options of the environment. Raises UserError where the command takes none."""
    options = {name: value for name, value in own.items() if not name.startswith("env.")}
    env_options = {name.removeprefix("env."): value for name, value in own.items() if name.startswith("env.")}
    if getattr(args, "resume", None) and own:
        raise UserError(
            f"--resume takes everything from the run's folder: leave {', '.join(f'--{n}' for n in own)} out"
        )
    takes_settings = args.command in ("predict", "run", "compare")
    takes_env_options = takes_settings or args.command in ("solve", "judge")
    for name in own:
        if not (takes_env_options if name.startswith("env.") else takes_settings):
            known = [k for k in vars(args) if k not in ("command", "env", "run", "algorithms", "name")]
            near = difflib.get_close_matches(name, known)
            hint = f": did you mean --{near[0].replace('_', '-')}?" if near else ""
            raise UserError(f"unknown option --{name}{hint}")
    return options, env_options


def _solve(args: argparse.Namespace) -> int:
    from tabular.cli import show
    from tabular.envs.registry import find_env, make_env
    from tabular.planning.dynamic_programming import action_values, policy_iteration, value_iteration
    from tabular.planning.mdp import MDP, reachable
    from tabular.planning.policies import greedy_actions

    env_id, options = find_env(args.env, args.env_options)
    env = make_env(env_id, options)
    mdp = MDP.from_gym(env, args.gamma)
    try:
        if args.method == "policy_iteration":
            found = policy_iteration(mdp)
        else:
            order = "synchronous" if args.method == "value_iteration" else args.method
            found = value_iteration(mdp, args.tol, order=order)
    except ValueError as error:
        return _unsolved(f"{env_id}: {error}")
    show.solution(env_id, env, mdp, found, "policies evaluated" if args.method == "policy_iteration" else "sweeps")
    if args.plot is not None:
        from tabular.experiments.plots import grid_values, new_file

        grid = show.grid_of(env)
        if grid is None:
            raise UserError(f"{env_id} is no grid, so there is nothing to draw")
        best = greedy_actions(action_values(mdp, found.values))
        grid_values(new_file(args.plot), grid, found.values, best, reachable(mdp), f"{env_id}, gamma {args.gamma:g}")
        print(f"drawn: {args.plot}")
    if not found.converged:
        return _unsolved(f"{env_id}: not solved to {args.tol:g}: {found.reason}")
    return 0


def _unsolved(message: str) -> int:
    print(f"tabular: {message}", file=sys.stderr)
    return 1


def _predict(args: argparse.Namespace) -> int:
    if not args.methods:
        raise UserError("which METHOD? one or more of td, n_step, monte_carlo")
    if args.env is None:
        raise UserError("which environment? give --env, for instance --env RandomWalk; see `tabular list`")
    from tabular.cli.predict import compare

    return compare(args)


def _run(args: argparse.Namespace) -> int:
    from tabular.cli import commands

    if getattr(args, "resume", None):
        usual = vars(_parsers()[1]["run"].parse_args([]))
        given = [name for name in usual if name != "resume" and getattr(args, name) != usual[name]]
        if given:
            names = ", ".join("ALGORITHM" if name == "algorithms" else f"--{name}" for name in given).replace("_", "-")
            raise UserError(f"--resume takes everything from the run's folder: leave {names} out")
        return commands.resume(args.resume)
    names = [args.algorithms] if isinstance(args.algorithms, str) else args.algorithms
    if not names:
        raise UserError("which ALGORITHM? `tabular list` shows them")
    if args.env is None:
        raise UserError("which environment? give --env, for instance --env CliffWalking-v1; see `tabular list`")
    return commands.train(args, names)


def _judge(args: argparse.Namespace) -> int:
    from tabular.cli.evaluate import Judgement, judge
    from tabular.envs.registry import read_options

    options = read_options(args.env_options) or None
    return judge(args.run, Judgement(args.episodes, args.seed, args.noise, args.threshold, options))


def _watch(args: argparse.Namespace) -> int:
    from tabular.cli import commands

    return commands.watch(args.run, args.seed, args.episode, args.delay, args.gif)


def _list(args: argparse.Namespace) -> int:
    from tabular.cli import commands

    return commands.show_list(args.name)


if __name__ == "__main__":
    sys.exit(main())
