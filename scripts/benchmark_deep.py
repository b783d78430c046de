"""CartPole beside Stable-Baselines3: `python scripts/benchmark_deep.py --seeds 5`.

Each algorithm runs here and in stable-baselines3 or sb3-contrib (`pip install sb3-contrib`) with the same settings, on
the same environment, in one process on one thread, alternating, so that a busy machine slows both. Speed is
environment steps per second of process time; the final return is the mean of the last 100 training episodes. Settings
are those of RL Baselines3 Zoo for CartPole-v1, with constant learning rates and clip range; TRPO's and `dqn, defaults`
are the peers' own, the latter a small network and a gradient step every fourth step. The peers' value loss has no
factor 1/2, so their coefficient of .5 is 1 here.
"""

import argparse
import importlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import gymnasium as gym
import numpy as np
import torch


@dataclass(frozen=True)
class Comparison:
    """An algorithm here and in stable-baselines3 or sb3-contrib, with the same settings."""

    learner: str
    "module and class here"
    steps: int
    "environment steps of a run"
    settings: dict[str, Any]
    peer_settings: dict[str, Any]


COMPARISONS = {
    "ppo": Comparison(
        "tabular.deep.ppo:PPO",
        steps=100_000,
        settings={
            "n_envs": 8,
            "n_steps": 32,
            "n_epochs": 20,
            "minibatch_size": 256,
            "gamma": 0.98,
            "lam": 0.8,
            "lr": 1e-3,
            "vf_coef": 1.0,
        },
        peer_settings={
            "n_steps": 32,
            "n_epochs": 20,
            "batch_size": 256,
            "gamma": 0.98,
            "gae_lambda": 0.8,
            "learning_rate": 1e-3,
        },
    ),
    "a2c": Comparison(
        "tabular.deep.a2c:A2C",
        steps=500_000,  # the zoo's; the return at 100,000 is anything between 70 and 470
        settings={"n_envs": 8, "n_steps": 5, "gamma": 0.99, "lam": 1.0, "lr": 7e-4, "vf_coef": 1.0},
        peer_settings={"n_steps": 5, "gamma": 0.99, "gae_lambda": 1.0, "learning_rate": 7e-4},
    ),
    "trpo": Comparison(
        "tabular.deep.trpo:TRPO",
        steps=100_000,
        settings={
            "n_envs": 4,
            "n_steps": 512,
            "minibatch_size": 128,
            "n_value_epochs": 10,
            "cg_damping": 0.1,
            "lr": 1e-3,
            "gamma": 0.99,
            "lam": 0.95,
        },
        peer_settings={
            "n_steps": 512,
            "batch_size": 128,
            "n_critic_updates": 10,
            "cg_damping": 0.1,
            "learning_rate": 1e-3,
            "gamma": 0.99,
            "gae_lambda": 0.95,
        },
    ),
    "dqn": Comparison(
        "tabular.deep.dqn:DQN",
        steps=60_000,
        settings={
            "n_envs": 1,
            "double": False,
            "lr": 2.3e-3,
            "batch_size": 64,
            "buffer_size": 100_000,
            "learning_starts": 1000,
            "gamma": 0.99,
            "train_freq": 256,
            "gradient_steps": 128,
            "target_every": 10,
            "epsilon_end": 0.04,
            "hidden": (256, 256),
        },
        peer_settings={
            "learning_rate": 2.3e-3,
            "batch_size": 64,
            "buffer_size": 100_000,
            "learning_starts": 1000,
            "gamma": 0.99,
            "train_freq": 256,
            "gradient_steps": 128,
            "target_update_interval": 10,
            "exploration_final_eps": 0.04,
            "exploration_fraction": 0.16,
            "policy_kwargs": {"net_arch": [256, 256]},
        },
    ),
    "dqn, defaults": Comparison(
        "tabular.deep.dqn:DQN",
        steps=60_000,
        settings={
            "n_envs": 1,
            "double": False,
            "lr": 1e-4,
            "batch_size": 32,
            "buffer_size": 100_000,
            "learning_starts": 100,
            "gamma": 0.99,
            "train_freq": 4,
            "gradient_steps": 1,
            "target_every": 10_000,
            "epsilon_end": 0.05,
            "hidden": (64, 64),
        },
        peer_settings={
            "learning_rate": 1e-4,
            "batch_size": 32,
            "buffer_size": 100_000,
            "learning_starts": 100,
            "gamma": 0.99,
            "train_freq": 4,
            "gradient_steps": 1,
            "target_update_interval": 10_000,
            "exploration_final_eps": 0.05,
            "exploration_fraction": 0.16,
        },
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="+", choices=list(COMPARISONS), default=list(COMPARISONS))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="environment steps of a run (default: those of each algorithm)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    print("| CartPole-v1 | steps | steps per CPU second | peer's | ratio | final return | peer's |")
    print("|---|---|---|---|---|---|---|")
    for name in args.algorithms:
        steps = args.steps or COMPARISONS[name].steps
        runs = [(_run_ours(name, steps, seed), _run_peer(name, steps, seed)) for seed in range(args.seeds)]
        ours, theirs = (np.array(rows) for rows in zip(*runs, strict=True))
        # All steps over all time, so that each run counts by the time it took.
        speed, peer_speed = (rows[:, 0].sum() / rows[:, 1].sum() for rows in (ours, theirs))
        print(
            f"| {name} | {steps:,} | {speed:,.0f} | {peer_speed:,.0f} | {speed / peer_speed:.2f} "
            f"| {_spread(ours[:, 2])} | {_spread(theirs[:, 2])} |",
            flush=True,
        )


def _make_env() -> gym.Env:
    return gym.make("CartPole-v1", disable_env_checker=True)


def _run_ours(name: str, steps: int, seed: int) -> tuple[int, float, float]:
    """Environment steps, seconds of process time, and the mean return of the last 100 training episodes."""
    comparison = COMPARISONS[name]
    module, algorithm = comparison.learner.split(":")
    settings = comparison.settings
    learner_class = getattr(importlib.import_module(module), algorithm)
    if name.startswith("dqn"):
        settings = settings | {"epsilon_steps": int(0.16 * steps)}
    learner = learner_class(_make_env, learner_class.Config(**settings), seed)
    start = time.process_time()
    learner.advance(steps)
    return learner.steps, time.process_time() - start, float(np.mean(learner.history.returns[-100:]))


def _run_peer(name: str, steps: int, seed: int) -> tuple[int, float, float]:
    """The same for the peer. Its monitors record every episode, as `History` does here."""
    import sb3_contrib  # pyright: ignore[reportMissingImports]
    import stable_baselines3  # pyright: ignore[reportMissingImports]
    from stable_baselines3.common.env_util import make_vec_env  # pyright: ignore[reportMissingImports]

    comparison = COMPARISONS[name]
    algorithm = getattr(sb3_contrib if name == "trpo" else stable_baselines3, name.split(",")[0].upper())
    envs = make_vec_env(_make_env, n_envs=comparison.settings["n_envs"], seed=seed)
    model = algorithm("MlpPolicy", envs, seed=seed, device="cpu", **comparison.peer_settings)
    start = time.process_time()
    model.learn(steps)
    seconds = time.process_time() - start
    # Sorted by the step at which they ended, counted per copy.
    episodes: list[tuple[int, float]] = []
    for monitor in cast(Any, envs).envs:
        ends = np.cumsum(monitor.get_wrapper_attr("episode_lengths"))
        episodes += zip(ends.tolist(), monitor.get_wrapper_attr("episode_returns"), strict=True)
    last = [total for _, total in sorted(episodes)[-100:]]
    return model.num_timesteps, seconds, float(np.mean(last))


def _spread(returns: np.ndarray) -> str:
    return f"{returns.mean():.0f} ({returns.min():.0f} to {returns.max():.0f})"


if __name__ == "__main__":
    main()
