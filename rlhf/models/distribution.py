"""From hidden states to token distributions: logits, their transform, and exact KL divergences.

Logits exist only where a response token was sampled: hidden states at those positions are gathered into one [N, hidden]
matrix first, so neither prompts nor padding ever meet the vocabulary.
"""

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlhf.errors import UserError
from rlhf.models.trunk import trunk_inputs, unwrap_peft
from tabular.core.distributions import BLOCK_ELEMENTS
from tabular.core.kl import categorical_kl

Head = Callable[[Tensor], Tensor]
"""From hidden states [N, H] to logits [N, V]."""


@functools.cache
def token_mask(ids: tuple[int, ...], vocabulary: int, device: torch.device) -> Bool[Tensor, "V"]:
    """True on the tokens `ids`. Made once: a copy from the host to the device cannot be part of a CUDA graph."""
    mask = torch.zeros(vocabulary, dtype=torch.bool)
    mask[list(ids)] = True
    return mask.to(device)


@dataclass(frozen=True)
class LogitTransform:
    """What turns the model's logits into the policy's distribution, in sampling and in scoring alike.

    A distribution that was truncated or rescaled in the sampler alone would make every stored log-probability wrong.
    """

    temperature: float = 1.0
    suppress_ids: tuple[int, ...] = ()
    """Tokens with probability 0."""
    min_new_tokens: int = 0
    """Number of first positions of a response at which the stop tokens have probability 0."""
    stop_ids: tuple[int, ...] = ()
    """Tokens that end a response."""

    def __call__(self, logits: Float[Tensor, "N V"], positions: Int[Tensor, "N"]) -> Float[Tensor, "N V"]:
        """Transformed logits at the given positions of a response; its first token is at position 0."""
        if self.temperature != 1.0:  # at 1 the division would only copy the largest tensor there is
            logits = logits / self.temperature
        if self.suppress_ids:
            logits = logits.masked_fill(token_mask(self.suppress_ids, logits.shape[-1], logits.device), -torch.inf)
        if self.min_new_tokens:
            is_stop = token_mask(self.stop_ids, logits.shape[-1], logits.device)
            logits = logits.masked_fill(is_stop & (positions < self.min_new_tokens).unsqueeze(-1), -torch.inf)
        return logits


@dataclass(frozen=True)
class FixedDistribution:
    """A distribution without gradient that the policy is compared with: hidden states and the head that reads them."""

    states: Float[Tensor, "N H"]
    head: Head

    def logits(self) -> Float[Tensor, "N V"]:
        return self.head(self.states)


def compute_logits(lm: Any, states: Float[Tensor, "N H"], head: Any = None) -> Float[Tensor, "N V"]:
    """Logits of hidden states in float32, by the model's output head or by the `head` given."""
    model = unwrap_peft(lm)
    logits = (head or model.get_output_embeddings())(states).float()
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def frozen_head(lm: Any) -> Head:
    """The model's output head with its present weights; a copy where the head itself is trained."""
    head = unwrap_peft(lm).get_output_embeddings()
    if any(p.requires_grad for p in head.parameters()):
        head = copy.deepcopy(head).requires_grad_(False)
    return lambda states: compute_logits(lm, states, head)


@torch.no_grad()
def check_head(lm: Any) -> None:
    """Refuse a model whose logits are not its head applied to its trunk: every log-probability would be wrong.

    Raises:
        UserError: the model changes its logits after the head in an unsupported way.
    """
    model = unwrap_peft(lm)
    device = model.get_output_embeddings().weight.device
    ids = torch.arange(1, 5, device=device).unsqueeze(0)
    inputs = {"input_ids": ids, **trunk_inputs(lm, torch.ones_like(ids, dtype=torch.bool))}
    expected = model(**inputs).logits[0].float()
    computed = compute_logits(lm, model.base_model(**inputs).last_hidden_state[0])
    if not torch.allclose(expected, computed, rtol=1e-2, atol=1e-3):
        raise UserError(
            f"{type(model).__name__} changes its logits after the output head in a way that is not supported "
            f"(largest difference {float((expected - computed).abs().max()):.3g}); it cannot be trained"
        )


def token_positions(mask: Bool[Tensor, "B R"]) -> Int[Tensor, "N"]:
    """The position within its response of each of the N True tokens, row by row."""
    return torch.arange(mask.shape[1], device=mask.device).expand_as(mask)[mask]


def scatter_to_mask(values: Float[Tensor, "N ..."], mask: Bool[Tensor, "B R"]) -> Float[Tensor, "B R ..."]:
    """Put one number or vector for each of the N True tokens back at its place in [B, R], zeros elsewhere."""
    shape = (*mask.shape, *values.shape[1:])
    expanded = mask.view(*mask.shape, *(1,) * (values.dim() - 1)).expand(shape)
    return torch.zeros(shape, dtype=values.dtype, device=values.device).masked_scatter(expanded, values)


def exact_kl(p_logits: Float[Tensor, "N V"], q_logits: Float[Tensor, "N V"]) -> Float[Tensor, "N"]:
    """`KL(p || q)` of each row over the whole vocabulary.

    In blocks of rows that the backward pass recomputes: a softmax of all logits at once, the largest tensor there is,
    would be in memory several times over.
    """
    size = max(1, BLOCK_ELEMENTS // p_logits.shape[-1])
    blocks = zip(p_logits.split(size), q_logits.split(size), strict=True)
    return torch.cat([checkpoint(categorical_kl, p, q, use_reentrant=False) for p, q in blocks])
