"""Actor, critic and reference, and how a score is read. The one place that turns states to logits.

Logits exist only where a response token was sampled: the trunk's states at those places are gathered into one
[N, hidden] matrix first, so neither prompts nor padding ever meet the vocabulary.
"""

import copy
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rlhf.errors import UserError
from rlhf.models.adapters import CRITIC, POLICY, active_adapter, has_adapters, is_critic_adapter_weight
from rlhf.records import PolicyOutput, Tokens, last_index, mask_up_to_last
from tabular.core.distributions import BLOCK_ELEMENTS, logprob_and_entropy
from tabular.core.kl import categorical_kl


def unwrap_peft(lm: Any) -> Any:
    """The transformers model itself, without PEFT's wrapping; its adapters stay active."""
    return lm.get_base_model() if hasattr(lm, "get_base_model") else lm


def disable_dropout(model: Any) -> dict[str, float]:
    """Set every dropout rate to zero; otherwise two forwards differ and the first ratio is not 1.

    Rates, not `eval()`: evaluation mode would switch gradient checkpointing off as well. Some families read them from
    the config at every forward, so they are zero there too; returns what they were, for the config that is saved.
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


def positions(mask: Bool[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    """Position ids that give the first real token position 0, however much padding stands before it."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def trunk_inputs(lm: Any, mask: Bool[Tensor, "B L"], fed: int | None = None) -> dict[str, Tensor]:
    """The arguments by which a trunk learns what is padding; of the last `fed` tokens, where a cache holds the rest."""
    takes = _arguments(type(unwrap_peft(lm).base_model))
    if "position_ids" in takes:
        return {"attention_mask": mask.long(), "position_ids": positions(mask)[:, -(fed or 0) :]}
    # A recurrent trunk has no places: it looks at the mask of what it is fed alone.
    return {"attention_mask": mask.long() if "past_key_values" in takes else mask.long()[:, -(fed or 0) :]}


def cache_argument(lm: Any) -> str:
    """What a trunk calls its cache."""
    return "past_key_values" if "past_key_values" in _arguments(type(unwrap_peft(lm).base_model)) else "cache_params"


@functools.cache
def _arguments(trunk: type) -> frozenset[str]:
    return frozenset(inspect.signature(trunk.forward).parameters)  # pyright: ignore[reportAttributeAccessIssue]


def compute_logits(lm: Any, hidden: Float[Tensor, "N H"], head: Any = None) -> Float[Tensor, "N V"]:
    """What the model's head, or an earlier state of it, says of hidden states, in float32."""
    model = unwrap_peft(lm)
    logits = (head or model.get_output_embeddings())(hidden).float()
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def trunk_states(lm: Any, tokens: Tokens) -> Float[Tensor, "B S H"]:
    """The trunk's last states around a response of R tokens: before its first token, ..., after its last; S = R + 1."""
    ids = torch.cat([tokens.prompt_ids, tokens.response_ids], dim=1)
    # The environment's words between turns are read, though not scored.
    mask = torch.cat([tokens.prompt_mask, mask_up_to_last(tokens.response_mask)], dim=1)
    hidden = unwrap_peft(lm).base_model(input_ids=ids, use_cache=False, **trunk_inputs(lm, mask)).last_hidden_state
    return hidden[:, tokens.prompt_ids.shape[1] - 1 :]


def response_states(lm: Any, tokens: Tokens) -> Float[Tensor, "N H"]:
    """The trunk's last state before each of the N True response tokens, row by row."""
    return trunk_states(lm, tokens)[:, :-1][tokens.response_mask]


def scatter_to_mask(values: Float[Tensor, "N ..."], mask: Bool[Tensor, "B R"]) -> Float[Tensor, "B R ..."]:
    """Put one number or state per True place back to its place, zeros elsewhere."""
    shape = (*mask.shape, *values.shape[1:])
    places = mask.view(*mask.shape, *(1,) * (values.dim() - 1)).expand(shape)
    return torch.zeros(shape, dtype=values.dtype, device=values.device).masked_scatter(places, values)


@torch.no_grad()
def check_head(lm: Any) -> None:
    """Refuse a model whose logits are not its head applied to its trunk: every log-probability would be wrong."""
    model = unwrap_peft(lm)
    device = model.get_output_embeddings().weight.device
    ids = torch.arange(1, 5, device=device).unsqueeze(0)
    mask = torch.ones_like(ids, dtype=torch.bool)
    whole = model(input_ids=ids, **trunk_inputs(lm, mask)).logits[0].float()
    parts = compute_logits(lm, model.base_model(input_ids=ids, **trunk_inputs(lm, mask)).last_hidden_state[0])
    if not torch.allclose(whole, parts, rtol=1e-2, atol=1e-3):
        raise UserError(
            f"{type(model).__name__} changes its logits after the head in a way that is not known here "
            f"(largest difference {float((whole - parts).abs().max()):.3g}); it cannot be trained"
        )


@dataclass(frozen=True)
class LogitTransform:
    """What makes a distribution of logits: the same when text is sampled and when it is scored.

    A distribution that was cut or bent in the sampler alone would make every stored log-probability wrong.
    """

    temperature: float = 1.0
    suppress_ids: tuple[int, ...] = ()
    """Tokens that are never possible."""
    min_new_tokens: int = 0
    """The first places of a response, at which the end tokens are not possible."""
    stops: tuple[int, ...] = ()
    """End tokens."""

    def __call__(self, logits: Float[Tensor, "N V"], places: Int[Tensor, "N"]) -> Float[Tensor, "N V"]:
        """The logits of the distribution at the given places of a response, its first token at place 0."""
        logits = logits / self.temperature
        if self.suppress_ids:
            logits = logits.index_fill(-1, torch.tensor(self.suppress_ids, device=logits.device), -torch.inf)
        if self.min_new_tokens:
            ends = torch.zeros(logits.shape[-1], dtype=torch.bool, device=logits.device)
            ends[list(self.stops)] = True
            logits = logits.masked_fill(ends & (places < self.min_new_tokens).unsqueeze(-1), -torch.inf)
        return logits


@dataclass(frozen=True)
class FixedDistribution:
    """A fixed distribution to measure the policy against: states of a trunk, and the head that reads them."""

    states: Float[Tensor, "N H"]
    head: Callable[[Tensor], Tensor]
    """From states [N, H] to logits [N, V]."""


def token_positions(mask: Bool[Tensor, "B R"]) -> Int[Tensor, "N"]:
    """The place in its response of each of the N True tokens."""
    return torch.arange(mask.shape[1], device=mask.device).expand_as(mask)[mask]


def frozen_head(lm: Any) -> Callable[[Tensor], Tensor]:
    """The model's head as it is now, from states to logits; a copy where the head itself is trained."""
    head = unwrap_peft(lm).get_output_embeddings()
    if any(p.requires_grad for p in head.parameters()):
        head = copy.deepcopy(head).requires_grad_(False)
    return lambda states: compute_logits(lm, states, head)


def exact_kl(p_logits: Float[Tensor, "N V"], q_logits: Float[Tensor, "N V"]) -> Float[Tensor, "N"]:
    """`KL(p || q)` of each row, in blocks of rows that the backward pass computes anew: logits are the largest thing
    there is, and a softmax of all of them at once would be there several times over."""
    size = max(1, BLOCK_ELEMENTS // p_logits.shape[-1])
    pairs = zip(p_logits.split(size), q_logits.split(size), strict=True)
    return torch.cat([checkpoint(categorical_kl, p, q, use_reentrant=False) for p, q in pairs])


class ActorCritic(nn.Module):
    """A causal language model and, unless `critic` is None, a critic with a float32 value head.

    The head reads the policy's own trunk (`shared`), a trunk of its own (`separate`, `critic_lm`), or the policy's
    frozen base through a second adapter (`adapter`).
    """

    def __init__(
        self,
        lm: Any,
        critic: Literal["shared", "separate", "adapter"] | None = "shared",
        critic_lm: Any = None,
        head: nn.Linear | None = None,
    ):
        super().__init__()
        self.lm = lm
        self.critic = critic
        self.critic_lm = critic_lm
        if critic is not None:
            self.value_head = head or new_value_head(unwrap_peft(lm).get_output_embeddings().in_features)

    def forward(
        self,
        tokens: Tokens,
        decoding: LogitTransform,
        old: FixedDistribution | None = None,
        reference: FixedDistribution | None = None,
        with_values: bool = True,
        with_states: bool = False,
    ) -> PolicyOutput:
        """Log-probability, entropy and value at every response token; zeros where `response_mask` is False.

        With anchors also the exact KLs, KL(old || new) and KL(new || reference).
        """
        mask, places = tokens.response_mask, token_positions(tokens.response_mask)
        states = response_states(self.lm, tokens)
        logits = decoding(compute_logits(self.lm, states), places)
        logprobs, entropy = logprob_and_entropy(logits, tokens.response_ids[mask])
        values = torch.zeros_like(logprobs)
        if with_values and self.critic is not None:
            values = self._value(self._critic_states(states, tokens))
        old_kl = None if old is None else exact_kl(decoding(old.head(old.states), places), logits)
        ref_kl = None if reference is None else exact_kl(logits, decoding(reference.head(reference.states), places))
        found = (logprobs, entropy, values, old_kl, ref_kl)
        at_tokens = [None if x is None else scatter_to_mask(x, mask) for x in found]
        return PolicyOutput(*at_tokens, states=states if with_states else None)  # pyright: ignore[reportArgumentType]

    def _critic_states(self, policy_states: Tensor, tokens: Tokens) -> Tensor:
        if self.critic == "shared":
            return policy_states
        if self.critic == "separate":
            return response_states(self.critic_lm, tokens)
        with active_adapter(self.lm, CRITIC):
            return response_states(self.lm, tokens)

    def _value(self, states: Float[Tensor, "N H"]) -> Float[Tensor, "N"]:
        with torch.autocast(states.device.type, enabled=False):
            return self.value_head(states.float()).squeeze(-1)

    @torch.no_grad()
    def values_after(self, tokens: Tokens) -> Float[Tensor, "B"]:
        """The critic's value of the state after each response: what it expects where a response was cut off."""
        # The state after the last token stands one place behind the state before it.
        mask = nn.functional.one_hot(last_index(tokens.response_mask), tokens.response_mask.shape[1]).bool()
        lm = self.critic_lm if self.critic == "separate" else self.lm
        with active_adapter(lm, CRITIC if self.critic == "adapter" else POLICY):
            return self._value(trunk_states(lm, tokens)[:, 1:][mask])

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of everything that is trained; tied weights appear once."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


def is_critic_weight(name: str) -> bool:
    """Whether a parameter of an actor-critic is the critic's own; a shared trunk is the policy's."""
    return name.startswith(("value_head.", "critic_lm.")) or is_critic_adapter_weight(name)


def new_value_head(features: int, init: str = "zero", seed: int = 0) -> nn.Linear:
    """A float32 head that says 0 (Ziegler et al., 2019), or whose weights are N(0, 1/sqrt(d + 1))."""
    head = nn.Linear(features, 1, dtype=torch.float32)
    nn.init.zeros_(head.bias)
    if init == "zero":
        nn.init.zeros_(head.weight)
    else:
        nn.init.normal_(head.weight, std=(features + 1) ** -0.5, generator=torch.Generator().manual_seed(seed))
    return head


class Reference:
    """The policy before training, frozen: the adapted model with its adapters off, or a model of its own."""

    def __init__(self, lm: Any):
        self.lm = lm
        if not has_adapters(lm):
            lm.requires_grad_(False).eval()

    @classmethod
    def of(cls, lm: Any) -> "Reference":
        """The reference of a policy that is about to be trained: a copy, unless adapters leave its weights alone."""
        return cls(lm if has_adapters(lm) else copy.deepcopy(lm))

    def to(self, device: torch.device) -> "Reference":
        self.lm.to(device)
        return self

    @torch.no_grad()
    def states(self, tokens: Tokens) -> Float[Tensor, "N H"]:
        """The trunk's states before the N response tokens."""
        with active_adapter(self.lm, None):
            return response_states(self.lm, tokens)

    @torch.no_grad()
    def head(self, states: Float[Tensor, "N H"]) -> Float[Tensor, "N V"]:
        """The reference's logits, as its head reads them from its states."""
        with active_adapter(self.lm, None):
            return compute_logits(self.lm, states)

    def logprobs(self, tokens: Tokens, decoding: LogitTransform) -> Float[Tensor, "B R"]:
        """Log-probability of every response token under the reference."""
        mask = tokens.response_mask
        logits = decoding(self.head(self.states(tokens)), token_positions(mask))
        logprobs, _ = logprob_and_entropy(logits, tokens.response_ids[mask])
        return scatter_to_mask(logprobs, mask)


def sequence_scores(model: Any, ids: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B"]:
    """The scalar head's value at the last real token of right-padded texts; an encoder's own pooling where it has one.

    The last True of the mask, not the last id that differs from padding: where pad and end are one token, the
    transformers' own rule reads the token before the end.
    """
    model = unwrap_peft(model)
    if not hasattr(model, "score"):
        return model(input_ids=ids, attention_mask=mask.long()).logits.squeeze(-1).float()
    return model.score(end_states(model, ids, mask)).squeeze(-1).float()


def end_states(model: Any, ids: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B H"]:
    """The trunk's states at the last real token of right-padded texts."""
    hidden = (
        unwrap_peft(model).base_model(input_ids=ids, use_cache=False, **trunk_inputs(model, mask)).last_hidden_state
    )
    return hidden[torch.arange(len(ids), device=ids.device), mask.long().sum(-1) - 1]
