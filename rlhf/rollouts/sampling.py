"""Sampling responses from a language model, token by token over a growing key-value cache.

A response is a function of the weights, the prompt and one row of uniform numbers: token t is the inverse of the
cumulative distribution at the row's t-th number. No other random number is drawn, so the same prompts get the same
responses however they are batched, on however many processes, and after a resume, up to the rounding of the forward.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf.models.distribution import LogitTransform, compute_logits
from rlhf.models.trunk import cache_argument, trunk_inputs, unwrap_peft
from rlhf.rollouts.stopping import StopStrings
from tabular.core.distributions import categorical_logprob, categorical_sample


@dataclass(frozen=True)
class SampledTokens:
    """Sampled responses, padded on the right to the longest."""

    ids: Int[Tensor, "B R"]
    mask: Bool[Tensor, "B R"]
    """True on sampled tokens, the stop token included."""
    truncated: Bool[Tensor, "B"]
    """True where the length limit came before an end."""
    logprobs: Float[Tensor, "B R"]
    """Log-probability of each token, as computed while sampling."""


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
) -> SampledTokens:
    """Continue every prompt until a stop token, a stop string, or for `max_new_tokens` tokens.

    Args:
        noise: uniform numbers, see `uniform_noise`; None takes the most probable token each time (greedy).
        max_rows: responses sampled at once; None samples them all together.
    """
    size = max_rows or len(prompt_ids)
    parts = [
        _sample_rows(
            lm,
            prompt_ids[start : start + size],
            prompt_mask[start : start + size],
            None if noise is None else noise[start : start + size],
            transform,
            max_new_tokens,
            stop_strings,
        )
        for start in range(0, len(prompt_ids), size)
    ]
    mask = torch.cat([part.mask for part in parts])
    width = int(mask.any(0).sum())
    return SampledTokens(
        ids=torch.cat([part.ids for part in parts])[:, :width],
        mask=mask[:, :width],
        truncated=torch.cat([part.truncated for part in parts]),
        logprobs=torch.cat([part.logprobs for part in parts])[:, :width],
    )


def _sample_rows(
    lm: Any,
    prompt_ids: Int[Tensor, "B P"],
    prompt_mask: Bool[Tensor, "B P"],
    noise: Float[Tensor, "B R"] | None,
    transform: LogitTransform,
    max_new_tokens: int,
    stop_strings: StopStrings | None,
) -> SampledTokens:
    """Sample some responses together; tensors are `max_new_tokens` wide."""
    from transformers import DynamicCache

    trunk = unwrap_peft(lm).base_model
    device = prompt_ids.device
    count = len(prompt_ids)
    noise = None if noise is None else noise.to(device)
    stop_ids = torch.tensor(transform.stop_ids, dtype=torch.long, device=device)
    ids = torch.zeros(count, max_new_tokens, dtype=torch.long, device=device)
    mask = torch.zeros(count, max_new_tokens, dtype=torch.bool, device=device)
    logprobs = torch.zeros(count, max_new_tokens, device=device)
    ended = torch.zeros(count, dtype=torch.bool, device=device)

    kv_cache = DynamicCache(config=unwrap_peft(lm).config)
    rows = torch.arange(count, device=device)  # the response that each row of the cache belongs to
    live = torch.ones_like(rows, dtype=torch.bool)  # rows of the cache whose response has not ended
    context_mask = prompt_mask
    new_ids = prompt_ids
    for t in range(max_new_tokens):
        # 1. one forward over the new tokens: the whole prompt first, then one token a row
        inputs = trunk_inputs(lm, context_mask, new_tokens=new_ids.shape[1])
        out = trunk(input_ids=new_ids, use_cache=True, **{cache_argument(lm): kv_cache}, **inputs)
        logits = transform(compute_logits(lm, out.last_hidden_state[:, -1]), torch.full_like(rows, t))
        # 2. draw a token for each row
        token = logits.argmax(-1) if noise is None else categorical_sample(logits, uniforms=noise[rows, t])
        ids[rows, t] = torch.where(live, token, 0)
        mask[rows, t] = live
        logprobs[rows, t] = torch.where(live, categorical_logprob(logits, token), 0)
        # 3. which responses end here
        ends = torch.isin(token, stop_ids)
        if stop_strings is not None:
            ends |= stop_strings.completed(ids[rows, : t + 1])
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
    return SampledTokens(ids=ids, mask=mask, truncated=~ended, logprobs=logprobs)
