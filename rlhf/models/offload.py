"""Weights that are in a GPU's memory only while they are used, and in the CPU's memory otherwise."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor


def on_device(offloaded: Any) -> AbstractContextManager[None]:
    """Hold on its device what may be offloaded, a thing with a context `on_device`; None: there is nothing to hold."""
    return nullcontext() if offloaded is None else offloaded.on_device()


class OffloadedModel:
    """A frozen model whose weights stay in the CPU's memory and are copied to a device for as long as they are used.

    Nothing is copied back: the copy on the device is dropped. For a GPU the CPU's memory is pinned, so that a copy runs
    at the speed of the bus.
    """

    def __init__(self, model: Any, device: torch.device | str):
        """Move the model to the CPU.

        Args:
            device: where it computes.
        """
        self.device = torch.device(device)
        model.to("cpu")
        self._tensors: list[Tensor] = [*model.parameters(), *model.buffers()]
        pinned = self.device.type == "cuda"
        self._stored = [x.data.pin_memory() if pinned else x.data for x in self._tensors]
        self._release()

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Hold the weights on the device."""
        for tensor, stored in zip(self._tensors, self._stored, strict=True):
            tensor.data = stored.to(self.device, non_blocking=True)
        try:
            yield
        finally:
            self._release()

    def _release(self) -> None:
        for tensor, stored in zip(self._tensors, self._stored, strict=True):
            tensor.data = stored
