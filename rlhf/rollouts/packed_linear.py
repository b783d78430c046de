"""Linear layers that multiply few rows by oneDNN's packed copy of their weights, for sampling on a CPU.

A decode step multiplies one row for each response by every weight of the model, so it takes as long as reading the
weights. torch's float32 product of 4 to 32 rows reads them at about half of the memory's speed, oneDNN's product with
weights in its own block layout at most of it. Packing takes as long as two or three decode steps, and needs the memory
of one copy of the weights, which is freed before anything is trained.

A LoRA layer's copy is that of its merged weights, so its adapter costs nothing while sampling. The weights themselves
are never touched: merging them in place and back would change them by rounding.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor, nn

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
    layers = _packable_layers(unwrap_peft(lm))
    is_large = sum(linear.weight.nbytes for linear in layers.values()) >= MIN_MODEL_BYTES
    if not (is_large and MIN_ROWS <= n_rows <= MAX_ROWS and n_steps >= MIN_STEPS and _is_supported()):
        yield
        return
    for layer, linear in layers.items():
        layer.forward = _packed_forward(layer, linear)
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


def _packable_layers(model: nn.Module) -> dict[Any, nn.Linear]:
    """The layers whose forward can be replaced, each with the linear layer inside: the layer itself, or LoRA's base."""
    layers: dict[Any, nn.Linear] = {}
    for layer in model.modules():  # a LoRA layer comes before the base inside it
        linear = layer.base_layer if _is_mergeable(layer) else layer
        if _is_packable(linear) and linear not in layers.values():
            layers[layer] = linear
    return layers


def _is_packable(layer: Any) -> TypeGuard[nn.Linear]:
    return (
        type(layer) is nn.Linear
        and layer.weight.device.type == "cpu"
        and layer.weight.dtype == torch.float32
        and layer.weight.numel() >= MIN_LAYER_WEIGHTS
        and "forward" not in vars(layer)  # replaced by somebody else, such as accelerate's offloading
    )


def _is_mergeable(layer: Any) -> bool:
    """Whether a layer is PEFT's LoRA with one active adapter that only adds a product of two matrices."""
    if not hasattr(layer, "lora_A") or layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1:
        return False
    name = layer.active_adapters[0]
    return name in layer.lora_A and name not in layer.lora_variant and not layer.lora_bias[name] and not layer.training


@torch.no_grad()
def _packed_forward(layer: Any, linear: nn.Linear) -> Callable[[Tensor], Tensor]:
    weight = linear.weight.detach()
    if layer is not linear:
        weight = weight + layer.get_delta_weight(layer.active_adapters[0])
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR_ROWS)
    own_forward = layer.forward

    def forward(x: Float[Tensor, "*batch I"]) -> Float[Tensor, "*batch O"]:
        n_rows = x.numel() // linear.in_features
        if not MIN_ROWS <= n_rows <= MAX_ROWS:
            return own_forward(x)
        rows = x.reshape(n_rows, linear.in_features)
        product = torch.ops.mkldnn._linear_pointwise(rows, packed, linear.bias, "none", [], "")
        return product.view(*x.shape[:-1], linear.out_features)

    return forward
