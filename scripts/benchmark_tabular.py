"""Measures the textbook against the obvious loops: learner-steps and sweeps per CPU second, as a markdown table.

    python scripts/benchmark_tabular.py            # the tabular half: half a minute
    python scripts/benchmark_tabular.py --deep     # and the deep half against Stable-Baselines3 (the `bench` extra)

CPU time of one thread, the best of a few repeats: other work on the machine only ever adds. Compilation is not counted:
a program pays it once, and numba keeps the result.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import gymnasium as gym
import numpy as np

from tabular.envs.maze import Maze
from tabular.planning.dynamic_programming import value_iteration
from tabular.planning.mdp import MDP
from tabular.td.control import DoubleQLearning, ExpectedSarsa, QLearning, Sarsa
from tabular.td.dyna import DynaQ
from tabular.td.multistep import MonteCarlo, NStepSarsa
from tabular.td.traces import SarsaLambda

ENVS = ("CliffWalking-v1", "FrozenLake-v1")
SETTINGS: dict[str, Any] = {"alpha": 0.1, "gamma": 0.99, "initial_q": 0.0, "epsilon": 0.1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--deep", action="store_true", help="also run scripts/benchmark_deep.py")
    parser.add_argument("--repeats", type=int, default=3, help="the best of so many")
    args = parser.parse_args()
    learning(args.repeats)
    planning(args.repeats)
    if args.deep:
        subprocess.run([sys.executable, str(Path(__file__).with_name("benchmark_deep.py"))], check=True)


def seconds(work: Callable[[], Any], repeats: int) -> float:
    """CPU seconds of the fastest of some repeats."""
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        work()
        times.append(time.process_time() - begin)
    return min(times)


def learning(repeats: int) -> None:
    print("| learner-steps per CPU second | " + " | ".join(ENVS) + " |")
    print("|---|" + "---:|" * len(ENVS))
    loops = {env_id: 60_000 / seconds(lambda env_id=env_id: tutorial(env_id, 60_000), repeats) for env_id in ENVS}
    print("| tutorial Q-learning loop | " + " | ".join(f"{loops[env_id]:,.0f}" for env_id in ENVS) + " |")
    row("Q-learning, any gymnasium environment", QLearning, 60_000, False, loops, repeats)
    for cls in (QLearning, Sarsa, ExpectedSarsa, DoubleQLearning, NStepSarsa, SarsaLambda, MonteCarlo, DynaQ):
        row(f"{cls.__name__}, on the table", cls, 2_000_000, True, loops, repeats)
    print()


def row(name: str, cls: Any, steps: int, on_table: bool, loops: dict[str, float], repeats: int) -> None:
    cells = []
    for env_id in ENVS:
        # Without a time limit the first episode of Monte Carlo, which learns at its end, is a random walk that may not
        # end.
        limit = {"max_episode_steps": 1000} if cls is MonteCarlo else {}
        learner = cls(lambda env_id=env_id, limit=limit: gym.make(env_id, **limit), cls.Config(**SETTINGS), 0)
        if not on_table:
            learner.table = None
        learner.advance(1000)
        speed = steps / seconds(lambda learner=learner: learner.advance(steps), repeats)
        cells.append(f"{speed:,.0f} ({speed / loops[env_id]:.1f}x)")
    print(f"| {name} | " + " | ".join(cells) + " |")


def tutorial(env_id: str, steps: int) -> np.ndarray:
    """The loop that every tutorial has."""
    env = gym.make(env_id)
    q = np.zeros((int(env.observation_space.n), int(env.action_space.n)))  # pyright: ignore
    alpha, gamma, epsilon = SETTINGS["alpha"], SETTINGS["gamma"], SETTINGS["epsilon"]
    done = 0
    while done < steps:
        state, _ = env.reset()
        over = False
        while not over:
            action = env.action_space.sample() if np.random.random() < epsilon else np.argmax(q[state])  # noqa: NPY002
            next_state, reward, terminated, truncated, _ = env.step(action)
            over = terminated or truncated
            q[state, action] += alpha * (
                float(reward) + gamma * np.max(q[next_state]) * (not terminated) - q[state, action]
            )
            state = next_state
            done += 1
    return q


def planning(repeats: int) -> None:
    mdp = MDP.from_gym(Maze(size=71, slip=0.2), 0.99)
    large = MDP.from_gym(Maze(size=277, slip=0.2), 0.99)
    value_iteration(mdp, tol=1e-8)
    print("| value iteration to 1e-8, seconds | " + f"{mdp.n_states:,} states | {large.n_states:,} states |")
    print("|---|---:|---:|")
    loop = seconds(lambda: python_value_iteration(Maze(size=71, slip=0.2).P, 0.99, 1e-8), 1)
    print(f"| Python loops | {loop:.2f} | |")
    for order in ("synchronous", "in_place", "prioritised"):
        value_iteration(mdp, tol=1e-8, order=order)
        times = [seconds(lambda m=m, o=order: value_iteration(m, tol=1e-8, order=o), repeats) for m in (mdp, large)]
        print(f"| {order} | {times[0]:.4f} ({loop / times[0]:.0f}x) | {times[1]:.2f} |")
    print()


def python_value_iteration(table: Any, gamma: float, tol: float) -> dict[int, float]:
    """The same sweeps, to the same error bound, as a textbook writes them."""
    values = dict.fromkeys(table, 0.0)
    while True:
        new_values = {}
        for state, actions in table.items():
            new_values[state] = max(
                sum(p * (r + gamma * values[s] * (not end)) for p, s, r, end in outcomes)
                for outcomes in actions.values()
            )
        change = max(abs(new_values[state] - values[state]) for state in table)
        values = new_values
        if gamma / (1 - gamma) * change <= tol:
            return values


if __name__ == "__main__":
    main()
