"""Speed and memory of PPO updates on fixed work, as a share of what this machine can do, and beside TRL's PPOTrainer.

    python scripts/benchmark_ppo.py tiny small                     # ours, on a CPU or a GPU
    python scripts/benchmark_ppo.py small --peer-python trl/bin/python --rounds 3

Every run is a process of its own with one thread on a CPU; the first update is a warm-up. Times are CPU seconds of the
process on a CPU, which other work on the machine disturbs least, and wall seconds on a GPU. `ppo_roofline.py` explains
the share of the roofline. The ragged workloads have lengths that differ from row to row, the same for both trainers.
With `--peer-python`, an environment that holds TRL 1.12, ours and theirs alternate and the ratios are printed.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ppo_roofline import PHASES, measure_machine, roofline_shares, sampling_latency, update_passes
from ppo_workload import WORKLOADS, Workload, write_models


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("workloads", nargs="+", choices=list(WORKLOADS), metavar="WORKLOAD", help=", ".join(WORKLOADS))
    parser.add_argument("--critic", choices=["shared", "separate", "adapter"], default="shared")
    parser.add_argument("--lora", type=int, default=0, metavar="RANK", help="adapters of this rank; adapter needs it")
    parser.add_argument("--updates", type=int, default=4, help="updates of a run, the first left out (default 4)")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each trainer, alternating (default 1)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads on a CPU (default 1)")
    parser.add_argument("--peer-python", help="python of an environment with trl==1.12.0")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a setting, as rlhf ppo takes it"
    )
    parser.add_argument("--output", type=Path, help="append each run as a JSON line to this file")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.updates < 2:
        parser.error("--updates must be at least 2: the first one is a warm-up")
    if options.critic == "adapter" and not options.lora:
        parser.error("--critic adapter needs --lora RANK")
    if options.worker is not None:
        print(json.dumps(measure(options.worker, WORKLOADS[options.workloads[0]], options)))
        return
    for name in options.workloads:
        compare(name, options)


def compare(name: str, options: argparse.Namespace) -> None:
    """Run a workload, alternating with the peer's where there is one, and print medians."""
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder), WORKLOADS[name], options.updates)
        common = [name, "--updates", str(options.updates), "--threads", str(options.threads), "--worker", folder]
        ours = [sys.executable, str(here / "benchmark_ppo.py"), *common, "--critic", options.critic]
        ours += ["--lora", str(options.lora), *(f"--set={item}" for item in options.set)]
        commands = {"ours": ours}
        if options.peer_python is not None:
            peer = [options.peer_python, str(here / "benchmark_ppo_trl.py")]
            commands["trl"] = [*peer, *common, "--lora", str(options.lora)]
        runs: dict[str, list[dict[str, Any]]] = {trainer: [] for trainer in commands}
        for _ in range(options.rounds):
            for trainer, command in commands.items():
                runs[trainer].append(run(command))
                if options.output is not None:
                    with open(options.output, "a", encoding="utf-8") as file:
                        file.write(json.dumps({"workload": name, "trainer": trainer, **runs[trainer][-1]}) + "\n")
    show(name, runs)


def run(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def show(name: str, runs: dict[str, list[dict[str, Any]]]) -> None:
    print(f"\n{name}")
    for trainer, results in runs.items():
        median = {key: statistics.median(result[key] for result in results) for key in results[0]}
        seconds = "  ".join(f"{phase} {median[phase]:.3f}" for phase in PHASES if phase in median)
        print(f"  {trainer:<5}{median['seconds']:8.3f} s an update  ({seconds})  peak {median['peak_mb']:,.0f} MB")
        if "roofline" in median:
            shares = "  ".join(f"{part} {100 * median[f'roofline_{part}']:.0f}%" for part in PHASES)
            print(f"       share of the roofline {100 * median['roofline']:.0f}%  ({shares})")
            print(
                f"       sampling {median['sampled_tokens_per_s']:,.0f} tokens/s, first token after "
                f"{1000 * median['first_token_s']:.1f} ms, {1000 * median['token_s']:.2f} ms a token; "
                f"this machine: {median['gflops']:,.0f} GFLOP/s, {median['gbytes']:,.1f} GB/s"
            )
    if "trl" in runs:
        for key, what in (("seconds", "time"), ("peak_mb", "peak memory")):
            ratios = sorted(t[key] / o[key] for t, o in zip(runs["trl"], runs["ours"], strict=True))
            print(f"  {what}, TRL / ours: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


# ------------------------------------------------------------------------------------------ one run, in its own process


def measure(folder: Path, work: Workload, options: argparse.Namespace) -> dict[str, float]:
    """Train a few updates on the models in a folder and return medians of the updates after the first."""
    import torch

    torch.set_num_threads(options.threads)
    from rlhf import PPOTrainer
    from rlhf.run import metrics

    on_gpu = torch.cuda.is_available()
    clock = time.perf_counter if on_gpu else time.process_time
    metrics.time.perf_counter = clock  # the trainer's own phases in the same seconds
    trainer: Any = PPOTrainer(job(folder, work, options))
    fix_lengths(trainer, work)
    rows = []
    for _ in range(options.updates):
        start = clock()
        step = trainer.step()
        rows.append({"seconds": clock() - start} | {phase: step[f"time/{phase}"] for phase in PHASES})
        check_lengths(step["response/length"], [response for _, response in work.lengths(len(rows) - 1)])
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if on_gpu:
        peak_mb = torch.cuda.max_memory_allocated() / 2**20
    machine = measure_machine(trainer.accelerator.device, clock)
    passes = update_passes(has_adapters=options.lora > 0)
    for update, row in enumerate(rows):
        row |= roofline_shares(
            work,
            update,
            row,
            machine,
            own_critic=options.critic != "shared",
            passes=passes,
            recomputes=trainer.job.ppo.old_logprobs == "recomputed",
        )
    result = {key: statistics.median(row[key] for row in rows[1:]) for key in rows[0]}
    return result | {"peak_mb": peak_mb} | asdict(machine) | sampling_latency(work, trainer, clock)


def fix_lengths(trainer: Any, work: Workload) -> None:
    """Give the trainer's prompts the order of their file, and its responses the workload's lengths.

    Each token is the inverse of the cumulative distribution at a uniform number, so 0 draws the first token of the
    vocabulary, which is the end token here, and no number from 1/2 on draws it. This adds no work to sampling.
    """
    from rlhf.data.prompts import PromptSet
    from rlhf.rollouts.sampling import uniform_noise
    from rlhf.trainers import ppo

    class PromptsInOrder(PromptSet):
        def stream(self, start: int, count: int, seed: int) -> list[int]:
            return [i % len(self) for i in range(start, start + count)]

    def noise_of_lengths(key: Any, rows: Any, total: int, length: int) -> Any:
        noise = 0.5 + uniform_noise(key, range(total), total, length) / 2
        for row, (_, response) in enumerate(work.lengths(trainer.state.step)):
            if response < length:
                noise[row, response - 1] = 0.0
        return noise[rows]

    trainer.data = replace(trainer.data, prompts=PromptsInOrder(**vars(trainer.data.prompts)))
    ppo.uniform_noise = noise_of_lengths


def check_lengths(mean: float, expected: list[int]) -> None:
    """End the run where the responses did not have the workload's lengths: its times would be of other work."""
    if abs(mean - statistics.fmean(expected)) > 1e-3:
        sys.exit(f"responses have {mean:.3f} tokens on average, but the workload has {statistics.fmean(expected):.3f}")


def job(folder: Path, work: Workload, options: argparse.Namespace) -> Any:
    from rlhf import PPOJob, parse

    settings = {
        "output": folder / f"run-{os.getpid()}",
        "trackers": "[]",
        "model.path": folder / "policy",
        "data.path": folder / "prompts.jsonl",
        "data.eval_fraction": 0,
        "data.max_prompt_length": work.prompt,
        "generation.max_new_tokens": work.response,
        "reward.model": folder / "reward",
        "reward.missing_eos_penalty": "null",
        "ppo.total_episodes": options.updates * work.rows,
        "ppo.rollout_batch_size": work.rows,
        "ppo.minibatch_size": work.rows // work.minibatches,
        "ppo.ppo_epochs": work.epochs,
        "critic.kind": options.critic,
        "checkpoint.every": 0,
    }
    if work.microbatch_tokens is not None:
        settings["ppo.microbatch_tokens"] = work.microbatch_tokens
    else:
        settings["ppo.microbatch_size"] = work.microbatch or work.rows // work.minibatches
    if options.lora:
        settings["model.lora.rank"] = options.lora
    return parse(PPOJob, [*(f"--{key}={value}" for key, value in settings.items()), *(f"--{x}" for x in options.set)])


if __name__ == "__main__":
    main()
