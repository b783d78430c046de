"""Three pictures of the policy gradients' story: `python scripts/draw_policy_gradients.py --out pictures`.

- `reinforce_variance.png`: the variance of REINFORCE's gradient while it learns, with and without baseline;
- `trust_region.png`: the KL divergence of each step of TRPO, the natural gradient and PPO;
- `clip.png`: PPO's objective over the probability ratio, as the loss function itself computes it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import matplotlib as mpl
import numpy as np
import torch

from tabular.core.losses import clipped_surrogate_loss
from tabular.deep.natural_gradient import NaturalGradient, NaturalGradientConfig
from tabular.deep.ppo import PPO, PPOConfig
from tabular.deep.reinforce import REINFORCE, REINFORCEConfig
from tabular.deep.trpo import TRPO, TRPOConfig

mpl.use("Agg")

import matplotlib.pyplot as plt

TARGET_KL = 0.01
BATCH: dict[str, Any] = {"n_envs": 8, "n_steps": 128}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("pictures"), help="folder for the pictures")
    parser.add_argument("--steps", type=int, default=30_000, help="environment steps of each learner")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    for draw, name in ((_variance, "reinforce_variance"), (_trust_region, "trust_region"), (_clip, "clip")):
        figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
        draw(axes, args.steps, args.seed)
        figure.savefig(args.out / f"{name}.png", dpi=150)
        plt.close(figure)
        print(args.out / f"{name}.png")


def _cart_pole() -> gym.Env:
    return gym.make("CartPole-v1", disable_env_checker=True)


def _variance(axes: Any, steps: int, seed: int) -> None:
    for weight, baseline in (("total", "none"), ("to_go", "none"), ("to_go", "mean"), ("to_go", "learned")):
        config = REINFORCEConfig(weight=weight, baseline=baseline, measure_variance=True)
        learner = REINFORCE(_cart_pole, config, seed)
        learner.advance(steps)
        x, y = np.array(learner.history.metrics["gradient_variance"]).T
        # Longer episodes have larger returns: against the return the four are comparable, against time they are not.
        ends = np.searchsorted(learner.history.ends, x, side="right")
        returns = [np.mean(learner.history.returns[max(0, end - config.n_episodes) : end]) for end in ends]
        axes.scatter(returns, y, s=12, alpha=0.7, label=f"{weight}, baseline {baseline}")
    axes.set(xscale="log", yscale="log", xlabel="return of the batch", ylabel="variance of the gradient")
    axes.set_xticks([20, 50, 100, 200, 500], ["20", "50", "100", "200", "500"])
    axes.tick_params(axis="x", which="minor", labelbottom=False)
    axes.set_title("REINFORCE on CartPole-v1")
    axes.legend(frameon=False)


def _trust_region(axes: Any, steps: int, seed: int) -> None:
    # The default damping, 0.1, shortens the full step enough to keep it below the target by itself.
    natural: dict[str, Any] = {"target_kl": TARGET_KL, "cg_damping": 0.001, **BATCH}
    adaptive = PPOConfig(objective="kl_adaptive", target_kl=TARGET_KL, **BATCH)
    learners = {
        "TRPO": TRPO(_cart_pole, TRPOConfig(**natural), seed),
        "natural gradient": NaturalGradient(_cart_pole, NaturalGradientConfig(**natural), seed),
        "PPO, clip": PPO(_cart_pole, PPOConfig(**BATCH), seed),
        "PPO, adaptive KL": PPO(_cart_pole, adaptive, seed),
    }
    for name, learner in learners.items():
        learner.advance(steps)
        x, y = np.array(learner.history.metrics["kl"]).T
        axes.plot(x, np.maximum(y, 1e-6), label=name, linewidth=1.2)
        print(f"{name}: largest KL {y.max() / TARGET_KL:.2f} times the target")
    axes.axhline(TARGET_KL, color="black", linestyle=":", linewidth=1)
    axes.set(yscale="log", xlabel="environment steps", ylabel="mean KL(old || new) of an iteration")
    axes.set_title(f"How far one iteration moves the policy (target {TARGET_KL})")
    axes.figure.legend(frameon=False, ncols=4, loc="outside lower center")


def _clip(axes: Any, steps: int, seed: int) -> None:
    del steps, seed  # nothing is learned here
    ratios, mask = torch.linspace(0.01, 2, 400), torch.ones(1, dtype=torch.bool)
    for advantage, label in ((1.0, "A = 1"), (-1.0, "A = -1")):
        objective = [
            -clipped_surrogate_loss(ratio.log()[None], torch.zeros(1), torch.tensor([advantage]), mask, 1)[0].item()
            for ratio in ratios
        ]
        (line,) = axes.plot(ratios, objective, label=label)
        axes.plot(ratios, advantage * ratios, linestyle=":", color=line.get_color(), linewidth=1)
    for edge in (0.8, 1.2):
        axes.axvline(edge, color="grey", linewidth=0.7)
    axes.set(xlabel="ratio pi(a) / pi_old(a)", ylabel="objective")
    axes.set_title("PPO's clipped objective; dotted: without the clip")
    axes.legend(frameon=False)


if __name__ == "__main__":
    main()
