"""One frozen base, several adapters: which of them a forward pass goes through.

The policy's adapter is PEFT's `default`, the critic's is `critic`, and with none of them the base is the reference.
PEFT's own switches also freeze what they switch off, and a frozen weight takes no gradient, not even in the backward
pass of a forward that used it. These switches leave alone what is trained.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

POLICY, CRITIC = "default", "critic"


def has_adapters(lm: Any) -> bool:
    return hasattr(lm, "disable_adapter")


def is_critic_adapter_weight(name: str) -> bool:
    """Whether a parameter belongs to the critic's adapter."""
    return f".{CRITIC}." in name


@contextmanager
def active_adapter(lm: Any, name: str | None) -> Iterator[None]:
    """Within it `lm` runs through the adapter `name`, through none (None); a model without adapters runs as it is."""
    layers = _layers(lm)
    before = _active(layers)
    if not layers or before == name:
        yield
        return
    trained = [p for p in lm.parameters() if p.requires_grad]
    _switch(layers, name, trained)
    try:
        yield
    finally:
        _switch(layers, before, trained)


def checkpointing_contexts(lm: Any) -> Any:
    """`context_fn` for gradient checkpointing: a layer is recomputed through the adapter that it first ran through."""

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), active_adapter(lm, _active(_layers(lm)))

    return contexts


def _layers(lm: Any) -> list[Any]:
    if not has_adapters(lm):
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in lm.modules() if isinstance(module, BaseTunerLayer)]


def _active(layers: list[Any]) -> str | None:
    return None if not layers or layers[0].disable_adapters else layers[0].active_adapters[0]


def _switch(layers: list[Any], name: str | None, trained: list[Any]) -> None:
    for layer in layers:
        layer.enable_adapters(name is not None)
        if name is not None:
            layer.set_adapter(name)
    for p in trained:
        p.requires_grad_(True)
