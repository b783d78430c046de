"""The precision that a run computes in: float32 in place of bfloat16 on CPUs that are slower at bfloat16."""

import functools
import os
import sys
import time

import torch
from torch import nn

SLOWER = 1.1
"""How many times as long bfloat16 must take to be replaced; below that, noise decides."""
_ENOUGH_SECONDS = 0.03
"""A product that takes this long is not measured again."""


def usable_precision(mixed_precision: str | None, cpu: bool) -> str | None:
    """The precision to compute in: `mixed_precision`, or `no` for bf16 on a CPU that is slower with it, with a message.

    Called by every process of a run before its accelerator is made; all of them get the answer of the first.

    Args:
        mixed_precision: no, bf16 or fp16; None: as configured by accelerate's launcher.
        cpu: whether the run computes on CPUs.
    """
    if not cpu or (mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION")) != "bf16":
        return mixed_precision
    from accelerate import PartialState
    from accelerate.utils import broadcast_object_list

    state = PartialState(cpu=True)
    (slowdown,) = broadcast_object_list([bf16_slowdown()])
    if slowdown < SLOWER:
        return mixed_precision
    if state.is_main_process:
        print(
            f"model.mixed_precision is bf16, but bfloat16 matrix products take {slowdown:.1f} times as long as float32 "
            "ones on this CPU: computing in float32",
            file=sys.stderr,
        )
    return "no"


def warn_about_slow_weights(dtype: torch.dtype, device: torch.device | str, reward_model: str | None = None) -> None:
    """Say which setting to change where a CPU is slower with the bfloat16 of a model's weights than with float32.

    Args:
        reward_model: the path of the model, where it is no language model.
    """
    if dtype != torch.bfloat16 or torch.device(device).type != "cpu" or bf16_slowdown() < SLOWER:
        return
    name = "the model" if reward_model is None else f"reward model {reward_model}"
    setting = "--model.dtype" if reward_model is None else "its dtype to"
    print(
        f"WARNING: the weights of {name} are bfloat16, whose matrix products take {bf16_slowdown():.1f} times as long "
        f"as those of float32 on this CPU; set {setting} float32",
        file=sys.stderr,
    )


@functools.cache
def bf16_slowdown() -> float:
    """How many times as long as in float32 a matrix product takes in bfloat16 on this CPU; measured in about 0.1 s."""
    return _product_seconds(torch.bfloat16) / _product_seconds(torch.float32)


def _product_seconds(dtype: torch.dtype) -> float:
    """Seconds of the product of 32 rows with a matrix [512, 512]: the least of several, since other work only adds."""
    rows, weight = torch.ones(32, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
    least = float("inf")
    for _ in range(5):
        start = time.perf_counter()
        nn.functional.linear(rows, weight)
        least = min(least, time.perf_counter() - start)
        if least > _ENOUGH_SECONDS:
            break
    return least
