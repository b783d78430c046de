"""Forward passes through a transformers model's trunk: everything below its output head.

Only the trunk is run here, so that logits need not exist for prompts and padding: callers pick the hidden states that
they need first (`rlhf.models.distribution`).
"""

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rlhf.models.packing import is_worth_packing, packed_states, packs_rows
from rlhf.records import Tokens, mask_up_to_last


def unwrap_peft(lm: Any) -> Any:
    """The transformers model inside PEFT's wrapper; its adapters stay active. Other models are returned as they are."""
    return lm.get_base_model() if hasattr(lm, "get_base_model") else lm


def disable_dropout(model: Any) -> dict[str, float]:
    """Set every dropout rate to zero; otherwise two forwards differ and the first ratio is not 1.

    Rates are set rather than `eval()` called, because evaluation mode would also disable gradient checkpointing. Some
    model families read the rates from their config in every forward, so the config is changed too.

    Returns:
        The config's previous rates by name, for the config that is exported.
    """
    config = model.config.get_text_config()
    rates = {name: rate for name, rate in vars(config).items() if "drop" in name and isinstance(rate, float)}
    for name in rates:
        setattr(config, name, 0.0)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    return rates


def restore_dropout(lm: Any, rates: Mapping[str, float]) -> None:
    """Put a config's dropout rates back, for the config that is exported."""
    for name, rate in rates.items():
        setattr(unwrap_peft(lm).config.get_text_config(), name, rate)


def enable_gradient_checkpointing(model: Any, context_fn: Callable[..., Any] | None = None) -> None:
    """Recompute activations in the backward pass; `context_fn` is torch's, for the forward and its recomputation."""
    options: dict[str, Any] = {"use_reentrant": False}
    if context_fn is not None:
        options["context_fn"] = context_fn
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


def position_ids(mask: Bool[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    """Positions that count real tokens only: the first one is at 0, however much padding stands before it."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def trunk_inputs(lm: Any, mask: Bool[Tensor, "B L"], new_tokens: int | None = None) -> dict[str, Tensor]:
    """The arguments that tell a trunk which tokens are padding.

    Args:
        mask: True on real tokens, those in the cache included.
        new_tokens: how many tokens the forward reads while a cache holds the earlier ones; None: all of them.
    """
    accepted = _forward_arguments(type(unwrap_peft(lm).base_model))
    if "position_ids" in accepted:
        return {"attention_mask": mask.long(), "position_ids": position_ids(mask)[:, -(new_tokens or 0) :]}
    # A recurrent trunk has no positions, and takes the mask of the tokens that it reads now.
    return {"attention_mask": mask.long() if "past_key_values" in accepted else mask.long()[:, -(new_tokens or 0) :]}


def cache_argument(lm: Any) -> str:
    """The name under which a trunk's forward takes its cache."""
    accepted = _forward_arguments(type(unwrap_peft(lm).base_model))
    return "past_key_values" if "past_key_values" in accepted else "cache_params"


@functools.cache
def _forward_arguments(trunk: type) -> frozenset[str]:
    return frozenset(inspect.signature(trunk.forward).parameters)  # pyright: ignore[reportAttributeAccessIssue]


@dataclass(frozen=True)
class TextStates:
    """The last hidden states of texts; the state at position t of text i stands at `starts[i] + t`."""

    flat: Float[Tensor, "M H"]
    starts: Int[Tensor, "B"]


def text_states(lm: Any, ids: Int[Tensor, "B L"], lengths: Int[Tensor, "B"]) -> TextStates:
    """The last hidden states of right-padded texts: read packed where the model can and there is enough padding.

    Elsewhere no mask is needed either: no token of a causal model depends on those after it.
    """
    model = unwrap_peft(lm)
    if packs_rows(model) and is_worth_packing(model, ids, lengths):
        return TextStates(packed_states(model, ids, lengths), lengths.cumsum(0) - lengths)
    states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return TextStates(states.flatten(0, 1), ids.shape[1] * torch.arange(len(ids), device=ids.device))


@dataclass(frozen=True)
class JoinedRows:
    """Each prompt with its response directly after it; padding stands only behind both."""

    ids: Int[Tensor, "B L"]
    prompt_lengths: Int[Tensor, "B"]
    lengths: Int[Tensor, "B"]
    """Of prompts and responses together."""

    @classmethod
    def of(cls, tokens: Tokens) -> "JoinedRows":
        # Environment tokens between turns are part of the context, though they are not scored.
        mask = torch.cat([tokens.prompt_mask, mask_up_to_last(tokens.response_mask)], dim=1)
        lengths = mask.sum(-1)
        order = (~mask).int().argsort(dim=1, stable=True)[:, : int(lengths.max())]  # real tokens first
        ids = torch.cat([tokens.prompt_ids, tokens.response_ids], dim=1).gather(1, order)
        return cls(ids, tokens.prompt_mask.sum(-1), lengths)


def response_states(lm: Any, tokens: Tokens) -> Float[Tensor, "N H"]:
    """The hidden state before each of the N True tokens of `response_mask`, row by row."""
    joined = JoinedRows.of(tokens)
    states = text_states(lm, joined.ids, joined.lengths)
    rows, positions = tokens.response_mask.nonzero(as_tuple=True)
    return states.flat.index_select(0, (states.starts + joined.prompt_lengths)[rows] + positions - 1)


def states_after_response(lm: Any, tokens: Tokens) -> Float[Tensor, "B H"]:
    """The hidden state after the last token of each response."""
    joined = JoinedRows.of(tokens)
    return last_token_states(lm, joined.ids, joined.lengths)


def last_token_states(model: Any, ids: Int[Tensor, "B L"], lengths: Int[Tensor, "B"]) -> Float[Tensor, "B H"]:
    """The hidden states at the last token of right-padded texts."""
    states = text_states(model, ids, lengths)
    return states.flat.index_select(0, states.starts + lengths - 1)


def sequence_scores(
    model: Any, ids: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"], label: int = 0
) -> Float[Tensor, "B"]:
    """A classifier's logit of one label for right-padded texts: its head at the last real token, or an encoder's own
    pooling.

    The last True of the mask, not the last id that differs from padding: where the padding and end tokens are the same,
    transformers' own rule reads the token before the end token.
    """
    model = unwrap_peft(model)
    if not hasattr(model, "score"):
        return model(input_ids=ids, attention_mask=mask.long()).logits[:, label].float()
    states = last_token_states(model, ids, mask.sum(-1))
    return model.score(states.to(model.score.weight.dtype))[:, label].float()
