"""One set of PPO's settings on five tasks, nothing tuned for any of them: `python scripts/compare_tasks.py`.

The tasks are the demo's (reviews that praise), its opposite, answers of a given length, and the two games of
recipes/games, which are played over several turns. Small models need a higher learning rate than the default, which is
for models of billions of parameters; it is the same for all tasks, and all else of PPO is as it comes.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from run_curves import read_rows

from rlhf.config.jobs import PPOJob, SFTJob
from rlhf.config.parsing import parse
from rlhf.config.ppo import PPOConfig
from rlhf.config.scores import RewardConfig, WeightedSource
from rlhf.config.shared import EvalConfig
from rlhf.demo.demo import make_stages
from rlhf.evaluation.summary import selection_score
from rlhf.run.progress import silence_libraries
from rlhf.trainers.ppo import PPOTrainer
from rlhf.trainers.reward_model import train_reward_model
from rlhf.trainers.sft import train_sft

SETTINGS = PPOConfig(total_episodes=80 * 64, lr=5e-4, warmup_steps=5)
"""Of every task: 80 steps of 64 responses, and the defaults of everything else."""
STAGES = ("sft", "reward")
"""Stages of the demo before PPO."""
BEST = {"praise": None, "complaint": None, "8 words": 0.0, "guess": 0.82, "calculator": 0.95}
"""Task -> the highest possible mean score; None: there is none."""


def review_jobs(output: Path, base: Path | None, seed: int) -> dict[str, PPOJob]:
    """The tasks that write film reviews, with the demo's language model and reward model of a seed."""
    stages = make_stages(output / f"seed-{seed}", seed)
    sft, reward = (base / f"seed-{seed}" / name if base else Path(getattr(stages, name).output) for name in STAGES)
    if not (sft / "model").exists():
        train_sft(replace(stages.sft, resume="auto"))
    if not (reward / "model").exists():
        train_reward_model(replace(stages.reward, resume="auto"))
    job = replace(stages.ppo, model=replace(stages.ppo.model, path=str(sft)))
    rewards = {
        "praise": RewardConfig(model=str(reward)),
        "complaint": RewardConfig(sources={"praise": WeightedSource(model=str(reward), weight=-1.0)}),
        "8 words": RewardConfig(rule="length_target", parameters={"target": 8}),
    }
    return {task: replace(job, reward=config) for task, config in rewards.items()}


def game_jobs(seed: int) -> dict[str, PPOJob]:
    """The games of recipes/games, whose data is there (`python recipes/games/data.py data/games`)."""
    jobs = {}
    for name in ("guess", "calculator"):
        sft = parse(SFTJob, ["--config", f"recipes/games/{name}_sft.yaml"])
        if not (Path(sft.output) / "model").exists():
            train_sft(replace(sft, resume="auto"))
        jobs[name] = replace(parse(PPOJob, ["--config", f"recipes/games/{name}.yaml"]), seed=seed)
    return jobs


def run(job: PPOJob, folder: Path) -> list[dict[str, float]]:
    """Train, unless the run is finished already; its evaluations."""
    if not (folder / "seconds").exists():
        start = time.process_time()
        evaluation = EvalConfig(every=20, prompts=job.eval.prompts)
        PPOTrainer(replace(job, ppo=SETTINGS, eval=evaluation, output=str(folder), resume="auto")).train()
        (folder / "seconds").write_text(f"{time.process_time() - start:.1f}\n")
    return read_rows(folder / "eval.jsonl")


def main(argv: Sequence[str] | None = None) -> None:
    """Train every task on every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/tasks"), help="folder of all runs")
    parser.add_argument("--base", type=Path, help="folder of scripts/demo_seeds.py, to use its models")
    parser.add_argument("--tasks", nargs="*", choices=BEST, metavar="TASK", help=", ".join(BEST))
    options = parser.parse_args(argv)
    silence_libraries()
    chosen = options.tasks or list(BEST)
    before: dict[str, list[float]] = {task: [] for task in chosen}
    after: dict[str, list[dict[str, float]]] = {task: [] for task in chosen}
    for seed in range(options.seeds):
        for task, job in (review_jobs(options.output, options.base, seed) | game_jobs(seed)).items():
            if task in chosen:
                rows = run(job, options.output / f"seed-{seed}" / task.replace(" ", "_"))
                before[task].append(rows[0]["score"])
                after[task].append(max(rows, key=selection_score))
    print("\n| task | before | after, by seed | best possible | KL, nats | length |\n|---|---:|---:|---:|---:|---:|")
    for task in chosen:
        scores = ", ".join(f"{row['score']:.2f}" for row in after[task])
        kl, length = (", ".join(f"{row[name]:.1f}" for row in after[task]) for name in ("kl", "length"))
        best = "" if BEST[task] is None else f"{BEST[task]:.2f}"
        print(f"| {task} | {np.mean(before[task]):.2f} | {scores} | {best} | {kl} | {length} |")


if __name__ == "__main__":
    main()
