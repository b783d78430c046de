"""AdamW from the settings that PPO, SFT and reward modelling share."""

from collections.abc import Iterable

import torch
from torch import nn

from rlhf.config.training import AdamWConfig


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
