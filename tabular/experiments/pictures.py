"""The pictures of a run folder: learning curves, metrics, values and policy on a grid, an episode."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tabular.envs.table import Grid, TableEnv, grid_of
from tabular.experiments import frames, plots
from tabular.experiments.exact import exact_action_values
from tabular.experiments.figures import draw_all
from tabular.experiments.runs import RunConfig, SeedResult
from tabular.experiments.value_plots import grid_comparison, grid_values
from tabular.planning.mdp import MDP, reachable
from tabular.planning.policies import greedy_actions


def run_pictures(folder: Path, config: RunConfig, results: list[SeedResult]) -> list[Callable[[], None]]:
    """Functions that draw the pictures of a run; those of an agent show the first seed's."""
    first = results[0].learner
    histories = {config.algorithm: [result.learner.history for result in results]}
    return [
        lambda: plots.learning_curves(folder / "learning_curve.png", histories, config.steps, config.solved_return()),
        lambda: plots.metric_curves(folder / "metrics.png", histories),
        lambda: draw_policy(folder, config, first),
        lambda: draw_all(lambda: _film(folder, config, first), quiet=True),
    ]


def _film(folder: Path, config: RunConfig, learner: Any) -> None:
    episode, ended = frames.film_episode(learner, config.make_env, config.seeds[0])
    frames.save_gif(folder / "episode.gif", episode)
    frames.save_strip(folder / "episode.png", episode)
    if not ended:
        print(f"{folder / 'episode.gif'}: cut after {len(episode) - 1} steps, the greedy policy had not ended")


def draw_policy(folder: Path, config: RunConfig, learner: Any) -> None:
    """`policy.png`, an agent's values and actions on a grid world, and `visits.png`, a table's visited states.

    A table of action values is drawn as it is; a network is evaluated in each state.
    """
    env: Any = config.make_env().unwrapped
    grid = grid_of(env)
    if grid is None:
        return
    subject = f"{config.algorithm} on {config.env}, seed {config.seeds[0]}"
    table = getattr(learner, "action_values", None)
    if table is None:
        values, actions, shown, probabilities = _network_values(env, learner)
        kind = "greedy policy" if probabilities is None else "most probable actions"
        title = f"{subject}: values and {kind}"
        grid_values(folder / "policy.png", grid, values, actions, shown, title, probabilities=probabilities)
    elif len(table) == len(grid.positions):
        visits = learner.visits
        best = table == table.max(axis=1, keepdims=True)
        counts = visits.astype(float)
        grid_values(folder / "visits.png", grid, counts, None, visits > 0, f"{subject}: visits", "visits")
        title = f"{subject}: values and greedy policy"
        grid_values(folder / "policy.png", grid, table.max(axis=1), best, visits > 0, title)
        _draw_comparison(folder, config, learner, grid, subject)


def _draw_comparison(folder: Path, config: RunConfig, learner: Any, grid: Grid, subject: str) -> None:
    """`exact.png`: learned values and greedy actions beside the exact ones, where these are what is learned."""
    exact = exact_action_values(config, learner.config.gamma)
    if exact is None:
        return
    q_values, used = exact
    panels = {
        name: (table.max(axis=1), greedy_actions(table))
        for name, table in (("learned", learner.action_values), ("exact", q_values))
    }
    error = np.abs(learner.action_values - q_values)[used].max()
    title = f"{subject}: largest error of an action value {error:.2g}"
    grid_comparison(folder / "exact.png", grid, panels, np.asarray(used.any(axis=1)), title)


def _network_values(env: Any, learner: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray | None]:
    """A network's values [S] and actions [S, A] in every state, the states that can be acted in [S], and the
    probabilities [S] of the actions under a stochastic policy (None: a greedy one)."""
    from tabular.deep.trajectories import action_probability

    shown = reachable(MDP.from_gym(env, 1.0))
    values = np.zeros(len(shown))
    actions = np.zeros((len(shown), env.action_space.n), dtype=bool)
    probabilities = np.ones(len(shown)) if hasattr(learner, "policy") else None
    for state in np.flatnonzero(shown):
        env.s = int(state)
        observation, info = (env.observe(), env.info()) if isinstance(env, TableEnv) else (env.s, {})
        mask = info.get("action_mask")
        action = learner.act(observation, mask)
        actions[state, action] = True
        if probabilities is not None:
            probabilities[state] = action_probability(
                learner.envs, learner.network.actor, learner.policy, observation, int(action), mask
            )
        values[state] = learner.value(observation, mask)
    return np.nan_to_num(values), actions, shown, probabilities
