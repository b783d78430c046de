"""The exact action values of an environment with a table, to compare learned ones with."""

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from tabular.envs.arrays import compile_table
from tabular.experiments.runs import RunConfig
from tabular.planning.dynamic_programming import action_values, value_iteration
from tabular.planning.mdp import MDP, reachable

OPTIMAL_TARGETS = ("q_learning", "double_q_learning", "dyna_q")
"""Algorithms whose action values converge to those of the optimal policy. SARSA's are those of a policy that explores,
and n-step SARSA's and Monte Carlo's, too."""


def exact_action_values(
    config: RunConfig, gamma: float | int
) -> tuple[Float[np.ndarray, "S A"], Bool[np.ndarray, "S A"]] | None:
    """The optimal action values [S, A], and True [S, A] on actions that can be taken in states that can be reached.

    None where the algorithm learns other values, where no table describes the environment completely, or where the
    table has no solution.
    """
    env: Any = config.make_env()
    if config.algorithm not in OPTIMAL_TARGETS:
        return None
    table = compile_table(env)
    if table is None or not table.masks.all():
        return None
    mdp = MDP.from_gym(env, gamma)
    try:
        solution = value_iteration(mdp)
    except ValueError:  # with gamma 1, no policy surely ends
        return None
    used = np.repeat(reachable(mdp)[:, None], mdp.n_actions, axis=1)
    return (action_values(mdp, solution.values), used) if solution.converged else None
