"""Losses of pairs of completions, of which one is preferred: DPO and IPO.

Both read the policy's log-ratios to a reference, `log pi(y | x) - log pi_ref(y | x)`, of the chosen completion and of
the rejected one to the same prompt. The policy stands for a reward, `r(x, y) = beta log pi(y | x) / pi_ref(y | x)`, of
which it is the optimum under a KL penalty beta, but for a term that depends on the prompt alone. The difference `h` of
the two log-ratios is, up to beta, the margin of that reward.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from tabular.core.checks import check_at_least, check_below, check_positive


def dpo_loss(
    chosen: Float[Tensor, "B"], rejected: Float[Tensor, "B"], beta: float | int, label_smoothing: float | int = 0.0
) -> Float[Tensor, "B"]:
    """DPO: `-(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h)` of each pair, `h = chosen - rejected`.

    Rafailov et al. (2023), arXiv 2305.18290, eq. 7; with `e = label_smoothing` the conservative form of Mitchell
    (2023), "A note on DPO with noisy preferences". TRL 1.12 computes the same, without smoothing.

    Args:
        chosen: the policy's log-ratio to the reference of the preferred completion, summed over its tokens.
        rejected: of the other completion.
        beta: coefficient of the KL penalty whose optimum is sought: a small one lets the policy go far.
        label_smoothing: the probability that a preference is wrong.

    Raises:
        ValueError: beta is not positive, or `label_smoothing` is not in [0, 0.5).
    """
    check_positive(beta=beta)
    check_at_least(0, label_smoothing=label_smoothing)
    check_below(0.5, label_smoothing=label_smoothing)
    logits = beta * (chosen - rejected)
    loss = -torch.nn.functional.logsigmoid(logits)
    if label_smoothing == 0:
        return loss
    return (1 - label_smoothing) * loss - label_smoothing * torch.nn.functional.logsigmoid(-logits)


def ipo_loss(chosen: Float[Tensor, "B"], rejected: Float[Tensor, "B"], beta: float | int) -> Float[Tensor, "B"]:
    """IPO: `(h - 1 / (2 beta))^2` of each pair, `h = chosen - rejected`.

    Azar et al. (2024), arXiv 2310.12036, eq. 17, where beta is called tau. Unlike DPO's, its optimum is finite where
    all preferences agree. Callers pass log-ratios as means over tokens, so that the target `1 / (2 beta)` does not
    depend on the length; TRL does so too, and has it from the authors that the paper's results were computed that way.

    Args:
        chosen: the policy's mean log-ratio to the reference over the tokens of the preferred completion.
        rejected: of the other completion.
        beta: a small one lets the policy go far.

    Raises:
        ValueError: beta is not positive.
    """
    check_positive(beta=beta)
    return (chosen - rejected - 1 / (2 * beta)) ** 2
