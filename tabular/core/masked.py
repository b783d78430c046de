"""Sums, means, variances and whitening over the real entries of a padded tensor.

A mask is True where an entry is real. Entries under False are never read, not even as `x * 0`: NaN or inf there affects
neither the result nor the gradient. Sums and means accept `mask=None` where every entry is real, as in a batch of steps
without padding.
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

    With `denom=None` the divisor is the number of real entries, and the mean of no entries is 0. With a global `denom`
    the results of several microbatches or ranks sum to the mean of the whole.
    """
    if denom is None:
        denom = max(x.numel(), 1) if mask is None else mask.sum().clamp_min(1)
    return masked_sum(x, mask) / denom


def masked_var(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], unbiased: bool = False) -> Float[Tensor, ""]:
    """Variance of the real entries: `sum_i mask_i (x_i - mean)^2 / n`, over `n - 1` when `unbiased`.

    A single real entry has variance 0 with either divisor, and no entries have variance 0. TRL returns nan there and
    verl raises an error; a batch with one token should not end a run.
    """
    x = torch.where(mask, x, 0)
    deviations = x - masked_mean(x, mask)
    return masked_mean(deviations**2, mask, (mask.sum() - int(unbiased)).clamp_min(1))


def masked_whiten(
    x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"] | None, shift_mean: bool = True, eps: float = 1e-8
) -> Float[Tensor, "*shape"]:
    """Scale the real entries to unit (biased) variance, and shift them to mean 0 if `shift_mean`; the others become 0.

    With `shift_mean`: `(x - mean) / sqrt(var + eps)`. Without: `x / sqrt(var + eps)`, which keeps every sign and scales
    the mean along. Without `shift_mean`, entries of no variance (`var <= eps`, for example a single one) are left as
    they are instead of being multiplied by `1 / sqrt(eps)`.

    OpenAI's lm-human-preferences and OpenRLHF use the biased deviation too; TRL, verl and torchtune divide by `n - 1`,
    a factor of `sqrt(1 - 1 / n)`. To keep the mean, OpenAI's code, TRL and verl add it back unscaled; that can flip the
    sign of a reward and changes the weight of the KL relative to the score, so it is not done here. torchtune adds the
    mean back under `shift_mean=True`, which is a bug.
    """
    mask = torch.ones_like(x, dtype=torch.bool) if mask is None else mask
    x = torch.where(mask, x, 0)
    if shift_mean:
        whitened = (x - masked_mean(x, mask)) * torch.rsqrt(masked_var(x, mask) + eps)
    else:
        whitened = x * unit_scale(x, mask, eps)
    return torch.where(mask, whitened, 0)


def unit_scale(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], eps: float = 1e-8) -> Float[Tensor, ""]:
    """The factor that gives the real entries unit variance: `1 / sqrt(var + eps)`, and 1 where `var <= eps`."""
    var = masked_var(x, mask)
    return torch.where(var > eps, torch.rsqrt(var + eps), 1)


def explained_variance(
    predictions: Float[Tensor, "*shape"], targets: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"] | None = None
) -> Float[Tensor, ""]:
    """Fraction of the targets' variance that the predictions explain: `1 - Var[targets - predictions] / Var[targets]`.

    1 is perfect, 0 no better than a constant, below 0 worse than a constant. nan for constant targets.
    """
    if mask is not None:
        predictions = predictions[mask]
        targets = targets[mask]
    # Compared entry by entry: in floats the variance of equal numbers is not always exactly 0.
    if targets.numel() == 0 or bool((targets == targets.flatten()[0]).all()):
        return torch.full((), torch.nan, dtype=targets.dtype, device=targets.device)
    return 1 - (targets - predictions).var(correction=0) / targets.var(correction=0)
