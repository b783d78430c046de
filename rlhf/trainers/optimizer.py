"""AdamW and the clipping of gradients, by the settings that PPO, SFT and reward modelling share."""

import importlib
import importlib.util
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlhf.config.training import AdamWConfig
from rlhf.errors import UserError
from rlhf.models.sharding import is_sharded, local

SMALLEST_8BIT = 4096
"""Weights with fewer numbers have float32 moments in bitsandbytes too."""


def make_adamw(groups: Iterable[Iterable[nn.Parameter]], config: AdamWConfig) -> torch.optim.Optimizer:
    """An optimizer with one parameter group for each of `groups`, all at the peak learning rate.

    Raises:
        UserError: it is to have 8-bit moments, and bitsandbytes is not installed or the weights are sharded.
    """
    parameters = [{"params": list(group)} for group in groups]
    if config.adam_8bit:
        return _adamw_8bit(parameters, config)
    return torch.optim.AdamW(
        parameters,
        lr=config.lr,
        betas=config.adam_betas,
        eps=config.adam_eps,
        weight_decay=config.weight_decay,
        fused=config.adam_fused or None,  # None leaves torch's choice among its other implementations
    )


def _adamw_8bit(parameters: list[dict[str, Any]], config: AdamWConfig) -> torch.optim.Optimizer:
    setting = f"{config.section}.adam_8bit is true"
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"{setting}, but bitsandbytes is not installed; pip install bitsandbytes")
    if any(is_sharded(p) for group in parameters for p in group["params"]):
        raise UserError(f"{setting}, but its blocks cannot be sharded; unset it or model.shard")
    make: Any = importlib.import_module("bitsandbytes.optim").AdamW8bit
    return make(
        parameters, lr=config.lr, betas=config.adam_betas, eps=config.adam_eps, weight_decay=config.weight_decay
    )


def moment_bytes(parameters: Iterable[nn.Parameter], config: AdamWConfig) -> int:
    """Memory of the optimizer's two moments."""
    if not config.adam_8bit:
        return sum(2 * p.numel() * p.element_size() for p in parameters)
    return sum(p.numel() * (8 if p.numel() < SMALLEST_8BIT else 2) for p in parameters)


class OffloadedMoments:
    """An optimizer's moments in the CPU's memory, and on the device of the weights only while they are used."""

    def __init__(self, optimizer: Any, device: torch.device):
        self.optimizer = optimizer
        self.device = device
        self._stored: dict[tuple[int, str], Tensor] = {}

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Hold the moments on the device, and copy them back with what changed."""
        for tensor in self._moments().values():
            tensor.data = tensor.to(self.device, non_blocking=True)
        try:
            yield
        finally:
            self.release()

    @torch.no_grad()
    def release(self) -> None:
        """Move the moments to the CPU, into the memory of the last time, which for a GPU is pinned."""
        for key, tensor in self._moments().items():
            if key not in self._stored:
                self._stored[key] = torch.empty_like(tensor, device="cpu", pin_memory=self.device.type == "cuda")
            tensor.data = self._stored[key].copy_(tensor)

    def _moments(self) -> dict[tuple[int, str], Tensor]:
        """By the weight's number and the name in its state; those that the first step has not made yet are missing."""
        states = enumerate(self.optimizer.state.values())
        return {
            (number, name): value
            for number, state in states
            for name, value in state.items()
            if isinstance(value, Tensor) and value.numel() > 1
        }


def total_norm(tensors: Iterable[Tensor]) -> Float[Tensor, ""]:
    """The L2 norm of all numbers of some tensors together; of sharded ones, on all processes alike."""
    tensors = [x.detach() for x in tensors]
    norm = torch.nn.utils.get_total_norm([local(x) for x in tensors])
    if not any(is_sharded(x) for x in tensors):
        return norm
    squares = norm.float().square()
    torch.distributed.all_reduce(squares)
    return squares.sqrt()


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Float[Tensor, ""]:
    """Scale gradients down to an L2 norm of `limit` where it is larger.

    Returns:
        The norm before; where it is not finite, the gradients are left as they are.
    """
    parameters = list(parameters)
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = total_norm(grads)
    if bool(norm > limit):  # torch's own function reads and writes every gradient even to multiply it by 1
        scale = (limit / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_([local(grad) for grad in grads], scale)  # pyright: ignore[reportPrivateImportUsage]
    return norm
