"""Sampling responses from a language model, token by token.

A response is a function of the weights, the prompt and one row of uniform numbers: token t is the inverse of the
cumulative distribution at the row's t-th number. No other random number is drawn, so the same prompts get the same
responses however they are batched, on however many processes, and after a resume, up to the rounding of the forward.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf.models.distribution import LogitTransform, compute_logits
from rlhf.models.trunk import cache_argument, trunk_inputs, unwrap_peft
from rlhf.rollouts.engines import Engine, use_static_engine
from rlhf.rollouts.packed_linear import packed_linear_layers
from rlhf.rollouts.sampling_records import (
    SampledTokens,
    SamplingRequest,
    ValueHead,
    concatenate,
    equal_prompt_groups,
)
from rlhf.rollouts.stopping import StopStrings
from tabular.core.distributions import categorical_logprob, categorical_sample


def uniform_noise(
    key: Sequence[int], rows: Int[Tensor, "N"] | Sequence[int], total: int, length: int
) -> Float[Tensor, "N R"]:
    """The uniform numbers that decide some responses of a batch, as a function of `key` alone.

    Args:
        key: numbers that identify the batch, such as seed and step.
        rows: the responses wanted.
        total: the size of the whole batch.
        length: the longest response, in tokens.
    """
    digest = hashlib.sha256(repr(tuple(key)).encode()).digest()[:7]
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
    noise = torch.rand(total, length, generator=generator, dtype=torch.float64)
    return noise[torch.as_tensor(rows)]


@torch.no_grad()
def sample(
    lm: Any,
    prompt_ids: Int[Tensor, "B P"],
    prompt_mask: Bool[Tensor, "B P"],
    noise: Float[Tensor, "B R"] | None,
    transform: LogitTransform,
    max_new_tokens: int,
    stop_strings: StopStrings | None = None,
    max_rows: int | None = None,
    engine: Engine = "auto",
    value_head: ValueHead | None = None,
    on_token: Callable[[Int[Tensor, "N"]], None] | None = None,
) -> SampledTokens:
    """Continue every prompt until a stop token, a stop string, or for `max_new_tokens` tokens.

    Args:
        noise: uniform numbers, see `uniform_noise`; None takes the most probable token each time (greedy).
        max_rows: responses sampled at once; None samples them all together.
        engine: see `rlhf.rollouts.engines`.
        value_head: with it, values are computed from the hidden states that the tokens are sampled from.
        on_token: called with the tokens of the unfinished responses as soon as they are drawn, by the growing engine.

    Raises:
        UserError: the engine does not support the model.
    """
    request = SamplingRequest(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        noise=None if noise is None else noise.to(prompt_ids.device),
        transform=transform,
        max_new_tokens=max_new_tokens,
        stop_strings=stop_strings,
        value_head=value_head,
        on_token=on_token,
    )
    n_rows = min(max_rows or len(request), len(request))
    is_static = use_static_engine(
        engine, lm, prompt_ids.device, responses_wait=n_rows < len(request), max_new_tokens=max_new_tokens
    )
    with packed_linear_layers(lm, n_rows, n_steps=max_new_tokens):
        if is_static:
            from rlhf.rollouts.static_decoding import sample_static

            return sample_static(lm, request, n_rows).trimmed()
        parts = [_sample_growing(lm, request.rows(i, i + n_rows)) for i in range(0, len(request), n_rows)]
        return concatenate(parts).trimmed()


def _sample_growing(lm: Any, request: SamplingRequest) -> SampledTokens:
    """Sample some responses together over a growing key-value cache; tensors are `max_new_tokens` wide."""
    from transformers import DynamicCache

    trunk = unwrap_peft(lm).base_model
    transform = request.transform
    noise = request.noise
    device = request.prompt_ids.device
    shape = (len(request), request.max_new_tokens)
    stop_ids = torch.tensor(transform.stop_ids, dtype=torch.long, device=device)
    ids = torch.zeros(shape, dtype=torch.long, device=device)
    mask = torch.zeros(shape, dtype=torch.bool, device=device)
    logprobs = torch.zeros(shape, device=device)
    values = None if request.value_head is None else torch.zeros(shape, device=device)
    ended = torch.zeros(len(request), dtype=torch.bool, device=device)

    kv_cache = DynamicCache(config=unwrap_peft(lm).config)
    rows = torch.arange(len(request), device=device)  # the response that each row of the cache belongs to
    live = torch.ones_like(rows, dtype=torch.bool)  # rows of the cache whose response has not ended
    representatives, group = equal_prompt_groups(request)
    context_mask = request.prompt_mask[representatives]
    new_ids = request.prompt_ids[representatives]
    for t in range(request.max_new_tokens):
        # 1. one forward over the new tokens: the whole prompt first, then one token a row
        inputs = trunk_inputs(lm, context_mask, new_tokens=new_ids.shape[1])
        out = trunk(input_ids=new_ids, use_cache=True, **{cache_argument(lm): kv_cache}, **inputs)
        states = out.last_hidden_state[:, -1]
        if t == 0 and len(representatives) < len(rows):  # equal consecutive prompts were read once
            states = states[group]
            context_mask = request.prompt_mask
            kv_cache.reorder_cache(group)  # pyright: ignore[reportArgumentType]
        logits = transform(compute_logits(lm, states), torch.full_like(rows, t))
        # 2. draw a token for each row
        token = logits.argmax(-1) if noise is None else categorical_sample(logits, uniforms=noise[rows, t])
        ids[rows, t] = torch.where(live, token, 0)
        mask[rows, t] = live
        logprobs[rows, t] = torch.where(live, categorical_logprob(logits, token), 0)
        if values is not None and request.value_head is not None:
            values[rows, t] = torch.where(live, request.value_head(states), 0)
        if request.on_token is not None:
            request.on_token(token[live])
        # 3. which responses end here
        ends = torch.isin(token, stop_ids)
        if request.stop_strings is not None:
            ends |= request.stop_strings.completed(ids[rows, : t + 1])
        ended[rows] |= live & ends
        live = live & ~ends
        n_live = int(live.sum())
        if n_live == 0:
            break
        # 4. once half of the rows have ended they leave the cache, and cost nothing from here on
        if n_live <= len(rows) // 2:
            # Reordering also drops rows, and every kind of cache layer supports it.
            kv_cache.reorder_cache(live.nonzero().squeeze(-1))  # pyright: ignore[reportArgumentType]
            rows = rows[live]
            context_mask = context_mask[live]
            token = token[live]
            live = live[live]
        new_ids = token.unsqueeze(-1)
        context_mask = torch.cat([context_mask, torch.ones_like(new_ids, dtype=torch.bool)], dim=1)
    return SampledTokens(ids=ids, mask=mask, truncated=~ended, logprobs=logprobs, values=values)
