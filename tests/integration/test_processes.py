"""Two gloo processes give the run of a single process on the same global batch: rollouts, metrics and weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlhf.config.jobs import DPOJob
from rlhf.config.parsing import to_yaml
from rlhf.config.scores import WeightedSource
from rlhf.config.shared import DataConfig, LoraConfig, ModelConfig
from rlhf.config.training import TrainingConfig

ROOT = Path(__file__).parents[2]


def launch(
    config: Path, output: Path, processes: int, script: str = "train_ppo.py"
) -> subprocess.CompletedProcess[str]:
    """Run the script as a user would, on the CPU."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if processes == 1:
        start = [sys.executable]
    else:
        file = ROOT / "configs" / "accelerate" / "two_processes_cpu.yaml"
        start = [
            sys.executable,
            "-m",
            "accelerate.commands.launch",
            "--config_file",
            str(file),
            "--main_process_port",
            "0",
        ]
    command = [*start, str(ROOT / "scripts" / script), "--config", str(config), "--output", str(output)]
    return subprocess.run(command, capture_output=True, text=True, env=env, cwd=config.parent, timeout=300)


VARIANTS = {
    "default": {},
    "separate critic, KL penalty, texts, by sequence, bootstrap, warm-up": {
        "critic": {"kind": "separate", "warmup_steps": 1, "pretraining_steps": 2},
        "ppo": {"policy_loss": "kl_penalty", "loss_aggregation": "sequence"},
        "ptx": {"batch_size": 3},
        "reward": {"truncated": "bootstrap", "running_scale": True},
    },
    "adapters, exact KL in the loss": {
        "model": {"lora": LoraConfig(rank=2)},
        "critic": {"kind": "adapter"},
        "ppo": {"kl_placement": "loss", "kl_estimator": "full", "loss_aggregation": "fixed"},
        "reward": {"truncated": "mask"},
    },
    # With values of zero nearly all rewards here would be the KL's rounding errors, which whitening makes large.
    "log-probabilities of the sampler": {
        "ppo": {"old_logprobs": "sampler"},
        "reward": {"truncated": "bootstrap"},
        "critic": {"head_init": "normal"},
    },
    "token budget, unequal numbers of forward passes, no reference": {
        "ppo": {"microbatch_size": 16, "microbatch_tokens": 20, "kl_coef": 0.0, "use_reference": False}
    },
    "mix, rewards by token, skipped responses": {
        "reward": {
            "function": None,
            "sources": {
                "words": WeightedSource(function="{functions}:by_word"),
                "picky": WeightedSource(function="{functions}:picky", weight=0.1),
                "length": WeightedSource(rule="length_target", parameters={"target": 3}, weight=0.0),
            },
            "on_error": "skip",
            "max_error_fraction": 0.9,
        },
        "ppo": {"estimator": "rloo", "samples_per_prompt": 2},
    },
    "episodes, one of which fails": {
        "environment": {"path": "{functions}:Game", "max_turns": 3, "max_tokens": 40},
        "generation": {"max_new_tokens": 4},
        "reward": {"function": None, "on_error": "skip", "max_error_fraction": 0.9},
    },
    "groups of equal reward, moving reference": {
        "ppo": {"estimator": "grpo", "samples_per_prompt": 2, "skip_equal_groups": True, "refill_rounds": 2}
        | {"reference_update_steps": 1, "reference_update_rate": 0.5},
        "generation": {"max_new_tokens": 3},
    },
    "remax": {"ppo": {"estimator": "remax", "samples_per_prompt": 2, "target_kl": 1e-4}},
}


SLOW = (
    "remax",
    "log-probabilities of the sampler",
    "adapters, exact KL in the loss",
    "mix, rewards by token, skipped responses",
    "episodes, one of which fails",
    "groups of equal reward, moving reference",
)

FUNCTIONS = """
def by_word(completions):
    return [[(len(text), 0.5), (0, 0.25)] for text in completions]


def picky(completions, wanted):
    return [float("nan") if w == "film" else float(len(c)) for c, w in zip(completions, wanted)]


class Game:
    def reset(self, prompt, wanted):
        self.wanted = wanted
        return prompt

    def step(self, text):
        if self.wanted == "is" and "good" in text:
            raise ConnectionError("gone")
        return (None if "film" in text else "and no"), len(text) / 10
"""


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in VARIANTS],
)
def test_two_processes_give_the_same_run_as_one(job, change, tmp_path, name):
    settings = {group: dict(values) for group, values in VARIANTS[name].items()}
    if "ptx" in settings:
        texts = tmp_path / "texts.jsonl"
        words = ("good", "bad and dull", "fine", "a story with no end in sight")
        texts.write_text("".join(json.dumps({"text": f"the film is {w}"}) + "\n" for w in words))
        settings["ptx"]["path"] = str(texts)
    config = tmp_path / "job.yaml"
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    config.write_text(to_yaml(change(job, **settings)).replace("{functions}", str(tmp_path / "functions.py")))
    for processes in (1, 2):
        done = launch(config, tmp_path / str(processes), processes)
        assert done.returncode == 0, done.stderr
    one, two = ((tmp_path / str(n)) for n in (1, 2))
    assert json.loads((two / "environment.json").read_text())["processes"] == 2
    for file in ("metrics", "eval"):
        rows = [[json.loads(line) for line in (run / f"{file}.jsonl").read_text().splitlines()] for run in (one, two)]
        assert len(rows[0]) == len(rows[1]) > 1
        for a, b in zip(*rows, strict=True):
            for key in (n for n in a if n.split("/")[0] not in ("time", "throughput", "memory")):
                if isinstance(a[key], list):  # names of warnings
                    assert a[key] == b[key]
                    continue
                # A ratio or value that lies on a clip boundary may fall on either side of it: one token in 50.
                slack = 0.02 if key.endswith("clip_fraction") else 1e-4 * max(1.0, abs(a[key] or 0.0))
                assert a[key] == b[key] or abs(a[key] - b[key]) <= slack, (a["step"], key)
    file = "adapter_model.safetensors" if "model" in settings else "model.safetensors"
    weights = [load_file(run / "model" / file) for run in (one, two)]
    for key, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][key], tensor, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 2])
def test_two_processes_give_the_same_dpo_run_as_one(models, tmp_path, rank):
    words = ["good", "bad", "dull and cold", "warm", "a story with heart", "fine"]
    pairs = [{"prompt": f"the film is {a} ", "chosen": b, "rejected": a} for a in words for b in words if a != b]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    config = tmp_path / "job.yaml"
    job = DPOJob(
        trackers=[],
        model=ModelConfig(path=str(models("llama")), lora=LoraConfig(rank=rank)),
        data=DataConfig(path=str(tmp_path / "pairs.jsonl"), eval_fraction=0.2),
        training=TrainingConfig(batch_size=6, microbatch_size=2, lr=1e-2),
    )
    config.write_text(to_yaml(job))
    for processes in (1, 2):
        done = launch(config, tmp_path / str(processes), processes, "train_dpo.py")
        assert done.returncode == 0, done.stderr
    runs = [tmp_path / str(n) for n in (1, 2)]
    for file in ("metrics", "eval"):
        rows = [[json.loads(line) for line in (run / f"{file}.jsonl").read_text().splitlines()] for run in runs]
        assert len(rows[0]) == len(rows[1]) > 0
        for a, b in zip(*rows, strict=True):
            names = [n for n in a if n.split("/")[0] not in ("time", "memory") and (n, a["step"]) != ("accuracy", 1)]
            assert [a[name] for name in names] == pytest.approx([b[name] for name in names], rel=1e-4, abs=1e-5)
    name = "adapter_model.safetensors" if rank else "model.safetensors"
    one, two = (load_file(run / "model" / name) for run in runs)
    for key, tensor in one.items():
        torch.testing.assert_close(two[key], tensor, rtol=1e-4, atol=1e-5)
    one, two = (load_file(run / "reference_logprobs.safetensors") for run in runs)
    torch.testing.assert_close(two["training"], one["training"])


def test_a_minibatch_that_two_processes_cannot_divide_is_rejected(job, change, tmp_path):
    config = tmp_path / "job.yaml"
    config.write_text(to_yaml(change(job, ppo={"rollout_batch_size": 9, "minibatch_size": 3})))
    done = launch(config, tmp_path / "two", 2)
    assert done.returncode != 0
    assert "ppo.minibatch_size is 3, but must be a multiple of the 2 processes" in done.stderr
    assert not (tmp_path / "two").exists()


def test_a_reward_that_fails_on_one_process_ends_both(job, change, tmp_path):
    """With its message, and with a checkpoint of the steps that were done; no process waits forever."""
    reward = tmp_path / "failing_reward.py"
    reward.write_text(
        "import os\ncalls = []\n"
        "def f(prompts, completions, **columns):\n"
        "    calls.append(1)\n"
        "    if os.environ['RANK'] == '1' and len(calls) == 3:\n"
        "        raise ConnectionError('the server went away')\n"
        "    return [0.0 for _ in prompts]\n"
    )
    config = tmp_path / "job.yaml"
    config.write_text(to_yaml(change(job, reward={"function": f"{reward}:f"})))
    done = launch(config, tmp_path / "two", 2)
    assert done.returncode != 0
    assert "raised ConnectionError: the server went away" in done.stderr
    assert (tmp_path / "two" / "checkpoints" / "latest" / "state.json").exists()
