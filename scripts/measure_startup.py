"""CPU seconds from the launch of `rlhf ppo` to the first rollout of a tiny model, by stage.

python scripts/measure_startup.py              # median of five processes, with one thread
python scripts/measure_startup.py --modules    # and the large libraries that were imported
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

LIBRARIES = (
    "torch",
    "transformers",
    "accelerate",
    "datasets",
    "pandas",
    "pyarrow",
    "peft",
    "tensorboard",
    "matplotlib",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=5, help="processes to take the median of (default 5)")
    parser.add_argument("--modules", action="store_true", help="print which large libraries were imported")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        print(json.dumps(measure(options.worker)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write_tiny_models(Path(folder))
        command = [sys.executable, __file__, "--worker", folder]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        runs = [
            json.loads(
                subprocess.run(command, env=environment, check=True, capture_output=True).stdout.splitlines()[-1]
            )
            for _ in range(options.runs)
        ]
    for stage in runs[0]["seconds"]:
        print(f"{stage:<42}{statistics.median(run['seconds'][stage] for run in runs):6.2f} s")
    print(f"{'launch to first rollout':<42}{statistics.median(sum(run['seconds'].values()) for run in runs):6.2f} s")
    if options.modules:
        print("imported:", ", ".join(runs[0]["libraries"]))


def write_tiny_models(folder: Path) -> None:
    from ppo_workload import Workload, write_models

    tiny = Workload(1024, 64, 2, 4, 2, 128, rows=8, prompt=8, response=8, epochs=1, minibatches=1)
    write_models(folder, tiny, updates=1)


def measure(folder: Path) -> dict[str, Any]:
    """Do what `rlhf ppo` does until its first rollout, and return each stage's CPU seconds."""
    marks = {"Python": cpu_seconds()}
    from rlhf.config.jobs import PPOJob
    from rlhf.config.parsing import parse

    settings = {
        "output": folder / f"run-{os.getpid()}",
        "trackers": "[]",
        "model.path": folder / "policy",
        "data.path": folder / "prompts.jsonl",
        "data.eval_fraction": 0,
        "reward.model": folder / "reward",
        "generation.max_new_tokens": 8,
        "ppo.total_episodes": 8,
        "ppo.rollout_batch_size": 8,
        "ppo.minibatch_size": 8,
        "ppo.microbatch_size": 8,
    }
    job = parse(PPOJob, [f"--{key}={value}" for key, value in settings.items()])
    marks["settings"] = cpu_seconds()
    from rlhf.run.startup import prepare_libraries

    prepare_libraries()
    marks["torch, transformers, accelerate"] = cpu_seconds()
    from rlhf.trainers import ppo

    marks["rlhf.trainers.ppo"] = cpu_seconds()
    load_models = ppo.load_models

    def load_models_timed(*args: Any) -> Any:
        marks["tokenizer and data"] = cpu_seconds()
        models = load_models(*args)
        marks["models"] = cpu_seconds()
        return models

    ppo.load_models = load_models_timed
    trainer = ppo.PPOTrainer(job)
    marks["optimizer"] = cpu_seconds()
    trainer.collect(trainer.next_prompts())
    marks["first rollout"] = cpu_seconds()
    ends = list(marks.values())
    seconds = {stage: end - start for stage, start, end in zip(marks, [0.0, *ends], ends, strict=False)}
    return {"seconds": seconds, "libraries": [name for name in LIBRARIES if name in sys.modules]}


def cpu_seconds() -> float:
    """CPU seconds of this process since its start, the interpreter's own included."""
    times = os.times()
    return times.user + times.system


if __name__ == "__main__":
    main()
