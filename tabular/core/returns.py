"""Returns and advantages by one backward recursion over the last axis.

Index `t` is one step: `values[..., t]` is the value of the state before it, `rewards[..., t]` what it paid, and
`discounts[..., t]` the weight of everything after it: `gamma` where a step `t + 1` exists and 0 where the episode or
the response ends. So one row may hold several episodes, or a response and its padding, without a branch or a `done`
flag. A discount of 0 really cuts: not even NaN gets past it.

Steps that are no decisions, such as an environment's words between two turns of a model, stand under a `False` of
`gae`'s mask: values and advantages are carried over them as if they were not there.

How an episode ends:

- *Termination*: the discount of its last step is 0; nothing follows.
- *Truncation at the end of a row*: the last discount stays `gamma` and `bootstrap_value` is the value of the state
  that the cut left behind.
- *Truncation inside a row*: the discount is 0, and the caller adds `gamma * V(final observation)` to that step's
  reward. The next entry of `values` belongs to another episode.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def discounted_returns(
    rewards: Float[Tensor, "*batch T"],
    discounts: Float[Tensor, "*batch T"],
    bootstrap_value: Float[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch T"]:
    """Monte Carlo returns: `G_t = r_t + d_t G_{t+1}`, with `G_T` the bootstrap value (None: 0).

    Sutton & Barto (2018), eq. 3.9.
    """
    return _accumulate(rewards, discounts, bootstrap_value)


def td_errors(
    rewards: Float[Tensor, "*batch T"],
    values: Float[Tensor, "*batch T"],
    discounts: Float[Tensor, "*batch T"],
    bootstrap_value: Float[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch T"]:
    """One-step errors: `delta_t = r_t + d_t V_{t+1} - V_t`, with `V_T` the bootstrap value (None: 0).

    Sutton & Barto (2018), eq. 6.5.
    """
    return rewards + discounts * _successors(values, discounts, bootstrap_value) - values


def n_step_returns(
    rewards: Float[Tensor, "*batch T"],
    values: Float[Tensor, "*batch T"],
    discounts: Float[Tensor, "*batch T"],
    n: int,
    bootstrap_value: Float[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch T"]:
    """Returns that look `n` steps ahead: `G^0_t = V_t`, `G^n_t = r_t + d_t G^{n-1}_{t+1}`.

    The last `n - 1` steps of a row look only as far as its end, and take the bootstrap value there (None: 0).
    Sutton & Barto (2018), eq. 7.1. Raises ValueError for `n < 1`.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    targets = values
    for _ in range(min(n, rewards.shape[-1])):
        targets = rewards + discounts * _successors(targets, discounts, bootstrap_value)
    return targets


def gae(
    rewards: Float[Tensor, "*batch T"],
    values: Float[Tensor, "*batch T"],
    discounts: Float[Tensor, "*batch T"],
    lam: float | int | Float[Tensor, "..."],
    bootstrap_value: Float[Tensor, "*batch"] | None = None,
    mask: Bool[Tensor, "*batch T"] | None = None,
) -> Float[Tensor, "*batch T"]:
    """Generalized advantage estimates: `A_t = delta_t + d_t lam A_{t+1}`; the critic's targets are `A_t + V_t`.

    `lam` is a number or a tensor that broadcasts to the rewards. `lam=0` gives the TD errors, `lam=1` the Monte Carlo
    return minus the value. Schulman et al. (2016), arXiv 1506.02438, eq. 16.

    Where `mask` is False nothing is decided: the step before sees the value and the advantage of the step after, its
    own reward and value are never read, and its advantage is 0. `discounts[..., t]` is then the weight of the next
    step that *is* decided. So a row with holes gives what the row without them would. verl carries over holes alike;
    OpenRLHF counts each as a step of value 0, so that the decision before it seems worth nothing: ours is right.
    """
    if mask is not None:
        return _gae_over_holes(rewards, values, discounts, lam, bootstrap_value, mask)
    deltas = td_errors(rewards, values, discounts, bootstrap_value)
    return _accumulate(deltas, discounts * lam, None)


def _gae_over_holes(
    rewards: Tensor, values: Tensor, discounts: Tensor, lam: Any, last: Tensor | None, mask: Tensor
) -> Tensor:
    """GAE of the masked-in steps alone: they are moved together, and their advantages moved back."""
    order = mask.int().argsort(dim=-1, descending=True, stable=True)  # the real steps first, in their order
    real = mask.gather(-1, order)
    rewards, values, discounts = (
        torch.where(real, x.gather(-1, order), 0) for x in (rewards, values, discounts.expand_as(rewards))
    )
    decays = torch.as_tensor(lam, dtype=rewards.dtype, device=rewards.device).expand_as(rewards).gather(-1, order)
    if last is not None:  # after the last real step comes one of this value, and nothing is better or worse about it
        ends = torch.arange(mask.shape[-1], device=mask.device) == mask.sum(-1, keepdim=True)
        rewards, values = (torch.where(ends, last[..., None], x) for x in (rewards, values))
    advantages = torch.where(real, gae(rewards, values, discounts, decays, last), 0)
    return torch.zeros_like(advantages).scatter(-1, order, advantages)


def _successors(
    values: Float[Tensor, "*batch T"], discounts: Float[Tensor, "*batch T"], last: Float[Tensor, "*batch"] | None
) -> Float[Tensor, "*batch T"]:
    """`V_{t+1}` at index `t`, `last` (None: 0) at the end, and 0 where the discount cuts."""
    last = torch.zeros_like(values[..., 0]) if last is None else last
    shifted = torch.cat([values[..., 1:], last[..., None]], dim=-1)
    return torch.where(discounts == 0, 0, shifted)


def _accumulate(
    x: Float[Tensor, "*batch T"], decays: Float[Tensor, "*batch T"], last: Float[Tensor, "*batch"] | None
) -> Float[Tensor, "*batch T"]:
    """`y_t = x_t + decays_t y_{t+1}` from the end, with `y_T = last` (None: 0)."""

    def backwards() -> Iterator[Tensor]:
        y = torch.zeros_like(x[..., 0]) if last is None else last
        cuts = decays == 0
        for x_t, decay_t, cut_t in zip(
            reversed(x.unbind(-1)), reversed(decays.unbind(-1)), reversed(cuts.unbind(-1)), strict=True
        ):
            y = x_t + decay_t * torch.where(cut_t, 0, y)
            yield y

    return torch.stack(list(backwards())[::-1], dim=-1)
