"""The choice between the two sampling engines, and the models that the static one supports."""

import inspect
import weakref
from typing import Any, Literal

import torch

from rlhf.errors import UserError
from rlhf.models.distribution import LogitTransform, compute_logits
from rlhf.models.trunk import trunk_inputs, unwrap_peft
from rlhf.rollouts.sampling_records import SamplingRequest
from tabular.core.distributions import categorical_logprob

Engine = Literal["auto", "growing", "static"]

ROW_DEPENDENT_ROPE = ("dynamic", "longrope")
"""Rotary embeddings whose frequencies depend on the longest text of the batch."""

_obstacles: "weakref.WeakKeyDictionary[Any, str]" = weakref.WeakKeyDictionary()


LONG_RESPONSE = 256
"""Tokens from which the fixed-size cache is faster on a CPU too."""


def use_static_engine(
    engine: Engine, lm: Any, device: torch.device, *, responses_wait: bool = False, max_new_tokens: int = 0
) -> bool:
    """Whether the static engine samples.

    `auto` takes it, for models that it supports, on CUDA devices, where responses wait for others to end, and for long
    responses, because a growing cache is copied at every token.

    Args:
        responses_wait: there are more responses than are sampled at once.

    Raises:
        UserError: `static` is required of a model that it does not support.
    """
    gains = device.type == "cuda" or responses_wait or max_new_tokens >= LONG_RESPONSE
    if engine == "growing" or (engine == "auto" and not gains):
        return False
    obstacle = static_engine_obstacle(lm)
    if obstacle and engine == "static":
        raise UserError(
            f"generation.engine is static, but {type(unwrap_peft(lm)).__name__} {obstacle}; set it to auto or growing"
        )
    return not obstacle


def check_engine(engine: Engine, lm: Any) -> None:
    """Refuse a model that the static engine does not support, where that engine is required.

    Raises:
        UserError: see `use_static_engine`.
    """
    if engine == "static":
        use_static_engine(engine, lm, unwrap_peft(lm).device)


def static_engine_obstacle(lm: Any) -> str:
    """Why the static engine cannot sample from a model, as the end of a sentence; empty if it can."""
    model = unwrap_peft(lm)
    if model not in _obstacles:
        _obstacles[model] = _declared_obstacle(model) or _measured_obstacle(lm)
    return _obstacles[model]


def _declared_obstacle(model: Any) -> str:
    """An obstacle that is visible in the model's code and config."""
    from transformers.cache_utils import get_layer_types_and_kwargs

    from rlhf.rollouts.static_cache import LAYER_TYPES, MASKED_ATTENTION

    accepted = inspect.signature(model.base_model.forward).parameters
    if missing := [name for name in ("position_ids", "past_key_values") if name not in accepted]:
        return f"takes no {missing[0]}"
    if model.config._attn_implementation not in MASKED_ATTENTION:
        return f"uses {model.config._attn_implementation} attention, not one of {', '.join(MASKED_ATTENTION)}"
    config = model.config.get_text_config(decoder=True)
    unsupported = set(get_layer_types_and_kwargs(config)[0]) - set(LAYER_TYPES)
    if unsupported:
        return f"has layers of type {', '.join(sorted(unsupported))}"
    rope_types = {value for value in _nested_values(getattr(config, "rope_parameters", None)) if isinstance(value, str)}
    if row_dependent := rope_types & set(ROW_DEPENDENT_ROPE):
        return f"has {row_dependent.pop()} rotary embeddings, which depend on the longest text of a batch"
    return ""


def _nested_values(tree: Any) -> list[Any]:
    if not isinstance(tree, dict):
        return [tree]
    return [value for branch in tree.values() for value in _nested_values(branch)]


@torch.no_grad()
def _measured_obstacle(lm: Any) -> str:
    """Compare a short static run with plain forward passes: a model's own code may read masks or caches differently."""
    from rlhf.rollouts.static_decoding import sample_static

    device = unwrap_peft(lm).get_output_embeddings().weight.device
    prompt_ids = torch.tensor([[1, 2, 3, 4], [0, 0, 0, 5]], device=device)
    request = SamplingRequest(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_ids > 0,
        noise=None,
        transform=LogitTransform(),
        max_new_tokens=4,
        stop_strings=None,
    )
    try:
        sampled = sample_static(lm, request)
    except (TypeError, ValueError, IndexError, AttributeError, RuntimeError, AssertionError) as error:
        return f"fails in a decode step with an explicit mask ({type(error).__name__}: {error})"
    for prompt, is_token, ids, logprobs in zip(
        request.prompt_ids, request.prompt_mask, sampled.ids, sampled.logprobs, strict=True
    ):
        text = torch.cat([prompt[is_token], ids]).unsqueeze(0)
        inputs = trunk_inputs(lm, torch.ones_like(text, dtype=torch.bool))
        states = unwrap_peft(lm).base_model(input_ids=text, use_cache=False, **inputs).last_hidden_state[0]
        expected = categorical_logprob(compute_logits(lm, states[-len(ids) - 1 : -1]), ids)
        if not torch.allclose(expected, logprobs, rtol=1e-2, atol=1e-2):
            return "gives other log-probabilities in decode steps of fixed shape"
    return ""
