"""A key-value cache of fixed size in which each row has its own write position.

Slot s of a row holds the token at position s of that row's text. Rows therefore need no common left padding, the keys
that a row attends to follow from its position alone, and a row's text can be replaced while other rows continue.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, get_layer_types_and_kwargs

from rlhf.models.packing import PACKED_SDPA

LAYER_TYPES = ("full_attention", "sliding_attention")
"""Types of layers that keep keys and values of single tokens, and nothing else."""

MASKED_ATTENTION = ("sdpa", PACKED_SDPA, "eager")
"""Attention implementations that take an explicit mask of queries and keys."""


@dataclass
class StepWindow:
    """The part of the cache that one decode step reads and writes; shared by all layers."""

    rows: Int[Tensor, "N"]
    """The first N rows of the cache."""
    positions: Int[Tensor, "N"]
    """Where each row's new token is written."""
    n_slots: int
    """Slots that attention reads; all positions are below it."""


class StaticRowsLayer(CacheLayerMixin):
    """The keys and values of one layer, [rows, heads, slots, head size]."""

    is_sliding = False
    is_compileable = True

    def __init__(self, n_rows: int, n_slots: int):
        super().__init__()
        self.n_rows = n_rows
        self.n_slots = n_slots
        self.window: StepWindow | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        # Zeros: what a kernel multiplies by the weight 0 of a masked key must be finite.
        self.keys = key_states.new_zeros(self.n_rows, key_states.shape[1], self.n_slots, key_states.shape[3])
        self.values = value_states.new_zeros(self.n_rows, value_states.shape[1], self.n_slots, value_states.shape[3])
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Float[Tensor, "N G S K"], Float[Tensor, "N G S D"]]:
        """Write one token for each row of the window; return the keys and values in the window."""
        window = self.window
        assert window is not None
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        # Under autocast the values of a step may have another type than the prompt's, which set the cache's.
        self.keys[window.rows, :, window.positions] = key_states[:, :, 0].to(self.keys.dtype)
        self.values[window.rows, :, window.positions] = value_states[:, :, 0].to(self.values.dtype)
        n_rows = len(window.rows)
        return self.keys[:n_rows, :, : window.n_slots], self.values[:n_rows, :, : window.n_slots]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length(), 0

    def get_seq_length(self) -> int:
        return self.window.n_slots if self.window is not None else 0

    def get_max_length(self) -> int:
        return self.n_slots


class StaticRowsCache(Cache):
    """The cache of a whole model; `layers` may be passed to every transformers model as `past_key_values`."""

    def __init__(self, n_layers: int, n_rows: int, n_slots: int):
        self.n_slots = n_slots
        self.rows_layers = [StaticRowsLayer(n_rows, n_slots) for _ in range(n_layers)]
        super().__init__(layers=list(self.rows_layers))

    def set_window(self, window: StepWindow) -> None:
        """Choose what the next forward reads and writes."""
        for layer in self.rows_layers:
            layer.window = window

    def write_prompts(self, prefilled: Cache, rows: Int[Tensor, "N"], source: Int[Tensor, "N"]) -> None:
        """Fill the first slots of some rows.

        Args:
            prefilled: a cache of texts that begin in its first column.
            source: the row of `prefilled` for each of `rows`.
        """
        for layer, filled in zip(self.rows_layers, prefilled.layers, strict=True):
            keys: Tensor = filled.keys  # pyright: ignore[reportAttributeAccessIssue, reportAssignmentType]
            values: Tensor = filled.values  # pyright: ignore[reportAttributeAccessIssue, reportAssignmentType]
            if not layer.is_initialized:
                layer.lazy_initialization(keys, values)
            assert layer.keys is not None
            assert layer.values is not None
            layer.keys[rows, :, : keys.shape[2]] = keys[source]
            layer.values[rows, :, : keys.shape[2]] = values[source]

    def move_rows(self, source: Int[Tensor, "N"], n_slots: int) -> None:
        """Copy the first slots of the rows `source` to the rows 0 to N - 1."""
        for layer in self.rows_layers:
            if layer.is_initialized:
                assert layer.keys is not None
                assert layer.values is not None
                layer.keys[: len(source), :, :n_slots] = layer.keys[source, :, :n_slots]
                layer.values[: len(source), :, :n_slots] = layer.values[source, :, :n_slots]


@dataclass(frozen=True)
class AttentionLayout:
    """Which keys each type of layer attends to, and the form in which the attention implementation takes a mask."""

    windows: dict[str, int | None]
    """Layer type -> width of its sliding window; None attends to the whole text."""
    additive: bool
    """Masks are numbers that are added to the attention scores, not booleans."""
    dtype: torch.dtype

    @classmethod
    def of(cls, model: Any) -> "AttentionLayout":
        layer_types, options = get_layer_types_and_kwargs(model.config.get_text_config(decoder=True))
        return cls(
            windows={name: o.get("sliding_window") for name, o in zip(layer_types, options, strict=True)},
            additive=model.config._attn_implementation == "eager",
            dtype=model.dtype,
        )

    def masks(self, positions: Int[Tensor, "N"], n_slots: int) -> Tensor | dict[str, Tensor]:
        """Masks [N, 1, 1, slots] for tokens at `positions`: one, or one for each layer type where there are several."""
        masks = {name: self._mask(positions, n_slots, width) for name, width in self.windows.items()}
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _mask(
        self, positions: Int[Tensor, "N"], n_slots: int, width: int | None
    ) -> Bool[Tensor, "N 1 1 S"] | Float[Tensor, "N 1 1 S"]:
        slots = torch.arange(n_slots, device=positions.device)
        last = positions.unsqueeze(-1)
        visible = slots <= last
        if width is not None:
            visible &= slots > last - width
        visible = visible[:, None, None]
        if not self.additive:
            return visible
        lowest = torch.finfo(self.dtype).min
        return torch.where(visible, 0.0, lowest).to(self.dtype)
