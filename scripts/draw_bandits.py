"""Draw figures 2.2 to 2.5 of Sutton & Barto (2018) as one picture: `python scripts/draw_bandits.py --out docs/tabular`.

- epsilon-greedy with sample averages: greedy keeps the first good arm, epsilon 0.1 finds the best one in 80% of the
    runs;
- optimistic initial values: a greedy method that explores by itself;
- upper confidence bounds against epsilon-greedy;
- gradient bandits with and without baseline, where all arms are about 4: the baseline of the policy gradients.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from tabular.td.bandits import BanditConfig, run_bandits

mpl.use("Agg")

import matplotlib.pyplot as plt

AVERAGES = {f"epsilon {epsilon:g}": BanditConfig(epsilon=epsilon) for epsilon in (0, 0.01, 0.1)}
OPTIMISM = {
    "greedy, initial value 5": BanditConfig(epsilon=0, initial_value=5, alpha=0.1),
    "epsilon 0.1, initial value 0": BanditConfig(epsilon=0.1, alpha=0.1),
}
BOUNDS = {"UCB, c = 2": BanditConfig("ucb", c=2), "epsilon 0.1": BanditConfig(epsilon=0.1)}
GRADIENTS = {
    f"alpha {alpha:g}, {'with' if baseline else 'without'} baseline": BanditConfig(
        "gradient", alpha=alpha, baseline=baseline
    )
    for baseline in (True, False)
    for alpha in (0.1, 0.4)
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("pictures"), help="folder for the picture")
    parser.add_argument("--runs", type=int, default=2000, help="bandit problems of each method")
    parser.add_argument("--steps", type=int, default=1000, help="steps of each run")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    figure, axes = plt.subplots(2, 2, figsize=(10, 8.5), layout="constrained")
    options: dict[str, Any] = {"n_runs": args.runs, "n_steps": args.steps, "seed": args.seed}
    _draw(axes[0, 0], "Epsilon-greedy, sample averages", AVERAGES, "optimal", options)
    _draw(axes[0, 1], "Optimistic initial values, alpha 0.1", OPTIMISM, "optimal", options)
    _draw(axes[1, 0], "Upper confidence bounds", BOUNDS, "reward", options)
    _draw(axes[1, 1], "Gradient bandits, true values near 4", GRADIENTS, "optimal", {**options, "mean": 4})
    file = args.out / "bandits.png"
    figure.savefig(file, dpi=130)
    plt.close(figure)
    print(file)


def _draw(ax: Any, title: str, configs: Mapping[str, BanditConfig], metric: str, options: Mapping[str, Any]) -> None:
    """A line for each method, in a band of two standard errors."""
    scale = 100 if metric == "optimal" else 1
    for name, curves in run_bandits(configs, **options).items():
        mean = scale * getattr(curves, metric)
        error = scale * getattr(curves, f"{metric}_error")
        steps = np.arange(1, len(mean) + 1)
        (line,) = ax.plot(steps, mean, linewidth=1.2, label=f"{name}: {mean[-len(mean) // 10 :].mean():.3g}")
        ax.fill_between(steps, mean - 2 * error, mean + 2 * error, color=line.get_color(), alpha=0.2, linewidth=0)
    ax.set_title(title)
    ax.set_xlabel("step")
    ax.set_ylabel("optimal arm chosen, %" if metric == "optimal" else "mean reward")
    ax.set_ylim((0, 100) if metric == "optimal" else (0, 1.75))
    legend = {"title": "mean of the last tenth of the steps", "title_fontsize": 8, "fontsize": 8, "frameon": False}
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, **legend)


if __name__ == "__main__":
    main()
