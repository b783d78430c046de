"""Linear layers that multiply few rows by oneDNN's packed copy of their weights, for sampling on a CPU.

A decode step multiplies one row for each response by every weight of the model, so it takes as long as reading the
weights. torch's float32 product of 4 to 32 rows reads them at about half of the memory's speed, oneDNN's product with
weights in its own block layout at most of it. Packing takes as long as two or three decode steps, and needs the memory
of one copy of the weights, which is freed before anything is trained.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from rlhf.models.trunk import unwrap_peft

MIN_ROWS = 3
MAX_ROWS = 64
"""Numbers of rows for which the packed product is faster; outside, layers compute as usual."""

MIN_STEPS = 16
"""Decode steps that a rollout must have for packing to be worth its time."""

MIN_LAYER_WEIGHTS = 2**14
"""Smaller layers, such as those of adapters, are left as they are."""

MIN_MODEL_BYTES = 2**27
"""Smaller models are left as they are: the processor's cache holds much of their weights from one step to the next."""

PACKED_FOR_ROWS = 16
"""Number of rows for which oneDNN chooses the layout; it serves all numbers from MIN_ROWS to MAX_ROWS."""


@contextmanager
def packed_linear_layers(lm: Any, n_rows: int, n_steps: int) -> Iterator[None]:
    """Pack the float32 linear layers of a model on a CPU, until the context is left; other models are left alone."""
    layers = [layer for layer in unwrap_peft(lm).modules() if _is_packable(layer)]
    is_large = sum(layer.weight.nbytes for layer in layers) >= MIN_MODEL_BYTES
    if not (is_large and MIN_ROWS <= n_rows <= MAX_ROWS and n_steps >= MIN_STEPS and _is_supported()):
        yield
        return
    for layer in layers:
        layer.forward = _packed_forward(layer)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward  # the class's own method again


def _is_supported() -> bool:
    return (
        torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        and not torch.is_autocast_enabled("cpu")
    )


def _is_packable(layer: nn.Module) -> TypeGuard[nn.Linear]:
    return (
        type(layer) is nn.Linear
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype == torch.float32
        and layer.weight.numel() >= MIN_LAYER_WEIGHTS
        and "forward" not in vars(layer)  # replaced by somebody else, such as accelerate's offloading
    )


@torch.no_grad()
def _packed_forward(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    packed = torch.ops.mkldnn._reorder_linear_weight(layer.weight.detach(), PACKED_FOR_ROWS)

    def forward(x: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch O"]:
        n_rows = x.numel() // layer.in_features
        if not MIN_ROWS <= n_rows <= MAX_ROWS:
            return F.linear(x, layer.weight, layer.bias)
        rows = x.reshape(n_rows, layer.in_features).contiguous()
        product = torch.ops.mkldnn._linear_pointwise(rows, packed, layer.bias, "none", [], "")
        return product.view(*x.shape[:-1], layer.out_features)

    return forward
