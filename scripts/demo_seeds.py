"""The demo on several seeds, as the README's table: `python scripts/demo_seeds.py --seeds 3 --output runs/seeds`."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from rlhf.demo.demo import goals


def run(folder: Path, seed: int, extra: list[str]) -> dict[str, float]:
    """One demo in a process of its own; what it reached. A seed that is done already is only read."""
    done = folder / "result.json"
    if done.exists():
        return json.loads(done.read_text())
    start = time.perf_counter()
    command = [sys.executable, "-m", "rlhf.cli.main", "demo", "--output", str(folder), "--seed", str(seed), *extra]
    if subprocess.run(command).returncode not in (0, 1):  # 1: a goal was missed, which the table will show
        raise SystemExit(f"the demo with seed {seed} failed")
    rows = [json.loads(line) for line in (folder / "ppo" / "eval.jsonl").read_text().splitlines()]
    accuracy = json.loads((folder / "reward" / "eval.jsonl").read_text().splitlines()[-1])["accuracy"]
    before, after = rows[0], max(rows, key=lambda row: row["score"])
    reached = goals(before, after, accuracy)
    result = {
        "seed": seed,
        "judge before": before["judge"],
        "judge after": after["judge"],
        "score before": before["score"],
        "score after": after["score"],
        "win rate": after.get("win_rate", float("nan")),
        "KL": after["kl"],
        "distinct-2": after["distinct_2"],
        "length before": before["length"],
        "length after": after["length"],
        "pairwise accuracy": accuracy,
        "goals met": sum(goal.met for goal in reached),
        "of": len(reached),
        "seconds": time.perf_counter() - start,
    }
    done.write_text(json.dumps(result) + "\n")
    return result


def plot(folders: list[Path], path: Path) -> None:
    """The learning curves of all seeds: training score, KL, and the held-out judge."""
    from matplotlib.figure import Figure

    def read(folder: Path, name: str) -> list[dict[str, float]]:
        return [json.loads(line) for line in (folder / "ppo" / f"{name}.jsonl").read_text().splitlines()]

    figure = Figure(figsize=(10, 3), layout="constrained")
    panels = figure.subplots(1, 3)
    for i, folder in enumerate(folders):
        rows, evals = read(folder, "metrics"), read(folder, "eval")
        for panel, name in zip(panels, ("objective/score", "objective/kl"), strict=False):
            recent = [rows[max(0, j - 4) : j + 1] for j in range(len(rows))]
            values = [sum(r[name] for r in part) / len(part) for part in recent]
            panel.plot([r["step"] for r in rows], values, color=f"C{i}", linewidth=1.2)
        panels[2].plot([r["step"] for r in evals], [r["judge"] for r in evals], "o-", color=f"C{i}", label=f"seed {i}")
        low, high = ([r[f"judge_{side}"] for r in evals] for side in ("low", "high"))
        panels[2].fill_between([r["step"] for r in evals], low, high, color=f"C{i}", alpha=0.15, linewidth=0)
    titles = ("reward model's score, training", "KL to the start, nats a response", "independent judge, held out")
    for panel, title in zip(panels, titles, strict=True):
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("PPO step")
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
    panels[2].legend(frameon=False, fontsize=8, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    print(f"curves in {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--plot", type=Path, default=Path("docs/learning_curves.png"))
    parser.add_argument("--kl_coef", help="passed to the demo")
    options = parser.parse_args()
    extra = ["--kl_coef", options.kl_coef] if options.kl_coef is not None else []
    rows = [run(options.output / f"seed-{seed}", seed, extra) for seed in range(options.seeds)]
    plot([options.output / f"seed-{seed}" for seed in range(options.seeds)], options.plot)
    names = list(rows[0])
    print("\n| " + " | ".join(names) + " |\n|" + " ---: |" * len(names))
    for row in rows:
        print(
            "| "
            + " | ".join(f"{v:.0f}" if isinstance(v, int) or n == "seconds" else f"{v:.3f}" for n, v in row.items())
            + " |"
        )


if __name__ == "__main__":
    main()
