"""The one place that samples text.

A response is a function of the weights, the prompt and one row of uniform numbers: token t is the inverse of the
cumulative distribution at the row's t-th number. Nothing else is drawn, so the same prompts get the same responses
however they are batched, on however many processes, and after a resume, up to the rounding of the forward pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf.config.jobs import GenerationConfig
from rlhf.errors import UserError
from rlhf.models.actor_critic import LogitTransform, cache_argument, compute_logits, trunk_inputs, unwrap_peft
from tabular.core.distributions import categorical_logprob, categorical_sample


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
    if not found and not config.stop_strings:
        raise UserError(
            "neither the tokenizer nor the model names an end token, so no response could end; "
            "name its ids with --generation.stop_ids '[...]'"
        )
    return sorted(found)


def make_logit_transform(config: GenerationConfig, stops: Sequence[int], vocabulary: int) -> LogitTransform:
    """What a run's settings make of the logits.

    Raises:
        UserError: an id is none of the model's.
    """
    if bad := [i for i in config.suppress_ids if not 0 <= i < vocabulary]:
        raise UserError(f"generation.suppress_ids names {bad[0]}, but the model's tokens are 0 to {vocabulary - 1}")
    if len(set(config.suppress_ids)) >= vocabulary:
        raise UserError("generation.suppress_ids holds every token of the model, so nothing could be said")
    if stops and all(i in config.suppress_ids for i in stops) and not config.stop_strings:
        raise UserError(
            f"generation.suppress_ids holds every end token ({', '.join(map(str, stops))}), so no response could end"
        )
    return LogitTransform(config.temperature, tuple(config.suppress_ids), config.min_new_tokens, tuple(stops))


def uniform_noise(
    key: Sequence[int], rows: Int[Tensor, "N"] | Sequence[int], total: int, length: int
) -> Float[Tensor, "N R"]:
    """The numbers that decide the responses of the given rows of a batch of `total`, as a function of `key` alone."""
    seed = int.from_bytes(_digest(key), "little")
    noise = torch.rand(total, length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise[torch.as_tensor(rows)]


def _digest(key: Sequence[int]) -> bytes:
    import hashlib

    return hashlib.sha256(repr(tuple(key)).encode()).digest()[:7]


@dataclass(frozen=True)
class SampledTokens:
    """Responses as they were sampled, padded on the right to the longest."""

    ids: Int[Tensor, "B R"]
    mask: Bool[Tensor, "B R"]
    """True on sampled tokens, the end token included."""
    truncated: Bool[Tensor, "B"]
    """True where the length limit came before an end."""
    logprobs: Float[Tensor, "B R"]
    """Log-probability of each token, as the sampler saw it."""


@dataclass(frozen=True)
class StopStrings:
    """Texts that end a response: the token that completes one is the response's last."""

    tokenizer: Any
    strings: tuple[str, ...]

    def completed(self, ids: Int[Tensor, "B T"]) -> Bool[Tensor, "B"]:
        """Whether the last token of each row completes a stop string."""
        # A token stands for one byte at least, so this many of them hold the longest string; the first one's leading
        # space may be lost in decoding, so there is one more.
        tail = ids[:, -(1 + max(len(s.encode()) for s in self.strings)) :]
        texts = self.tokenizer.batch_decode(tail, skip_special_tokens=False)
        earlier = self.tokenizer.batch_decode(tail[:, :-1], skip_special_tokens=False)
        found = [
            any(text.count(s) > before.count(s) for s in self.strings)
            for text, before in zip(texts, earlier, strict=True)
        ]
        return torch.tensor(found, device=ids.device)

    def cut(self, ids: list[int], text: str) -> str:
        """A response's text, special tokens left out, before its stop string, which is sought with them in place."""
        whole = self.tokenizer.decode(ids, skip_special_tokens=False)
        start = min((i for s in self.strings if (i := whole.find(s)) >= 0), default=None)
        if start is None:
            return text
        before = whole[:start]
        for token in self.tokenizer.added_tokens_decoder.values():
            before = before.replace(token.content, "") if token.special else before
        return before


@torch.no_grad()
def sample(
    lm: Any,
    prompt_ids: Int[Tensor, "B P"],
    prompt_mask: Bool[Tensor, "B P"],
    noise: Float[Tensor, "B R"] | None,
    decoding: LogitTransform,
    max_new_tokens: int,
    strings: StopStrings | None = None,
    max_rows: int | None = None,
) -> SampledTokens:
    """Continue every prompt until an end token, a stop string, or for `max_new_tokens` tokens.

    `noise=None` takes the most probable token each time (greedy).
    """
    size = max_rows or len(prompt_ids)
    parts = []
    for g in (slice(i, i + size) for i in range(0, len(prompt_ids), size)):
        numbers = None if noise is None else noise[g]
        parts.append(_sample_together(lm, prompt_ids[g], prompt_mask[g], numbers, decoding, max_new_tokens, strings))
    ids, mask, ended, logprobs = (torch.cat(x) for x in zip(*parts, strict=True))
    width = int(mask.any(0).sum())
    return SampledTokens(ids[:, :width], mask[:, :width], ~ended, logprobs[:, :width])


def _sample_together(
    lm: Any,
    prompt_ids: Int[Tensor, "B P"],
    prompt_mask: Bool[Tensor, "B P"],
    noise: Float[Tensor, "B R"] | None,
    decoding: LogitTransform,
    limit: int,
    strings: StopStrings | None,
) -> tuple[Int[Tensor, "B R"], Bool[Tensor, "B R"], Bool[Tensor, "B"], Float[Tensor, "B R"]]:
    """Ids, mask, whether each response ended, log-probabilities."""
    from transformers import DynamicCache

    model, device, count = unwrap_peft(lm), prompt_ids.device, len(prompt_ids)
    noise = None if noise is None else noise.to(device)
    stop = torch.tensor(decoding.stops, dtype=torch.long, device=device)
    ids = torch.zeros(count, limit, dtype=torch.long, device=device)
    mask = torch.zeros(count, limit, dtype=torch.bool, device=device)
    ended = torch.zeros(count, dtype=torch.bool, device=device)
    logprobs = torch.zeros(count, limit, device=device)

    cache = DynamicCache(config=model.config)
    rows = torch.arange(count, device=device)  # which response each row of the cache belongs to
    live = torch.ones_like(rows, dtype=torch.bool)
    seen, fed = prompt_mask, prompt_ids
    for t in range(limit):
        known = trunk_inputs(lm, seen, fed.shape[1])
        out = model.base_model(input_ids=fed, use_cache=True, **{cache_argument(lm): cache}, **known)
        logits = decoding(compute_logits(lm, out.last_hidden_state[:, -1]), torch.full_like(rows, t))
        picked = logits.argmax(-1) if noise is None else categorical_sample(logits, uniforms=noise[rows, t])
        ids[rows, t] = torch.where(live, picked, 0)
        mask[rows, t] = live
        logprobs[rows, t] = torch.where(live, categorical_logprob(logits, picked), 0)
        ends = torch.isin(picked, stop)
        if strings is not None:
            ends |= strings.completed(ids[rows, : t + 1])
        ended[rows] |= live & ends
        live = live & ~ends
        alive = int(live.sum())
        if alive == 0:
            break
        if alive <= len(rows) // 2:  # responses that ended cost nothing from here on
            rows, seen, picked = rows[live], seen[live], picked[live]
            # Reordering also leaves out, and every kind of layer knows how to.
            cache.reorder_cache(live.nonzero().squeeze(-1))  # pyright: ignore[reportArgumentType]
            live = live[live]
        fed = picked.unsqueeze(-1)
        seen = torch.cat([seen, torch.ones_like(fed, dtype=torch.bool)], dim=1)
    return ids, mask, ended, logprobs
