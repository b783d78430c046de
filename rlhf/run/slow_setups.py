"""Setups that make a run several times slower than its machine allows, each as a sentence with what to change.

None of them is an error, and nothing else would tell: the run would only take a day where an hour is enough.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Machine:
    """What this process sees of the machine it computes on."""

    device: str
    """The type of the run's device: cpu, cuda, ..."""
    processes: int
    """Processes of the run on this machine."""
    threads: int
    """Threads in which torch computes in this process."""
    cores: float
    """CPU cores that this process may use, by affinity and its control group's quota."""
    nvidia_gpus: int
    """GPUs that the driver shows, whether torch can use them or not."""
    usable_gpus: int
    """GPUs that torch can use."""
    torch_has_cuda: bool
    gpu_has_bf16: bool
    """Whether the device multiplies bfloat16 matrices in hardware."""

    @classmethod
    def here(cls, device: torch.device, processes: int) -> "Machine":
        """Of this process."""
        is_cuda = device.type == "cuda"
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        return cls(
            device=device.type,
            processes=processes,
            threads=torch.get_num_threads(),
            cores=usable_cores(),
            # An empty list of visible devices is somebody's choice.
            nvidia_gpus=0 if hidden in ("", "-1") else len(list(Path("/dev").glob("nvidia[0-9]*"))),
            usable_gpus=torch.cuda.device_count() if is_cuda else 0,
            torch_has_cuda=torch.version.cuda is not None,
            gpu_has_bf16=is_cuda and torch.cuda.get_device_capability(device)[0] >= 8,
        )


def usable_cores(quota_file: Path = Path("/sys/fs/cgroup/cpu.max")) -> float:
    """CPU cores that this process may use: those of its affinity, or the quota of its container (cgroup v2)."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    try:
        quota, period = quota_file.read_text().split()
        return min(cores, int(quota) / int(period))
    except (OSError, ValueError):  # no container, or the quota `max`
        return cores


def slow_setups(
    machine: Machine, dtype: str | None = None, mixed_precision: str = "no", matmul_precision: str = "highest"
) -> list[str]:
    """What makes a run slow here.

    Args:
        dtype: data type of the model's weights; None: unknown.
        mixed_precision: of the computation: no, bf16 or fp16.
        matmul_precision: of float32 products, as torch names it.
    """
    sentences = []
    if machine.device == "cpu" and machine.nvidia_gpus:
        cause = "the installed torch is a build without CUDA; install the one for your driver from pytorch.org"
        if machine.torch_has_cuda:
            cause = "torch cannot use them; compare the driver's version (nvidia-smi) with the CUDA of torch"
        sentences.append(f"the machine has {machine.nvidia_gpus} NVIDIA GPU(s), but the run is on the CPU: {cause}")
    if machine.device == "cuda" and machine.usable_gpus > machine.processes:
        sentences.append(
            f"{machine.processes} of {machine.usable_gpus} GPUs compute; for all of them start the run with accelerate "
            f"launch --config_file configs/accelerate/multi_gpu.yaml --num_processes {machine.usable_gpus}"
        )
    threads = machine.processes * machine.threads
    if machine.device == "cpu" and threads > max(1.0, machine.cores):
        each = max(1, int(machine.cores / machine.processes))
        sentences.append(
            f"{machine.processes} process(es) with {machine.threads} threads each share {machine.cores:g} CPU cores, "
            f"where threads wait for each other; set the environment variable OMP_NUM_THREADS={each}"
        )
    is_plain = (dtype, mixed_precision, matmul_precision) == ("float32", "no", "highest")
    if machine.device == "cuda" and machine.gpu_has_bf16 and is_plain:
        sentences.append(
            "float32 matrix products do not use this GPU's tensor cores; set --model.mixed_precision bf16, or "
            "--model.matmul_precision high for TF32"
        )
    if machine.device == "cuda" and not machine.gpu_has_bf16 and (mixed_precision == "bf16" or dtype == "bfloat16"):
        sentences.append("this GPU has no bfloat16 arithmetic, which is emulated; use float16 (fp16) in its place")
    return sentences
