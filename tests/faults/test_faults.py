"""Faults that a long run meets, provoked for real on runs of the commands, and what must hold afterwards."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from stages import ENV, ROOT, TIMEOUT

pytestmark = pytest.mark.faults


def reward(tmp_path: Path, body: str) -> dict[str, dict[str, str]]:
    """Settings of PPO with a reward function of this body, which may use `calls`, the number of its call."""
    file = tmp_path / f"reward_{abs(hash(body))}.py"
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    file.write_text(
        "import os, signal, sys, time\ncount = []\n\n"
        "def f(prompts, completions, **columns):\n    count.append(1)\n    calls = len(count)\n"
        f"{lines}    return [float(len(c)) for c in completions]\n"
    )
    return {"reward": {"function": f"{file}:f"}}


def weights(run: Path) -> dict[str, torch.Tensor]:
    """All weights that a finished run exported."""
    files = sorted((run / "model").glob("*.safetensors"))
    assert files, f"{run} exported no model"
    return {f"{file.name}/{name}": x for file in files for name, x in load_file(file).items()}


def numbers(run: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl without times and memory."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.startswith(("time/", "throughput/", "memory/"))} for row in rows]


def assert_same_run(one: Path, two: Path) -> None:
    assert numbers(one) == numbers(two)
    first, second = weights(one), weights(two)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def newest_step(run: Path) -> int:
    steps = [int(path.name[5:]) for path in (run / "checkpoints").glob("step_*") if path.name[5:].isdigit()]
    return max(steps, default=0)


def wait_for_step(process, run: Path, step: int) -> None:
    start = time.monotonic()
    while newest_step(run) < step:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() - start < TIMEOUT
        time.sleep(0.02)


# ------------------------------------------------------------------------------------------------------ killed runs


@pytest.mark.parametrize("name", ["ppo", "sft", "reward", "dpo"])
def test_sigkill(stage, tmp_path, name):
    """SIGKILL at random moments, resumed each time, equals an uninterrupted run."""
    made = stage(name)
    assert made.run(tmp_path / "whole")[0] == 0
    moments = random.Random(name)
    kills = 0
    while kills < 10:
        run = made.start(tmp_path / "killed", "--resume", "auto")
        before = newest_step(tmp_path / "killed")
        while newest_step(tmp_path / "killed") == before and run.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.3))
        if run.poll() is not None:
            break
        run.send_signal(signal.SIGKILL)
        run.communicate()
        kills += 1
    assert kills >= 1  # a quick machine finishes between two moments
    status, output = made.run(tmp_path / "killed", "--resume", "auto")
    assert status == 0, output
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.parametrize("victim", ["rank 0", "rank 1", "launcher"])
def test_sigkill_of_two_processes(stage, tmp_path, victim):
    """SIGKILL of a part of two processes ends all, and the resumed run equals an uninterrupted one."""
    pid_file = tmp_path / "pid"
    body = f"open({str(pid_file)!r} + os.environ['RANK'], 'w').write(str(os.getpid()))"
    made = stage("ppo", processes=2, **reward(tmp_path, body))
    run = made.start(tmp_path / "killed")
    wait_for_step(run, tmp_path / "killed", 3)
    pids = [int(Path(f"{pid_file}{rank}").read_text()) for rank in (0, 1)]
    os.kill({"rank 0": pids[0], "rank 1": pids[1], "launcher": run.pid}[victim], signal.SIGKILL)
    run.communicate(timeout=TIMEOUT)
    start = time.monotonic()
    while any(
        Path(f"/proc/{pid}/stat").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text() for pid in pids
    ):
        assert time.monotonic() - start < TIMEOUT, "a rank runs on without its launcher"
        time.sleep(0.1)
    status, output = made.run(tmp_path / "killed", "--resume", "auto")
    assert status == 0, output
    assert made.run(tmp_path / "whole")[0] == 0
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


# -------------------------------------------------------------------------------------------------- damaged folders


@pytest.mark.parametrize("damage", ["flipped bit", "cut in half", "missing", "empty"])
@pytest.mark.parametrize("name", ["weights.safetensors", "optimizer.pt", "rng.pt", "state.json", "manifest.json"])
def test_damaged_checkpoint(stage, tmp_path, name, damage):
    """A damaged checkpoint is named, and the one before it is resumed."""
    made = stage("ppo", ppo={"total_episodes": 8 * 3})
    assert made.run(tmp_path / "whole")[0] == 0
    assert made.run(tmp_path / "run")[0] == 0
    shutil.rmtree(tmp_path / "run" / "model")
    file = tmp_path / "run" / "checkpoints" / "step_000003" / name
    content = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    elif damage == "flipped bit":
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        file.write_bytes(content[: len(content) // 2 if damage == "cut in half" else 0])
    status, output = made.run(tmp_path / "run", "--resume", "auto")
    assert status == 0, output
    assert "step_000003" in output.split("warning: ")[1]
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_folder_removed(stage, tmp_path):
    """The run folder is removed under the run: it is created again, with a warning."""
    made = stage("ppo", **reward(tmp_path, f"if calls == 4: __import__('shutil').rmtree({str(tmp_path / 'run')!r})"))
    status, output = made.run(tmp_path / "run")
    assert status == 0, output
    assert "was removed while the run writes to it; it is created again" in output
    assert (tmp_path / "run" / "model" / "config.json").exists()


def test_two_runs_in_one_folder(stage, tmp_path):
    """A second run in the folder of a running one is refused, and a killed run's folder is free."""
    made = stage("ppo", **reward(tmp_path, "time.sleep(5 if calls > 2 else 0)"))
    first = made.start(tmp_path / "run")
    wait_for_step(first, tmp_path / "run", 1)
    status, output = made.run(tmp_path / "run", "--resume", "auto")
    assert status == 2
    assert "is writing to" in output
    first.send_signal(signal.SIGKILL)
    first.communicate()
    status, output = made.run(tmp_path / "run", "--resume", "auto", "--ppo.total_episodes", "32")
    assert status == 0, output


def test_full_disk(stage, tmp_path):
    """Files cannot grow: the run continues with warnings, and every step's metrics are written."""
    made = stage("ppo", ppo={"total_episodes": 8 * 4})
    size = 20_000  # bytes, below those of a checkpoint's weights
    limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))}
    status, output = made.run(tmp_path / "run", **limit)
    assert "warning: no checkpoint at step 1: " in output
    assert "Traceback" not in output
    assert status == 2, output  # the model itself cannot be written in the end
    assert "the model cannot be written" in output
    assert len(numbers(tmp_path / "run")) == 4


# --------------------------------------------------------------------------------------------------------- rewards


@pytest.mark.parametrize(
    ("body", "message"),
    [
        pytest.param("if calls == 4: raise ConnectionError('gone')", "raised ConnectionError: gone", id="raises"),
        pytest.param("if calls == 4: sys.exit(0)", "raised SystemExit", id="exits with status 0"),
        pytest.param("if calls == 4: return [float('nan')] * len(prompts)", "a finite number", id="returns nan"),
        pytest.param("if calls == 4: return [1.0]", "1 scores for", id="returns one score"),
    ],
)
def test_reward_fails(stage, tmp_path, body, message):
    """A reward function that fails ends the run with its reason and a checkpoint of the steps so far."""
    status, output = stage("ppo", checkpoint={"every": 0}, **reward(tmp_path, body)).run(tmp_path / "run")
    assert status == 2, output
    assert message in output
    assert "Traceback" not in output
    assert newest_step(tmp_path / "run") >= 1


def test_reward_exits_one_of_two_processes(stage, tmp_path):
    """A reward function that ends one of two processes at once ends the other with a reason."""
    made = stage("ppo", processes=2, **reward(tmp_path, "if calls == 5 and os.environ['RANK'] == '1': os._exit(3)"))
    status, output = made.run(tmp_path / "run")
    assert status != 0
    assert "error: rank 0 stops because another process of this run ended" in output
    assert newest_step(tmp_path / "run") >= 1


@pytest.mark.parametrize("name", ["ppo", "sft", "reward", "dpo"])
@pytest.mark.parametrize("trouble", ["other", "no"])
def test_data_of_one_of_two_processes(stage, tmp_path, name, trouble):
    """Other data, or none, at the path of one of two processes ends both with the reason, before a step."""
    made = stage(name, processes=2)
    folders = [tmp_path / rank for rank in ("0", "1")]  # as on two machines, a relative path is another file
    settings = yaml.safe_load(made.config.read_text())
    rows = Path(settings["data"]["path"]).read_text().splitlines(keepends=True)
    for folder, count in zip(folders, (len(rows), len(rows) - 1 if trouble == "other" else 0), strict=True):
        folder.mkdir()
        if count:
            (folder / "data.jsonl").write_text("".join(rows[:count]))
    settings["data"]["path"] = "data.jsonl"
    made.config.write_text(yaml.safe_dump(settings))
    script = tmp_path / made.script
    script.write_text(
        "import os, runpy\nos.chdir(os.environ['RANK'])\n"
        f"runpy.run_path({str(ROOT / 'scripts' / made.script)!r}, run_name='__main__')\n"
    )
    made.script = str(script)
    status, output = made.run(tmp_path / "run")
    assert status != 0
    if trouble == "other":
        assert "of data.path differ between process 0 and process 1" in output
    else:
        assert "error: process 1: " in output
        assert "data.jsonl" in output
    assert not (tmp_path / "run").exists()


def test_scores_of_1e30(stage, tmp_path):
    """Scores of 1e30 are reported, and the step that was skipped can be replayed."""
    body = "if calls == 4: return [1e30] * len(prompts)"
    status, output = stage("ppo", **reward(tmp_path, body)).run(tmp_path / "run")
    assert status == 0, output
    assert "optimizer steps are skipped" in output
    dump = next((tmp_path / "run" / "dumps").iterdir())
    done = subprocess.run(
        [sys.executable, "-m", "rlhf.cli.main", "replay", str(dump)], capture_output=True, text=True, env=ENV
    )
    assert "the largest score is 1e+30, in row" in done.stdout


@pytest.mark.parametrize("lr", ["1e3", "1e30"])
def test_learning_rate_too_high(stage, tmp_path, lr):
    """A learning rate that explodes ends the run with a reason, or is reported."""
    status, output = stage("ppo", ppo={"lr": float(lr), "warmup_steps": 0}).run(tmp_path / "run")
    assert "Traceback" not in output
    assert "lower ppo.lr" in output if status == 2 else "optimizer steps are skipped" in output


# --------------------------------------------------------------------------------------------------------- signals


@pytest.mark.parametrize("processes", [1, 2])
def test_sigterm(stage, tmp_path, processes):
    """SIGTERM finishes the step, saves, and the resumed run equals an uninterrupted one."""
    made = stage("ppo", processes=processes)
    run = made.start(tmp_path / "stopped")
    wait_for_step(run, tmp_path / "stopped", 2)
    run.send_signal(signal.SIGTERM)
    out, err = run.communicate(timeout=TIMEOUT)
    assert run.returncode != 0, out + err
    if processes == 1:
        assert run.returncode == 130
        assert "stopped at step" in out
        assert "Traceback" not in err
    assert made.run(tmp_path / "stopped", "--resume", "auto")[0] == 0
    assert made.run(tmp_path / "whole")[0] == 0
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")


def test_second_interrupt(stage, tmp_path):
    """A second Ctrl-C ends the run at once, in a line."""
    made = stage("ppo", **reward(tmp_path, "time.sleep(2)"))
    run = made.start(tmp_path / "run")
    wait_for_step(run, tmp_path / "run", 1)
    for _ in range(2):
        run.send_signal(signal.SIGINT)
        time.sleep(0.3)
    _, err = run.communicate(timeout=TIMEOUT)
    assert run.returncode == 130, err
    assert "Traceback" not in err
