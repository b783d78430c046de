"""The demo on several seeds, as the README's table: `python scripts/demo_seeds.py --seeds 3 --output runs/seeds`."""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from rlhf.demo import goals


def run(folder: Path, seed: int, extra: list[str]) -> dict[str, float]:
    """One demo in a process of its own; what it reached."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "rlhf.cli", "demo", "--output", str(folder), "--seed", str(seed), *extra]
    if subprocess.run(command).returncode not in (0, 1):  # 1: a goal was missed, which the table will show
        raise SystemExit(f"the demo with seed {seed} failed")
    rows = [json.loads(line) for line in (folder / "ppo" / "eval.jsonl").read_text().splitlines()]
    accuracy = json.loads((folder / "reward" / "eval.jsonl").read_text().splitlines()[-1])["accuracy"]
    before, after = rows[0], max(rows, key=lambda row: row["score"])
    reached = goals(before, after, accuracy)
    return {
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--kl_coef", help="passed to the demo")
    options = parser.parse_args()
    extra = ["--kl_coef", options.kl_coef] if options.kl_coef is not None else []
    rows = [run(options.output / f"seed-{seed}", seed, extra) for seed in range(options.seeds)]
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
