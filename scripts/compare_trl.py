"""What our PPO trainer and TRL 1.12's learn on the demo's task in equal episodes: held-out scores against the KL.

    python scripts/compare_trl.py --peer-python trl/bin/python --output runs/compare_trl --draw docs/compare_trl.png
    python scripts/compare_trl.py --output runs/compare_trl --runs 0               # the tables of what is there

SFT model and reward model are the demo's, of seed 0, trained once. All runs start from them and have the same prompts,
batches, episodes, epochs, minibatches, lengths and temperature; learning rates and KL coefficients form a grid. The
policies after the last step are evaluated as `rlhf evaluate` does it, on the same held-out prompts with the same random
numbers. Each finished run is a line of results.jsonl in the output folder, and is not run again.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import run_curves
from compare_trl_tables import draw, tables
from ppo_workload import peak_mb  # which keeps the hub and torch's spinning threads out

PEER = "trl"
OURS: dict[str, dict[str, Any]] = {
    "ours": {},  # its critic starts from the reward model, as TRL's
    "ours, shared critic": {"critic.kind": "shared"},
}
"""Name of a trainer -> its settings of `rlhf ppo` beside those that all have."""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output", type=Path, default=Path("runs/compare_trl"), help="folder of all runs (%(default)s)"
    )
    parser.add_argument("--peer-python", help="python of an environment with trl==1.12.0; without it, only ours run")
    parser.add_argument("--trainers", nargs="*", help=f"of {[*OURS, PEER]} and the trials (default: all)")
    parser.add_argument(
        "--trial", nargs="+", action="append", default=[], metavar="WORD", help="NAME KEY=VALUE ...: ours, changed"
    )
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--lr", type=float, nargs="*", default=[2.5e-4, 5e-4, 1e-3])
    parser.add_argument("--kl_coef", type=float, nargs="*", default=[0.05, 0.1, 0.2])
    parser.add_argument("--episodes", type=int, default=32 * 64, help="of a run, in steps of 64 (%(default)s)")
    parser.add_argument("--eval_prompts", type=int, default=1060, help="held-out prompts (default: all %(default)s)")
    parser.add_argument("--runs", type=int, help="runs to make at most; 0: only show what is there")
    parser.add_argument("--draw", type=Path, metavar="PNG", help="draw the finished runs")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.worker is not None:
        run = json.loads(options.worker.read_text(encoding="utf-8"))
        output, sys.stdout = sys.stdout, sys.stderr  # whatever the trainer prints goes to standard error
        print(json.dumps(train_ours(run, options.worker.parent)), file=output)
        return
    trainers = OURS | {name: dict(item.split("=", 1) for item in items) for name, *items in options.trial}
    if options.peer_python is not None:
        trainers[PEER] = {}
    if options.trainers is not None:
        unknown = [name for name in options.trainers if name not in trainers]
        if unknown:
            parser.error(f"no trainer {unknown[0]!r}; there are {list(trainers)}, and trl with --peer-python")
        trainers = {name: trainers[name] for name in options.trainers}
    results = options.output / "results.jsonl"
    if options.runs != 0:
        make_runs(trainers, results, options)
    rows = read_rows(results)
    if not rows:
        parser.error(f"{results} holds no finished run")
    print(tables(rows))
    if options.draw is not None:
        draw(rows, options.draw)


def read_rows(file: Path) -> list[dict[str, Any]]:
    return run_curves.read_rows(file) if file.exists() else []


def make_runs(trainers: dict[str, dict[str, Any]], results: Path, options: argparse.Namespace) -> None:
    """Train and evaluate what the results do not hold yet, seed by seed, and add a line for each run."""
    start = write_start(options.output / "start")
    made = 0
    for seed, lr, kl_coef, trainer in product(options.seeds, options.lr, options.kl_coef, trainers):
        run = {
            "trainer": trainer,
            "seed": seed,
            "lr": lr,
            "kl_coef": kl_coef,
            "episodes": options.episodes,
            "batch": 64,
            "minibatch": 32,
            "epochs": 4,
            "warmup_steps": min(5, options.episodes // 64 - 1),
            "response_tokens": 32,
            "temperature": 1.0,
            "missing_eos_penalty": 1.0,
            "settings": trainers[trainer],
        }
        if any(all(row.get(key) == value for key, value in run.items()) for row in read_rows(results)):
            continue
        if made == options.runs:
            return
        made += 1
        folder = free_folder(options.output / "runs", run)
        row = {**run, **train(run | start, folder, options.peer_python)}
        row |= evaluate(run | start, folder / "model", options.eval_prompts)
        with open(results, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        print(f"{folder.name}: judge {row['judge']:.3f}  score {row['score']:.2f}  KL {row['kl']:.2f}", flush=True)


def write_start(folder: Path) -> dict[str, str]:
    """The paths of the demo's SFT model, reward model and prompts, which are made where they are missing."""
    from rlhf.demo.demo import make_stages
    from rlhf.run.progress import silence_libraries
    from rlhf.trainers.reward_model import train_reward_model
    from rlhf.trainers.sft import train_sft

    silence_libraries()
    stages = make_stages(folder.absolute(), seed=0)
    if not (folder / "sft" / "model").exists():
        train_sft(replace(stages.sft, resume="auto"))
    if not (folder / "reward" / "model").exists():
        train_reward_model(replace(stages.reward, resume="auto"))
    return {
        "policy": f"{stages.sft.output}/model",
        "reward": f"{stages.reward.output}/model",
        "train_prompts": str(stages.ppo.data.path),
        "held_out": str(stages.ppo.data.eval_path),
    }


def free_folder(parent: Path, run: dict[str, Any]) -> Path:
    """A new folder named for the run; an interrupted run's folder stays, and the next one gets a number."""
    name = f"{run['trainer']}-lr{run['lr']:g}-kl{run['kl_coef']:g}-seed{run['seed']}".replace(", ", "-").replace(
        " ", "-"
    )
    folder, number = parent / name, 1
    while folder.exists():
        number += 1
        folder = parent / f"{name}-{number}"
    folder.mkdir(parents=True)
    return folder


def train(run: dict[str, Any], folder: Path, peer_python: str | None) -> dict[str, float]:
    """Train in a process of its own, which writes the policy to `model` in the folder; CPU seconds and peak memory."""
    file = folder / "run.json"
    file.write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
    command = [sys.executable, str(Path(__file__)), "--worker", str(file)]
    if run["trainer"] == PEER:
        command = [str(peer_python), str(Path(__file__).with_name("compare_trl_peer.py")), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def evaluate(run: dict[str, Any], model: Path, prompts: int) -> dict[str, float]:
    """Held-out measures of a policy; NAME_before are those of the SFT model."""
    from rlhf import EvaluateJob, evaluate_policy, parse

    settings = {
        "model.path": model,
        "baseline": run["policy"],
        "data.path": run["train_prompts"],
        "data.eval_path": run["held_out"],
        "generation.max_new_tokens": run["response_tokens"],
        "generation.temperature": run["temperature"],
        "reward.model": run["reward"],
        "eval.judge.function": "rlhf.demo.reviews:judge",
        "eval.prompts": prompts,
        "eval.batch_size": 265,
    }
    results = evaluate_policy(parse(EvaluateJob, as_options(settings)))
    before = {f"{name}_before": results["before"][name] for name in ("judge", "score", "length", "distinct_2")}
    return {**results["after"], **before}


def as_options(settings: dict[str, Any]) -> list[str]:
    return [f"--{key}={value}" for key, value in settings.items()]


# ---------------------------------------------------------------------------- one run of ours, in a process of its own


def our_settings(run: dict[str, Any], output: Path) -> dict[str, Any]:
    return {
        "output": output,
        "seed": run["seed"],
        "trackers": "[]",
        "model.path": run["policy"],
        "data.path": run["train_prompts"],
        "data.eval_fraction": 0,  # no evaluation within the run: the last policy is exported, not the best one
        "generation.max_new_tokens": run["response_tokens"],
        "generation.temperature": run["temperature"],
        "reward.model": run["reward"],
        "reward.missing_eos_penalty": run["missing_eos_penalty"],
        "ppo.total_episodes": run["episodes"],
        "ppo.rollout_batch_size": run["batch"],
        "ppo.minibatch_size": run["minibatch"],
        "ppo.microbatch_size": run["minibatch"],
        "ppo.ppo_epochs": run["epochs"],
        "ppo.lr": run["lr"],
        "ppo.warmup_steps": run["warmup_steps"],
        "ppo.kl_coef": run["kl_coef"],
        "checkpoint.every": 0,
        **run["settings"],
    }


def train_ours(run: dict[str, Any], folder: Path) -> dict[str, float]:
    import torch

    from rlhf import PPOJob, PPOTrainer, parse

    torch.set_num_threads(1)
    start = time.process_time()
    trainer = PPOTrainer(parse(PPOJob, as_options(our_settings(run, folder / "ours"))))
    trainer.train()
    seconds = time.process_time() - start
    peak = peak_mb()
    trainer.export(folder / "model")
    return {"seconds": seconds, "peak_mb": peak}


if __name__ == "__main__":
    main()
