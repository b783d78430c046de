"""The one place that samples text.

A response is a function of the weights, the prompt and one row of uniform numbers: token t is the inverse of the
cumulative distribution at the row's t-th number. Nothing else is drawn, so the same prompts get the same responses
however they are batched, on however many processes, and after a resume, up to the rounding of the forward pass.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf.config import GenerationConfig
from rlhf.errors import UserError
from rlhf.models import inner, logits_of, trunk_inputs
from tabular.core.distributions import categorical_sample


def stop_ids(tokenizer: Any, lm_config: Any, config: GenerationConfig, generation_config: Any = None) -> list[int]:
    """Ids that end a response: the configured ones, or every end token that tokenizer and model name.

    Raises:
        UserError: there is none, so no response could ever end.
    """
    if config.stop_ids is not None:
        vocabulary = lm_config.get_text_config().vocab_size
        if bad := [i for i in config.stop_ids if not 0 <= i < vocabulary]:
            raise UserError(f"generation.stop_ids names {bad[0]}, but the model's tokens are 0 to {vocabulary - 1}")
        return config.stop_ids
    named = (tokenizer.eos_token_id, lm_config.eos_token_id, getattr(generation_config, "eos_token_id", None))
    found = {i for ids in named if ids is not None for i in (ids if isinstance(ids, list) else [ids])}
    if not found:
        raise UserError(
            "neither the tokenizer nor the model names an end token, so no response could end; "
            "name its ids with --generation.stop_ids '[...]'"
        )
    return sorted(found)


def uniforms(
    key: Sequence[int], rows: Int[Tensor, "N"] | Sequence[int], total: int, length: int
) -> Float[Tensor, "N R"]:
    """The numbers that decide the responses of the given rows of a batch of `total`, as a function of `key` alone."""
    seed = int.from_bytes(_digest(key), "little")
    noise = torch.rand(total, length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise[torch.as_tensor(rows)]


def _digest(key: Sequence[int]) -> bytes:
    import hashlib

    return hashlib.sha256(repr(tuple(key)).encode()).digest()[:7]


@torch.no_grad()
def sample(
    lm: Any,
    prompt_ids: Int[Tensor, "B P"],
    prompt_mask: Bool[Tensor, "B P"],
    noise: Float[Tensor, "B R"],
    stops: Sequence[int],
    temperature: float = 1.0,
    max_rows: int | None = None,
) -> tuple[Int[Tensor, "B R2"], Bool[Tensor, "B R2"], Bool[Tensor, "B"]]:
    """Continue every prompt until a stop id or for `R` tokens.

    Returns:
        ids, right-padded to the longest response; the mask of the sampled tokens, the stop id included; and True for
        responses that the limit cut off.
    """
    size = max_rows or len(prompt_ids)
    groups = [slice(i, i + size) for i in range(0, len(prompt_ids), size)]
    parts = [_sample_together(lm, prompt_ids[g], prompt_mask[g], noise[g], stops, temperature) for g in groups]
    ids, mask = (torch.cat([part[i] for part in parts]) for i in range(2))
    ended = torch.isin(ids, torch.tensor(list(stops), device=ids.device)) & mask
    width = int(mask.any(0).sum())
    return ids[:, :width], mask[:, :width], ~ended.any(1)


def _sample_together(
    lm: Any,
    prompt_ids: Int[Tensor, "B P"],
    prompt_mask: Bool[Tensor, "B P"],
    noise: Float[Tensor, "B R"],
    stops: Sequence[int],
    temperature: float,
) -> tuple[Int[Tensor, "B R"], Bool[Tensor, "B R"]]:
    from transformers import DynamicCache

    model, device = inner(lm), prompt_ids.device
    limit = noise.shape[1]
    noise, stop = noise.to(device), torch.tensor(list(stops), device=device)
    ids = torch.zeros(len(prompt_ids), limit, dtype=torch.long, device=device)
    mask = torch.zeros(len(prompt_ids), limit, dtype=torch.bool, device=device)

    cache = DynamicCache(config=model.config)
    rows = torch.arange(len(prompt_ids), device=device)  # which response each row of the cache belongs to
    live = torch.ones_like(rows, dtype=torch.bool)
    seen, fed = prompt_mask, prompt_ids
    for t in range(limit):
        known = trunk_inputs(lm, seen)
        if "position_ids" in known:
            known["position_ids"] = known["position_ids"][:, -fed.shape[1] :]
        out = model.base_model(input_ids=fed, past_key_values=cache, use_cache=True, **known)
        logits = logits_of(lm, out.last_hidden_state[:, -1]) / temperature
        picked = categorical_sample(logits, uniforms=noise[rows, t])
        ids[rows, t] = torch.where(live, picked, 0)
        mask[rows, t] = live
        live = live & ~torch.isin(picked, stop)
        alive = int(live.sum())
        if alive == 0:
            break
        if alive <= len(rows) // 2:  # responses that ended cost nothing from here on
            rows, seen, picked = rows[live], seen[live], picked[live]
            cache.batch_select_indices(live.nonzero().squeeze(-1))
            live = live[live]
        fed = picked.unsqueeze(-1)
        seen = torch.cat([seen, torch.ones_like(fed, dtype=torch.bool)], dim=1)
    return ids, mask
