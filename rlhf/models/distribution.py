"""From hidden states to token distributions: output heads and the transform of their logits.

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

from rlhf.errors import UserError
from rlhf.models.trunk import trunk_inputs, unwrap_peft

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
class OutputHead:
    """From hidden states to logits in float32."""

    module: Any
    """The model's own head: a linear layer, unless adapters extend it."""
    softcap: float | None = None
    """Bound on the absolute logits, which tanh approaches (Gemma 2)."""

    @classmethod
    def of(cls, lm: Any) -> "OutputHead":
        model = unwrap_peft(lm)
        return cls(model.get_output_embeddings(), getattr(model.config, "final_logit_softcapping", None))

    @property
    def vocabulary(self) -> int:
        return self.module.weight.shape[0]

    def __call__(self, states: Float[Tensor, "N H"]) -> Float[Tensor, "N V"]:
        return cap_logits(self.module(states).float(), self.softcap)

    def frozen(self) -> "OutputHead":
        """The head with its present weights; a copy where the head itself is trained."""
        if not any(p.requires_grad for p in self.module.parameters()):
            return self
        return OutputHead(copy.deepcopy(self.module).requires_grad_(False), self.softcap)


def cap_logits(logits: Float[Tensor, "N V"], softcap: float | None) -> Float[Tensor, "N V"]:
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


@dataclass(frozen=True)
class FixedDistribution:
    """A distribution without gradient that the policy is compared with: hidden states and the head that reads them."""

    states: Float[Tensor, "N H"]
    head: Head

    def logits(self, rows: slice) -> Float[Tensor, "n V"]:
        """Of some of the states."""
        return self.head(self.states[rows])


def compute_logits(lm: Any, states: Float[Tensor, "N H"]) -> Float[Tensor, "N V"]:
    """Logits of hidden states in float32, by the model's output head."""
    return OutputHead.of(lm)(states)


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
