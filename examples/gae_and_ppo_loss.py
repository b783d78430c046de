"""GAE and the PPO loss by themselves, on numbers that can be checked by hand: `python examples/gae_and_ppo_loss.py`."""

import torch

from tabular.core.losses import clipped_surrogate_loss
from tabular.core.masked import masked_whiten
from tabular.core.returns import gae


def rounded(x):
    return [[round(number, 3) for number in row] for row in x.tolist()]


# One response of three tokens, and one of one token beside two places of padding.
mask = torch.tensor([[True, True, True], [True, False, False]])
rewards = torch.tensor([[0.0, 0.0, 1.0], [0.5, 0.0, 0.0]])  # paid on the last token
values = torch.tensor([[0.2, 0.4, 0.6], [0.1, 0.0, 0.0]])  # of the state before each token

# delta_2 = 1 - .6 = .4; delta_1 = .6 - .4 = .2; delta_0 = .4 - .2 = .2; A_t = delta_t + gamma * lam * A_{t+1}
# A_2 = .4; A_1 = .2 + .5 * .4 = .4; A_0 = .2 + .5 * .4 = .4. The second response: .5 - .1 = .4.
discounts = torch.full_like(rewards, 1.0)  # gamma 1; padding is skipped because mask is False there
advantages = gae(rewards, values, discounts, lam=0.5, mask=mask)
print("advantages", rounded(advantages))
print("returns   ", rounded(torch.where(mask, advantages + values, 0)))

# Ratios 1.5, 1, .5 and 1 with advantages 1, 1, 1, -1 and clip range .2:
# min(1.5, 1.2) + 1 + min(.5, .8) - 1 = 1.7; divided by four tokens and negated: -.425.
# Two of the four ratios are outside [.8, 1.2].
advantages = torch.tensor([[1.0, 1.0, 1.0], [-1.0, 0.0, 0.0]])
old_logprobs = torch.full_like(rewards, -2.0)
logprobs = (old_logprobs + torch.tensor([[1.5, 1.0, 0.5], [1.0, 1.0, 1.0]]).log()).requires_grad_()
loss, metrics = clipped_surrogate_loss(logprobs, old_logprobs, advantages, mask, denom=mask.sum(), clip_range=0.2)
loss.backward()
print(f"loss {loss.item():.3f}  clip fraction {metrics['clip_fraction'].item():.2f}")

# The gradient is -ratio * advantage / 4 where the minimum chose the unclipped branch, and 0 on the clipped token.
print("gradient  ", rounded(logprobs.grad))

# Whitening: mean 0 and deviation 1 over the real tokens only.
print("whitened  ", rounded(masked_whiten(advantages, mask)))
