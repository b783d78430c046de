"""Variants of PPO on the demo's task, as a table: `python scripts/compare_methods.py --seeds 3`.

Language model and reward model are the demo's, trained once per seed (or taken from the folder of
`scripts/demo_seeds.py` with --base); only PPO's settings differ. Scores, KL and win rates are measured on the held-out
prompts, at the step with the best held-out score after penalties, which `rlhf ppo` exports. CPU seconds are process
time, over all threads, which depends less on other load than wall time.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from run_curves import read_rows

from rlhf.config.jobs import PPOJob
from rlhf.config.shared import LoraConfig
from rlhf.demo.demo import make_stages
from rlhf.evaluation.summary import selection_score
from rlhf.run.progress import silence_libraries
from rlhf.trainers.ppo import PPOTrainer
from rlhf.trainers.reward_model import train_reward_model
from rlhf.trainers.sft import train_sft

METHODS: dict[str, dict[str, dict[str, Any]]] = {
    "PPO, critic from the reward model (default)": {},
    "PPO, critic on the policy's trunk": {"critic": {"kind": "shared"}},
    "LoRA, critic as a second adapter": {
        "model": {"lora": LoraConfig(rank=16, alpha=32.0)},
        "critic": {"kind": "adapter", "lr": 3e-3},
        "ppo": {"lr": 1e-3},
    },
    "PPO, critic from the policy": {"critic": {"kind": "separate"}},
    "KL-penalty surrogate, critic on the policy's trunk": {
        "critic": {"kind": "shared"},
        "ppo": {"policy_loss": "kl_penalty"},
    },
    "RLOO": {"ppo": {"estimator": "rloo", "samples_per_prompt": 4}},
    "GRPO": {"ppo": {"estimator": "grpo", "samples_per_prompt": 4}},
}
"""Method -> the settings that it changes in the demo's PPO job."""


def changed_job(base: PPOJob, changes: dict[str, dict[str, Any]], output: Path) -> PPOJob:
    """A job with other settings and another run folder."""
    groups = {name: replace(getattr(base, name), **values) for name, values in changes.items()}
    return replace(base, output=str(output), **groups)


def train_once(job: PPOJob) -> list[dict[str, Any]]:
    """Train, unless the run is finished already, and write its CPU seconds beside it; the rows of its evaluations."""
    folder = Path(job.output)
    if not (folder / "seconds").exists():
        start = time.process_time()
        PPOTrainer(replace(job, resume="auto")).train()
        (folder / "seconds").write_text(f"{time.process_time() - start:.1f}\n")
    return read_rows(folder / "eval.jsonl")


def run(job: PPOJob) -> dict[str, float]:
    """Train, unless the run is finished already; the held-out measures at the best step."""
    best = max(train_once(job), key=selection_score)
    return {
        "score": best["score"],
        "judge": best["judge"],
        "win rate": best.get("win_rate", float("nan")),
        "KL": best["kl"],
        "distinct-2": best["distinct_2"],
        "CPU seconds": float((Path(job.output) / "seconds").read_text()),
    }


def demo_job(output: Path, base: Path | None, seed: int) -> PPOJob:
    """The demo's PPO job of a seed, with its language model and reward model trained or taken from `base`."""
    stages = make_stages(output / f"seed-{seed}", seed)
    if base is not None:
        folder = base / f"seed-{seed}"
        model = replace(stages.ppo.model, path=str(folder / "sft"))
        reward = replace(stages.ppo.reward, model=str(folder / "reward"))
        return replace(stages.ppo, model=model, reward=reward)
    if not (Path(stages.sft.output) / "model").exists():
        train_sft(replace(stages.sft, resume="auto"))
    if not (Path(stages.reward.output) / "model").exists():
        train_reward_model(replace(stages.reward, resume="auto"))
    return stages.ppo


def table(results: dict[str, list[dict[str, float]]]) -> str:
    """A Markdown table of means over seeds, with minimum and maximum."""
    columns = list(next(iter(results.values()))[0])
    lines = ["| method | " + " | ".join(columns) + " |", "|---|" + "---:|" * len(columns)]
    for name, rows in results.items():
        cells = []
        for column in columns:
            values = np.array([row[column] for row in rows])
            digits = 0 if column == "CPU seconds" else 1 if column == "KL" else 2
            cells.append(f"{values.mean():.{digits}f} ({values.min():.{digits}f} to {values.max():.{digits}f})")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def comparison_parser(description: str | None, output: str) -> argparse.ArgumentParser:
    """A parser with the options of all comparisons on the demo's models.

    Args:
        output: default of the folder of all runs.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path(output), help="folder of all runs")
    parser.add_argument("--base", type=Path, help="folder of scripts/demo_seeds.py, to use its models")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Train every method on every seed and print the table."""
    parser = comparison_parser(__doc__, "runs/methods")
    parser.add_argument("--first_seed", type=int, default=0, help="the first of them (default: %(default)s)")
    parser.add_argument("--methods", nargs="*", choices=METHODS, metavar="METHOD", help=", ".join(METHODS))
    options = parser.parse_args(argv)
    silence_libraries()
    chosen = options.methods or list(METHODS)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        base = demo_job(options.output, options.base, seed)
        for name in chosen:
            folder = options.output / f"seed-{seed}" / name.replace(" ", "_").replace(",", "").replace("'", "")
            results[name].append(run(changed_job(base, METHODS[name], folder)))
            print(f"seed {seed}, {name}: {results[name][-1]}", flush=True)
    print("\n" + table(results))


if __name__ == "__main__":
    main()
