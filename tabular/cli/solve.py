"""`tabular solve`: optimal values and policy of an environment with a table, or the values of the random policy."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import gymnasium as gym
import numpy as np
from jaxtyping import Float

from tabular.cli import show
from tabular.envs.arrays import compile_table
from tabular.envs.registry import find_env, make_env
from tabular.envs.table import grid_of
from tabular.experiments.figures import new_file
from tabular.experiments.value_plots import grid_values
from tabular.planning.dynamic_programming import (
    Solution,
    action_values,
    finite_horizon_values,
    iterative_policy_evaluation,
    policy_iteration,
    value_iteration,
)
from tabular.planning.mdp import MDP, reachable
from tabular.planning.policies import greedy_actions


def solve(
    env: str,
    env_options: Mapping[str, str],
    gamma: float,
    method: str | None,
    policy: str | None,
    tol: float,
    sweeps: Sequence[int] | None,
    plot: Path | None,
) -> int:
    """Solves an environment's table and prints the solution; returns 1 where there is none within the limits, else 0.

    Args:
        env: id, short name or a maze's text file.
        env_options: options of the environment, as text.
        gamma: discount.
        method: of the optimal values; None: value iteration.
        policy: "random" evaluates that policy; None: optimal values.
        tol: largest error of a value.
        sweeps: show the values after these numbers of sweeps from 0.
        plot: PNG file for a picture of values and policy.

    Raises:
        ValueError: the environment has no table, or nothing can be drawn.
    """
    env_id, options = find_env(env, env_options)
    made = make_env(env_id, options)
    if plot is not None:
        new_file(plot)
        if grid_of(made) is None:
            raise ValueError(f"{env_id} is not a grid, so --plot has nothing to draw")
    mdp = MDP.from_gym(made, gamma)
    probabilities = _random_policy(made, mdp) if policy is not None else None
    try:
        solution = _solve(mdp, method or "value_iteration", tol, probabilities)
    except ValueError as error:
        return _unsolved(f"{env_id}: {error}")
    unit = "policies evaluated" if method == "policy_iteration" else "sweeps"
    subject = f"{env_id}, random policy" if policy is not None else env_id
    if sweeps:
        _show_sweeps(f"{subject}, gamma {mdp.gamma:g}: values after k sweeps", made, mdp, probabilities, sweeps)
    show.solution(subject, made, mdp, solution, unit)
    if plot is not None:
        title = f"{subject}, gamma {gamma:g}"
        _draw(plot, made, mdp, solution, title if policy is None else f"{title}, and the greedy actions")
        print(f"written: {plot}")
    if not solution.converged:
        return _unsolved(f"{env_id}: not solved to {tol:g}: {solution.reason}")
    return 0


def _solve(mdp: MDP, method: str, tol: float, policy: Float[np.ndarray, "S A"] | None) -> Solution:
    if policy is not None:
        return iterative_policy_evaluation(mdp, policy, tol)
    if method == "policy_iteration":
        return policy_iteration(mdp)
    return value_iteration(mdp, tol, order="synchronous" if method == "value_iteration" else method)


def _random_policy(env: gym.Env, mdp: MDP) -> Float[np.ndarray, "S A"]:
    """All allowed actions with the same probability."""
    table = compile_table(env)
    masks = np.ones(mdp.rewards.shape) if table is None else table.masks
    return masks / masks.sum(axis=1, keepdims=True)


def _show_sweeps(
    title: str, env: gym.Env, mdp: MDP, policy: Float[np.ndarray, "S A"] | None, sweeps: Sequence[int]
) -> None:
    """`V_k`, what k sweeps make of `V_0 = 0`: the expected return of k steps."""
    values = {k: finite_horizon_values(mdp, k, policy) for k in sweeps}
    show.sweeps(title, grid_of(env), reachable(mdp), values)


def _draw(file: Path, env: gym.Env, mdp: MDP, solution: Solution, title: str) -> None:
    grid = grid_of(env)
    assert grid is not None
    actions = greedy_actions(action_values(mdp, solution.values))
    grid_values(file, grid, solution.values, actions, reachable(mdp), title)


def _unsolved(message: str) -> int:
    print(f"error: {message}", file=sys.stderr)
    return 1
