"""The scaling benchmark's exponents, and the script on few steps."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_exponents_are_slopes_on_logarithmic_axes(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import benchmark_scaling

    sizes = [1, 2, 8, 16]
    assert benchmark_scaling.exponents(sizes, [3.0, 6.0, 24.0, 96.0]) == pytest.approx([1, 1, 2])
    work = benchmark_scaling.at("rows", 4)
    assert (work.rows, work.microbatch, work.response) == (4, 4, 32)
    assert benchmark_scaling.at("vocab", 65536).microbatch == 8


@pytest.mark.slow
def test_memory_of_a_few_steps_and_no_picture(tmp_path):
    command = [sys.executable, SCRIPTS / "benchmark_scaling.py", "--panels", "--memory-steps", "20"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "memory after step 2:" in done.stdout
    assert "after step 20:" in done.stdout
    assert not list(tmp_path.iterdir())
