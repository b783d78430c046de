"""Actor, critic and reference: the three forward passes that PPO needs of a response's tokens."""

import copy
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlhf.models.adapters import (
    CRITIC,
    POLICY,
    REFERENCE,
    active_adapter,
    adapter_weights,
    add_frozen_copy,
    has_adapters,
    is_adapter_weight,
)
from rlhf.models.distribution import (
    FixedDistribution,
    LogitTransform,
    OutputHead,
    scatter_to_mask,
    token_positions,
)
from rlhf.models.offload import OffloadedModel, on_device
from rlhf.models.packing import packs_rows
from rlhf.models.token_statistics import TokenStatistics, token_statistics
from rlhf.models.trunk import response_states, states_after_response, unwrap_peft
from rlhf.records import PolicyOutput, Tokens

CriticKind = Literal["shared", "separate", "adapter"]


class ActorCritic(nn.Module):
    """A causal language model and, unless `critic` is None, a critic with a float32 value head.

    The value head reads the policy's own trunk (`shared`), a trunk of its own (`separate`: `critic_lm`), or the
    policy's frozen base through a second adapter (`adapter`).
    """

    def __init__(
        self, lm: Any, critic: CriticKind | None = "shared", critic_lm: Any = None, value_head: nn.Linear | None = None
    ):
        super().__init__()
        self.lm = lm
        self.critic = critic
        self.critic_lm = critic_lm
        if critic is not None:
            self.value_head = value_head or new_value_head(unwrap_peft(lm).get_output_embeddings().in_features)

    def forward(
        self,
        tokens: Tokens,
        transform: LogitTransform,
        old: FixedDistribution | None = None,
        reference: FixedDistribution | None = None,
        with_entropy: bool = True,
        with_values: bool = True,
        with_states: bool = False,
    ) -> PolicyOutput:
        """Log-probability, entropy and value at every response token; zeros where `response_mask` is False.

        Args:
            tokens: prompts and responses.
            transform: from the model's logits to the policy's.
            old: with it, also the exact KL(old || new) of each token.
            reference: with it, also the exact KL(new || reference) of each token.
            with_entropy: False saves a pass over the vocabulary.
            with_values: False leaves the values at 0 and saves the critic's forward.
            with_states: also return the trunk's states, from which the distribution can be computed again.
        """
        mask = tokens.response_mask
        states = response_states(self.lm, tokens)
        statistics = _response_statistics(
            self.lm, states, tokens, transform, with_entropy=with_entropy, old=old, reference=reference
        )
        values = torch.zeros_like(statistics.logprobs)
        if with_values and self.critic is not None:
            values = self.value_of(self._critic_states(states, tokens))

        def scatter(values: Float[Tensor, "N"] | None) -> Float[Tensor, "B R"] | None:
            return None if values is None else scatter_to_mask(values, mask)

        return PolicyOutput(
            logprobs=scatter_to_mask(statistics.logprobs, mask),
            values=scatter_to_mask(values, mask),
            entropy=scatter(statistics.entropy),
            old_kl=scatter(statistics.old_kl),
            ref_kl=scatter(statistics.ref_kl),
            states=states if with_states else None,
        )

    def _critic_states(self, policy_states: Float[Tensor, "N H"] | None, tokens: Tokens) -> Float[Tensor, "N H"]:
        if self.critic == "shared":
            assert policy_states is not None
            return policy_states
        if self.critic == "separate":
            return response_states(self.critic_lm, tokens)
        with active_adapter(self.lm, CRITIC):
            return response_states(self.lm, tokens)

    def value_of(self, states: Float[Tensor, "N H"]) -> Float[Tensor, "N"]:
        """The value head's output for hidden states, in float32."""
        with torch.autocast(states.device.type, enabled=False):
            return self.value_head(states.float()).squeeze(-1)

    @torch.no_grad()
    def values_after(self, tokens: Tokens) -> Float[Tensor, "B"]:
        """The critic's value of the state after each response: the bootstrap value of a truncated response."""
        lm = self.critic_lm if self.critic == "separate" else self.lm
        with active_adapter(lm, CRITIC if self.critic == "adapter" else POLICY):
            return self.value_of(states_after_response(lm, tokens))

    @torch.no_grad()
    def separate_values(self, tokens: Tokens) -> Float[Tensor, "B R"]:
        """The values of a separate or adapter critic, by its own forward alone; 0 where `response_mask` is False."""
        assert self.critic in ("separate", "adapter")
        return scatter_to_mask(self.value_of(self._critic_states(None, tokens)), tokens.response_mask)

    @property
    def packs_rows(self) -> bool:
        """Whether forward passes read rows without padding."""
        models = [self.lm] if self.critic_lm is None else [self.lm, self.critic_lm]
        return all(packs_rows(unwrap_peft(lm)) for lm in models)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Name -> parameter of everything that is trained; tied weights appear once."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}


def _response_statistics(
    lm: Any, states: Float[Tensor, "N H"], tokens: Tokens, transform: LogitTransform, **requested: Any
) -> TokenStatistics:
    """The statistics of the N response tokens, from the model's states before them; `requested` as there."""
    mask = tokens.response_mask
    ids = tokens.response_ids[mask]
    return token_statistics(states, OutputHead.of(lm), ids, token_positions(mask), transform, **requested)


def is_critic_weight(name: str) -> bool:
    """Whether a parameter of an actor-critic is the critic's alone; a shared trunk counts as the policy's."""
    return name.startswith(("value_head.", "critic_lm.")) or is_adapter_weight(name, CRITIC)


def new_value_head(features: int, init: str = "zero", seed: int = 0) -> nn.Linear:
    """A float32 head with weights 0 (Ziegler et al., 2019) or N(0, 1/sqrt(d + 1)), and bias 0."""
    head = nn.Linear(features, 1, dtype=torch.float32)
    nn.init.zeros_(head.bias)
    if init == "zero":
        nn.init.zeros_(head.weight)
    else:
        nn.init.normal_(head.weight, std=(features + 1) ** -0.5, generator=torch.Generator().manual_seed(seed))
    return head


class Reference:
    """The frozen policy that KLs are measured to: a copy of the model, or the adapted model through another adapter.

    It is the policy before training, and stays that unless it is moved. With adapters it is the model without them, or
    a frozen copy of the policy's adapter where it is to move.
    """

    def __init__(self, lm: Any, adapter: str | None = None):
        self.lm = lm
        self.adapter = adapter
        self._offloaded: OffloadedModel | None = None
        if not has_adapters(lm):
            lm.requires_grad_(False).eval()

    @classmethod
    def of(cls, lm: Any, moves: bool = False) -> "Reference":
        """The reference of a policy that is about to be trained.

        Args:
            moves: `move_towards` will be called.
        """
        if not has_adapters(lm):
            return cls(copy.deepcopy(lm))
        if moves:
            add_frozen_copy(lm, REFERENCE)
        return cls(lm, REFERENCE if moves else None)

    @property
    def weights(self) -> dict[str, nn.Parameter]:
        """Name -> weight of all that moves."""
        return dict(self.lm.named_parameters()) if self.adapter is None else adapter_weights(self.lm, self.adapter)

    @torch.no_grad()
    def move_towards(self, lm: Any, rate: float) -> None:
        """`reference <- reference + rate * (policy - reference)`, weight by weight; at rate 1 exactly the policy."""
        policy = dict(lm.named_parameters()) if self.adapter is None else adapter_weights(lm, POLICY)
        for name, weight in self.weights.items():
            if rate == 1:
                weight.copy_(policy[name])
            else:
                weight.lerp_(policy[name].to(weight), rate)

    def to(self, device: torch.device, offload: bool = False) -> "Reference":
        """Move it to a device; with `offload`, only while a context of `on_device` is open."""
        self._offloaded = OffloadedModel(self.lm, device) if offload else None
        if not offload:
            self.lm.to(device)
        return self

    @property
    def is_offloaded(self) -> bool:
        """Whether its weights are in the CPU's memory outside of `on_device`."""
        return self._offloaded is not None

    def on_device(self) -> AbstractContextManager[None]:
        """Hold its weights on the device that it computes on."""
        return on_device(self._offloaded)

    @torch.no_grad()
    def states(self, tokens: Tokens) -> Float[Tensor, "N H"]:
        """The trunk's states before the N response tokens."""
        with active_adapter(self.lm, self.adapter):
            return response_states(self.lm, tokens)

    @torch.no_grad()
    def logprobs(self, states: Float[Tensor, "N H"], tokens: Tokens, transform: LogitTransform) -> Float[Tensor, "B R"]:
        """Log-probability of every response token, from the reference's states; 0 where `response_mask` is False."""
        with active_adapter(self.lm, self.adapter):
            statistics = _response_statistics(self.lm, states, tokens, transform, with_entropy=False)
        return scatter_to_mask(statistics.logprobs, tokens.response_mask)

    @torch.no_grad()
    def head(self, states: Float[Tensor, "N H"]) -> Float[Tensor, "N V"]:
        """The reference's logits of its states."""
        with active_adapter(self.lm, self.adapter):
            return OutputHead.of(self.lm)(states)
