"""Decoder layers compiled by torch.compile, each in place: one compilation serves all layers of a model.

Scoring and update run the compiled layers, sampling does not: its cache has another shape with every token. The graphs
with and without gradient compute the same numbers, so the first ratio stays exactly 1.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from rlhf.errors import UserError
from rlhf.models.trunk import unwrap_peft

_compiled_trunks: WeakSet[nn.Module] = WeakSet()

_MAX_GRAPHS = 64
"""With or without gradient, one row or several, each adapter active or none: beyond torch's limit of 8 graphs a layer
would run uncompiled without a word, and its numbers would differ from those of scoring in the last bits."""


def compile_layers(*models: Any) -> None:
    """Compile the decoder layers of transformers models when they are first run, for inputs of any shape.

    Raises:
        UserError: a model's layers are not those of transformers.
    """
    import torch._dynamo
    from transformers.modeling_layers import GradientCheckpointingLayer

    torch._dynamo.config.recompile_limit = _MAX_GRAPHS
    for model in models:
        trunk = unwrap_peft(model).base_model
        if trunk in _compiled_trunks:  # a reference that shares the policy's layers
            continue
        layers = [module for module in trunk.modules() if isinstance(module, GradientCheckpointingLayer)]
        if not layers:
            raise UserError(
                f"model.compile is true, but {type(trunk).__name__} has no layers that can be compiled; set it to false"
            )
        for layer in layers:
            layer.compile(dynamic=True)
        _compiled_trunks.add(trunk)


def uncompiled(model: Any) -> AbstractContextManager[Any]:
    """A context in which compiled layers run as if they were not."""
    if unwrap_peft(model).base_model in _compiled_trunks:
        return torch.compiler.set_stance("force_eager")
    return nullcontext()
