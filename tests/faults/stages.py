"""Training scripts started as a user starts them, on runs of a few steps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlhf.config.jobs import DPOJob, RewardJob, SFTJob
from rlhf.config.parsing import to_yaml
from rlhf.config.shared import CheckpointConfig, DataConfig, ModelConfig
from rlhf.config.training import TrainingConfig

ROOT = Path(__file__).parents[2]
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
TIMEOUT = 300
"""Seconds after which a run hangs."""


class Stage:
    """One training script with a configuration of a few steps, started as a user starts it."""

    def __init__(self, script: str, config: Path, processes: int = 1):
        self.script = script
        self.config = config
        self.processes = processes

    def start(self, output: Path, *options: str, **popen):
        """The running process, or the launcher of several."""
        command = [sys.executable]
        if self.processes > 1:
            launcher = ROOT / "configs" / "accelerate" / "two_processes_cpu.yaml"
            command += ["-m", "accelerate.commands.launch", "--config_file", str(launcher), "--main_process_port", "0"]
        command += [
            str(ROOT / "scripts" / self.script),
            "--config",
            str(self.config),
            "--output",
            str(output),
            *options,
        ]
        return subprocess.Popen(
            command, env=ENV, cwd=self.config.parent, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **popen
        )

    def run(self, output: Path, *options: str, **popen):
        """Exit status, and standard output and error together."""
        process = self.start(output, *options, **popen)
        out, err = process.communicate(timeout=TIMEOUT)
        return process.returncode, out + err


@pytest.fixture
def stage(job, change, tmp_path, models, prompts_file):
    """`stage("ppo")`: the stage of that name; `stage("ppo", ppo={...})` changes its settings."""

    def make(name: str, processes: int = 1, **changes):
        pairs, texts = tmp_path / "pairs.jsonl", tmp_path / "texts.jsonl"
        rows = [{"prompt": f"the film {i}", "chosen": " good" * (1 + i % 3), "rejected": " bad"} for i in range(32)]
        pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
        texts.write_text("".join(json.dumps({"text": "the film is good " * (1 + i % 3)}) + "\n" for i in range(32)))
        common = {"trackers": [], "model": ModelConfig(path=str(models("llama")))}
        training = TrainingConfig(epochs=3.0, batch_size=4, microbatch_size=2)
        keep = CheckpointConfig(every=1)
        jobs = {
            "ppo": change(job, checkpoint={"every": 1}, ppo={"total_episodes": 8 * 10}),
            "sft": SFTJob(**common, data=DataConfig(path=str(texts)), training=training, checkpoint=keep),
            "reward": RewardJob(**common, data=DataConfig(path=str(pairs)), training=training, checkpoint=keep),
            "dpo": DPOJob(**common, data=DataConfig(path=str(pairs)), training=training, checkpoint=keep),
        }
        config = tmp_path / f"{name}.yaml"
        config.write_text(to_yaml(change(jobs[name], **changes)))
        return Stage(f"train_{name}.py", config, processes)

    return make
