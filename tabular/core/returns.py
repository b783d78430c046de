"""Returns and advantages: Monte Carlo, TD errors, n-step returns and GAE, by backward recursion over the last axis.

Index `t` is one step: `values[..., t]` is the value of the state before it, `rewards[..., t]` its reward, and
`discounts[..., t]` the weight of everything after it: `gamma` where a step `t + 1` exists and 0 where the episode or
the response ends. So one row may hold several episodes, or a response and its padding, without a branch or a `done`
flag. Nothing passes a discount of 0, not even NaN.

Steps that are not the policy's actions, such as environment tokens between two turns of a language model, are False in
`gae`'s mask and are skipped: the step before them is followed by the step after them.

Ends of an episode:

- *Termination*: the discount of its last step is 0; nothing follows.
- *Truncation at the end of a row*: the last discount stays `gamma` and `bootstrap_value` is the value of the state
  after the last step.
- *Truncation inside a row*: the discount is 0, and the caller adds `gamma * V(final observation)` to that step's
  reward. The next entry of `values` belongs to another episode.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tabular.core.checks import check_at_least


def discounted_returns(
    rewards: Float[Tensor, "*batch T"],
    discounts: Float[Tensor, "*batch T"],
    bootstrap_value: Float[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch T"]:
    """Monte Carlo returns: `G_t = r_t + d_t G_{t+1}`, with `G_T` the bootstrap value (0 if None).

    Sutton & Barto (2018), eq. 3.9.
    """
    return _accumulate(rewards, discounts, bootstrap_value)


def td_errors(
    rewards: Float[Tensor, "*batch T"],
    values: Float[Tensor, "*batch T"],
    discounts: Float[Tensor, "*batch T"],
    bootstrap_value: Float[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch T"]:
    """One-step errors: `delta_t = r_t + d_t V_{t+1} - V_t`, with `V_T` the bootstrap value (0 if None).

    Sutton & Barto (2018), eq. 6.5.
    """
    return rewards + discounts * _next_values(values, discounts, bootstrap_value) - values


def n_step_returns(
    rewards: Float[Tensor, "*batch T"],
    values: Float[Tensor, "*batch T"],
    discounts: Float[Tensor, "*batch T"],
    n: int,
    bootstrap_value: Float[Tensor, "*batch"] | None = None,
) -> Float[Tensor, "*batch T"]:
    """Returns that look `n` steps ahead: `G^0_t = V_t`, `G^n_t = r_t + d_t G^{n-1}_{t+1}`.

    The last `n - 1` steps of a row look only as far as its end and bootstrap there, from `bootstrap_value` (0 if None).
    Sutton & Barto (2018), eq. 7.1. Raises ValueError for `n < 1`.
    """
    check_at_least(1, n=n)
    targets = values
    for _ in range(min(n, rewards.shape[-1])):
        targets = rewards + discounts * _next_values(targets, discounts, bootstrap_value)
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

    Schulman et al. (2016), arXiv 1506.02438, eq. 16.

    Args:
        discounts: `gamma` where a next step exists, 0 where the episode or response ends. With a mask, the weight of
            the next step whose mask is True.
        lam: a number, or a tensor that broadcasts to the rewards. `lam=0` gives the TD errors, `lam=1` the Monte Carlo
            return minus the value.
        bootstrap_value: the value of the state after the last step; 0 if None.
        mask: False on steps that are not the policy's actions. They are skipped: the result on the other steps is that
            of the row without them, their own reward and value are never read, and their advantage is 0. None if every
            step counts.

    verl skips masked steps in the same way; OpenRLHF counts each as a step of value 0, so that the action before it
    appears to lead to a worthless state.
    """
    if mask is not None:
        return _gae_over_masked_steps(rewards, values, discounts, lam, bootstrap_value, mask)
    deltas = td_errors(rewards, values, discounts, bootstrap_value)
    return _accumulate(deltas, discounts * lam, None)


def _gae_over_masked_steps(
    rewards: Tensor,
    values: Tensor,
    discounts: Tensor,
    lam: float | int | Tensor,
    bootstrap_value: Tensor | None,
    mask: Tensor,
) -> Tensor:
    """GAE of the steps whose mask is True: gather them at the front of each row, compute, scatter the result back."""
    order = mask.int().argsort(dim=-1, descending=True, stable=True)  # masked-in steps first, in their own order
    real = mask.gather(-1, order)

    def to_front(x: Tensor) -> Tensor:
        return x.expand_as(mask).gather(-1, order)

    decays = to_front(torch.as_tensor(lam, dtype=rewards.dtype, device=rewards.device))
    rewards = torch.where(real, to_front(rewards), 0)
    values = torch.where(real, to_front(values), 0)
    discounts = torch.where(real, to_front(discounts), 0)
    if bootstrap_value is not None:
        # A step after the last real one whose reward and value are both the bootstrap value has a TD error of 0.
        after_last = torch.arange(mask.shape[-1], device=mask.device) == mask.sum(-1, keepdim=True)
        rewards = torch.where(after_last, bootstrap_value[..., None], rewards)
        values = torch.where(after_last, bootstrap_value[..., None], values)
    advantages = torch.where(real, gae(rewards, values, discounts, decays, bootstrap_value), 0)
    return torch.zeros_like(advantages).scatter(-1, order, advantages)


def _next_values(
    values: Float[Tensor, "*batch T"], discounts: Float[Tensor, "*batch T"], last: Float[Tensor, "*batch"] | None
) -> Float[Tensor, "*batch T"]:
    """`V_{t+1}` at index `t`, `last` (0 if None) at the end, and 0 where the discount is 0."""
    last = torch.zeros_like(values[..., 0]) if last is None else last
    shifted = torch.cat([values[..., 1:], last[..., None]], dim=-1)
    return torch.where(discounts == 0, 0, shifted)


def _accumulate(
    x: Float[Tensor, "*batch T"], decays: Float[Tensor, "*batch T"], last: Float[Tensor, "*batch"] | None
) -> Float[Tensor, "*batch T"]:
    """`y_t = x_t + decays_t y_{t+1}` from the end, with `y_T = last` (0 if None)."""

    def backwards() -> Iterator[Tensor]:
        y = torch.zeros_like(x[..., 0]) if last is None else last
        ends = decays == 0
        for x_t, decay_t, end_t in zip(
            reversed(x.unbind(-1)), reversed(decays.unbind(-1)), reversed(ends.unbind(-1)), strict=True
        ):
            y = x_t + decay_t * torch.where(end_t, 0, y)
            yield y

    return torch.stack(list(backwards())[::-1], dim=-1)
