"""Log-probabilities of the trained tokens of texts, singly or summed over each text."""

from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from rlhf.models.distribution import LogitTransform, OutputHead, scatter_to_mask, token_positions
from rlhf.models.token_statistics import token_statistics
from rlhf.models.trunk import text_states


def trained_logprobs(
    lm: Any, ids: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"], trained: Bool[Tensor, "B L"]
) -> Float[Tensor, "N"]:
    """`log p` of the N trained tokens of right-padded texts, row by row; logits are computed for these alone.

    The first token of a text is never predicted, trained or not.
    """
    targets = trained[:, 1:]
    rows, positions = targets.nonzero(as_tuple=True)
    texts = text_states(lm, ids, mask.sum(-1))
    states = texts.flat.index_select(0, texts.starts[rows] + positions)
    statistics = token_statistics(
        states,
        OutputHead.of(lm),
        ids[:, 1:][targets],
        token_positions(targets),
        LogitTransform(),
        with_entropy=False,
    )
    return statistics.logprobs


class SequenceLogprobs(nn.Module):
    """A causal language model whose forward pass returns `log p` of each text's trained tokens together."""

    def __init__(self, lm: Any):
        super().__init__()
        self.lm = lm

    def forward(
        self, ids: Int[Tensor, "B L"], mask: Bool[Tensor, "B L"], trained: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B"]:
        return scatter_to_mask(trained_logprobs(self.lm, ids, mask, trained), trained[:, 1:]).sum(-1)
