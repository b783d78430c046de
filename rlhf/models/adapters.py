"""Several adapters over one frozen base, and which of them a forward pass goes through.

The policy's adapter is PEFT's `default`, the critic's is `critic`, and the base without an adapter is the reference; a
reference that moves is a third adapter, `reference`.
PEFT's own switches also freeze the adapters that they deactivate, and a frozen weight gets no gradient, not even in the
backward pass of a forward that used it. The switches here leave `requires_grad` as it is.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

POLICY = "default"
CRITIC = "critic"
REFERENCE = "reference"


def has_adapters(lm: Any) -> bool:
    return hasattr(lm, "disable_adapter")


def is_adapter_weight(parameter_name: str, adapter: str) -> bool:
    """Whether a parameter belongs to the adapter of that name."""
    return f".{adapter}." in parameter_name


def add_frozen_copy(lm: Any, name: str) -> None:
    """Add a frozen adapter with the settings and the weights of the policy's."""
    trained = [p for p in lm.parameters() if p.requires_grad]
    lm.add_adapter(name, lm.peft_config[POLICY])
    for parameter_name, p in lm.named_parameters():
        if is_adapter_weight(parameter_name, name):
            p.requires_grad_(False)
    for p in trained:  # PEFT freezes the other adapters
        p.requires_grad_(True)
    policy = adapter_weights(lm, POLICY)
    for key, weight in adapter_weights(lm, name).items():
        weight.data.copy_(policy[key].data)


def adapter_weights(lm: Any, adapter: str) -> dict[str, Any]:
    """The weights of an adapter, by names that are the same for every adapter."""
    names = ((name, p) for name, p in lm.named_parameters() if is_adapter_weight(name, adapter))
    return {name.replace(f".{adapter}.", "."): p for name, p in names}


@contextmanager
def active_adapter(lm: Any, name: str | None) -> Iterator[None]:
    """Run `lm` through the adapter `name`, or without adapters (None); a model without adapters is left alone."""
    layers = _adapter_layers(lm)
    previous = _active_name(layers)
    if not layers or previous == name:
        yield
        return
    trained = [p for p in lm.parameters() if p.requires_grad]
    _activate(layers, name, trained)
    try:
        yield
    finally:
        _activate(layers, previous, trained)


def active_adapter_name(lm: Any) -> str | None:
    """The adapter that a forward pass goes through; None without one."""
    return _active_name(_adapter_layers(lm))


def checkpointing_contexts(lm: Any) -> Any:
    """`context_fn` of gradient checkpointing with which a layer is recomputed through the adapter of its forward."""

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        return nullcontext(), active_adapter(lm, _active_name(_adapter_layers(lm)))

    return contexts


def _adapter_layers(lm: Any) -> list[Any]:
    if not has_adapters(lm):
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in lm.modules() if isinstance(module, BaseTunerLayer)]


def _active_name(layers: list[Any]) -> str | None:
    return None if not layers or layers[0].disable_adapters else layers[0].active_adapters[0]


def _activate(layers: list[Any], name: str | None, trained: list[Any]) -> None:
    for layer in layers:
        layer.enable_adapters(name is not None)
        if name is not None:
            layer.set_adapter(name)
    for p in trained:
        p.requires_grad_(True)
