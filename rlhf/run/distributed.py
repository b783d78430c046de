"""One run on several processes: opening the accelerator, raising on all ranks, ending a launched process."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rlhf.errors import INTERRUPTED, UserError
from rlhf.run.allocator import keep_freed_memory
from rlhf.run.trackers import check_installed


def open_accelerator(
    output: str,
    mixed_precision: str | None,
    trackers: list[Any],
    seed: int,
    matmul_precision: str = "highest",
    dtype: str | None = None,
) -> Any:
    """The accelerator of a run, with devices and processes as launched, and trackers that write to the run folder.

    What makes runs slow on this machine is printed as warnings.

    Args:
        output: the run folder.
        seed: seeds Python's, numpy's and torch's global generators, which a user's reward function may draw from.
        matmul_precision: of float32 matrix products in this process, as torch names it.
        dtype: data type of the model's weights, for the warnings.

    Raises:
        UserError: a tracker is not installed, or the launched processes do not find each other.
    """
    keep_freed_memory()
    _end_with_launcher()
    import torch
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, set_seed

    from rlhf.run.precision import usable_precision
    from rlhf.run.slow_setups import Machine, slow_setups

    check_installed(trackers)
    # Without a GPU and without this argument, every launched process would believe that it is the only one.
    cpu = not torch.accelerator.is_available()
    mixed_precision = usable_precision(mixed_precision, cpu)
    accelerator = Accelerator(
        cpu=cpu,
        mixed_precision=mixed_precision,
        log_with=trackers or None,
        project_dir=output,
        # Gradients would be held twice, and constant buffers sent around before each forward pass.
        kwargs_handlers=[DistributedDataParallelKwargs(gradient_as_bucket_view=True, broadcast_buffers=False)],
    )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched != accelerator.num_processes:
        raise UserError(
            f"the launcher started {launched} processes, but only {accelerator.num_processes} of them are connected; "
            "use a launcher file of configs/accelerate/"
        )
    if accelerator.distributed_type.value in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        raise UserError(
            f"the launcher's distributed_type is {accelerator.distributed_type.value}, which is not used; launch with "
            "configs/accelerate/multi_gpu.yaml, and shard the weights with --model.shard true"
        )
    set_seed(seed)
    torch.set_float32_matmul_precision(matmul_precision)
    machine = Machine.here(accelerator.device, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if accelerator.is_main_process:
        for sentence in slow_setups(machine, dtype, accelerator.mixed_precision, matmul_precision):
            print(f"WARNING: {sentence}", file=sys.stderr)
    accelerator.wait_for_everyone()  # every process has checked the run folder before one of them creates it
    return accelerator


def _end_with_launcher() -> None:
    """Have Linux send this process SIGTERM, which saves and ends the run, when its launcher is killed."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or sys.platform != "linux":
        return
    import ctypes
    import signal

    set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


@contextmanager
def report_lost_processes() -> Iterator[None]:
    """Print one line instead of a traceback where another process of the run is gone, and exit with status 1.

    Raises:
        SystemExit: after the line went to standard error.
    """
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        lost = any(
            sign in text for sign in ("Connection closed by peer", "Connection reset by peer", "Timed out waiting")
        )
        if isinstance(error, UserError) or not lost or int(os.environ.get("WORLD_SIZE", "1")) == 1:
            raise
        print(
            f"error: rank {os.environ.get('RANK', '?')} stops because another process of this run ended or no "
            f"longer answers ({text.splitlines()[0]:.200}); its own message, if it left one, is above. "
            "--resume auto continues from the newest checkpoint",
            file=sys.stderr,
            flush=True,
        )
        raise SystemExit(1) from None


def check_sharding(shard: bool, accelerator: Any) -> None:
    """Refuse `model.shard` where there is nothing to share or float16's scaler would have to see all gradients.

    Raises:
        UserError: there is one process, or the launcher's precision is fp16.
    """
    if shard and accelerator.num_processes == 1:
        raise UserError(
            "model.shard is true, but there is one process, and none to share the weights with; start several with "
            "accelerate launch, or set --model.shard false"
        )
    if shard and not torch_can_shard():
        raise UserError("model.shard is true, but this torch is too old for it; install torch 2.8 or later")
    if shard and accelerator.scaler is not None:
        raise UserError("model.shard is true, but the launcher's mixed_precision is fp16; use bf16")


def torch_can_shard() -> bool:
    """Whether torch's `fully_shard` has what sharded training needs."""
    try:
        from torch.distributed.fsdp import FSDPModule
    except ImportError:
        return False
    return hasattr(FSDPModule, "set_force_sum_reduction_for_comms")


@contextmanager
def raise_on_all_ranks(accelerator: Any) -> Iterator[None]:
    """Raise a UserError on every rank when the body raises one on any: alone, the others would wait forever.

    Those without one of their own get that of the first rank that has one, with its number.
    """
    failure = None
    try:
        yield
    except UserError as error:
        failure = error
    if accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        messages = gather_object([failure and str(failure)])
        others = [f"process {rank}: {text}" for rank, text in enumerate(messages) if text is not None]
        failure = failure or (UserError(others[0]) if others else None)
    if failure is not None:
        raise failure


def check_alike(accelerator: Any, inputs: Mapping[str, str]) -> None:
    """Refuse a run whose processes read different data or start from different models.

    Args:
        inputs: fingerprints of this process's, by the name of the input.

    Raises:
        UserError: on all processes.
    """
    if accelerator.num_processes == 1:
        return
    from accelerate.utils import gather_object

    for rank, others in enumerate(gather_object([dict(inputs)])):
        if changed := [name for name in inputs if others.get(name) != inputs[name]]:
            raise UserError(
                f"{changed[0]} differ between process {accelerator.process_index} and process {rank}; put the same "
                "files at the same path on all machines"
            )


def exit_launched_process(finished: bool) -> None:
    """Exit with status 0, or 130 for a run that was stopped before its end.

    One of several processes does not finalise the interpreter: threads of gloo outlive their process group, and one
    that acquires the interpreter lock during finalisation aborts a run that has finished, seen once in many runs on a
    busy machine.
    """
    status = 0 if finished else INTERRUPTED
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)
