"""What an engine samples and what it returns: the two records that both engines share."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from rlhf.models.distribution import LogitTransform
from rlhf.rollouts.stopping import StopStrings

ValueHead = Callable[[Float[Tensor, "N H"]], Float[Tensor, "N"]]
"""From hidden states to values."""


@dataclass(frozen=True)
class SamplingRequest:
    """Prompts, and all that decides their responses besides the weights."""

    prompt_ids: Int[Tensor, "B P"]
    """Padded on the left."""
    prompt_mask: Bool[Tensor, "B P"]
    noise: Float[Tensor, "B R"] | None
    """Uniform numbers, one for each token; None takes the most probable token each time (greedy)."""
    transform: LogitTransform
    max_new_tokens: int
    stop_strings: StopStrings | None
    value_head: ValueHead | None = None
    """With it, the value of the state before each token is computed too."""
    on_token: Callable[[Int[Tensor, "B"]], None] | None = None
    """Called by the growing engine with the token of each unfinished response as soon as it is drawn."""

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def rows(self, start: int, stop: int) -> "SamplingRequest":
        """The request for some consecutive responses."""
        return replace(
            self,
            prompt_ids=self.prompt_ids[start:stop],
            prompt_mask=self.prompt_mask[start:stop],
            noise=None if self.noise is None else self.noise[start:stop],
        )


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
    values: Float[Tensor, "B R"] | None = None
    """The value head's output for the state before each token, on request."""

    def trimmed(self) -> "SampledTokens":
        """Without the last columns in which no response has a token."""
        width = int(self.mask.any(0).sum())
        return replace(
            self,
            ids=self.ids[:, :width],
            mask=self.mask[:, :width],
            logprobs=self.logprobs[:, :width],
            values=None if self.values is None else self.values[:, :width],
        )


def concatenate(parts: Sequence[SampledTokens]) -> SampledTokens:
    """The responses of several parts, which have the same width."""
    values = [part.values for part in parts if part.values is not None]
    return SampledTokens(
        ids=torch.cat([part.ids for part in parts]),
        mask=torch.cat([part.mask for part in parts]),
        truncated=torch.cat([part.truncated for part in parts]),
        logprobs=torch.cat([part.logprobs for part in parts]),
        values=torch.cat(values) if values else None,
    )


def equal_prompt_groups(request: SamplingRequest) -> tuple[Int[Tensor, "G"], Int[Tensor, "B"]]:
    """The first row of each run of equal consecutive prompts, and the run that each row belongs to."""
    ids = torch.where(request.prompt_mask, request.prompt_ids, -1)
    is_first = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
    is_first[1:] = (ids[1:] != ids[:-1]).any(-1)
    return is_first.nonzero().squeeze(-1), is_first.long().cumsum(0) - 1
