"""SFT, best of n, DPO, GRPO and PPO on the demo's task, as a table: `python scripts/compare_baselines.py --seeds 3`.

Language model and reward model are the demo's, trained once per seed. DPO learns from the pairs that the reward model
was trained on. All policies answer the same held-out prompts with the same random numbers (`rlhf evaluate`); those of
GRPO and PPO are the ones that `rlhf ppo` exports, with the best held-out score after penalties. CPU seconds are process
time of what a method adds to the language model and, but for DPO, the reward model: its training, or for best of n the
sampling of all responses to the held-out prompts.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from compare_methods import changed_job, table

from rlhf.config.commands import BestOfNJob, EvaluateJob
from rlhf.config.dpo import DPOConfig
from rlhf.config.jobs import DPOJob, PPOJob
from rlhf.config.shared import CheckpointConfig, DataConfig, ModelConfig
from rlhf.config.training import TrainingConfig
from rlhf.demo.demo import make_stages
from rlhf.evaluation.best_of_n import run_best_of_n
from rlhf.evaluation.comparison import compare_policies
from rlhf.report.comparison import write_comparison
from rlhf.run.progress import silence_libraries
from rlhf.trainers.dpo import train_dpo
from rlhf.trainers.ppo import PPOTrainer
from rlhf.trainers.reward_model import train_reward_model
from rlhf.trainers.sft import train_sft

BEST_OF = (4, 16)
NAMES = {
    "start": "SFT, the start",
    "best of 4": "best of 4",
    "best of 16": "best of 16",
    "dpo": "DPO",
    "grpo": "GRPO",
    "ppo": "PPO, critic from the reward model (default)",
    "ppo-trunk": "PPO, critic on the policy's trunk",
}
"""Name in an evaluation -> name in the table."""


def timed(folder: Path, work: Callable[[], Any]) -> float:
    """Do a piece of work, unless it was done before, and return its CPU seconds."""
    file = folder / "seconds"
    if not file.exists():
        start = time.process_time()
        work()
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{time.process_time() - start:.1f}\n")
    return float(file.read_text())


def dpo_job(ppo: PPOJob, pairs: Path, output: Path, options: argparse.Namespace) -> DPOJob:
    """DPO from the language model that PPO starts from."""
    return DPOJob(
        output=str(output),
        seed=ppo.seed,
        resume="auto",
        model=ppo.model,
        data=DataConfig(path=str(pairs), eval_fraction=0.02),
        dpo=DPOConfig(beta=options.beta),
        training=TrainingConfig(
            epochs=1.0, batch_size=32, microbatch_size=32, max_length=64, lr=options.lr, warmup_steps=10
        ),
        checkpoint=CheckpointConfig(every=0),
    )


def best_of_n_job(ppo: PPOJob, n: int) -> BestOfNJob:
    """Responses of the language model that PPO starts from, to the demo's held-out prompts, by its reward model."""
    return BestOfNJob(
        n=n,
        seed=ppo.seed,
        model=ppo.model,
        data=ppo.data,
        generation=ppo.generation,
        reward=ppo.reward,
        eval=ppo.eval,
    )


def _train_ppo(job: PPOJob) -> None:
    PPOTrainer(job).train()


def run(folder: Path, seed: int, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Train everything of one seed, unless it is done; the held-out measures of each method."""
    stages = make_stages(folder, seed)
    timed(folder / "sft", lambda: train_sft(replace(stages.sft, resume="auto")))
    timed(folder / "reward", lambda: train_reward_model(replace(stages.reward, resume="auto")))
    ppo = stages.ppo
    grpo = changed_job(ppo, {"ppo": {"estimator": "grpo", "samples_per_prompt": 4}}, folder / "grpo")
    trunk = changed_job(ppo, {"critic": {"kind": "shared"}}, folder / "ppo-trunk")
    seconds = {"start": float((folder / "sft" / "seconds").read_text())}
    for job in (ppo, grpo, trunk):
        train = partial(_train_ppo, replace(job, resume="auto"))
        seconds[Path(job.output).name] = timed(Path(job.output), train)
    for n in BEST_OF:
        seconds[f"best of {n}"] = timed(folder / f"best-of-{n}", partial(run_best_of_n, best_of_n_job(ppo, n)))
    pairs = folder / "data" / "pairs.jsonl"
    seconds["dpo"] = timed(folder / "dpo", partial(train_dpo, dpo_job(ppo, pairs, folder / "dpo", options)))
    result = compare(ppo, folder)
    return {
        text: {
            "score": row["score"],
            "judge": row["judge"],
            "win rate": row.get("win_rate", 0.5),
            "KL": row.get("kl", row.get("kl_bound", float("nan"))),
            "length": row["length"],
            "complete": row["eos_fraction"],
            "distinct-2": row["distinct_2"],
            "CPU seconds": seconds[name],
        }
        for name, text in NAMES.items()
        for row in [result["policies"][name]]
    }


def compare(ppo: PPOJob, folder: Path) -> dict[str, Any]:
    """The evaluation of all policies of one seed, with its page, unless it is there."""
    output = folder / "comparison"
    if not (output / "evaluation.json").exists():
        job = EvaluateJob(
            output=str(output),
            seed=ppo.seed,
            baseline=ppo.model.path,
            model=ModelConfig(path=str(folder / "dpo")),
            policies=[str(folder / name) for name in ("grpo", "ppo", "ppo-trunk")],
            best_of=list(BEST_OF),
            data=ppo.data,
            generation=ppo.generation,
            reward=ppo.reward,
            eval=ppo.eval,
        )
        compare_policies(job)
        write_comparison(output)
    return json.loads((output / "evaluation.json").read_text(encoding="utf-8"))


def main(argv: Sequence[str] | None = None) -> None:
    """Run every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: %(default)s)")
    parser.add_argument("--first_seed", type=int, default=0, help="the first of them (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("runs/baselines"), help="folder of all runs (%(default)s)")
    parser.add_argument("--lr", type=float, default=3e-4, help="learning rate of DPO (default: %(default)s)")
    parser.add_argument("--beta", type=float, default=0.1, help="beta of DPO (default: %(default)s)")
    options = parser.parse_args(argv)
    silence_libraries()
    results: dict[str, list[dict[str, float]]] = {name: [] for name in NAMES.values()}
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        for name, row in run(options.output / f"seed-{seed}", seed, options).items():
            results[name].append(row)
            print(f"seed {seed}, {name}: {row}", flush=True)
    print("\n" + table(results))


if __name__ == "__main__":
    main()
