"""Reward adapters: reward models that share the frozen base of an adapted policy."""

import zlib
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf.models.adapters import active_adapter
from rlhf.models.loading import context_length_of
from rlhf.models.reward_models import attach_reward_adapter, load_score_statistics
from rlhf.models.trunk import last_token_states, unwrap_peft
from rlhf.rewards.models import ScoringModel


class AdapterReward(ScoringModel):
    """Scores by an adapter and a scalar head on the policy's own base, of which memory holds one copy."""

    def __init__(
        self,
        path: str,
        policy_lm: Any,
        device: torch.device | str,
        batch_size: int = 64,
        batch_tokens: int | None = None,
        normalize: bool = True,
    ):
        """Attach the adapter, frozen, to the policy's language model.

        Args:
            policy_lm: a language model with PEFT adapters on the base that the reward adapter was trained on.

        Raises:
            UserError: the adapter's weights do not hold exactly one scalar head.
        """
        self.name = f"reward_{zlib.crc32(path.encode()):x}"
        self.model = policy_lm
        self.head = attach_reward_adapter(policy_lm, path, self.name).to(device)
        super().__init__(
            path,
            device,
            context_length=context_length_of(unwrap_peft(policy_lm).config),
            statistics=load_score_statistics(path),
            batch_size=batch_size,
            batch_tokens=batch_tokens,
            normalize=normalize,
        )

    def forward(self, ids: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B"]:
        with active_adapter(self.model, self.name):
            return self.head(last_token_states(self.model, ids, mask.sum(-1)).float()).squeeze(-1)
