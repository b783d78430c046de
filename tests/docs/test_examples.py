"""The scripts of `examples/` run as a user runs them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(script: str, *arguments: object, cwd: Path) -> str:
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ppo_with_a_python_reward_trains_a_model_made_on_the_spot(tmp_path):
    output = run("ppo_python_reward.py", cwd=tmp_path)
    assert re.search(r"^score -?\d\.\d\d after training, KL \d+\.\d nats$", output, flags=re.MULTILINE)
    assert (tmp_path / "runs" / "example-ppo" / "ppo" / "report.html").exists()
    assert (tmp_path / "runs" / "example-ppo" / "sft" / "model").is_dir()


def test_the_ppo_example_is_about_20_lines():
    """Without the model that is made on the spot."""
    text = (EXAMPLES / "ppo_python_reward.py").read_text()
    own = text.split("import json")[1].split("def tiny_model")[0] + text.split("if __name__")[1]
    assert sum(bool(line.strip()) for line in own.splitlines()) <= 25


def test_the_custom_loop_runs_on_a_given_model(models, tmp_path):
    output = run("custom_loop_two_turns.py", models("llama"), tmp_path / "loop", cwd=tmp_path)
    assert "step 1: score" in output
    assert "step 3: score" in output
    assert (tmp_path / "loop" / "ppo" / "model" / "config.json").exists()
    assert (tmp_path / "loop" / "ppo" / "checkpoints" / "latest").exists()


def test_q_learning_finds_the_exact_value_and_crosses_the_bridge(tmp_path):
    output = run("q_learning_own_env.py", cwd=tmp_path)
    assert "value of the start: 0.729, exact: 0.729" in output
    assert "greedy policy: return 1.0 in 4 steps" in output


@pytest.mark.slow
def test_the_environment_runs_from_the_command_line_too(tmp_path):
    (tmp_path / "q_learning_own_env.py").write_text((EXAMPLES / "q_learning_own_env.py").read_text())
    command = [sys.executable, "-m", "tabular.cli.main", "run", "q_learning", "--env", "q_learning_own_env:Bridge-v0"]
    command += ["--steps", "2000", "--seeds", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_gae_and_the_ppo_loss_give_the_numbers_worked_out_in_the_comments(tmp_path):
    assert run("gae_and_ppo_loss.py", cwd=tmp_path).splitlines() == [
        "advantages [[0.4, 0.4, 0.4], [0.4, 0.0, 0.0]]",
        "returns    [[0.6, 0.8, 1.0], [0.5, 0.0, 0.0]]",
        "loss -0.425  clip fraction 0.50",
        "gradient   [[0.0, -0.25, -0.125], [0.25, 0.0, 0.0]]",
        "whitened   [[0.577, 0.577, 0.577], [-1.732, 0.0, 0.0]]",
    ]
