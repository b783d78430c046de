"""Sums and moments over the real entries of a padded tensor.

A mask is True where an entry is real. What lies under False is never read, not even as `x * 0`: NaN or inf there
reaches neither the result nor the gradient. Sums and means take None for a mask where everything is real, as in a batch
of steps without padding.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Denom = Tensor | float | int
"""A number to divide a sum by: normally the count of real tokens over all microbatches and ranks."""


def masked_sum(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"] | None) -> Float[Tensor, ""]:
    """Sum of the real entries: `sum_i mask_i x_i`."""
    return x.sum() if mask is None else torch.where(mask, x, 0).sum()


def masked_mean(
    x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"] | None, denom: Denom | None = None
) -> Float[Tensor, ""]:
    """Mean of the real entries: `sum_i mask_i x_i / denom`.

    With `denom=None` the divisor is the number of real entries, and nothing real gives 0. With a global `denom` the
    results of several microbatches or ranks add up to the mean of the whole.
    """
    if denom is None:
        denom = max(x.numel(), 1) if mask is None else mask.sum().clamp_min(1)
    return masked_sum(x, mask) / denom


def masked_var(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], unbiased: bool = False) -> Float[Tensor, ""]:
    """Variance of the real entries: `sum_i mask_i (x_i - mean)^2 / n`, over `n - 1` when `unbiased`.

    A single real entry has variance 0, with either divisor, and so has none. TRL gives nan there and verl raises an
    error; one token need not end a run.
    """
    x = torch.where(mask, x, 0)
    deviations = x - masked_mean(x, mask)
    return masked_mean(deviations**2, mask, (mask.sum() - int(unbiased)).clamp_min(1))


def masked_whiten(
    x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"] | None, shift_mean: bool = True, eps: float = 1e-8
) -> Float[Tensor, "*shape"]:
    """Real entries to unit (biased) variance, and to mean 0 if `shift_mean`; the others become 0.

    `(x - mean) / sqrt(var + eps)`, or `x / sqrt(var + eps)`: the scale alone changes, no entry changes its sign, and
    the mean is scaled with the rest. Entries without spread (`var <= eps`, as for a single one) have no scale to
    divide by, so scaling alone leaves them as they are instead of multiplying them by `1 / sqrt(eps)`.

    OpenAI's lm-human-preferences and OpenRLHF whiten by the biased deviation too; TRL, verl and torchtune divide by
    `n - 1`, which is neither better nor worse and `sqrt(1 - 1 / n)` away. Where the mean is to stay, OpenAI's code, TRL
    and verl add it back unscaled; that can turn a reward's sign and shifts the price of the KL against the score, so
    ours differs on purpose. torchtune adds it back under `shift_mean=True`, which is a mistake.
    """
    mask = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
    x = torch.where(mask, x, 0)
    if shift_mean:
        whitened = (x - masked_mean(x, mask)) * torch.rsqrt(masked_var(x, mask) + eps)
    else:
        whitened = x * unit_scale(x, mask, eps)
    return torch.where(mask, whitened, 0)


def unit_scale(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], eps: float = 1e-8) -> Float[Tensor, ""]:
    """What to multiply by for unit variance of the real entries: `1 / sqrt(var + eps)`, and 1 where `var <= eps`."""
    var = masked_var(x, mask)
    return torch.where(var > eps, torch.rsqrt(var + eps), 1)


def explained_variance(
    predictions: Float[Tensor, "*shape"], targets: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"] | None = None
) -> Float[Tensor, ""]:
    """Share of the targets' variance that the predictions account for: `1 - Var[targets - predictions] / Var[targets]`.

    1 is perfect, 0 no better than a constant, below 0 worse than that. Constant targets have nothing to explain: nan.
    """
    if mask is not None:
        predictions, targets = predictions[mask], targets[mask]
    # Compared entry by entry: the variance of equal floats need not come out as exactly 0.
    if targets.numel() == 0 or bool((targets == targets.flatten()[0]).all()):
        return torch.full((), torch.nan, dtype=targets.dtype, device=targets.device)
    return 1 - (targets - predictions).var(correction=0) / targets.var(correction=0)
