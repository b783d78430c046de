"""What moves in a PPO step: epochs over a batch, minibatches, microbatches, one optimizer for policy and critic."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from rlhf.config.jobs import PPOJob
from rlhf.errors import UserError
from rlhf.models.actor_critic import (
    ActorCritic,
    FixedDistribution,
    LogitTransform,
    Reference,
    frozen_head,
    is_critic_weight,
)
from rlhf.records import PPOBatch, Rollout, microbatches, select, to_device, trim
from rlhf.rollouts.rollout import RequestedOutputs
from rlhf.run.metrics import Metrics, sum_microbatches, sum_over_ranks
from rlhf.trainers.advantages import loss_weights
from rlhf.trainers.ptx import TextStream
from tabular.core.kl import PenaltyBeta, kl_estimate
from tabular.core.losses import aggregate, clipped_surrogate_loss, kl_penalty_surrogate_loss, value_loss
from tabular.core.masked import masked_mean
from tabular.core.schedules import make_schedule

MAX_SKIPPED_IN_A_ROW = 10
"""Optimizer steps without a finite gradient after which a run gives up."""


@dataclass(frozen=True)
class Normalizers:
    """What the losses of a minibatch are divided by: counted before its first microbatch, over all processes."""

    tokens: Tensor
    responses: Tensor
    """Responses with a token to learn from."""
    rows: int

    @classmethod
    def of(cls, minibatch: PPOBatch) -> "Normalizers":
        mask = minibatch.loss_mask
        return cls(mask.sum().clamp(min=1), mask.any(-1).sum().clamp(min=1), len(minibatch))


@dataclass(frozen=True)
class UpdateContext:
    """What an update knows of the run around it."""

    step: int
    """The run's step, of which learning rate, shuffles and texts are functions."""
    kl_coef: float
    """The price of the KL to the reference, where it is a part of the loss."""
    critic_only: bool = False
    """The policy stays as it is, bit for bit."""
    old_head: Callable[[Tensor], Tensor] | None = None
    """The policy's head before the update, where the objective measures KL(old || new)."""


class Learner:
    """Policy and critic with their optimizer. `update()` is the whole of it; `loss()` is what it minimises."""

    def __init__(
        self,
        job: PPOJob,
        policy: ActorCritic,
        reference: Reference,
        decoding: LogitTransform,
        accelerator: Any,
        texts: TextStream | None = None,
    ):
        self.job, self.policy, self.reference = job, policy, reference
        self.decoding, self.accelerator, self.texts = decoding, accelerator, texts
        config = job.ppo
        self.weights = policy.trainable()
        self.critic_weights = {n: p for n, p in self.weights.items() if is_critic_weight(n)}
        self.policy_weights = {n: p for n, p in self.weights.items() if n not in self.critic_weights}
        groups = [list(group.values()) for group in (self.policy_weights, self.critic_weights) if group]
        optimizer = torch.optim.AdamW(
            [{"params": group} for group in groups],
            lr=config.lr,
            betas=config.adam_betas,
            eps=config.adam_eps,
            weight_decay=config.weight_decay,
        )
        self.model, self.optimizer = accelerator.prepare(policy, optimizer)
        self.lr = make_schedule(config.lr_schedule, config.lr, config.steps, config.warmup_steps)
        self.beta = PenaltyBeta(config.kl_penalty_beta, config.kl_penalty_target)
        self.extras = RequestedOutputs(
            exact_kl=config.kl_placement == "reward" and config.kl_estimator == "full",
            ref_states=config.kl_placement == "loss" and config.kl_estimator == "full",
            old_states=config.policy_loss == "kl_penalty",
            bootstrap_values=job.reward.truncated == "bootstrap",
        )
        self._skipped_in_a_row = 0

    def update(
        self, batch: PPOBatch, step: int, kl_coef: float, critic_only: bool = False, lr: float | None = None
    ) -> dict[str, float]:
        """Epochs over the batch, one optimizer step a minibatch; metrics are means over those steps.

        Args:
            step: the run's step.
            kl_coef: the price of the KL to the reference, where it is a part of the loss.
            critic_only: leave the policy alone, as in the first `critic.warmup_steps` of a run.
            lr: in place of the schedule's.
        """
        self.policy.train()
        rates = self._set_rates(self.lr(step) if lr is None else lr)
        old_head = frozen_head(self.policy.lm) if self.extras.old_states else None
        context = UpdateContext(step, kl_coef, critic_only or step < self.job.critic.warmup_steps, old_head)
        seen: list[Metrics] = []
        taken = 0
        for number, rows in enumerate(self.minibatches(len(batch), step)):
            metrics, outcome = self._optimize(select(batch, rows), number, context)
            seen.append(metrics)
            taken += outcome == "stepped"
            if outcome == "too far":
                break
        means = {name: float(torch.stack([m[name] for m in seen]).mean()) for name in seen[0]}
        means["policy/ratio_max"] = max(float(m["policy/ratio_max"]) for m in seen)
        means |= rates | {"policy/optimizer_steps": float(taken)}
        if old_head is not None:
            caused = self._kl_old_new(batch, context)
            means |= {"policy/kl_penalty_beta": float(self.beta.beta), "policy/kl_old_new": caused}
            self.beta.update(caused)
        return means

    def loss(self, batch: PPOBatch, normalizers: Normalizers, context: UpdateContext) -> tuple[Tensor, Metrics, Tensor]:
        """A microbatch's part of a minibatch's loss: policy + value - entropy bonus + KL; its value part alone."""
        config, rollout = self.job.ppo, trim(batch.rollout)
        width = rollout.response_mask.shape[1]
        mask, advantages, returns = (x[:, :width] for x in (batch.loss_mask, batch.advantages, batch.returns))
        out = self.model(rollout.tokens, self.decoding, **self._anchors(rollout, context))
        responses = normalizers.rows if config.loss_aggregation == "fixed" else int(normalizers.responses)
        weights = loss_weights(mask, config.loss_aggregation, responses, self.job.generation.max_new_tokens)
        known = (mask, normalizers.tokens)

        if config.policy_loss == "clip":
            clips = (config.clip_range, config.clip_range_high, config.dual_clip, config.log_ratio_clamp)
            surrogate, found = clipped_surrogate_loss(
                out.logprobs, rollout.old_logprobs, advantages, *known, *clips, weights=weights
            )
        else:
            prices = (out.old_kl, self.beta.beta)
            surrogate, found = kl_penalty_surrogate_loss(
                out.logprobs, rollout.old_logprobs, advantages, *prices, *known, config.log_ratio_clamp, weights
            )
        loss = surrogate
        if config.ent_coef > 0:  # at 0 its backward pass over the vocabulary would be for nothing
            loss = loss - config.ent_coef * aggregate(out.entropy, *known, weights)
        metrics = {"policy/loss": surrogate.detach(), "policy/entropy": masked_mean(out.entropy, *known).detach()}
        metrics |= {
            f"policy/{name}": found[name] for name in ("approx_kl", "clip_fraction", "ratio_max") if name in found
        }
        if config.kl_placement == "loss":
            kl = out.ref_kl
            if kl is None:
                kl = kl_estimate(out.logprobs, rollout.ref_logprobs, config.kl_estimator)
            divergence = aggregate(torch.where(mask, kl, 0), *known, weights)
            loss = loss + context.kl_coef * divergence
            metrics["policy/kl_loss"] = divergence.detach()
        if self.policy.critic is None:
            return loss, metrics, torch.zeros_like(loss)
        error, found = value_loss(out.values, rollout.old_values, returns, *known, config.clip_range_value, weights)
        metrics |= {"value/loss": error.detach(), "value/clip_fraction": found["clip_fraction"]}
        return loss + config.vf_coef * error, metrics, config.vf_coef * error

    # ------------------------------------------------------------------------------------------ parts of an update

    def _set_rates(self, lr: float) -> dict[str, float]:
        """The schedule's rate for the policy, and the critic's in proportion."""
        rates = {"policy/lr": lr}
        if self.critic_weights:
            rates["value/lr"] = lr * (self.job.critic.lr or self.job.ppo.lr) / self.job.ppo.lr
        for group, rate in zip(self.optimizer.param_groups, rates.values(), strict=True):
            group["lr"] = rate
        return rates

    def _anchors(self, rollout: Rollout, context: UpdateContext) -> dict[str, FixedDistribution]:
        """The fixed distributions that an exact KL in the loss is measured against."""
        mask, found = rollout.response_mask, {}
        if context.old_head is not None:
            assert rollout.old_states is not None
            found["old"] = FixedDistribution(rollout.old_states[mask], context.old_head)
        if self.extras.ref_states:
            assert rollout.ref_states is not None
            found["reference"] = FixedDistribution(rollout.ref_states[mask], self.reference.head)
        return found

    def minibatches(self, size: int, step: int) -> Iterator[Tensor]:
        """Row numbers of each minibatch of each epoch over `size` rows.

        The first epoch takes the rows as they were sampled, which is random enough, and meets the very forwards that
        the old log-probabilities came from; later ones shuffle, with a seed that a resumed run finds again.
        """
        config = self.job.ppo
        for epoch in range(config.ppo_epochs):
            order = np.arange(size)
            if epoch > 0:
                order = np.random.default_rng([self.job.seed, step, epoch]).permutation(order)
            yield from torch.as_tensor(order).split(config.minibatch_size)

    def _mine(self, minibatch: PPOBatch) -> list[Tensor]:
        """This process's share of a minibatch, in microbatches."""
        share = torch.arange(self.accelerator.process_index, len(minibatch), self.accelerator.num_processes)
        return list(microbatches(share, self.job.ppo.microbatch_size))

    def _optimize(
        self, minibatch: PPOBatch, number: int, context: UpdateContext
    ) -> tuple[Metrics, Literal["stepped", "skipped", "too far"]]:
        """One optimizer step on a minibatch: this process's share of it, in microbatches."""
        config, ranks = self.job.ppo, self.accelerator.num_processes
        normalizers, groups = Normalizers.of(minibatch), self._mine(minibatch)
        self.optimizer.zero_grad()
        texts = self._learn_texts(number, context.step) if self.texts is not None and not context.critic_only else []
        parts = []
        for i, rows in enumerate(groups):
            last = i == len(groups) - 1
            with nullcontext() if last else self.accelerator.no_sync(self.model):
                loss, metrics, of_critic = self.loss(select(minibatch, rows), normalizers, context)
                if context.critic_only:
                    loss = of_critic + 0.0 * loss  # every weight stays in the graph, as processes expect
                self.accelerator.backward(loss * ranks)  # gradients are averaged over ranks, but their sum is meant
            parts.append(metrics)
        if context.critic_only:
            for p in self.policy_weights.values():
                p.grad = None  # not zero: AdamW would count a step, and decay the weights
        metrics = sum_over_ranks(self.accelerator, sum_microbatches(parts) | (sum_microbatches(texts) if texts else {}))
        norm = self._clip_gradients(metrics)
        if config.target_kl is not None and metrics["policy/approx_kl"] > config.target_kl:
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.update()  # these gradients are done with, though no step used them
            return metrics, "too far"
        return metrics, self._take_step(norm, context.step)

    def _clip_gradients(self, metrics: Metrics) -> Tensor:
        """Scale gradients down to `max_grad_norm`; a critic with weights of its own does not count in the policy's."""
        limit, apart = self.job.ppo.max_grad_norm, self.policy.critic in ("separate", "adapter")
        of_policy = self.policy_weights if apart else self.weights
        norm = torch.as_tensor(self.accelerator.clip_grad_norm_(of_policy.values(), limit)).detach()
        metrics["policy/grad_norm"] = norm
        if not apart:
            return norm
        # The first call has undone a float16 scaler's scale; it must not be undone twice.
        of_critic = torch.nn.utils.clip_grad_norm_(self.critic_weights.values(), limit).detach()
        metrics["value/grad_norm"] = of_critic
        return torch.stack([norm.to(of_critic.device), of_critic]).amax()

    def _learn_texts(self, number: int, step: int) -> list[Metrics]:
        """Gradients of the language-modelling loss on the texts of this step's `number`-th minibatch."""
        assert self.texts is not None
        config, ranks = self.job.ptx, self.accelerator.num_processes
        per_step = self.job.ppo.ppo_epochs * self.job.ppo.minibatches
        examples = self.texts.batch(step * per_step + number)
        denom, mine = self.texts.count(examples), examples[self.accelerator.process_index :: ranks]
        parts = [{"policy/ptx_loss": torch.zeros((), device=self.accelerator.device)}]
        size = self.job.ppo.microbatch_size
        for i in range(0, len(mine), size):
            batch = to_device(self.texts.as_responses(mine[i : i + size]), self.accelerator.device)
            with self.accelerator.no_sync(self.model):
                logprobs = self.model(batch, LogitTransform(), with_values=False).logprobs
                loss = -logprobs.sum() / denom
                self.accelerator.backward(config.coef * loss * ranks)
            parts.append({"policy/ptx_loss": loss.detach()})
        return parts

    @torch.no_grad()
    def _kl_old_new(self, batch: PPOBatch, context: UpdateContext) -> float:
        """The mean exact KL(old || new) that a step's epochs caused, over all tokens of its batch."""
        total = torch.zeros((), device=self.accelerator.device)
        for rows in self._mine(batch):
            rollout = trim(select(batch.rollout, rows))
            with self.accelerator.autocast():
                out = self.policy(rollout.tokens, self.decoding, with_values=False, **self._anchors(rollout, context))
            total += out.old_kl.sum()
        summed = sum_over_ranks(self.accelerator, {"kl": total})["kl"]
        return float(summed / batch.rollout.response_mask.sum())

    def _take_step(self, norm: Tensor, step: int) -> Literal["stepped", "skipped"]:
        """Move the weights, unless the gradient is not finite; its norm is the same on all ranks, so they agree."""
        finite = bool(torch.isfinite(norm))
        if finite or self.accelerator.scaler is not None:  # a float16 scaler skips by itself, and learns from it
            self.optimizer.step()
        self._skipped_in_a_row = 0 if finite else self._skipped_in_a_row + 1
        if self._skipped_in_a_row >= MAX_SKIPPED_IN_A_ROW:
            raise UserError(
                f"{MAX_SKIPPED_IN_A_ROW} optimizer steps in a row had a gradient that is not finite, the last at step "
                f"{step + 1}; the newest checkpoint is untouched: resume with a lower ppo.lr or "
                "model.mixed_precision bf16"
            )
        return "stepped" if finite else "skipped"
