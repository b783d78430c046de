"""The demo on several seeds, as a table and learning curves: `python scripts/demo_seeds.py --seeds 3`."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from run_curves import label_panel, read_rows, running_mean

from rlhf.demo.demo import goals
from rlhf.evaluation.summary import selection_score


def run(folder: Path, seed: int, options: list[str]) -> dict[str, float]:
    """Run the demo in a new process, unless its result is there already; its measures."""
    file = folder / "result.json"
    if file.exists():
        return json.loads(file.read_text())
    start = time.perf_counter()
    command = [sys.executable, "-m", "rlhf.cli.main", "demo", "--output", str(folder), "--seed", str(seed), *options]
    if subprocess.run(command).returncode not in (0, 1):  # 1: a goal was missed, which the table shows
        raise SystemExit(f"the demo with seed {seed} failed")
    evaluations = read_rows(folder / "ppo" / "eval.jsonl")
    before = evaluations[0]
    after = max(evaluations, key=selection_score)
    accuracy = read_rows(folder / "reward" / "eval.jsonl")[-1]["accuracy"]
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
    file.write_text(json.dumps(result) + "\n")
    return result


def plot(folders: list[Path], path: Path) -> None:
    """Draw the learning curves of all seeds: training score, KL, and the held-out judge."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 3), layout="constrained")
    score_panel, kl_panel, judge_panel = figure.subplots(1, 3)
    for seed, folder in enumerate(folders):
        metrics = read_rows(folder / "ppo" / "metrics.jsonl")
        steps = [row["step"] for row in metrics]
        for panel, name in ((score_panel, "objective/score"), (kl_panel, "objective/kl")):
            panel.plot(steps, running_mean([row[name] for row in metrics]), color=f"C{seed}", linewidth=1.2)
        evaluations = read_rows(folder / "ppo" / "eval.jsonl")
        steps = [row["step"] for row in evaluations]
        judge_panel.plot(steps, [row["judge"] for row in evaluations], "o-", color=f"C{seed}", label=f"seed {seed}")
        low = [row["judge_low"] for row in evaluations]
        high = [row["judge_high"] for row in evaluations]
        judge_panel.fill_between(steps, low, high, color=f"C{seed}", alpha=0.15, linewidth=0)
    titles = {
        score_panel: "reward model's score, training",
        kl_panel: "KL to the reference, nats per response",
        judge_panel: "independent judge, held out",
    }
    for panel, title in titles.items():
        label_panel(panel, title)
    judge_panel.legend(frameon=False, fontsize=8, loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    print(f"curves in {path}")


def table(rows: list[dict[str, float]]) -> str:
    """A Markdown table with a row for each seed."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + " ---: |" * len(names)]
    for row in rows:
        cells = [f"{v:.0f}" if isinstance(v, int) or name == "seconds" else f"{v:.3f}" for name, v in row.items()]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run all seeds, draw the curves and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0 (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/seeds"), help="folder of all runs (%(default)s)")
    parser.add_argument("--plot", type=Path, default=Path("docs/learning_curves.png"), help="PNG file (%(default)s)")
    parser.add_argument("--kl_coef", help="passed to the demo")
    options = parser.parse_args()
    demo_options = ["--kl_coef", options.kl_coef] if options.kl_coef is not None else []
    folders = [options.output / f"seed-{seed}" for seed in range(options.seeds)]
    rows = [run(folder, seed, demo_options) for seed, folder in enumerate(folders)]
    plot(folders, options.plot)
    print("\n" + table(rows))


if __name__ == "__main__":
    main()
