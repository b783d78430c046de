"""Run jobs one after the other in the processes that a launcher starts: `run_jobs.py JOB.yaml OUTPUT KIND ...`.

Starting processes takes longer than the tiny runs of the tests. `KIND` is `sft`, `reward` or `dpo`, or for PPO `-` or a
name of `FAULTS`. What a run raises is written to `OUTPUT.error.RANK`; after a PPO run, `OUTPUT.held.RANK` has how many
bytes of weights and optimizer states the process holds.
"""

import json
import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch.utils._python_dispatch import TorchDispatchMode

import rlhf.run.precision
from rlhf.config.jobs import DPOJob, PPOJob, RewardJob, SFTJob
from rlhf.config.parsing import parse
from rlhf.models.sharding import local
from rlhf.run.distributed import exit_launched_process
from rlhf.trainers.dpo import train_dpo
from rlhf.trainers.ppo import PPOTrainer
from rlhf.trainers.reward_model import train_reward_model
from rlhf.trainers.sft import train_sft

RANK = int(os.environ.get("RANK", "0"))


def ragged(trainer: PPOTrainer) -> None:
    """The first process samples at most 3 tokens, the others up to the limit."""
    if RANK == 0:
        sampler = trainer.collector.sampler
        trainer.collector.sampler = replace(sampler, config=replace(sampler.config, max_new_tokens=3))


def nan_gradient(trainer: PPOTrainer) -> None:
    """The last process has a gradient that is not a number in the third microbatch of the run."""
    loss, calls = trainer.learner.loss, []

    def changed(*args: Any) -> Any:
        calls.append(1)
        part = loss(*args)
        is_last = int(os.environ.get("WORLD_SIZE", "1")) == RANK + 1
        return replace(part, total=part.total * torch.nan) if is_last and len(calls) == 3 else part

    trainer.learner.loss = changed  # pyright: ignore[reportAttributeAccessIssue]


FAULTS = {"-": lambda trainer: None, "ragged": ragged, "nan_gradient": nan_gradient}


class Collectives(TorchDispatchMode):
    """Counts the operations over all processes that a block of code starts, those of DDP and FSDP included."""

    def __init__(self):
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace in ("c10d", "_c10d_functional"):
            self.counts[func.__name__.split(".")[0].strip("_")] += 1
        return func(*args, **(kwargs or {}))


def count_collectives(trainer: PPOTrainer, file: Path) -> None:
    """Write a line with the number of each collective operation for each update."""
    update = trainer.learner.update

    def counted(*args: Any, **kwargs: Any) -> Any:
        with Collectives() as mode:
            metrics = update(*args, **kwargs)
        with file.open("a") as lines:
            lines.write(json.dumps(mode.counts) + "\n")
        return metrics

    trainer.learner.update = counted  # pyright: ignore[reportAttributeAccessIssue]


def held_bytes(tensors: Any) -> int:
    return sum(local(x).nbytes for x in tensors)


def run(config: str, output: str, kind: str) -> None:
    arguments = ["--config", config, "--output", output]
    if kind == "sft":
        train_sft(parse(SFTJob, arguments))
    elif kind == "reward":
        train_reward_model(parse(RewardJob, arguments))
    elif kind == "dpo":
        train_dpo(parse(DPOJob, arguments))
    else:
        run_ppo(parse(PPOJob, arguments), output, kind)


def run_ppo(job: PPOJob, output: str, fault: str) -> None:
    trainer = PPOTrainer(job)
    FAULTS[fault](trainer)
    count_collectives(trainer, Path(f"{output}.collectives.{RANK}"))
    trainer.train()
    learner = trainer.learner
    states = [x for state in learner.optimizer.state.values() for x in state.values() if x.numel() > 1]
    held = {
        "weights": held_bytes(learner.weights.values()),
        "optimizer": held_bytes(states),
        "plain": sum(p.untyped_storage().nbytes() for p in trainer.policy.parameters()),
    }
    Path(f"{output}.held.{RANK}").write_text(json.dumps(held))


def main() -> None:
    torch.set_num_threads(1)
    Accelerator.end_training = lambda self: None  # the next job needs the processes' connection
    rlhf.run.precision.bf16_slowdown = lambda: 1.0  # bf16 is what is tested, however slow it is here
    jobs = sys.argv[1:]
    for config, output, kind in zip(jobs[::3], jobs[1::3], jobs[2::3], strict=True):
        AcceleratorState._reset_state()  # the next job may have another precision
        try:
            run(config, output, kind)
        except Exception as error:
            Path(f"{output}.error.{RANK}").write_text(f"{type(error).__name__}: {error}")
    exit_launched_process(finished=True)


if __name__ == "__main__":
    main()
