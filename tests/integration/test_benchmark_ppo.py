"""The PPO benchmark's counts of necessary work, and the script as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def workload(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import ppo_workload

    return ppo_workload


def test_operations_of_a_forward_pass_by_hand(workload):
    """Width 4, 2 layers, 2 heads of 2, 1 of keys and values, 8 between: 16 + 2 * 8 + 16 + 3 * 32 = 144 a layer."""
    work = workload.Workload(10, 4, 2, 2, 1, 8, rows=1, prompt=3, response=2, epochs=1, minibatches=1)
    assert work.trunk_weights == 2 * 144
    assert work.head_weights == 40
    # Five tokens attend to 1, 2, 3, 4 and 5 positions, each at 4 operations for each layer and unit of width.
    assert work.trunk_flops(0, 5) == 5 * 2 * 288 + 4 * 2 * 4 * 15
    assert work.trunk_flops(3, 5) == 2 * 2 * 288 + 4 * 2 * 4 * 9
    assert work.head_flops(2) == 160


def test_weights_are_those_of_the_model_that_is_written(workload, tmp_path):
    from transformers import AutoModelForCausalLM

    work = workload.Workload(64, 16, 2, 4, 2, 32, rows=2, prompt=3, response=2, epochs=1, minibatches=1)
    workload.write_models(tmp_path, work, updates=2)
    lm = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    matrices = {name: p.numel() for name, p in lm.named_parameters() if p.dim() == 2}
    assert work.trunk_weights == sum(n for name, n in matrices.items() if "layers" in name)
    assert work.head_weights == lm.get_output_embeddings().weight.numel()
    assert len((tmp_path / "prompts.jsonl").read_text().splitlines()) == 4


@pytest.mark.slow
def test_the_benchmark_runs_and_writes_its_figures(tmp_path):
    output = tmp_path / "runs.jsonl"
    command = [sys.executable, SCRIPTS / "benchmark_ppo.py", "tiny", "--updates", "2", "--output", output]
    done = subprocess.run(command, capture_output=True, text=True, cwd=SCRIPTS.parent)
    assert done.returncode == 0, done.stderr
    assert "share of the roofline" in done.stdout
    row = json.loads(output.read_text())
    assert 0 < row["roofline"] < 1
    assert row["seconds"] >= row["generate"] + row["score"] + row["update"]
    assert row["peak_mb"] > 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--updates", "1"], "--updates must be at least 2"),
        (["--critic", "adapter"], "--critic adapter needs --lora RANK"),
    ],
)
def test_options_that_cannot_be_measured_are_refused(options, message):
    command = [sys.executable, SCRIPTS / "benchmark_ppo.py", "tiny", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
