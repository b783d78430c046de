"""Warnings about setups that make runs slow."""

import re
from dataclasses import replace

import pytest
import torch

from rlhf.run.distributed import open_accelerator
from rlhf.run.slow_setups import Machine, slow_setups, usable_cores

LAPTOP = Machine(
    device="cpu",
    processes=1,
    threads=8,
    cores=8.0,
    nvidia_gpus=0,
    usable_gpus=0,
    torch_has_cuda=False,
    gpu_has_bf16=False,
)
SERVER = replace(
    LAPTOP, device="cuda", threads=64, nvidia_gpus=1, usable_gpus=1, torch_has_cuda=True, gpu_has_bf16=True
)


@pytest.mark.parametrize(
    ("machine", "settings", "sentence"),
    [
        (replace(LAPTOP, nvidia_gpus=2), {}, "the machine has 2 NVIDIA GPU.* build without CUDA"),
        (
            replace(LAPTOP, nvidia_gpus=1, torch_has_cuda=True),
            {},
            "the machine has 1 NVIDIA GPU.* the driver's version",
        ),
        (replace(LAPTOP, processes=2), {}, "2 process.* 8 threads each share 8 CPU cores.*OMP_NUM_THREADS=4"),
        (replace(LAPTOP, cores=1.5), {}, "1 process.* 8 threads each share 1.5 CPU cores.*OMP_NUM_THREADS=1"),
        (replace(SERVER, usable_gpus=8, processes=2), {}, "2 of 8 GPUs compute.*--num_processes 8"),
        (SERVER, {"dtype": "float32"}, "tensor cores; set --model.mixed_precision bf16"),
        (replace(SERVER, gpu_has_bf16=False), {"mixed_precision": "bf16"}, "no bfloat16 arithmetic"),
        (replace(SERVER, gpu_has_bf16=False), {"dtype": "bfloat16"}, "no bfloat16 arithmetic"),
    ],
)
def test_slow_setup_is_named_with_its_remedy(machine, settings, sentence):
    (warning,) = slow_setups(machine, **settings)
    assert re.search(sentence, warning)


@pytest.mark.parametrize(
    ("machine", "settings"),
    [
        (LAPTOP, {"dtype": "float32"}),
        (replace(LAPTOP, processes=8, threads=1), {}),
        (SERVER, {"dtype": "float32", "mixed_precision": "bf16"}),
        (SERVER, {"dtype": "float32", "matmul_precision": "high"}),
        (SERVER, {"dtype": "bfloat16"}),
        (replace(SERVER, usable_gpus=8, processes=8), {}),
        (replace(SERVER, gpu_has_bf16=False), {"dtype": "float32"}),
    ],
)
def test_setup_that_uses_the_machine_gives_no_warning(machine, settings):
    assert slow_setups(machine, **settings) == []


@pytest.mark.parametrize(("text", "cores"), [("50000 100000\n", 0.5), ("max 100000\n", None), ("", None)])
def test_quota_of_a_container_limits_the_cores(text, cores, tmp_path):
    file = tmp_path / "cpu.max"
    file.write_text(text)
    everything = usable_cores(tmp_path / "missing")
    assert usable_cores(file) == (everything if cores is None else cores)
    assert everything >= 1


def test_run_with_too_many_threads_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1000)
    open_accelerator(str(tmp_path), None, [], 0)
    assert "WARNING: 1 process(es) with 1000 threads each share" in capsys.readouterr().err
