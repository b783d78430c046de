"""The roofline of a PPO update: the time that its necessary work takes at the speeds of this machine.

Necessary is the arithmetic of the matrix products and of attention on real tokens, at the speed of a large matrix
product; for sampling, where that takes longer, reading all weights once for each token, at the speed of a large copy;
and AdamW's reads and writes. The first minibatch's forward pass gives its old log-probabilities and its loss, so it is
necessary once and counts as scoring.
Padding, and whatever else a trainer computes, lowers its share of the roofline.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ppo_workload import Workload

PHASES = ("generate", "score", "update")

ADAMW_BYTES = 28
"""Of a float32 weight's step: weight, gradient and two moments are read, all but the gradient written."""

Clock = Callable[[], float]


@dataclass(frozen=True)
class Machine:
    """Measured speeds of the device."""

    gflops: float
    """Billions of floating-point operations per second in a large matrix product."""
    gbytes: float
    """Billions of bytes per second in a large copy, read and written."""


def measure_machine(device: Any, clock: Clock = time.perf_counter) -> Machine:
    import torch

    def seconds(call: Callable[[], Any]) -> float:
        times = []
        for _ in range(4):
            start = clock()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(clock() - start)
        return min(times[1:])

    size = 8192 if device.type == "cuda" else 2048
    a = torch.randn(size, size, device=device)
    source = torch.randn(2**26, device=device)
    target = torch.empty_like(source)
    gflops = 2 * size**3 / seconds(lambda: a @ a) / 1e9
    return Machine(gflops, 2 * source.nbytes / seconds(lambda: target.copy_(source)) / 1e9)


def update_passes(has_adapters: bool) -> int:
    """Forward and backward pass of an update, in forward passes.

    The gradients of activations and of weights take one each; with adapters the weights are frozen and have none.
    """
    return 2 if has_adapters else 3


def roofline_shares(
    work: Workload,
    update: int,
    seconds: dict[str, float],
    machine: Machine,
    own_critic: bool,
    passes: int,
    recomputes: bool = True,
) -> dict[str, float]:
    """The share of each phase's seconds that its necessary work takes, and the sampled tokens per second.

    Args:
        update: its number, which decides the lengths.
        seconds: of each phase and of the whole update.
        own_critic: whether the critic runs a trunk of its own.
        passes: of the update, see `update_passes`.
        recomputes: whether the policy reads the responses for their old log-probabilities.
    """
    bounds = roofline_seconds(work, update, machine, own_critic, passes, recomputes)
    tokens = sum(response for _, response in work.lengths(update))
    return {f"roofline_{phase}": bounds[phase] / seconds[phase] for phase in PHASES} | {
        "roofline": sum(bounds.values()) / seconds["seconds"],
        "sampled_tokens_per_s": tokens / seconds["generate"],
    }


def roofline_seconds(
    work: Workload, update: int, machine: Machine, own_critic: bool, passes: int, recomputes: bool = True
) -> dict[str, float]:
    """Seconds that the necessary work of each phase takes at the machine's speeds; arguments as above."""
    lengths = work.lengths(update)
    trunk = sum(work.trunk_flops(0, prompt + response) for prompt, response in lengths)
    head = sum(work.head_flops(response) for _, response in lengths)
    # The last token of a response is sampled, but not read.
    sampling_flops = head + sum(work.trunk_flops(0, prompt + response - 1) for prompt, response in lengths)
    steps = max(response for _, response in lengths)
    sampling_bytes = steps * 4 * (work.trunk_weights + work.head_weights)
    critic_trunk = trunk if own_critic else 0.0
    reward_trunk = trunk
    forward = trunk + head
    trained = work.trunk_weights * (2 if own_critic else 1) + work.head_weights if passes == 3 else 0
    optimizer_bytes = work.epochs * work.minibatches * trained * ADAMW_BYTES
    update_flops = work.epochs * passes * (forward + critic_trunk)
    if recomputes:  # the first forward pass is that of scoring
        update_flops -= (forward + critic_trunk) / work.minibatches
    return {
        "generate": max(sampling_flops / machine.gflops, sampling_bytes / machine.gbytes) / 1e9,
        "score": ((1 + recomputes) * forward + critic_trunk + reward_trunk) / machine.gflops / 1e9,  # with reference
        "update": (update_flops / machine.gflops + optimizer_bytes / machine.gbytes) / 1e9,
    }


def sampling_latency(work: Workload, trainer: Any, clock: Clock) -> dict[str, float]:
    """Seconds to the first token of a batch, and for each token after it."""
    from dataclasses import replace

    from rlhf.rollouts.sampling import sample

    prompts = trainer.next_prompts()
    device = trainer.accelerator.device
    transform = replace(trainer.sampler.transform, stop_ids=())

    def seconds(tokens: int) -> float:
        times = []
        for _ in range(3):
            start = clock()
            sampled = sample(
                trainer.policy.lm,
                prompts.prompt_ids.to(device),
                prompts.prompt_mask.to(device),
                None,
                transform,
                tokens,
            )
            sampled.ids.sum().item()  # waits for the device
            times.append(clock() - start)
        return min(times)

    first = seconds(1)
    return {"first_token_s": first, "token_s": (seconds(work.response) - first) / (work.response - 1)}
