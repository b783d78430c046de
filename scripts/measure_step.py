"""Where the time of a PPO step goes: `python scripts/measure_step.py runs/demo-1/ppo`.

Takes the settings of a finished run, runs some steps in a temporary folder, and prints the time of each part.
Everything but forward passes, backward passes and sampling is this project's overhead.
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
from rlhf.config.parsing import from_dict, read_yaml
from rlhf.config.shared import CheckpointConfig
from rlhf.errors import report_user_errors
from rlhf.models.actor_critic import ActorCritic, Reference
from rlhf.rewards import models as reward_models
from rlhf.rollouts import sampling, stages

MODEL_WORK = (
    "sampling",
    "reward model's forward",
    "reference's forward",
    "policy's forward, training",
    "policy's forward, scoring",
    "backward",
)
"""The parts that PPO cannot do without."""


class CallTimes:
    """Seconds spent in wrapped calls; time in a nested wrapped call counts for the inner call only."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._nested_seconds: list[float] = []

    def wrap(self, call: Callable[..., Any], name: str | Callable[[], str]) -> Callable[..., Any]:
        """A function that makes the same call and measures it under a name, or under the name that a function gives."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            self._nested_seconds.append(0.0)
            try:
                return call(*args, **kwargs)
            finally:
                elapsed = time.perf_counter() - start
                own_seconds = elapsed - self._nested_seconds.pop()
                if self._nested_seconds:
                    self._nested_seconds[-1] += elapsed
                key = name if isinstance(name, str) else name()
                self.seconds[key] = self.seconds.get(key, 0.0) + own_seconds

        return timed


def forward_name() -> str:
    """The policy's forward pass, by its purpose."""
    return "policy's forward, training" if torch.is_grad_enabled() else "policy's forward, scoring"


def measure(run: Path, steps: int) -> None:
    """Repeat steps of a run and print the time of each part."""
    job = from_dict(PPOJob, read_yaml(run / "config.yaml"))
    with tempfile.TemporaryDirectory() as folder:
        job = replace(job, output=f"{folder}/run", resume=None, trackers=[], checkpoint=CheckpointConfig(every=0))
        trainer = PPOTrainer(job)
        for _ in range(2):
            trainer.step()  # warm up
        times = wrap_parts(trainer)
        start = time.perf_counter()
        for _ in range(steps):
            trainer.step()
        total = time.perf_counter() - start
    parts = times.seconds | {"everything else": total - sum(times.seconds.values())}
    for name, seconds in sorted(parts.items(), key=lambda part: -part[1]):
        print_part(name, seconds / steps, seconds / total)
    model_seconds = sum(times.seconds.get(name, 0.0) for name in MODEL_WORK)
    print_part("forward, backward, sampling", model_seconds / steps, model_seconds / total)
    print_part("whole step", total / steps, 1.0)


def wrap_parts(trainer: PPOTrainer) -> CallTimes:
    """Measure the parts of a trainer's steps from now on."""
    times = CallTimes()
    stages.sample = times.wrap(sampling.sample, "sampling")
    reward_models.sequence_scores = times.wrap(reward_models.sequence_scores, "reward model's forward")
    Reference.states = times.wrap(Reference.states, "reference's forward")
    Reference.head = times.wrap(Reference.head, "reference's forward")
    ActorCritic.forward = times.wrap(ActorCritic.forward, forward_name)
    trainer.accelerator.backward = times.wrap(trainer.accelerator.backward, "backward")
    trainer.learner._optimizer_step = times.wrap(trainer.learner._optimizer_step, "optimizer")
    return times


def print_part(name: str, seconds_per_step: float, fraction: float) -> None:
    """Print a line of the table."""
    print(f"{name:<28}{1000 * seconds_per_step:8.1f} ms per step {100 * fraction:6.1f} %")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure where the time of a PPO step goes.")
    parser.add_argument("run", type=Path, help="folder of a finished PPO run")
    parser.add_argument("--steps", type=int, default=20, help="steps to measure (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="torch threads (default: torch's choice)")
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    with report_user_errors():
        measure(options.run, options.steps)
