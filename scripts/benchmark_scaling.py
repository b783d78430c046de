"""CPU seconds of a PPO step by response length, rows and vocabulary, as a picture, and memory over many steps.

    python scripts/benchmark_scaling.py --output scaling.png

Each point is a process of its own with one thread on a Llama of width 128 with 4 layers; the first step is a warm-up.
An exponent of 1 between two neighbours means that twice as much takes twice as long. The last part takes 500 steps with
responses of different lengths, and compares the memory of the process at step 50 and at step 500.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmark_ppo import fix_lengths, job
from ppo_workload import Workload, write_models

PHASES = ("generate", "score", "update")
BASE = Workload(4096, 128, 4, 4, 2, 384, rows=8, prompt=32, response=32, epochs=1, minibatches=1)
SIZES = {
    "response": [32, 64, 128, 256, 512, 1024],
    "rows": [4, 8, 16, 32, 64, 128, 256],
    "vocab": [1024, 4096, 16384, 65536, 131072],
}
LABELS = {"response": "response length, tokens", "rows": "responses of a step", "vocab": "vocabulary, tokens"}
MEMORY = replace(BASE, vocab=1024, rows=4, response=16, microbatch=2, ragged=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("scaling.png"), help="the picture (default scaling.png)")
    parser.add_argument("--updates", type=int, default=4, help="steps of a process, the first left out (default 4)")
    parser.add_argument("--panels", nargs="*", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--memory-steps", type=int, default=500, help="0: no memory run (default 500)")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.updates < 2:
        parser.error("--updates must be at least 2: the first one is a warm-up")
    if options.worker is not None:
        print(json.dumps(measure(options.worker, options.updates)))
        return
    results = {name: [run(at(name, size), options.updates) for size in SIZES[name]] for name in options.panels}
    for name, points in results.items():
        print_table(name, points)
    if results:
        draw(results, options.output)
    if options.memory_steps:
        memory = run(MEMORY, options.memory_steps)["memory_mb"]
        early = options.memory_steps // 10
        print(
            f"\nmemory after step {early}: {memory[early - 1]:,.1f} MB, after step {len(memory)}: {memory[-1]:,.1f} MB"
        )


def at(name: str, size: int) -> Workload:
    """The workload with one size changed; a microbatch has at most 8 rows."""
    work = replace(BASE, **{name: size})
    return replace(work, microbatch=min(8, work.rows))


def run(work: Workload, updates: int) -> dict[str, Any]:
    """Measure a workload in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder), work, updates)
        command = [sys.executable, __file__, "--worker", folder, "--updates", str(updates)]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(folder: Path, updates: int) -> dict[str, Any]:
    """Median CPU seconds of a step and its phases after the first step, and the memory after each step."""
    import torch

    torch.set_num_threads(1)
    from rlhf import PPOTrainer
    from rlhf.run import metrics

    metrics.time.perf_counter = time.process_time  # the trainer's own phases in the same seconds
    work = Workload(**json.loads((folder / "workload.json").read_text(encoding="utf-8")))
    trainer: Any = PPOTrainer(job(folder, work, Namespace(updates=updates, critic="shared", lora=0, set=[])))
    fix_lengths(trainer, work)
    steps = []
    memory = []
    for _ in range(updates):
        step = trainer.step()
        steps.append({name: step[f"time/{name}"] for name in ("step", *PHASES)})
        memory.append(resident_mb())
    return {name: statistics.median(step[name] for step in steps[1:]) for name in steps[0]} | {"memory_mb": memory}


def resident_mb() -> float:
    """Memory of this process that is in RAM now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def exponents(sizes: list[int], seconds: list[float]) -> list[float]:
    """The slope between each point and the one before it, on logarithmic axes."""
    pairs = zip(zip(sizes, seconds, strict=True), zip(sizes[1:], seconds[1:], strict=True), strict=False)
    return [math.log(t1 / t0) / math.log(x1 / x0) for (x0, t0), (x1, t1) in pairs]


def print_table(name: str, points: list[dict[str, Any]]) -> None:
    slopes = ["", *(f"{slope:.2f}" for slope in exponents(SIZES[name], [point["step"] for point in points]))]
    print(f"\n| {LABELS[name]} | step, s | generate | score | update | exponent |\n|---:|---:|---:|---:|---:|---:|")
    for size, point, slope in zip(SIZES[name], points, slopes, strict=True):
        seconds = " | ".join(f"{point[phase]:.2f}" for phase in ("step", *PHASES))
        print(f"| {size:,} | {seconds} | {slope} |", flush=True)


def draw(results: dict[str, list[dict[str, Any]]], file: Path) -> None:
    """One panel for each size that was varied, with a line of slope 1 for comparison."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(results), 3.2), layout="constrained")
    for axes, (name, points) in zip(figure.subplots(1, len(results), squeeze=False)[0], results.items(), strict=True):
        sizes = SIZES[name]
        for phase in ("step", *PHASES):
            style = {"color": "black", "linewidth": 2} if phase == "step" else {"linewidth": 1}
            axes.loglog(sizes, [point[phase] for point in points], marker="o", markersize=3, label=phase, **style)
        largest = points[-1]["step"]
        axes.loglog(sizes, [largest * size / sizes[-1] for size in sizes], ":", color="grey", label="linear")
        axes.set_xlabel(LABELS[name])
        axes.set_xticks(sizes, [f"{size:,}" if size < 10_000 else f"{size // 1024}k" for size in sizes])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    figure.axes[0].set_ylabel("CPU seconds of a step")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(file, dpi=100)


if __name__ == "__main__":
    main()
