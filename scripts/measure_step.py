"""Where the time of one PPO step goes: `python scripts/measure_step.py runs/demo-1/ppo`.

Takes the settings of a finished run, repeats some of its steps in a temporary folder, and prints the share of each
part. Forwards, backwards and sampling are what PPO cannot do without; the rest is this project's own overhead.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rlhf import PPOJob, PPOTrainer
from rlhf.config.jobs import CheckpointConfig
from rlhf.config.parsing import from_dict, read_yaml
from rlhf.errors import report_user_errors
from rlhf.models.actor_critic import ActorCritic, Reference
from rlhf.rewards import models as reward_models
from rlhf.rollouts import sampling, stages


class Spent:
    """Seconds inside wrapped calls, each counted once where they nest."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inside: list[float] = []

    def wrap(self, call: Callable[..., Any], name: str | Callable[[], str]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            self._inside.append(0.0)
            try:
                return call(*args, **kwargs)
            finally:
                took, nested = time.perf_counter() - start, self._inside.pop()
                if self._inside:
                    self._inside[-1] += took
                key = name if isinstance(name, str) else name()
                self.seconds[key] = self.seconds.get(key, 0.0) + took - nested

        return timed


def reading() -> str:
    return "policy's forward, training" if torch.is_grad_enabled() else "policy's forward, scoring"


def measure(run: Path, steps: int, threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
    job = from_dict(PPOJob, read_yaml(run / "config.yaml"))
    with tempfile.TemporaryDirectory() as folder:
        job = replace(job, output=f"{folder}/run", resume=None, trackers=[], checkpoint=CheckpointConfig(every=0))
        trainer, spent = PPOTrainer(job), Spent()
        for _ in range(2):
            trainer.step()  # warm up
        stages.sample = spent.wrap(sampling.sample, "sampling")
        reward_models.sequence_scores = spent.wrap(reward_models.sequence_scores, "reward model's forward")
        Reference.states = spent.wrap(Reference.states, "reference's forward")
        Reference.head = spent.wrap(Reference.head, "reference's forward")
        ActorCritic.forward = spent.wrap(ActorCritic.forward, reading)
        trainer.accelerator.backward = spent.wrap(trainer.accelerator.backward, "backward")
        models = {"sampling", "reward model's forward", "reference's forward", "backward"} | {
            f"policy's forward, {what}" for what in ("training", "scoring")
        }
        trainer.learner._optimizer_step = spent.wrap(trainer.learner._optimizer_step, "optimizer")
        start = time.perf_counter()
        for _ in range(steps):
            trainer.step()
        total = time.perf_counter() - start
    rest = total - sum(spent.seconds.values())
    for name, seconds in sorted((spent.seconds | {"everything else": rest}).items(), key=lambda kv: -kv[1]):
        print(f"{name:<28}{1000 * seconds / steps:8.1f} ms a step {100 * seconds / total:6.1f} %")
    share = sum(seconds for name, seconds in spent.seconds.items() if name in models) / total
    print(f"{'forward, backward, sampling':<28}{1000 * total * share / steps:8.1f} ms a step {100 * share:6.1f} %")
    print(f"{'whole step':<28}{1000 * total / steps:8.1f} ms")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Where the time of one PPO step goes.")
    parser.add_argument("run", type=Path, help="folder of a finished PPO run")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, help="torch threads; default: torch's choice")
    options = parser.parse_args()
    with report_user_errors():
        measure(options.run, options.steps, options.threads)
