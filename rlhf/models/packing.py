"""Rows of different lengths packed into one without padding, and the attention that keeps them apart.

A packed forward pass reads a batch as one row of all its real tokens, with positions that start again at 0 with each
text. Flash attention finds the texts by these positions. For torch's scaled dot-product attention (SDPA) on a CPU, the
attention here calls it text by text; on a GPU so many small kernels would cost more than padding, so rows stay padded.
"""

from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

PACKED_SDPA = "packed_sdpa"
"""Name of the attention implementation in transformers."""

MIN_SAVED_PRODUCTS = 4_000_000
"""Products of weights with padding that packing must save, for each text and layer, to be worth a call of SDPA for each
text: measured on models of 1 to 135 million parameters."""

_supported: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
"""Whether packed rows get the states of single ones, by model."""
_layer_weights: WeakKeyDictionary[Any, float] = WeakKeyDictionary()
"""Weights of a layer, by model."""


def packs_rows(model: Any) -> bool:
    """Whether a transformers model reads its batches packed: tested once for each model, on two short texts."""
    if model.device.type != "cpu" and not _is_flash(model):
        return False
    if model not in _supported:
        _supported[model] = _enable_packing(model)
    return _supported[model]


def copy_packing(model: Any, twin: Any) -> None:
    """Let a copy of a model read its batches packed where the model does, without a test of its own."""
    _supported[twin] = packs_rows(model)
    if _supported[twin] and not _is_flash(model):
        twin.set_attn_implementation(PACKED_SDPA)


def is_worth_packing(model: Any, ids: Int[Tensor, "B L"], lengths: Int[Tensor, "B"]) -> bool:
    """Whether right-padded rows hold so much padding that a transformers model reads them faster packed."""
    padding = ids.numel() - int(lengths.sum())
    if padding == 0 or _is_flash(model):
        return padding > 0
    if model not in _layer_weights:
        n_layers = model.config.get_text_config().num_hidden_layers
        _layer_weights[model] = model.base_model.num_parameters(exclude_embeddings=True) / n_layers
    return padding * _layer_weights[model] >= MIN_SAVED_PRODUCTS * len(ids)


def packed_states(model: Any, ids: Int[Tensor, "B L"], lengths: Int[Tensor, "B"]) -> Float[Tensor, "T H"]:
    """The last hidden states of all real tokens of right-padded rows, row after row."""
    columns = torch.arange(ids.shape[1], device=ids.device)
    is_real = columns < lengths.unsqueeze(-1)
    return model.base_model(
        input_ids=ids[is_real].unsqueeze(0),
        position_ids=columns.expand_as(ids)[is_real].unsqueeze(0),
        # Transformers passes a tensor of four dimensions on to the attention as it is.
        attention_mask=None if _is_flash(model) else lengths.view(1, 1, 1, -1),
        use_cache=False,
    ).last_hidden_state[0]


def _packed_sdpa(
    module: torch.nn.Module,
    query: Float[Tensor, "B heads T D"],
    key: Float[Tensor, "B kv_heads S D"],
    value: Float[Tensor, "B kv_heads S D"],
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Float[Tensor, "B T heads D"], None]:
    """SDPA; where the mask holds lengths instead, SDPA for each text of a packed row."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward as sdpa

    if attention_mask is None or attention_mask.dtype != torch.int64:
        return sdpa(module, query, key, value, attention_mask, **options)  # pyright: ignore[reportReturnType]
    window = options.get("sliding_window")
    ends = [0, *attention_mask.flatten().cumsum(0).tolist()]
    outputs = []
    for start, end in pairwise(ends):
        text = slice(start, end)
        mask = None if window is None or end - start <= window else _window_mask(end - start, window)
        outputs.append(sdpa(module, query[:, :, text], key[:, :, text], value[:, :, text], mask, **options)[0])
    return torch.cat(outputs, dim=1), None


def _window_mask(length: int, window: int) -> Tensor:
    """True where a token attends: to itself and the `window - 1` tokens before it."""
    distance = torch.arange(length).unsqueeze(-1) - torch.arange(length)
    return ((distance >= 0) & (distance < window)).view(1, 1, length, length)


def _is_flash(model: Any) -> bool:
    return str(model.config._attn_implementation).startswith("flash_attention")


def _enable_packing(model: Any) -> bool:
    """Give a model the attention for packed rows where it takes it and computes the right states; else change nothing.

    A family may have attention of its own, positions in its attention (ALiBi), or recurrent layers that would carry one
    text into the next.
    """
    if _is_flash(model):
        return _packs_correctly(model)
    if model.config._attn_implementation != "sdpa":
        return False
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(PACKED_SDPA, _packed_sdpa)
    AttentionMaskInterface.register(PACKED_SDPA, sdpa_mask)
    model.set_attn_implementation(PACKED_SDPA)
    if model.config._attn_implementation == PACKED_SDPA and _packs_correctly(model):
        return True
    model.set_attn_implementation("sdpa")
    return False


@torch.no_grad()
def _packs_correctly(model: Any) -> bool:
    """Whether two packed texts have the states of each text alone."""
    ids = torch.arange(1, 9, device=model.device).view(2, 4)
    lengths = torch.tensor([3, 4], device=model.device)
    was_training = model.training
    model.eval()  # dropout would change the states, and the random numbers that a run draws afterwards
    try:
        with torch.autocast(model.device.type, enabled=False):
            packed = packed_states(model, ids, lengths)
            single = [
                model.base_model(input_ids=row[None, :length], use_cache=False).last_hidden_state[0]
                for row, length in zip(ids, lengths, strict=True)
            ]
    except (TypeError, ValueError, RuntimeError):  # arguments or shapes that the family does not take
        return False
    finally:
        model.train(was_training)
    expected = torch.cat(single)
    tolerance = 1e-4 if model.dtype == torch.float32 else 2e-2
    return packed.shape == expected.shape and bool((packed - expected).abs().max() <= tolerance * expected.abs().max())
