"""Speed and memory of PPO updates on fixed work, as a share of what this machine can do, and beside TRL's PPOTrainer.

    python scripts/benchmark_ppo.py tiny small                     # ours, on a CPU or a GPU
    python scripts/benchmark_ppo.py small --peer-python trl/bin/python --rounds 3

Every run is a process of its own with one thread on a CPU; the first update is a warm-up. Times are CPU seconds of the
process on a CPU, which other work on the machine disturbs least, and wall seconds on a GPU. The roofline is the time
that the necessary arithmetic takes at the speed of a large matrix product, and for sampling, where it is longer, the
time that reading all weights once for each token takes at the speed of a large copy; both speeds are measured here.
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
from dataclasses import replace
from pathlib import Path
from typing import Any

from ppo_workload import WORKLOADS, Workload, write_models

PHASES = ("generate", "score", "update")


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
            commands["trl"] = [options.peer_python, str(here / "benchmark_ppo_trl.py"), *common]
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
                f"this machine: {median['machine_gflops']:,.0f} GFLOP/s, {median['machine_gbytes']:,.1f} GB/s"
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
    # No token ends a response, so all have the same length; an empty list costs nothing.
    trainer.sampler = replace(trainer.sampler, transform=replace(trainer.sampler.transform, stop_ids=()))
    trainer.collector.sampler = trainer.sampler
    rows = []
    for _ in range(options.updates):
        start = clock()
        step = trainer.step()
        rows.append({"seconds": clock() - start} | {phase: step[f"time/{phase}"] for phase in PHASES})
    result = {key: statistics.median(row[key] for row in rows[1:]) for key in rows[0]}
    result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if on_gpu:
        result["peak_mb"] = torch.cuda.max_memory_allocated() / 2**20
    return result | roofline(work, result, trainer, clock, options.critic)


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
        "ppo.microbatch_size": work.rows // work.minibatches,
        "ppo.ppo_epochs": work.epochs,
        "critic.kind": options.critic,
        "checkpoint.every": 0,
    }
    if options.lora:
        settings["model.lora.rank"] = options.lora
    return parse(PPOJob, [*(f"--{key}={value}" for key, value in settings.items()), *(f"--{x}" for x in options.set)])


def roofline(work: Workload, seconds: dict[str, float], trainer: Any, clock: Any, critic: str) -> dict[str, float]:
    """The share of each phase's time that its necessary work takes at this machine's measured speeds."""
    flops_per_s, bytes_per_s = machine_speed(trainer.accelerator.device, clock)
    first_token, token = sampling_latency(work, trainer, clock)
    text = work.prompt + work.response
    forward = work.rows * (work.trunk_flops(0, text) + work.head_flops(work.response))
    trunk = work.rows * work.trunk_flops(0, text)
    own_trunk = trunk if critic != "shared" else 0.0
    weight_bytes = 4 * (work.trunk_weights + work.head_weights)
    sampling_flops = work.rows * (work.trunk_flops(0, text - 1) + work.head_flops(work.response))
    bounds = {
        "generate": max(sampling_flops / flops_per_s, work.response * weight_bytes / bytes_per_s),
        "score": (2 * forward + trunk + own_trunk) / flops_per_s,  # policy, reference; reward model; critic
        "update": work.epochs * 3 * (forward + own_trunk) / flops_per_s,  # a backward pass is two forward passes
    }
    result = {f"roofline_{phase}": bounds[phase] / seconds[phase] for phase in PHASES}
    return result | {
        "roofline": sum(bounds.values()) / seconds["seconds"],
        "sampled_tokens_per_s": work.rows * work.response / seconds["generate"],
        "first_token_s": first_token,
        "token_s": token,
        "machine_gflops": flops_per_s / 1e9,
        "machine_gbytes": bytes_per_s / 1e9,
    }


def machine_speed(device: Any, clock: Any) -> tuple[float, float]:
    """Operations per second of a large matrix product, and bytes per second of a large copy (read and written)."""
    import torch

    def seconds(call: Any) -> float:
        times = []
        for _ in range(4):
            start = clock()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(clock() - start)
        return min(times[1:])

    size = 8192 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device)
    source = torch.randn(2**26, device=device)
    target = torch.empty_like(source)
    return 2 * size**3 / seconds(lambda: a @ a), 2 * source.nbytes / seconds(lambda: target.copy_(source))


def sampling_latency(work: Workload, trainer: Any, clock: Any) -> tuple[float, float]:
    """Seconds to the first token of a batch, and seconds for each token after it."""
    from rlhf.rollouts.sampling import sample

    prompts = trainer.next_prompts()
    device = trainer.accelerator.device
    transform = trainer.sampler.transform

    def seconds(tokens: int) -> float:
        times = []
        for _ in range(3):
            start = clock()
            sampled = sample(
                trainer.policy.lm,
                prompts.prompt_ids.to(device),
                prompts.prompt_mask.to(device),
                None,
                transform,
                tokens,
            )
            sampled.ids.sum().item()  # waits for the device
            times.append(clock() - start)
        return min(times)

    first = seconds(1)
    return first, (seconds(work.response) - first) / (work.response - 1)


if __name__ == "__main__":
    main()
