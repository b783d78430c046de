"""The update of a PPO step: epochs over a batch, minibatches, microbatches, one optimizer for policy and critic."""

import copy
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from rlhf.config.jobs import PPOJob
from rlhf.errors import UserError
from rlhf.models.actor_critic import ActorCritic, Reference, is_critic_weight
from rlhf.models.distribution import FixedDistribution, Head, LogitTransform, OutputHead
from rlhf.models.offload import on_device
from rlhf.models.sharding import Shards, gather_on_main, shard_for_training, whole_weights
from rlhf.records import PolicyOutput, PPOBatch, Rollout, Tokens, select, text_lengths, to_device, trim
from rlhf.rollouts.gathering import check_own_states, sum_states
from rlhf.rollouts.microbatches import ForwardSize, microbatches, with_less_memory
from rlhf.rollouts.stages import RequestedOutputs
from rlhf.run.metrics import Metrics, sum_microbatches, sum_over_ranks
from rlhf.trainers.dump import write_dump
from rlhf.trainers.loss import MinibatchLoss, Normalizers, ppo_loss
from rlhf.trainers.optimizer import OffloadedMoments, clip_gradients, make_adamw, total_norm
from rlhf.trainers.ptx import TextStream
from tabular.core.kl import PenaltyBeta
from tabular.core.schedules import make_schedule

MAX_CONSECUTIVE_SKIPS = 10
"""Optimizer steps without a finite gradient after which a run ends."""


@dataclass(frozen=True)
class UpdateContext:
    """What the update of one PPO step depends on besides its batch."""

    step: int
    """The run's step, of which learning rate, shuffles and PTX texts are functions."""
    kl_coef: float
    """Coefficient of the KL to the reference, where it is a term of the loss."""
    critic_only: bool = False
    """Train the critic alone; the policy's weights stay exactly as they are."""
    old_head: Head | None = None
    """The policy's output head before the update, where the objective measures KL(old || new)."""


@dataclass(frozen=True)
class StoredForward:
    """The first microbatch's output with its graph, from the forward pass that computed its old log-probabilities."""

    tokens: Tokens
    output: PolicyOutput
    weight_versions: list[int]
    """Counts of the changes to each weight, by which a later one is noticed."""

    def belongs_to(self, rollout: Rollout, weight_versions: list[int]) -> bool:
        """Whether the rollout's forward pass with the present weights would be this one."""
        return (
            self.weight_versions == weight_versions
            and torch.equal(self.tokens.response_ids, rollout.response_ids)
            and torch.equal(self.tokens.response_mask, rollout.response_mask)
            and torch.equal(self.output.logprobs.detach(), rollout.old_logprobs)
        )


class Learner:
    """Policy and critic with their optimizer; `update()` trains them on a batch by minimising `loss()`."""

    def __init__(
        self,
        job: PPOJob,
        policy: ActorCritic,
        reference: Reference | None,
        transform: LogitTransform,
        accelerator: Any,
        texts: TextStream | None = None,
        reference_shards: Shards | None = None,
    ):
        """With `model.shard`, the policy's weights are sharded here, as those of a reference of its own are already."""
        self.job = job
        self.policy = policy
        self.reference = reference
        self.transform = transform
        self.accelerator = accelerator
        self.texts = texts
        self.shards: Shards | None = None
        self.reference_shards = reference_shards
        trained: nn.Module = policy
        if job.model.shard:
            trained, self.shards = shard_for_training(policy, accelerator, job.model.gradient_checkpointing)
        self.weights = {name: p for name, p in trained.named_parameters() if p.requires_grad}
        self.critic_weights = {name: p for name, p in self.weights.items() if is_critic_weight(name)}
        self.policy_weights = {name: p for name, p in self.weights.items() if not is_critic_weight(name)}
        config = job.ppo
        groups = [group.values() for group in (self.policy_weights, self.critic_weights) if group]
        optimizer = make_adamw(groups, config)
        self.model, self.optimizer = (trained, optimizer) if self.shards else accelerator.prepare(trained, optimizer)
        offloads = config.offload_optimizer
        self.moments = OffloadedMoments(self.optimizer, accelerator.device) if offloads else None
        self.lr = make_schedule(config.lr_schedule, config.lr, config.steps, config.warmup_steps)
        self.beta = PenaltyBeta(config.kl_penalty_beta, config.kl_penalty_target)
        self.requested = RequestedOutputs(
            exact_kl=config.kl_placement == "reward" and config.kl_estimator == "full",
            ref_states=config.kl_placement == "loss" and config.kl_estimator == "full",
            old_states=config.policy_loss == "kl_penalty",
            bootstrap_values=job.reward.truncated == "bootstrap",
        )
        self.forward_size = ForwardSize(config)
        self.dump_folder: Path | None = None
        """Where the first optimizer step that is skipped is written for `rlhf replay`; None: nowhere."""
        self._stored_forward: StoredForward | None = None
        self._consecutive_skips = 0

    def update(
        self, batch: PPOBatch, step: int, kl_coef: float, critic_only: bool = False, lr: float | None = None
    ) -> dict[str, float]:
        """Epochs over the batch, one optimizer step for each minibatch.

        Args:
            step: the run's step.
            kl_coef: coefficient of the KL to the reference, where it is a term of the loss.
            critic_only: train the critic alone, as in the first `critic.warmup_steps` of a run.
            lr: replaces the schedule's learning rate.

        Returns:
            Metrics, as means over the optimizer steps.
        """
        if self.requested.old_states or self.requested.ref_states:
            check_own_states(batch.rollout, self.accelerator)
        with self._whole_reference_head(), on_device(self.moments):
            metrics = self._update(batch, step, kl_coef, critic_only, lr)
        self.optimizer.zero_grad()  # their memory is free while responses are sampled
        return metrics

    def _update(
        self, batch: PPOBatch, step: int, kl_coef: float, critic_only: bool, lr: float | None
    ) -> dict[str, float]:
        self.policy.train()
        self.model.train()
        learning_rates = self._set_learning_rates(self.lr(step) if lr is None else lr)
        context = UpdateContext(
            step=step,
            kl_coef=kl_coef,
            critic_only=critic_only or step < self.job.critic.warmup_steps,
            old_head=self._old_head() if self.requested.old_states else None,
        )
        stored_forward = self._stored_forward
        self._stored_forward = None
        history: list[Metrics] = []
        outcomes: list[str] = []
        for number, rows in enumerate(self.minibatches(len(batch), step)):
            metrics, outcome = self._train_on_minibatch(
                select(batch, rows), number, context, self._owners(rows), stored_forward if number == 0 else None
            )
            stored_forward = None  # its graph is used up, and its memory free
            history.append(metrics)
            outcomes.append(outcome)
            if outcome == "above target KL":
                break
        means = {name: float(torch.stack([metrics[name] for metrics in history]).mean()) for name in history[0]}
        means["policy/ratio_max"] = max(float(metrics["policy/ratio_max"]) for metrics in history)
        if "policy/sampler_mismatch" in history[0]:  # only the first minibatch is read with the weights that sampled it
            means["policy/sampler_mismatch"] = float(history[0]["policy/sampler_mismatch"])
        means |= learning_rates
        means["policy/optimizer_steps"] = float(outcomes.count("stepped"))
        means["policy/skipped_steps"] = float(outcomes.count("skipped"))
        if "skipped" in outcomes and self.accelerator.scaler is None:
            self._warn_of_skips(batch, step, outcomes)
        if context.old_head is not None:
            kl_old_new = self._kl_old_new(batch, context)
            means |= {"policy/kl_penalty_beta": float(self.beta.beta), "policy/kl_old_new": kl_old_new}
            self.beta.update(kl_old_new)
        self._check_weights(step)
        return means

    def _whole_reference_head(self) -> AbstractContextManager[None]:
        """Hold the reference's output head where the loss reads it and weights are sharded."""
        if self.shards is None or not self.requested.ref_states:
            return nullcontext()
        assert self.reference is not None
        shards = self.reference_shards or self.shards  # a reference without shards is the policy's own frozen base
        return shards.whole(OutputHead.of(self.reference.lm).module)

    def _old_head(self) -> OutputHead:
        """The policy's output head, which stays as it is while the policy is trained."""
        head = OutputHead.of(self.policy.lm)
        if self.shards is None:
            return head.frozen()
        with self.shards.whole(head.module):
            return OutputHead(copy.deepcopy(head.module).requires_grad_(False), head.softcap)

    @property
    def can_store_forward(self) -> bool:
        """Whether scoring computes all that the loss needs, and all processes decide alike what to store."""
        needs_fixed = self.requested.exact_kl or self.requested.ref_states or self.requested.old_states
        if self.shards is not None:  # a graph of weights that are freed before the update
            return False
        alike = self.accelerator.num_processes == 1 or (self.job.ppo.microbatch_tokens is None and self.texts is None)
        return alike and not needs_fixed and self.job.ppo.old_logprobs == "recomputed"

    def store_forward(self, tokens: Tokens) -> PolicyOutput:
        """The policy's output, whose graph the next update takes for its first forward pass."""
        self.policy.train()  # or gradient checkpointing would be off
        with torch.enable_grad():
            output = self.model(tokens, self.transform)
        self.policy.eval()
        self._stored_forward = StoredForward(tokens, output, self._weight_versions())
        return output

    def _weight_versions(self) -> list[int]:
        return [p._version for p in self.policy.parameters()]

    def loss(
        self,
        batch: PPOBatch,
        normalizers: Normalizers,
        context: UpdateContext,
        stored_forward: StoredForward | None = None,
    ) -> MinibatchLoss:
        """A microbatch's part of a minibatch's loss; the parts of all microbatches and ranks sum to the whole."""
        rollout = trim(batch.rollout)
        width = rollout.response_mask.shape[1]
        if stored_forward is not None and stored_forward.belongs_to(rollout, self._weight_versions()):
            out = stored_forward.output
        else:
            out = self.model(rollout.tokens, self.transform, **self._fixed_distributions(rollout, context))
        return ppo_loss(
            out,
            rollout,
            loss_mask=batch.loss_mask[:, :width],
            advantages=batch.advantages[:, :width],
            returns=batch.returns[:, :width] if self.policy.critic is not None else None,
            normalizers=normalizers,
            config=self.job.ppo,
            max_new_tokens=self.job.generation.max_new_tokens,
            kl_coef=context.kl_coef,
            kl_penalty_beta=self.beta.beta,
        )

    # ------------------------------------------------------------------------------------------ parts of an update

    def _set_learning_rates(self, lr: float) -> dict[str, float]:
        """The schedule's learning rate for the policy, and the critic's in proportion."""
        rates = {"policy/lr": lr}
        if self.critic_weights:
            rates["value/lr"] = lr * (self.job.critic.lr or self.job.ppo.lr) / self.job.ppo.lr
        for group, rate in zip(self.optimizer.param_groups, rates.values(), strict=True):
            group["lr"] = rate
        return rates

    def _fixed_distributions(self, rollout: Rollout, context: UpdateContext) -> dict[str, FixedDistribution]:
        """The fixed distributions that exact KLs in the loss are measured against."""
        mask = rollout.response_mask
        distributions = {}
        if context.old_head is not None:
            assert rollout.old_states is not None
            distributions["old"] = FixedDistribution(rollout.old_states[mask], context.old_head)
        if self.requested.ref_states:
            assert rollout.ref_states is not None
            assert self.reference is not None
            distributions["reference"] = FixedDistribution(rollout.ref_states[mask], self.reference.head)
        return distributions

    def minibatches(self, size: int, step: int) -> Iterator[Tensor]:
        """Row numbers of each minibatch of each epoch over `size` rows.

        The first epoch takes the rows in the order in which they were sampled, which is random enough, and so repeats
        the forward passes of the old log-probabilities; later epochs shuffle, as a function of seed, step and epoch.
        """
        config = self.job.ppo
        for epoch in range(config.ppo_epochs):
            order = np.arange(size)
            if epoch > 0:
                order = np.random.default_rng([self.job.seed, step, epoch]).permutation(order)
            yield from torch.as_tensor(order).split(config.minibatch_size)

    def own_microbatches(self, batch: PPOBatch) -> list[Tensor]:
        """This process's share of a batch, as row numbers in microbatches."""
        lengths = text_lengths(batch.rollout.tokens)
        return self._microbatches_of(self.accelerator.process_index, lengths, self._in_turn(len(lengths)))

    def _in_turn(self, count: int) -> Tensor:
        """The process that computes each of some rows, one after the other in turn."""
        return torch.arange(count) % self.accelerator.num_processes

    def _owners(self, rows: Tensor) -> Tensor:
        """The process that computes each row of a minibatch, given by its place in the batch.

        They are taken in turn, unless a process has the trunk's states of the rows alone that it sampled.
        """
        if self.requested.old_states or self.requested.ref_states:
            return rows % self.accelerator.num_processes
        return self._in_turn(len(rows))

    def _microbatches_of(self, process: int, lengths: Tensor, owners: Tensor) -> list[Tensor]:
        """A process's share of rows of some lengths, as row numbers in microbatches."""
        rows = (owners == process).nonzero().flatten()
        return [rows[group] for group in microbatches(lengths[rows], self.forward_size.config, self.policy.packs_rows)]

    def _passes(self, lengths: Tensor, owners: Tensor, at_least: int = 0) -> list[tuple[Tensor, bool]]:
        """Rows of this process's forward passes, and whether they count.

        With sharded weights every pass is one of all processes: one with fewer microbatches than another repeats a row
        with weight 0, once for each that it lacks. Without, every process has `at_least` so many passes.
        """
        ranks, own = self.accelerator.num_processes, self.accelerator.process_index
        groups = [(rows, True) for rows in self._microbatches_of(own, lengths, owners)]
        most = at_least
        if self.shards is not None:
            most = max(len(self._microbatches_of(process, lengths, owners)) for process in range(ranks))
        repeated = torch.tensor([own % len(lengths)])
        return groups + [(repeated, False)] * max(0, most - len(groups))

    def _train_on_minibatch(
        self,
        minibatch: PPOBatch,
        number: int,
        context: UpdateContext,
        owners: Tensor,
        stored_forward: StoredForward | None = None,
    ) -> tuple[Metrics, Literal["stepped", "skipped", "above target KL", "empty"]]:
        """One optimizer step: gradients of this process's microbatches, summed over processes, clipped, applied."""
        config = self.job.ppo
        stored = [] if stored_forward is None else [stored_forward]  # for the first attempt only
        parts, ptx_parts = with_less_memory(
            lambda: self._add_gradients(minibatch, number, context, owners, stored.pop() if stored else None),
            lambda error: self.forward_size.halve(error, self.accelerator.num_processes),
        )
        if context.critic_only:
            for p in self.policy_weights.values():
                p.grad = None  # not zero: AdamW would count a step, and decay the weights
        metrics = sum_microbatches(parts) | (sum_microbatches(ptx_parts) if ptx_parts else {})
        metrics = sum_over_ranks(self.accelerator, metrics)
        norm = self._clip_gradients(metrics)
        above = config.target_kl is not None and bool(metrics["policy/approx_kl"] > config.target_kl)
        empty = config.skip_equal_groups and not ptx_parts and not bool(minibatch.loss_mask.any())
        if above or empty:  # without gradients, a step would move weights by momentum alone
            if self.accelerator.scaler is not None:
                self.accelerator.scaler.update()  # these gradients are dropped, but the scaler has unscaled them
            return metrics, "above target KL" if above else "empty"
        outcome = self._optimizer_step(norm)
        if outcome == "skipped" and self.accelerator.scaler is None:
            self._dump(minibatch, context)
        if self._consecutive_skips >= MAX_CONSECUTIVE_SKIPS:
            raise UserError(
                f"{MAX_CONSECUTIVE_SKIPS} optimizer steps in a row had a gradient that is not finite, the last at step "
                f"{context.step + 1}; the newest checkpoint is untouched: resume with a lower ppo.lr or "
                "model.mixed_precision bf16"
            )
        return metrics, outcome

    def _add_gradients(
        self,
        minibatch: PPOBatch,
        number: int,
        context: UpdateContext,
        owners: Tensor,
        stored_forward: StoredForward | None,
    ) -> tuple[list[Metrics], list[Metrics]]:
        """The gradients of this process's microbatches and texts in `.grad`; the metrics of both."""
        normalizers = Normalizers.of(minibatch)
        self.optimizer.zero_grad()
        ptx_parts = []
        if self.texts is not None and not context.critic_only:
            ptx_parts = self._ptx_gradients(number, context.step)
        parts = []
        # One, in which DDP sums the gradients of all processes.
        passes = self._passes(text_lengths(minibatch.rollout.tokens), owners, at_least=1)
        for i, (rows, counts) in enumerate(passes):
            is_last = i == len(passes) - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                part = self.loss(select(minibatch, rows), normalizers, context, stored_forward)
                loss = part.total
                if context.critic_only:
                    loss = part.critic + 0.0 * loss  # every weight stays in the graph, as DDP expects
                # DDP averages gradients over ranks, but the loss is a sum over them.
                self.accelerator.backward(loss * (self.accelerator.num_processes if counts else 0.0))
            parts.append(part.metrics if counts else {name: torch.zeros_like(x) for name, x in part.metrics.items()})
        return parts, ptx_parts

    def _clip_gradients(self, metrics: Metrics) -> Tensor:
        """Scale gradients down to `max_grad_norm`, and add their norms to the metrics.

        A critic with weights of its own is clipped by a norm of its own.

        Returns:
            The largest norm before clipping: not finite where any gradient is not.
        """
        limit = self.job.ppo.max_grad_norm
        separate_norms = self.policy.critic in ("separate", "adapter")
        clipped = self.policy_weights if separate_norms else self.weights
        self.accelerator.unscale_gradients()
        norm = clip_gradients(clipped.values(), limit)
        metrics["policy/grad_norm"] = norm
        if not separate_norms:
            return norm
        critic_norm = clip_gradients(self.critic_weights.values(), limit)
        metrics["value/grad_norm"] = critic_norm
        return torch.stack([norm.to(critic_norm.device), critic_norm]).amax()

    def _ptx_gradients(self, number: int, step: int) -> list[Metrics]:
        """Add gradients of the language-modelling loss on the texts of this step's `number`-th minibatch."""
        assert self.texts is not None
        batches_per_step = self.job.ppo.ppo_epochs * self.job.ppo.minibatches
        examples = self.texts.batch(step * batches_per_step + number)
        denom = self.texts.count(examples)
        parts = [{"policy/ptx_loss": torch.zeros((), device=self.accelerator.device)}]
        lengths = torch.tensor([len(example.ids) for example in examples])
        for rows, counts in self._passes(lengths, self._in_turn(len(lengths))):
            tokens = to_device(self.texts.as_responses([examples[i] for i in rows]), self.accelerator.device)
            with self.accelerator.no_sync(self.model):
                logprobs = self.model(tokens, LogitTransform(), with_entropy=False, with_values=False).logprobs
                loss = -logprobs.sum() / denom
                self.accelerator.backward(
                    self.job.ptx.coef * loss * (self.accelerator.num_processes if counts else 0.0)
                )
            if counts:
                parts.append({"policy/ptx_loss": loss.detach()})
        return parts

    @torch.no_grad()
    def _kl_old_new(self, batch: PPOBatch, context: UpdateContext) -> float:
        """The mean exact KL(old || new) after a step's epochs, over all tokens of its batch."""
        total = torch.zeros((), device=self.accelerator.device)
        with whole_weights([] if self.shards is None else [self.shards]), self.accelerator.autocast():
            for rows in self.own_microbatches(batch):
                rollout = trim(select(batch.rollout, rows))
                distributions = self._fixed_distributions(rollout, context)
                out = self.policy(
                    rollout.tokens, self.transform, with_entropy=False, with_values=False, **distributions
                )
                total += out.old_kl.sum()
        summed = sum_over_ranks(self.accelerator, {"kl": total})["kl"]
        return float(summed / batch.rollout.response_mask.sum())

    def _optimizer_step(self, norm: Tensor) -> Literal["stepped", "skipped"]:
        """Apply the gradients unless their norm is not finite; the norm is the same on all ranks, so they agree."""
        finite = bool(torch.isfinite(norm))
        if finite or self.accelerator.scaler is not None:  # a float16 scaler skips by itself, and adapts its scale
            self.optimizer.step()
        self._consecutive_skips = 0 if finite else self._consecutive_skips + 1
        return "stepped" if finite else "skipped"

    def _dump(self, minibatch: PPOBatch, context: UpdateContext) -> None:
        """Write what a skipped optimizer step was computed from, the first time in a run."""
        folder, self.dump_folder = self.dump_folder, None
        if folder is None:
            return
        weights = gather_on_main(self.weights, self.accelerator.is_main_process)
        minibatch = replace(minibatch, rollout=sum_states(minibatch.rollout, self.accelerator))
        if not self.accelerator.is_main_process:
            return
        folder = folder / f"step_{context.step + 1:06d}"
        try:
            numbers = {"step": context.step, "kl_coef": context.kl_coef, "critic_only": context.critic_only}
            write_dump(folder, minibatch, weights, numbers)
            print(f"`rlhf replay {folder}` shows a skipped optimizer step again", file=sys.stderr)
        except OSError as error:
            print(f"warning: the skipped optimizer step cannot be written to {folder}: {error}", file=sys.stderr)

    def _warn_of_skips(self, batch: PPOBatch, step: int, outcomes: list[str]) -> None:
        if self.accelerator.is_main_process:
            scores = batch.rollout.scores
            print(
                f"warning: step {step + 1}: {outcomes.count('skipped')} of {len(outcomes)} optimizer steps are skipped "
                f"because their gradient is not finite (scores from {float(scores.min()):.3g} to "
                f"{float(scores.max()):.3g})",
                file=sys.stderr,
                flush=True,
            )

    def _check_weights(self, step: int) -> None:
        """Raise UserError where an update moved weights beyond what floats hold."""
        if not bool(torch.isfinite(total_norm(self.weights.values()))):
            raise UserError(
                f"the weights are no longer finite after step {step + 1}; the newest checkpoint is untouched: resume "
                f"with a lower ppo.lr than {self.job.ppo.lr:g}"
            )
