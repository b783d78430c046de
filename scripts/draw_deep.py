"""Three pictures of deep learners on CartPole-v1: `python scripts/draw_deep.py --out pictures`.

- `dqn.png`: DQN with and without a replay buffer, with a hard and with a soft target network;
- `actor_critic.png`: REINFORCE with a baseline, one-step actor-critic and A2C;
- `adaptive_beta.png`: PPO's KL penalty, the KL of each iteration and the coefficient beta.

Curves are means over the seeds of the mean return of the last 20 training episodes; bands reach from the worst to the
best seed.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib as mpl
import numpy as np
import torch

from tabular.deep.a2c import A2C, A2CConfig
from tabular.deep.actor_critic import ActorCritic, ActorCriticConfig
from tabular.deep.dqn import DQN, DQNConfig
from tabular.deep.ppo import PPO, PPOConfig
from tabular.deep.reinforce import REINFORCE, REINFORCEConfig

mpl.use("Agg")

import matplotlib.pyplot as plt

PICTURES = ("adaptive_beta", "dqn", "actor_critic")
TARGET_KL = 0.01
WINDOW = 20
"""Training episodes that a point of a learning curve averages over."""

DQN_VARIANTS = {
    "replay buffer, hard target (tau 1)": DQNConfig(),
    "replay buffer, soft target (tau .01)": DQNConfig(tau=0.01),
    "no replay: only the last 256 steps": DQNConfig(buffer_size=256),
}
ACTOR_CRITICS = {
    "REINFORCE with baseline": (REINFORCE, REINFORCEConfig()),
    "one-step actor-critic": (ActorCritic, ActorCriticConfig()),
    "A2C (5 steps)": (A2C, A2CConfig()),
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("pictures"), help="folder for the pictures")
    parser.add_argument("--pictures", nargs="+", choices=PICTURES, default=PICTURES)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--dqn_steps", type=int, default=12_000, help="environment steps of each DQN")
    parser.add_argument("--steps", type=int, default=40_000, help="environment steps of each other learner")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    if "adaptive_beta" in args.pictures:
        draw_adaptive_beta(args.out / "adaptive_beta.png", args.steps)
    if "dqn" in args.pictures:
        learners = {name: (DQN, config) for name, config in DQN_VARIANTS.items()}
        draw_curves(args.out / "dqn.png", "DQN on CartPole-v1", learners, args.dqn_steps, args.seeds)
    if "actor_critic" in args.pictures:
        title = "Actor-critic methods on CartPole-v1"
        draw_curves(args.out / "actor_critic.png", title, ACTOR_CRITICS, args.steps, args.seeds)


def draw_curves(file: Path, title: str, learners: dict[str, tuple[Any, Any]], steps: int, seeds: int) -> None:
    """A learning curve for each learner, and its final figures on the terminal."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    grid = np.linspace(0, steps, 201)[1:]
    for name, (algorithm, config) in learners.items():
        curves = np.stack([learning_curve(train(algorithm, config, steps, seed), grid) for seed in range(seeds)])
        (line,) = axes.plot(grid, curves.mean(axis=0), label=name)
        axes.fill_between(grid, curves.min(axis=0), curves.max(axis=0), color=line.get_color(), alpha=0.15, linewidth=0)
        final, best = curves[:, -1], curves.max(axis=1)
        print(
            f"{name}: final return {final.mean():.0f} ({final.min():.0f} to {final.max():.0f}), "
            f"best {best.mean():.0f} ({best.min():.0f} to {best.max():.0f})"
        )
    axes.set(xlabel="environment steps", ylabel=f"return, mean of {WINDOW} episodes", xlim=(0, steps), ylim=(0, None))
    axes.set_title(title)
    axes.legend(frameon=False, loc="upper left")
    save(figure, file)


def draw_adaptive_beta(file: Path, steps: int) -> None:
    """The KL of each iteration and beta, for an adaptive and a fixed coefficient."""
    figure, (kl_axes, beta_axes) = plt.subplots(2, 1, figsize=(7, 5.5), sharex=True, layout="constrained")
    for objective, label in (("kl_adaptive", "adaptive beta"), ("kl_fixed", "fixed beta")):
        config = PPOConfig(objective=objective, target_kl=TARGET_KL, n_steps=128)
        history = train(PPO, config, steps, seed=0).history
        x, kl = np.array(history.metrics["kl"]).T
        _, beta = np.array(history.metrics["beta"]).T
        kl_axes.plot(x, kl, marker=".", linewidth=1, label=label)
        beta_axes.step(x, beta, where="post", linewidth=1.2, label=label)
        inside = np.mean((kl <= 1.5 * TARGET_KL) & (kl >= TARGET_KL / 1.5))
        print(
            f"{label}: median KL {np.median(kl):.4f}, {inside:.0%} of the iterations within a factor of 1.5 of the "
            f"target; beta {beta.min():g} to {beta.max():g}"
        )
    kl_axes.axhline(TARGET_KL, color="black", linestyle=":", linewidth=1)
    kl_axes.axhspan(TARGET_KL / 1.5, 1.5 * TARGET_KL, color="grey", alpha=0.15, linewidth=0)
    kl_axes.set(yscale="log", ylabel="KL(old || new) of an iteration")
    kl_axes.set_title(f"PPO with a KL penalty on CartPole-v1 (target {TARGET_KL}; grey: beta stays)")
    kl_axes.legend(frameon=False, ncols=2)
    beta_axes.set(xlabel="environment steps", ylabel="beta")
    beta_axes.set_yscale("log", base=2)
    save(figure, file)


def train(algorithm: Any, config: Any, steps: int, seed: int) -> Any:
    """A learner after `steps` steps of CartPole-v1."""
    learner = algorithm(lambda: gym.make("CartPole-v1", disable_env_checker=True), config, seed)
    learner.advance(steps)
    return learner


def learning_curve(learner: Any, grid: np.ndarray) -> np.ndarray:
    """The mean return of the last episodes that ended before each step of the grid."""
    returns, ends = learner.history.returns, learner.history.ends
    n_ended = np.maximum(np.searchsorted(ends, grid, side="right"), 1)
    return np.array([np.mean(returns[max(0, n - WINDOW) : n]) for n in n_ended])


def save(figure: Any, file: Path) -> None:
    figure.savefig(file, dpi=150)
    plt.close(figure)
    print(file)


if __name__ == "__main__":
    main()
