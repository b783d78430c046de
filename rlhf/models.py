"""Actor and critic on one trunk, the reference, and how a score is read. The one place that turns states to logits.

Logits exist only where a response token was sampled: the trunk's states at those places are gathered into one
[N, hidden] matrix first, so neither prompts nor padding ever meet the vocabulary.
"""

import copy
import functools
import inspect
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rlhf.errors import UserError
from rlhf.types import PolicyOutput
from tabular.core.distributions import logprob_and_entropy


def inner(lm: Any) -> Any:
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


def trunk_inputs(lm: Any, mask: Bool[Tensor, "B L"]) -> dict[str, Tensor]:
    """The arguments by which a trunk learns what is padding."""
    given = {"attention_mask": mask.long()}
    return given | ({"position_ids": positions(mask)} if _takes_positions(type(inner(lm).base_model)) else {})


@functools.cache
def _takes_positions(trunk: type) -> bool:
    return "position_ids" in inspect.signature(trunk.forward).parameters  # pyright: ignore[reportAttributeAccessIssue]


def logits_of(lm: Any, hidden: Float[Tensor, "N H"]) -> Float[Tensor, "N V"]:
    """What the model's head says of hidden states, in float32."""
    model = inner(lm)
    logits = model.get_output_embeddings()(hidden).float()
    cap = getattr(model.config, "final_logit_softcapping", None)
    return logits if cap is None else cap * torch.tanh(logits / cap)


def response_states(
    lm: Any,
    prompt_ids: Int[Tensor, "B P"],
    prompt_mask: Bool[Tensor, "B P"],
    response_ids: Int[Tensor, "B R"],
    response_mask: Bool[Tensor, "B R"],
) -> Float[Tensor, "N H"]:
    """The trunk's last state before each of the N True response tokens, row by row."""
    ids = torch.cat([prompt_ids, response_ids], dim=1)
    mask = torch.cat([prompt_mask, response_mask], dim=1)
    hidden = inner(lm).base_model(input_ids=ids, use_cache=False, **trunk_inputs(lm, mask)).last_hidden_state
    before = prompt_ids.shape[1] - 1
    return hidden[:, before : before + response_ids.shape[1]][response_mask]


def spread(values: Float[Tensor, "N"], mask: Bool[Tensor, "B R"]) -> Float[Tensor, "B R"]:
    """Put one value per True place back to its place, zeros elsewhere."""
    return torch.zeros(mask.shape, dtype=values.dtype, device=values.device).masked_scatter(mask, values)


@torch.no_grad()
def check_head(lm: Any) -> None:
    """Refuse a model whose logits are not its head applied to its trunk: every log-probability would be wrong."""
    model = inner(lm)
    device = model.get_output_embeddings().weight.device
    ids = torch.arange(1, 5, device=device).unsqueeze(0)
    mask = torch.ones_like(ids, dtype=torch.bool)
    whole = model(input_ids=ids, **trunk_inputs(lm, mask)).logits[0].float()
    parts = logits_of(lm, model.base_model(input_ids=ids, **trunk_inputs(lm, mask)).last_hidden_state[0])
    if not torch.allclose(whole, parts, rtol=1e-2, atol=1e-3):
        raise UserError(
            f"{type(model).__name__} changes its logits after the head in a way that is not known here "
            f"(largest difference {float((whole - parts).abs().max()):.3g}); it cannot be trained"
        )


class ActorCritic(nn.Module):
    """A causal language model with a float32 value head on its trunk, zero at the start (Ziegler et al., 2019)."""

    def __init__(self, lm: Any):
        super().__init__()
        self.lm = lm
        self.value_head = nn.Linear(inner(lm).get_output_embeddings().in_features, 1, dtype=torch.float32)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(
        self,
        prompt_ids: Int[Tensor, "B P"],
        prompt_mask: Bool[Tensor, "B P"],
        response_ids: Int[Tensor, "B R"],
        response_mask: Bool[Tensor, "B R"],
        temperature: float,
    ) -> PolicyOutput:
        """Log-probability, entropy and value at every response token; zeros where `response_mask` is False."""
        states = response_states(self.lm, prompt_ids, prompt_mask, response_ids, response_mask)
        logits = logits_of(self.lm, states) / temperature
        logprobs, entropy = logprob_and_entropy(logits, response_ids[response_mask])
        with torch.autocast(states.device.type, enabled=False):
            values = self.value_head(states.float()).squeeze(-1)
        return PolicyOutput(*(spread(x, response_mask) for x in (logprobs, entropy, values)))

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of everything that is trained; tied weights appear once."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


class Reference:
    """The policy before training, frozen: the adapted model with its adapters off, or a model of its own."""

    def __init__(self, lm: Any):
        self.lm = lm
        self._shares_weights = hasattr(lm, "disable_adapter")
        if not self._shares_weights:
            lm.requires_grad_(False).eval()

    @classmethod
    def of(cls, lm: Any) -> "Reference":
        """The reference of a policy that is about to be trained: a copy, unless adapters leave its weights alone."""
        return cls(lm if hasattr(lm, "disable_adapter") else copy.deepcopy(lm))

    def to(self, device: torch.device) -> "Reference":
        self.lm.to(device)
        return self

    def _as_reference(self) -> AbstractContextManager[Any]:
        return self.lm.disable_adapter() if self._shares_weights else nullcontext()

    @torch.no_grad()
    def logprobs(
        self,
        prompt_ids: Int[Tensor, "B P"],
        prompt_mask: Bool[Tensor, "B P"],
        response_ids: Int[Tensor, "B R"],
        response_mask: Bool[Tensor, "B R"],
        temperature: float,
    ) -> Float[Tensor, "B R"]:
        """Log-probability of every response token under the reference, at the policy's temperature."""
        with self._as_reference():
            states = response_states(self.lm, prompt_ids, prompt_mask, response_ids, response_mask)
            logits = logits_of(self.lm, states) / temperature
        logprobs, _ = logprob_and_entropy(logits, response_ids[response_mask])
        return spread(logprobs, response_mask)


def sequence_scores(model: Any, ids: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B"]:
    """The scalar head's value at the last real token of right-padded texts; an encoder's own pooling where it has one.

    The last True of the mask, not the last id that differs from padding: where pad and end are one token, the
    transformers' own rule reads the token before the end.
    """
    model = inner(model)
    if not hasattr(model, "score"):
        return model(input_ids=ids, attention_mask=mask.long()).logits.squeeze(-1).float()
    hidden = model.base_model(input_ids=ids, use_cache=False, **trunk_inputs(model, mask)).last_hidden_state
    last = mask.long().sum(-1) - 1
    return model.score(hidden[torch.arange(len(ids), device=ids.device), last]).squeeze(-1).float()
