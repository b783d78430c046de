"""Sharded weights on two and four gloo processes: the runs of DDP and of one process, with 1/N of the weights each."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from rlhf.config.jobs import PPOJob
from rlhf.config.parsing import to_yaml
from rlhf.errors import UserError
from rlhf.trainers.ppo import PPOTrainer

ROOT = Path(__file__).parents[2]
TIMEOUT = 240
"""Seconds after which processes that wait for each other fail the test."""

ON_POLICY = {"minibatch_size": 8, "ppo_epochs": 1}
"""One optimizer step for each batch, so that every ratio of the run is a first one."""

VARIANTS: dict[str, dict[str, Any]] = {
    "shared critic": {},
    "separate critic, KL penalty, texts, by sequence, bootstrap, warm-up": {
        "critic": {"kind": "separate", "warmup_steps": 1, "pretraining_steps": 2},
        "ppo": {"policy_loss": "kl_penalty", "loss_aggregation": "sequence"},
        "ptx": {"batch_size": 3, "path": "{texts}"},
        "reward": {"truncated": "bootstrap", "running_scale": True},
    },
    "adapters, adapter critic, exact KL in the loss, checkpointing": {
        "model": {"lora": {"rank": 2}, "gradient_checkpointing": True},
        "critic": {"kind": "adapter"},
        "ppo": {"kl_placement": "loss", "kl_estimator": "full", "loss_aggregation": "fixed"},
        "reward": {"truncated": "mask"},
    },
    "exact KL in the loss, checkpointing, reward model and judge": {
        "model": {"gradient_checkpointing": True},
        "ppo": {"kl_placement": "loss", "kl_estimator": "full"},
        "reward": {"function": None, "model": "{reward}"},
        "eval": {"every": 1, "judge": {"model": "{reward}"}},
    },
    "log-probabilities of the sampler": {
        "ppo": {"old_logprobs": "sampler"},
        "reward": {"truncated": "bootstrap"},
        "critic": {"head_init": "normal"},
    },
    "unequal numbers of forward passes, no reference": {
        "ppo": {"microbatch_size": 16, "microbatch_tokens": 20, "kl_coef": 0.0, "use_reference": False}
    },
    "no text for the second process": {"ppo": {"microbatch_size": 1}, "ptx": {"batch_size": 1, "path": "{texts}"}},
    "no critic": {"ppo": {"estimator": "remax", "samples_per_prompt": 2, "target_kl": 1e-4}},
    "on policy, shared": {"ppo": ON_POLICY},
    "on policy, separate": {"ppo": ON_POLICY, "critic": {"kind": "separate"}},
    "on policy, adapter": {"ppo": ON_POLICY, "critic": {"kind": "adapter"}, "model": {"lora": {"rank": 2}}},
    "on policy, bf16": {"ppo": ON_POLICY, "model": {"mixed_precision": "bf16"}},
}
FAULTS = {
    "nan_gradient": {},
    "ragged": {"reward": {"truncated": "bootstrap"}},
    "failing": {"reward": {"function": "{f}"}},
}
RESUMED = "shared critic"
SUPERVISED: dict[str, dict[str, Any]] = {
    "sft": {},
    "sft, adapters": {"model": {"lora": {"rank": 2}}, "export": "merged"},
    "reward": {"model": {"gradient_checkpointing": True}},
    "reward, adapters": {"model": {"lora": {"rank": 2}}},
    "dpo": {},
    "dpo, adapters": {"model": {"lora": {"rank": 2}}},
}


def merged(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return settings | {
        key: merged(settings[key], value) if isinstance(value, dict) and isinstance(settings.get(key), dict) else value
        for key, value in changes.items()
    }


def launch(processes: int, script: Path, *arguments: str, config: str = "two_processes_cpu") -> Any:
    """Run a script in processes, which have a time limit."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    start = [sys.executable]
    if processes > 1:
        file = ROOT / "configs" / "accelerate" / f"{config}.yaml"
        start += ["-m", "accelerate.commands.launch", "--config_file", str(file), "--main_process_port", "0"]
        start += ["--num_processes", str(processes)]
    done = subprocess.run([*start, str(script), *arguments], capture_output=True, text=True, env=env, timeout=TIMEOUT)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-5000:]
    return done


class Runs:
    """Runs of all variants: on one process, with DDP and sharded, each made when the first test looks at it."""

    def __init__(self, folder: Path, settings: dict[str, Any], paths: dict[str, str]):
        self.folder = folder
        self.settings = settings
        self.paths = paths
        self.made: set[tuple[str, int]] = set()

    def config(self, name: str, changes: dict[str, Any]) -> str:
        path = self.folder / f"{name}.yaml"
        stage = next((stage for stage in ("sft", "reward", "dpo") if f"-{stage}" in name), None)
        settings = self.settings
        if stage is not None:
            settings = {key: settings[key] for key in ("trackers", "model", "checkpoint")} | {
                "data": {
                    "path": f"{self.folder}/{'texts' if stage == 'sft' else 'pairs'}.jsonl",
                    "eval_fraction": 0.25,
                },
                "training": {"epochs": 2, "batch_size": 4, "microbatch_size": 1, "lr": 1e-3, "eval_every": 1},
            }
        text = yaml.safe_dump(merged(settings, changes))
        for key, value in self.paths.items():
            text = text.replace(f"'{{{key}}}'", value)
        path.write_text(text)
        return str(path)

    def __call__(self, kind: str, processes: int, name: str) -> Path:
        """The output of one of VARIANTS, FAULTS or SUPERVISED; `kind` is `plain` or `sharded`."""
        base = self.folder / f"{kind}-{processes}"
        if (kind, processes) not in self.made:
            self.made.add((kind, processes))
            names = VARIANTS | SUPERVISED | (FAULTS if processes == 2 else {})
            arguments = []
            for variant, changes in ({RESUMED: {}} if processes == 4 else names).items():
                config = self.config(
                    f"{kind}-{processes}-{variant}", merged(changes, {"model": {"shard": kind == "sharded"}})
                )
                fault = variant if variant in ("nan_gradient", "ragged") else "-"
                arguments += [config, f"{base}-{variant}", variant.split(",")[0] if variant in SUPERVISED else fault]
            launch(processes, ROOT / "tests" / "integration" / "run_jobs.py", *arguments)
        return self.folder / f"{kind}-{processes}-{name}"


@pytest.fixture(scope="module")
def runs(tmp_path_factory, models, reward_folder) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("runs")
    words = ["the", "film", "is", "a", "good", "bad", "fine", "dull", "warm", "cold"]
    prompts = [{"prompt": " ".join([*words, *words][i % 10 : i % 10 + 1 + i % 4])} for i in range(40)]
    texts = [{"text": f"{a} is {b}"} for a in ("the film", "a story") for b in ("good", "bad and dull", "fine", "warm")]
    pairs = [{"prompt": "the film is", "chosen": f"{w} good", "rejected": f"{w} bad and dull"} for w in words]
    for name, rows in (("prompts", prompts), ("texts", texts), ("pairs", pairs)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "rewards.py").write_text(
        "import os\ncalls = []\n"
        "def good(prompts, completions, **columns):\n"
        "    return [c.split().count('good') / max(1, len(c.split())) for c in completions]\n"
        "def failing(prompts, completions, **columns):\n"
        "    calls.append(1)\n"
        "    if os.environ['RANK'] == '1' and len(calls) == 3:\n"
        "        raise ConnectionError('the server went away')\n"
        "    return [0.0 for _ in prompts]\n"
    )
    settings = {
        "trackers": [],
        "model": {"path": str(models("llama"))},
        "data": {"path": str(folder / "prompts.jsonl"), "eval_fraction": 0.2},
        "generation": {"max_new_tokens": 8},
        "reward": {"function": f"{folder}/rewards.py:good"},
        "ppo": {
            "total_episodes": 24,
            "rollout_batch_size": 8,
            "minibatch_size": 4,
            "microbatch_size": 2,
            "ppo_epochs": 2,
            "lr": 1e-3,
        },
        "eval": {"every": 0, "prompts": 4, "samples": 2},
        "checkpoint": {"every": 1},
    }
    paths = {"texts": f"{folder}/texts.jsonl", "f": f"{folder}/rewards.py:failing", "reward": str(reward_folder)}
    yield Runs(folder, settings, paths)
    shutil.rmtree(folder)


def read_rows(run: Path, file: str) -> list[dict[str, Any]]:
    error = run.with_name(f"{run.name}.error.0")
    assert not error.exists(), error.read_text()
    return [json.loads(line) for line in (run / f"{file}.jsonl").read_text().splitlines()]


def assert_same_numbers(a: Path, b: Path, tolerance: float = 1e-6) -> None:
    """Metrics and evaluations of two runs are equal up to rounding."""
    for file in ("metrics", "eval"):
        for x, y in zip(read_rows(a, file), read_rows(b, file), strict=True):
            for key in (n for n in x if n.split("/")[0] not in ("time", "throughput", "memory")):
                if isinstance(x[key], list):  # names of warnings
                    assert x[key] == y[key]
                    continue
                # Relative to sums over a response's tokens; a ratio on a clip boundary may fall on either side.
                slack = 0.02 if key.endswith("clip_fraction") else tolerance * max(10.0, abs(x[key] or 0.0))
                assert x[key] == y[key] or abs(x[key] - y[key]) <= slack, (file, x["step"], key, x[key], y[key])


def assert_same_checkpoint(a: Path, b: Path, tolerance: float = 1e-6) -> None:
    """Weights and optimizer states of the last step are equal up to rounding, in the same format."""
    last = [run / "checkpoints" / "latest" for run in (a, b)]
    x, y = (load_file(folder / "weights.safetensors") for folder in last)
    assert list(x) == list(y)
    for name, weight in x.items():
        torch.testing.assert_close(y[name], weight, rtol=0, atol=tolerance)
    x, y = (torch.load(folder / "optimizer.pt", weights_only=True)["optimizer"] for folder in last)
    assert x["param_groups"] == y["param_groups"]
    assert x["state"].keys() == y["state"].keys()
    for i, state in x["state"].items():
        for name, value in state.items():
            torch.testing.assert_close(y["state"][i][name], value, rtol=0, atol=tolerance)


def held(run: Path, rank: int) -> dict[str, int]:
    return json.loads(run.with_name(f"{run.name}.held.{rank}").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in VARIANTS | SUPERVISED if "bf16" not in name])
def test_sharded_run_is_that_of_ddp_and_of_one_process(runs, name):
    sharded = runs("sharded", 2, name)
    for other in (runs("plain", 2, name), runs("plain", 1, name)):
        assert_same_numbers(other, sharded)
        assert_same_checkpoint(other, sharded)
        names = [sorted(file.name for file in (run / "model").iterdir()) for run in (other, sharded)]
        assert names[0] == names[1]
        for file in (other / "model").glob("*.safetensors"):
            x, y = load_file(file), load_file(sharded / "model" / file.name)
            assert list(x) == list(y)
            for key, weight in x.items():
                torch.testing.assert_close(y[key], weight, rtol=0, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in VARIANTS if name.startswith("on policy")])
def test_first_ratio_is_exactly_1(runs, name):
    for row in read_rows(runs("sharded", 2, name), "metrics"):
        assert row["policy/ratio_max"] == 1.0
        assert row["policy/approx_kl"] == 0.0


@pytest.mark.slow
def test_first_kl_is_exactly_0_and_scores_are_those_of_one_process_in_bf16(runs):
    sharded, one = (read_rows(runs(*kind, "on policy, bf16"), "metrics") for kind in (("sharded", 2), ("plain", 1)))
    assert sharded[0]["objective/kl"] == 0.0
    assert abs(sharded[0]["policy/grad_norm"] / one[0]["policy/grad_norm"] - 1) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_each_process_holds_its_share_of_weights_and_optimizer_states(runs, name):
    whole = held(runs("plain", 2, name), 0)
    for rank in (0, 1):
        share = held(runs("sharded", 2, name), rank)
        for part in ("weights", "optimizer"):
            assert 0.45 < share[part] / whole[part] < 0.55, part
        assert share["plain"] < 0.01 * whole["plain"]  # between the phases


def collectives(run: Path, rank: int) -> list[dict[str, int]]:
    """Operations over all processes in each update, by kind."""
    return [json.loads(line) for line in run.with_name(f"{run.name}.collectives.{rank}").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "sharded"])
@pytest.mark.parametrize("name", VARIANTS)
def test_all_processes_reduce_equally_often(runs, kind, name):
    run = runs(kind, 2, name)
    first, second = collectives(run, 0), collectives(run, 1)
    assert first == second
    assert len(first) >= 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # Four optimizer steps of one forward pass: gradients in one bucket; metrics.
        ("plain", {"allreduce": 4, "allgather": 4}),
        # Two layers, value head and root: gathered, all but the root again for the backward pass, and their gradients
        # scattered; metrics; the gradients' norm; and once the weights' norm.
        ("sharded", {"allgather_base": 4 * (4 + 3), "reduce_scatter_base": 4 * 4, "allgather": 4, "allreduce": 4 + 1}),
    ],
)
def test_an_update_reduces_as_often_as_planned(runs, kind, expected):
    first, *later = collectives(runs(kind, 2, "shared critic"), 0)
    assert later == [expected, expected]
    if kind == "sharded":
        assert first == expected


@pytest.mark.slow
def test_four_processes(runs):
    sharded = runs("sharded", 4, RESUMED)
    assert_same_numbers(runs("plain", 1, RESUMED), sharded)
    assert_same_checkpoint(runs("plain", 1, RESUMED), sharded)
    assert 0.2 < held(sharded, 3)["weights"] / held(runs("plain", 2, RESUMED), 0)["weights"] < 0.3


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_trouble_on_one_process_ends_both_alike(runs, fault):
    sharded, plain = runs("sharded", 2, fault), runs("plain", 2, fault)
    if fault == "failing":
        for rank in (0, 1):
            error = sharded.with_name(f"{sharded.name}.error.{rank}").read_text()
            assert "UserError" in error
            assert "raised ConnectionError: the server went away" in error
        assert (sharded / "checkpoints" / "step_000001" / "state.json").exists()
        return
    assert_same_numbers(plain, sharded)
    assert_same_checkpoint(plain, sharded)
    steps = [row["policy/optimizer_steps"] for row in read_rows(sharded, "metrics")]
    assert steps == ([3, 4, 4] if fault == "nan_gradient" else [4, 4, 4])


@pytest.mark.slow
def test_run_resumes_on_two_processes_one_and_two(runs):
    """From the second step on one process, and from the third on two again, as if nothing had happened."""
    reference, run = runs("plain", 1, RESUMED), runs.folder / "resumed"
    shutil.copytree(runs("sharded", 2, RESUMED), run, symlinks=True)
    (run / "model").rename(runs.folder / "model of the sharded run")
    script = ROOT / "scripts" / "train_ppo.py"
    for processes, step in ((1, 1), (2, 2)):
        config = runs.config(f"resumed-{processes}", {"model": {"shard": processes == 2}})
        checkpoint = run / "checkpoints" / f"step_{step:06d}"
        launch(processes, script, "--config", config, "--output", str(run), "--resume", str(checkpoint))
        assert_same_numbers(reference, run)
        assert_same_checkpoint(reference, run)
        shutil.rmtree(run / "model")


def test_two_processes_with_sharded_weights_give_the_run_of_one(
    job: PPOJob, change: Callable[..., PPOJob], tmp_path: Path
):
    job = change(job, checkpoint={"every": 3})
    config, one, two = tmp_path / "job.yaml", tmp_path / "one", tmp_path / "two"
    config.write_text(to_yaml(change(job, model={"shard": True})))
    launch(2, ROOT / "tests" / "integration" / "run_jobs.py", str(config), str(two), "-")
    trainer = PPOTrainer(change(job, output=str(one)))
    trainer.train()
    assert_same_numbers(one, two)
    assert_same_checkpoint(one, two)
    assert held(two, 1)["optimizer"] < 0.55 * 2 * sum(p.nbytes for p in trainer.learner.weights.values())


def test_one_process_has_none_to_share_weights_with(job: PPOJob, change: Callable[..., PPOJob]):
    with pytest.raises(UserError, match=r"model.shard is true, but there is one process"):
        PPOTrainer(change(job, model={"shard": True}))


@pytest.mark.parametrize("file", sorted((ROOT / "configs" / "accelerate").glob("*.yaml")), ids=lambda file: file.stem)
def test_launcher_file_is_read_by_accelerate(file: Path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(file))
    text = yaml.safe_load(file.read_text())
    assert config.distributed_type == ("NO" if text["num_processes"] == 1 else "MULTI_GPU")
    assert config.use_cpu == ("cpu" in file.stem)
    assert vars(config)["num_processes"] == text["num_processes"]


@pytest.mark.slow
def test_two_launches_with_two_machines_train_one_run(job: PPOJob, change: Callable[..., PPOJob], tmp_path: Path):
    """The launcher file for two machines on the loopback address, each with one CPU process."""
    file, config = tmp_path / "machines.yaml", tmp_path / "job.yaml"
    settings = yaml.safe_load((ROOT / "configs" / "accelerate" / "two_machines.yaml").read_text())
    file.write_text(yaml.safe_dump(settings | {"use_cpu": True, "num_processes": 2}))
    config.write_text(to_yaml(change(job, model={"shard": True})))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file)]
    start += ["--main_process_port", str(port), "--machine_rank"]
    script = [str(ROOT / "scripts" / "train_ppo.py"), "--config", str(config), "--output", str(tmp_path / "run")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    machines = [subprocess.Popen([*start, str(i), *script], stderr=subprocess.PIPE, text=True, env=env) for i in (0, 1)]
    try:
        for machine in machines:
            assert machine.wait(TIMEOUT) == 0, machine.communicate()[1][-3000:]
    finally:
        for machine in machines:
            machine.kill()
            machine.communicate()
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["processes"] == 2
    assert len(read_rows(tmp_path / "run", "metrics")) == 3
