"""Log-probability, entropy and exact KLs of tokens from hidden states and an output head, in blocks of tokens.

The logits of all tokens of a forward pass would be the largest tensor of an update. Here they exist for one block at a
time, and the backward pass computes a block again unless its probabilities fit into a fixed budget, so memory does not
grow with tokens times vocabulary.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlhf.models.distribution import FixedDistribution, LogitTransform, OutputHead, cap_logits
from tabular.core.distributions import categorical_entropy, categorical_logprob
from tabular.core.kl import categorical_kl

BLOCK_ELEMENTS = {"cpu": 2**22, "cuda": 2**26}
"""Logits of a block: on a CPU they stay in the caches (16 MiB), on a GPU they fill the device (256 MiB)."""
MIN_BLOCK_TOKENS = 128
"""Of a block, whatever the vocabulary: each block reads the head's weights and writes their gradient once."""
STORED_ELEMENTS = 2**24
"""Probabilities that a forward pass stores for its backward pass (64 MiB)."""

LOG_P_FLOOR = -1e4
"""Stands for the log-probability -inf in products with the probability, which underflows to 0 far above it."""


@dataclass(frozen=True)
class TokenStatistics:
    """Of N tokens and the distributions that they come from, in nats."""

    logprobs: Float[Tensor, "N"]
    entropy: Float[Tensor, "N"] | None
    old_kl: Float[Tensor, "N"] | None
    """KL(old || new) over the vocabulary."""
    ref_kl: Float[Tensor, "N"] | None
    """KL(new || reference) over the vocabulary."""


@dataclass(frozen=True)
class _Request:
    """What is computed of the tokens, apart from the differentiable inputs."""

    token_ids: Int[Tensor, "N"]
    positions: Int[Tensor, "N"]
    transform: LogitTransform
    softcap: float | None
    with_entropy: bool
    old: FixedDistribution | None
    reference: FixedDistribution | None

    def fixed_logprobs(self, fixed: FixedDistribution, rows: slice) -> Float[Tensor, "n V"]:
        return self.transform(fixed.logits(rows), self.positions[rows]).log_softmax(-1)


def token_statistics(
    states: Float[Tensor, "N H"],
    head: OutputHead,
    token_ids: Int[Tensor, "N"],
    positions: Int[Tensor, "N"],
    transform: LogitTransform,
    *,
    with_entropy: bool = True,
    old: FixedDistribution | None = None,
    reference: FixedDistribution | None = None,
) -> TokenStatistics:
    """Statistics of tokens, differentiable in the states and in the head's weights.

    Args:
        states: hidden states before the tokens.
        head: from states to logits.
        positions: of the tokens within their responses.
        transform: from logits to the policy's distribution.
        with_entropy: False saves a pass over the vocabulary.
        old: with it, also the exact KL(old || new).
        reference: with it, also the exact KL(new || reference).
    """
    request = _Request(token_ids, positions, transform, head.softcap, with_entropy, old, reference)
    if type(head.module) is nn.Linear:
        apply = cast(_Apply, _LinearTokenStatistics.apply)  # pyright: ignore[reportUnknownMemberType]
        return TokenStatistics(*apply(states, head.module.weight, head.module.bias, request))
    # An adapted head: autograd differentiates it, block by block.
    blocks = [
        checkpoint(_block_statistics, states[rows], head, request, rows, use_reentrant=False)
        for rows in _blocks(len(states), head.vocabulary, states.device)
    ]
    logprobs, *others = zip(*blocks, strict=True)
    return TokenStatistics(torch.cat(logprobs), *(None if x[0] is None else torch.cat(x) for x in others))


_Statistics = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]
_Apply = Callable[[Tensor, Tensor, Tensor | None, _Request], _Statistics]


def _block_statistics(states: Float[Tensor, "n H"], head: OutputHead, request: _Request, rows: slice) -> _Statistics:
    """The statistics by their definitions."""
    logits = request.transform(head(states), request.positions[rows])
    return (
        categorical_logprob(logits, request.token_ids[rows]),
        categorical_entropy(logits) if request.with_entropy else None,
        None if request.old is None else categorical_kl(request.fixed_logprobs(request.old, rows), logits),
        None if request.reference is None else categorical_kl(logits, request.fixed_logprobs(request.reference, rows)),
    )


@dataclass(frozen=True)
class _Linear:
    """A linear head on the states of a forward pass, cast to the type that the products are computed in."""

    states: Float[Tensor, "N H"]
    weight: Float[Tensor, "V H"]
    bias: Float[Tensor, "V"] | None
    request: _Request

    @classmethod
    def cast(cls, inputs: tuple[Tensor, Tensor, Tensor | None], dtype: torch.dtype, request: _Request) -> "_Linear":
        states, weight, bias = inputs
        return cls(states.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype), request)

    def raw_logits(self, rows: slice) -> Float[Tensor, "n V"]:
        """Logits before the transform."""
        with torch.autocast(self.states.device.type, enabled=False):
            return cap_logits(F.linear(self.states[rows], self.weight, self.bias).float(), self.request.softcap)

    def logprobs(self, rows: slice) -> Float[Tensor, "n V"]:
        return self.request.transform(self.raw_logits(rows), self.request.positions[rows]).log_softmax(-1)


class _LinearTokenStatistics(torch.autograd.Function):
    """The statistics of a linear head, with the backward pass written out.

    With `p = softmax(logits)`, `a` the token, `H` the entropy, `q` the old and `r` the reference's distribution:
    `d logprob / d logit_v = [v = a] - p_v`, `d H / d logit_v = -p_v (log p_v + H)`,
    `d KL(q || p) / d logit_v = p_v - q_v`, `d KL(p || r) / d logit_v = p_v (log p_v - log r_v - KL(p || r))`.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, request: _Request) -> _Statistics:
        device = states.device
        autocast = torch.is_autocast_enabled(device.type)
        ctx.dtype = torch.get_autocast_dtype(device.type) if autocast else states.dtype
        ctx.request = request
        ctx.stored = {}
        ctx.set_materialize_grads(False)
        linear = _Linear.cast((states, weight, bias), ctx.dtype, request)
        # The derivative of a softcap needs the logits themselves, so nothing is stored for it.
        n_stored = STORED_ELEMENTS // len(weight) if any(ctx.needs_input_grad) and request.softcap is None else 0

        def empty() -> Tensor:
            return torch.empty(len(states), dtype=torch.float32, device=device)

        logprobs = empty()
        entropy = empty() if request.with_entropy else None
        old_kl = empty() if request.old is not None else None
        ref_kl = empty() if request.reference is not None else None
        for rows in _blocks(len(states), len(weight), device):
            log_p = linear.logprobs(rows)
            logprobs[rows] = log_p.gather(-1, request.token_ids[rows, None])[:, 0]
            stores = rows.stop <= n_stored
            if not stores and entropy is None and old_kl is None and ref_kl is None:
                continue
            p = log_p.exp()
            log_p.clamp_min_(LOG_P_FLOOR)
            if stores:
                ctx.stored[rows.start] = p
            if request.old is not None and old_kl is not None:
                log_q = request.fixed_logprobs(request.old, rows)
                old_kl[rows] = (log_q.exp() * (log_q.clamp_min_(LOG_P_FLOOR) - log_p)).sum(-1)
            if request.reference is not None and ref_kl is not None:
                log_r = request.fixed_logprobs(request.reference, rows).clamp_min_(LOG_P_FLOOR)
                ref_kl[rows] = (p * (log_p - log_r)).sum(-1)
            if entropy is not None:
                entropy[rows] = -log_p.mul_(p).sum(-1)
        ctx.save_for_backward(states, weight, bias, entropy, ref_kl)
        return logprobs, entropy, old_kl, ref_kl

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        states, weight, bias, entropy, ref_kl = ctx.saved_tensors
        if all(grad is None for grad in grads):
            return None, None, None, None
        needs_states, needs_weight, needs_bias, _ = ctx.needs_input_grad
        linear = _Linear.cast((states, weight, bias), ctx.dtype, ctx.request)
        grad_states = torch.empty_like(states) if needs_states else None
        # Summed over blocks in float32 at least, whatever the weights' own type.
        sum_dtype = torch.promote_types(weight.dtype, torch.float32)
        grad_weight = torch.empty_like(weight, dtype=sum_dtype) if needs_weight else None
        grad_bias = torch.zeros_like(bias) if needs_bias else None
        for rows in _blocks(len(states), len(weight), states.device):
            grad = _logit_gradient(linear, rows, ctx.stored.pop(rows.start, None), grads, entropy, ref_kl).to(ctx.dtype)
            if grad_states is not None:
                grad_states[rows] = grad @ linear.weight
            if grad_weight is not None:
                _add_product(grad_weight, grad.T, linear.states[rows], first=rows.start == 0)
            if grad_bias is not None:
                grad_bias += grad.sum(0)
        return grad_states, None if grad_weight is None else grad_weight.to(weight.dtype), grad_bias, None


def _logit_gradient(
    linear: _Linear,
    rows: slice,
    p: Float[Tensor, "n V"] | None,
    grads: tuple[Tensor | None, ...],
    entropy: Float[Tensor, "N"] | None,
    ref_kl: Float[Tensor, "N"] | None,
) -> Float[Tensor, "n V"]:
    """The gradient of a block's raw logits.

    Args:
        p: the block's probabilities, which are overwritten; None: they are computed again.
        grads: of log-probabilities, entropies, KL(old || new) and KL(new || reference); None where unused.
    """
    request = linear.request
    raw_logits = None
    if p is None:
        raw_logits = linear.raw_logits(rows)
        p = request.transform(raw_logits, request.positions[rows]).softmax(-1)
    grad_logprobs, grad_entropy, grad_old_kl, grad_ref_kl = (None if g is None else g[rows, None] for g in grads)
    # Terms that are multiples of p are summed first: factor * p.
    factor: Tensor | float = 0.0 if grad_logprobs is None else -grad_logprobs
    if grad_old_kl is not None:
        factor = factor + grad_old_kl
    if grad_entropy is not None or grad_ref_kl is not None:
        log_p = p.log().clamp_min_(LOG_P_FLOOR)
        if grad_ref_kl is not None and ref_kl is not None and request.reference is not None:
            log_r = request.fixed_logprobs(request.reference, rows).clamp_min_(LOG_P_FLOOR)
            factor = factor + grad_ref_kl * (log_p - log_r - ref_kl[rows, None])
        if grad_entropy is not None and entropy is not None:
            factor = factor - grad_entropy * (log_p + entropy[rows, None])
    grad = p.mul_(factor)
    if grad_old_kl is not None and request.old is not None:
        grad -= grad_old_kl * request.fixed_logprobs(request.old, rows).exp()
    if grad_logprobs is not None:
        grad.scatter_add_(-1, request.token_ids[rows, None], grad_logprobs)
    if request.transform.temperature != 1.0:
        grad /= request.transform.temperature
    if request.softcap is not None and raw_logits is not None:
        grad *= 1 - (raw_logits / request.softcap) ** 2
    return grad


def _add_product(total: Float[Tensor, "V H"], a: Float[Tensor, "V n"], b: Float[Tensor, "n H"], first: bool) -> None:
    """`total += a @ b`; the first block overwrites what the total holds."""
    if total.dtype == a.dtype:
        total.addmm_(a, b, beta=0.0 if first else 1.0)
    elif first:
        total.copy_(a @ b)
    else:
        total += a @ b


def token_statistics_bytes(n_tokens: int, vocabulary: int, device: torch.device) -> float:
    """Memory that the statistics of a forward and backward pass need: three tensors of a block, and what is stored."""
    block = min(n_tokens, _block_size(vocabulary, device)) * vocabulary
    return 4.0 * (3 * block + min(STORED_ELEMENTS, n_tokens * vocabulary))


def _block_size(vocabulary: int, device: torch.device) -> int:
    elements = BLOCK_ELEMENTS["cpu" if device.type == "cpu" else "cuda"]
    return max(MIN_BLOCK_TOKENS, elements // vocabulary)


def _blocks(n_tokens: int, vocabulary: int, device: torch.device) -> Iterator[slice]:
    size = _block_size(vocabulary, device)
    return (slice(start, min(start + size, n_tokens)) for start in range(0, n_tokens, size))
