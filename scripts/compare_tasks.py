"""One set of PPO's settings on five tasks, nothing tuned for any of them: `python scripts/compare_tasks.py`.

The tasks are the demo's (reviews that praise), its opposite, answers of a given length, and the two games of
recipes/games, which are played over several turns. Small models need a higher learning rate than the default, which is
for models of billions of parameters; it is the same for all tasks, and all else of PPO is as it comes.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from compare_methods import comparison_parser, demo_job, train_once

from rlhf.config.jobs import PPOJob, SFTJob
from rlhf.config.parsing import parse
from rlhf.config.ppo import PPOConfig
from rlhf.config.scores import RewardConfig, WeightedSource
from rlhf.config.shared import EvalConfig
from rlhf.evaluation.summary import selection_score
from rlhf.run.progress import silence_libraries
from rlhf.trainers.sft import train_sft

SETTINGS = PPOConfig(total_episodes=80 * 64, lr=5e-4, warmup_steps=5)
"""Of every task: 80 steps of 64 responses, and the defaults of everything else."""
BEST = {"praise": None, "complaint": None, "8 words": 0.0, "guess": 0.82, "calculator": 0.95}
"""Task -> the highest possible mean score; None: there is none."""


def review_jobs(output: Path, base: Path | None, seed: int) -> dict[str, PPOJob]:
    """The tasks that write film reviews, with the demo's language model and reward model of a seed."""
    job = demo_job(output, base, seed)
    reward = job.reward.model
    rewards = {
        "praise": RewardConfig(model=reward),
        "complaint": RewardConfig(sources={"praise": WeightedSource(model=reward, weight=-1.0)}),
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


def main(argv: Sequence[str] | None = None) -> None:
    """Train every task on every seed and print the table."""
    parser = comparison_parser(__doc__, "runs/tasks")
    parser.add_argument("--tasks", nargs="*", choices=BEST, metavar="TASK", help=", ".join(BEST))
    options = parser.parse_args(argv)
    silence_libraries()
    chosen = options.tasks or list(BEST)
    before: dict[str, list[float]] = {task: [] for task in chosen}
    after: dict[str, list[dict[str, float]]] = {task: [] for task in chosen}
    for seed in range(options.seeds):
        for task, job in (review_jobs(options.output, options.base, seed) | game_jobs(seed)).items():
            if task in chosen:
                folder = options.output / f"seed-{seed}" / task.replace(" ", "_")
                evaluation = EvalConfig(every=20, prompts=job.eval.prompts)
                rows = train_once(replace(job, ppo=SETTINGS, eval=evaluation, output=str(folder)))
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
