"""`tabular offline`: Q-learning from a log of another policy's transitions, beside the exact values."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from jaxtyping import Bool, Float
from rich.table import Table as TextTable

from tabular.cli import show
from tabular.envs.arrays import compile_table
from tabular.envs.registry import find_env, make_env
from tabular.envs.table import grid_of
from tabular.experiments import plots, runs
from tabular.experiments.evaluation import evaluate
from tabular.experiments.figures import draw_all
from tabular.experiments.value_plots import grid_values
from tabular.planning.dynamic_programming import (
    Solution,
    action_values,
    policy_evaluation,
    value_iteration,
)
from tabular.planning.mdp import MDP, reachable
from tabular.planning.policies import epsilon_greedy, greedy_actions
from tabular.td.offline import Transitions, learn_from_log, record


class GreedyTable:
    """Acts greedily by a table of action values [S, A]."""

    def __init__(self, q_values: Float[np.ndarray, "S A"], masks: Bool[np.ndarray, "S A"]) -> None:
        self.q_values = np.where(masks, q_values, -np.inf)

    def act(self, observation: Any, mask: Any = None) -> int:
        """The first of the best allowed actions."""
        return int(self.q_values[observation].argmax())


def learn_offline(
    method: str,
    env: str,
    env_options: Mapping[str, str],
    epsilon: float,
    transitions: int,
    epochs: int,
    gamma: float,
    alpha: float,
    seed: int,
    output: Path | None,
) -> int:
    """Records a log of an epsilon-greedy policy, learns from it without acting, and compares with the exact values.

    Args:
        method: q_learning or double_q_learning.
        env: id, short name or a maze's text file.
        env_options: options of the environment, as text.
        epsilon: of the logged policy, which is otherwise optimal; 1: a random policy.
        transitions: length of the log.
        epochs: passes over the log.
        gamma: discount.
        alpha: step size.
        seed: of the log and of the learner.
        output: folder to write; None: a new one in runs/.

    Raises:
        ValueError: the environment has no table, or the folder exists.
    """
    env_id, options = find_env(env, env_options)
    make = partial(make_env, env_id, options)
    table = compile_table(make())
    if table is None:
        raise ValueError(
            f"{env_id} has no transition table `P` that describes it completely, so there is no exact value"
        )
    folder = output or runs.new_folder(f"offline-{runs.env_name(env_id)}")
    if folder.exists():
        raise ValueError(f"{folder} exists already: take another --output")
    mdp = MDP.from_gym(make(), gamma)
    solution = value_iteration(mdp)
    optimal_q = action_values(mdp, solution.values)
    behaviour = _allowed(epsilon_greedy(np.where(table.masks, optimal_q, -1e9), epsilon), table.masks)
    log = record(make, _sampler(behaviour), transitions, seed)
    q_values, history = learn_from_log(
        log, mdp.n_states, mdp.n_actions, gamma, alpha, epochs, seed, method, table.masks
    )
    greedy = GreedyTable(q_values, table.masks)
    subject = f"{method} on a log of {env_id}, {transitions} transitions, {show.counted(epochs, 'epoch')}"
    _show(subject, make, mdp, solution, behaviour, log, q_values, greedy)
    folder.mkdir(parents=True)
    groups = {method: [history]}
    draw_all(
        lambda: plots.metric_curves(folder / "metrics.png", groups, "transitions"),
        lambda: _draw(folder, make(), mdp, log, q_values, subject),
    )
    print(f"written: {folder}")
    return 0


def _allowed(policy: Float[np.ndarray, "S A"], masks: Bool[np.ndarray, "S A"]) -> Float[np.ndarray, "S A"]:
    policy = policy * masks
    return policy / policy.sum(axis=1, keepdims=True)


def _sampler(policy: Float[np.ndarray, "S A"]) -> Callable[[Any, np.random.Generator], int]:
    """The policy as `record` calls it."""
    cumulative = policy.cumsum(axis=1)
    return lambda state, generator: int(
        np.searchsorted(cumulative[state], generator.random() * cumulative[state, -1], side="right")
    )


def _show(
    subject: str,
    make: Callable[[], gym.Env],
    mdp: MDP,
    solution: Solution,
    behaviour: Float[np.ndarray, "S A"],
    log: Transitions,
    q_values: Float[np.ndarray, "S A"],
    greedy: GreedyTable,
) -> None:
    optimal_q = action_values(mdp, solution.values)
    in_log = np.zeros(q_values.shape, dtype=bool)
    in_log[log.states, log.actions] = True
    acts = reachable(mdp)
    result = evaluate(greedy, make, episodes=100, seed=0, gamma=mdp.gamma)
    rows = {
        "logged policy, value at the start": f"{mdp.start @ policy_evaluation(mdp, behaviour):.4g}",
        "greedy policy of the learned table, 100 episodes": f"{result.discounted_returns.mean():.4g}",
        "optimal value at the start": f"{mdp.start @ solution.values:.4g}",
        "state-action pairs in the log": f"{in_log[acts].mean():.0%}",
        "largest error of an action value in the log": f"{np.abs(q_values - optimal_q)[in_log].max():.3g}",
    }
    table = TextTable(title=f"{subject}, gamma {mdp.gamma:g}", show_header=False)
    for name, text in rows.items():
        table.add_row(name, text)
    show.console().print(table)


def _draw(
    folder: Path, env: gym.Env, mdp: MDP, log: Transitions, q_values: Float[np.ndarray, "S A"], title: str
) -> None:
    grid = grid_of(env)
    if grid is None:
        return
    visited = np.zeros(mdp.n_states, dtype=bool)
    visited[log.states] = True
    grid_values(folder / "policy.png", grid, q_values.max(axis=1), greedy_actions(q_values), visited, title)
