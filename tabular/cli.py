"""The `tabular` command: `tabular solve FrozenLake-v1`, `tabular list`."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

# Everything heavy is imported where it is used: --help and a mistyped option should answer at once.

ARROWS = {"FrozenLakeEnv": "←↓→↑", "CliffWalkingEnv": "↑→↓←"}
"""Grid worlds by class, with the direction of each action."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns the exit code: 0 done, 1 no solution within the limits, 2 a mistake in the call."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 2
    return _list() if args.command == "list" else _solve(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tabular", description="Classical reinforcement learning on small problems.")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    solve = commands.add_parser(
        "solve",
        help="compute optimal values and policy from the environment's table",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    solve.add_argument("env_id", metavar="ENV_ID", help="a gymnasium environment, see `tabular list`")
    solve.add_argument("--gamma", type=_gamma, default=0.99, help="discount in [0, 1]")
    solve.add_argument(
        "--method",
        choices=("value_iteration", "policy_iteration"),
        default="value_iteration",
        help="how to solve it",
    )
    solve.add_argument("--tol", type=_tol, default=1e-10, help="largest error of a value (value iteration)")
    commands.add_parser("list", help="show the environments that can be solved")
    return parser


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None


def _gamma(text: str) -> float:
    if not 0 <= (gamma := _number(text)) <= 1:
        raise argparse.ArgumentTypeError(f"must be in [0, 1], got {text}")
    return gamma


def _tol(text: str) -> float:
    if not 0 < (tol := _number(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"must be positive and finite, got {text}")
    return tol


def _solve(args: argparse.Namespace) -> int:
    import gymnasium as gym

    from tabular.mdp import MDP
    from tabular.planning import policy_iteration, value_iteration

    if args.env_id not in gym.registry and ":" not in args.env_id:
        return _fail(_unknown_env(args.env_id, list(gym.registry)))
    try:
        env = gym.make(args.env_id)
        mdp = MDP.from_gym(env, args.gamma)
    except (gym.error.Error, ImportError, ValueError) as error:
        return _fail(str(error))
    try:
        solution = policy_iteration(mdp) if args.method == "policy_iteration" else value_iteration(mdp, args.tol)
    except ValueError as error:
        return _fail(f"{args.env_id}: {error}", code=1)
    _report(args, env.unwrapped, mdp, solution)
    if not solution.converged:
        return _fail(f"{args.env_id}: not solved to {args.tol:g}: {solution.reason}", code=1)
    return 0


def _report(args: argparse.Namespace, env: Any, mdp: Any, solution: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    bounded = solution.error_bound < float("inf") or not solution.converged
    table = Table(title=f"{args.env_id}, gamma {args.gamma:g}", show_header=False)
    table.add_row("states x actions", f"{mdp.n_states} x {mdp.n_actions}")
    table.add_row("value at the start", f"{mdp.start @ solution.values:.12f}")
    table.add_row("sweeps" if args.method == "value_iteration" else "policies evaluated", str(solution.iterations))
    table.add_row("error bound", f"{solution.error_bound:.3g}" if bounded else "rounding (policy solved exactly)")
    console.print(table)

    arrows = ARROWS.get(type(env).__name__)
    if arrows is None:
        return
    shape = env.desc.shape if hasattr(env, "desc") else env.shape
    acts = _visited(mdp)
    blank = [cell.decode() for cell in env.desc.ravel()] if hasattr(env, "desc") else ["·"] * mdp.n_states
    policy = [arrows[action] if act else cell for action, act, cell in zip(solution.policy, acts, blank, strict=True)]
    values = [f"{value:.4g}" if act else cell for value, act, cell in zip(solution.values, acts, blank, strict=True)]
    for title, cells in (("policy", policy), ("values", values)):
        console.print(f"\n{title}", style="bold")
        console.print(_grid(cells, shape), soft_wrap=True)


def _visited(mdp: Any) -> Any:
    """States [S] in which an episode can act: not the holes, the goal or the cliff, where it is already over."""
    import numpy as np

    visited = mdp.start > 0
    while True:
        state_actions = np.repeat(visited, mdp.n_actions).astype(float)
        reached = visited | (mdp.transitions.T @ state_actions > 0)
        if (reached == visited).all():
            return visited
        visited = reached


def _grid(cells: Sequence[str], shape: tuple[int, int]) -> str:
    n_rows, n_columns = shape
    width = max(map(len, cells))
    rows = [cells[row * n_columns : (row + 1) * n_columns] for row in range(n_rows)]
    return "\n".join("  ".join(cell.rjust(width) for cell in row) for row in rows)


def _list() -> int:
    import gymnasium as gym
    from rich.console import Console
    from rich.table import Table

    table = Table("environment", "states", "actions")
    for env_id, spec in gym.registry.items():
        if "toy_text" in str(spec.entry_point):
            env: Any = gym.make(env_id).unwrapped
            if hasattr(env, "P"):
                table.add_row(env_id, str(env.observation_space.n), str(env.action_space.n))
    console = Console(highlight=False)
    console.print(table)
    console.print("Others with a transition table `P` can be solved by module:ENV_ID.")
    return 0


def _unknown_env(env_id: str, known: list[str]) -> str:
    import difflib

    # By name without the version, which makes strangers look alike; the last version registered is the newest.
    newest = {_name(known_id): known_id for known_id in known}
    near = [newest[name] for name in difflib.get_close_matches(_name(env_id), newest)]
    hint = f"did you mean {' or '.join(near)}?" if near else "see `tabular list`"
    return f"unknown environment {env_id!r}: {hint}"


def _name(env_id: str) -> str:
    return env_id.split("-v")[0].lower()


def _fail(message: str, code: int = 2) -> int:
    print(f"tabular: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
