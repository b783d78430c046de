"""AdamW and the clipping of gradients, by the settings that PPO, SFT and reward modelling share."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from rlhf.config.training import AdamWConfig
from rlhf.models.sharding import is_sharded, local


def make_adamw(groups: Iterable[Iterable[nn.Parameter]], config: AdamWConfig) -> torch.optim.AdamW:
    """An optimizer with one parameter group for each of `groups`, all at the peak learning rate."""
    return torch.optim.AdamW(
        [{"params": list(group)} for group in groups],
        lr=config.lr,
        betas=config.adam_betas,
        eps=config.adam_eps,
        weight_decay=config.weight_decay,
        fused=config.adam_fused or None,  # None leaves torch's choice among its other implementations
    )


def total_norm(tensors: Iterable[Tensor]) -> Float[Tensor, ""]:
    """The L2 norm of all numbers of some tensors together; of sharded ones, on all processes alike."""
    tensors = [x.detach() for x in tensors]
    norm = torch.nn.utils.get_total_norm([local(x) for x in tensors])
    if not any(is_sharded(x) for x in tensors):
        return norm
    squares = norm.float().square()
    torch.distributed.all_reduce(squares)
    return squares.sqrt()


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Float[Tensor, ""]:
    """Scale gradients down to an L2 norm of `limit` where it is larger.

    Returns:
        The norm before; where it is not finite, the gradients are left as they are.
    """
    parameters = list(parameters)
    grads = [p.grad for p in parameters if p.grad is not None]
    norm = total_norm(grads)
    if bool(norm > limit):  # torch's own function reads and writes every gradient even to multiply it by 1
        scale = (limit / (norm + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_([local(grad) for grad in grads], scale)  # pyright: ignore[reportPrivateImportUsage]
    return norm
