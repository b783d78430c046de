"""From scores to advantages: token rewards, then one of five advantage estimators.

Every function takes the whole rollout batch, of all processes. With `samples_per_prompt` n, rows i * n to i * n + n - 1
are responses to the same prompt.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from rlhf.config.ppo import PPOConfig
from rlhf.config.scores import RewardConfig
from rlhf.records import PPOBatch, Rollout, last_index
from rlhf.trainers.equal_groups import equal_groups
from tabular.core.kl import kl_estimate
from tabular.core.masked import masked_whiten, unit_scale
from tabular.core.returns import gae

GROUP_STD_EPS = 1e-6
"""Added to the standard deviation that GRPO divides by: it is 0 where all responses to a prompt score the same."""


@dataclass
class RunningScale:
    """Running standard deviation of all scores so far, to divide by; the mean is not subtracted, to keep the signs.

    Zheng et al. (2023), PPO-max. Sums are combined as in Chan et al. (1979), so that updating with a batch equals
    updating with its scores one by one.
    """

    count: float = 0.0
    mean: float = 0.0
    squares: float = 0.0
    """Sum of squared deviations from the mean."""

    def update(self, scores: Float[Tensor, "B"]) -> None:
        values = scores.double()
        count = len(values)
        mean = float(values.mean())
        squares = float(((values - mean) ** 2).sum())
        difference = mean - self.mean
        total = self.count + count
        self.squares += squares + difference**2 * self.count * count / total
        self.mean += difference * count / total
        self.count = total

    @property
    def std(self) -> float:
        """The population standard deviation; 1 as long as all scores were the same."""
        return (self.squares / self.count) ** 0.5 if self.squares > 0 else 1.0


def scale_and_clip(scores: Float[Tensor, "B"], config: RewardConfig, scale: RunningScale | None) -> Float[Tensor, "B"]:
    """The scores, divided by the running deviation and clipped as configured."""
    scores = scores if scale is None else scores / scale.std
    return scores if config.clip is None else scores.clamp(-config.clip, config.clip)


def reference_kl(rollout: Rollout, estimator: str) -> Float[Tensor, "B R"]:
    """The KL of each token to the reference, by `ppo.kl_estimator`."""
    if estimator == "full":
        assert rollout.exact_kl is not None
        return rollout.exact_kl
    assert rollout.ref_logprobs is not None
    return kl_estimate(rollout.old_logprobs, rollout.ref_logprobs, estimator)


def token_rewards(
    rollout: Rollout, scores: Float[Tensor, "B"], kl_coef: float, kl_estimator: str
) -> Float[Tensor, "B R"]:
    """`-kl_coef * KL` on every response token, the score on the last one, and the token scores where there are any.

    The last True of `response_mask` is the stop token where there is one: stopping is an action, and is rewarded as
    one. Ziegler et al. (2019), section 2. OpenRLHF and torchtune put the score there too; TRL puts that of a response
    that ended one position later, on padding, so that the stop token is rewarded only through one more estimated value.
    """
    mask = rollout.response_mask
    rewards = torch.zeros_like(rollout.old_logprobs)
    if kl_coef != 0:
        rewards = torch.where(mask, -kl_coef * reference_kl(rollout, kl_estimator), 0.0)
    if rollout.token_scores is not None:
        rewards = rewards + torch.where(mask, rollout.token_scores, 0.0)
    return rewards.scatter_add(1, last_index(mask).unsqueeze(-1), scores.unsqueeze(-1))


def make_batch(
    rollout: Rollout, config: PPOConfig, kl_coef: float, reward: RewardConfig, scale: RunningScale | None = None
) -> PPOBatch:
    """Rewards, advantages and returns of a whole rollout batch."""
    mask = loss_mask = rollout.response_mask
    scores = scale_and_clip(rollout.scores, reward, scale)
    by_token = None
    if rollout.score_by_token is not None:
        # Clipping and penalties change the rest of the score, which belongs to the last token.
        by_token = rollout.score_by_token if scale is None else rollout.score_by_token / scale.std
        scores = scores - by_token.sum(-1)
    if reward.truncated == "bootstrap":
        # A truncated response is unfinished: the critic's value of its last state replaces the score.
        assert rollout.bootstrap_values is not None
        scores = torch.where(rollout.truncated, config.gamma * rollout.bootstrap_values, scores)
    if reward.truncated == "mask":
        loss_mask = mask & ~rollout.truncated.unsqueeze(-1)
    if rollout.errors is not None:
        loss_mask = loss_mask & rollout.is_scored.unsqueeze(-1)
    if config.skip_equal_groups:
        size = config.samples_per_prompt
        loss_mask = loss_mask & ~equal_groups(rollout, size).repeat_interleave(size).unsqueeze(-1)
    rewards = token_rewards(rollout, scores, kl_coef if config.kl_placement == "reward" else 0.0, config.kl_estimator)
    if by_token is not None:
        rewards = rewards + by_token
    if config.whiten_rewards:
        rewards = rewards * unit_scale(rewards, loss_mask)  # the scale of the tokens in the loss, applied to all
    baselines = None if rollout.baseline_scores is None else scale_and_clip(rollout.baseline_scores, reward, scale)
    advantages, returns = estimate(rollout, rewards, baselines, config)
    if config.whitens:
        advantages = masked_whiten(advantages, loss_mask)
    return PPOBatch(rollout, rewards, advantages, returns, loss_mask)


def sample_advantages(
    rollout: Rollout, config: PPOConfig, kl_coef: float, reward: RewardConfig, scale: RunningScale | None = None
) -> Float[Tensor, "B R"] | None:
    """Advantages of held-out responses as training would estimate them, before whitening; None where it cannot.

    Held-out responses have no group to be compared with, no exact KL, and no value behind their end.

    Args:
        rollout: with values, and with scores after penalties.
    """
    needs_exact_kl = kl_coef != 0 and config.kl_placement == "reward" and config.kl_estimator == "full"
    if config.estimator != "gae" or needs_exact_kl or reward.truncated == "bootstrap":
        return None
    if rollout.ref_logprobs is None:
        kl_coef = 0.0
    plain = replace(config, whiten_advantages=False, whiten_rewards=False)
    return make_batch(rollout, plain, kl_coef, reward, scale).advantages


def estimate(
    rollout: Rollout, rewards: Float[Tensor, "B R"], baselines: Float[Tensor, "B"] | None, config: PPOConfig
) -> tuple[Float[Tensor, "B R"], Float[Tensor, "B R"]]:
    """Advantages and returns by `ppo.estimator`, before whitening."""
    mask = rollout.response_mask
    size = config.samples_per_prompt
    is_scored = None if rollout.errors is None else rollout.is_scored
    if config.estimator == "gae":
        return gae_estimates(rewards, rollout.old_values, mask, config)
    if config.estimator == "rloo":
        return broadcast_over_tokens(rloo(sum_over_tokens(rewards, mask), size, is_scored), mask), returns_to_go(
            rewards, mask, 1.0
        )
    if config.estimator == "grpo":
        advantages = grpo(sum_over_tokens(rewards, mask), size, config.grpo_divide_by_std, is_scored)
        return broadcast_over_tokens(advantages, mask), returns_to_go(rewards, mask, 1.0)
    returns = returns_to_go(rewards, mask, config.gamma)
    if config.estimator == "reinforce_pp":
        return returns, returns  # whitening, always on for this estimator, subtracts the batch's mean as the baseline
    assert baselines is not None
    return broadcast_over_tokens(-baselines, mask) + returns, returns


def gae_estimates(
    rewards: Float[Tensor, "B R"], values: Float[Tensor, "B R"], mask: Bool[Tensor, "B R"], config: PPOConfig
) -> tuple[Float[Tensor, "B R"], Float[Tensor, "B R"]]:
    """Generalised advantage estimation, optionally with a separate lambda for the critic or one that grows with length.

    Yuan et al. (2025), VC-PPO: a policy lambda below 1 reduces variance, which the critic's targets do not need. Yue et
    al. (2025), VAPO: `1 - 1 / (alpha * length)` propagates rewards over a constant share of each response.
    """
    discounts = torch.full_like(rewards, config.gamma)
    lam: float | Tensor = config.lam
    if config.lam_length_alpha is not None:
        lam = (1 - 1 / (config.lam_length_alpha * mask.sum(-1, keepdim=True))).clamp(0, 1)
    advantages = gae(rewards, values, discounts, lam, mask=mask)
    targets = advantages
    if config.lam_critic is not None:
        targets = gae(rewards, values, discounts, config.lam_critic, mask=mask)
    return advantages, torch.where(mask, targets + values, 0)


def rloo(rewards: Float[Tensor, "B"], size: int, is_scored: Bool[Tensor, "B"] | None = None) -> Float[Tensor, "B"]:
    """Each response's reward less the mean of the others to its prompt (Ahmadian et al., 2024, arXiv 2402.14740).

    As in the paper, in TRL and in verl, the reward includes the KL penalty of the whole response. OpenRLHF compares the
    scores alone and adds to each token the KL penalties from itself on, without a baseline: unbiased, but not RLOO.

    Args:
        is_scored: False on responses without a score, which count in no mean; None: all have one. A response without
            others to compare with gets 0.
    """
    groups = rewards.view(-1, size)
    if is_scored is None:
        others = (groups.sum(-1, keepdim=True) - groups) / (size - 1)
        return (groups - others).flatten()
    scored = is_scored.view(-1, size)
    groups = torch.where(scored, groups, 0)
    count = scored.sum(-1, keepdim=True)
    others = (groups.sum(-1, keepdim=True) - groups) / (count - 1).clamp(min=1)
    return torch.where(scored & (count > 1), groups - others, 0).flatten()


def grpo(
    rewards: Float[Tensor, "B"], size: int, divide_by_std: bool = True, is_scored: Bool[Tensor, "B"] | None = None
) -> Float[Tensor, "B"]:
    """Each response's reward less its group's mean, over the group's (unbiased) deviation.

    Shao et al. (2024), arXiv 2402.03300. Without the division prompts of every difficulty count alike (Liu et al.,
    2025, arXiv 2503.20783). TRL, verl and OpenRLHF compute the same but for what they add to the deviation: 1e-4, 1e-6
    (as here) and 1e-9, which matters only where scores hardly differ.

    Args:
        is_scored: as for `rloo`.
    """
    groups = rewards.double().view(-1, size)  # in float32 the mean of equal scores need not equal the score
    if is_scored is None:
        advantages = groups - groups.mean(-1, keepdim=True)
        std = groups.std(-1, keepdim=True)
    else:
        scored = is_scored.view(-1, size)
        count = scored.sum(-1, keepdim=True)
        mean = torch.where(scored, groups, 0).sum(-1, keepdim=True) / count.clamp(min=1)
        advantages = torch.where(scored, groups - mean, 0)
        std = (advantages.square().sum(-1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    if divide_by_std:
        advantages = advantages / (std + GROUP_STD_EPS)
    return advantages.flatten().to(rewards.dtype)


def returns_to_go(rewards: Float[Tensor, "B R"], mask: Bool[Tensor, "B R"], gamma: float) -> Float[Tensor, "B R"]:
    """Discounted sum of the rewards from each token on: what REINFORCE++ (Hu, 2025) and ReMax (Li et al., 2023) use.

    verl computes the same for both, but its ReMax ignores gamma; OpenRLHF discounts over environment tokens too, where
    the policy takes no action.
    """
    return gae(rewards, torch.zeros_like(rewards), torch.full_like(rewards, gamma), 1.0, mask=mask)


def sum_over_tokens(rewards: Float[Tensor, "B R"], mask: Bool[Tensor, "B R"]) -> Float[Tensor, "B"]:
    return torch.where(mask, rewards, 0).sum(-1)


def broadcast_over_tokens(x: Float[Tensor, "B"], mask: Bool[Tensor, "B R"]) -> Float[Tensor, "B R"]:
    """One number for each response, repeated on its tokens."""
    return torch.where(mask, x.unsqueeze(-1), 0.0)
