"""Rollouts over all processes: each one samples, evaluates and scores its share of the rows, and gets the whole batch.

A rollout is small beside a model, so it is gathered at once; everything after is computed on the whole batch, on every
process alike.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from rlhf.config.jobs import PPOJob
from rlhf.errors import UserError
from rlhf.models.actor_critic import ActorCritic, Reference
from rlhf.records import Prompts, Rollout, select, to_device
from rlhf.rewards.failures import check_errors
from rlhf.rewards.sources import RewardSource
from rlhf.rollouts.episodes import Player, check_episodes
from rlhf.rollouts.gathering import gather_rollout
from rlhf.rollouts.microbatches import ForwardSize, first_epoch_microbatches, with_less_memory
from rlhf.rollouts.stages import (
    FirstForward,
    RequestedOutputs,
    Sampler,
    compute_logprobs_and_values,
    penalise,
    sample_responses,
    score_rollout,
)
from rlhf.run.distributed import raise_on_all_ranks
from rlhf.run.metrics import PhaseTimer


class Collector:
    """`generate`, `compute_logprobs_and_values` and `score` over all processes, which all pass the same rows."""

    def __init__(
        self,
        job: PPOJob,
        policy: ActorCritic,
        reference: Reference | None,
        sampler: Sampler,
        source: RewardSource | None,
        player: Player | None,
        requested: RequestedOutputs,
        forward_size: ForwardSize,
        accelerator: Any,
        timer: PhaseTimer,
    ):
        self.job = job
        self.policy = policy
        self.reference = reference
        self.sampler = sampler
        self.source = source
        self.player = player
        self.requested = requested
        self.forward_size = forward_size
        self.max_rows = job.generation.max_rows
        """Responses sampled at once; halved where memory runs out."""
        self.accelerator = accelerator
        self.timer = timer

    def generate(
        self, prompts: Prompts, noise: Float[Tensor, "B R"], first_forward: FirstForward | None = None
    ) -> Rollout:
        """A response to every prompt, with log-probabilities and values; the scores are still nan.

        Args:
            first_forward: computes the policy's output where one forward pass covers the whole first minibatch.
        """
        rows = self._own_rows(len(prompts))
        own_prompts = to_device(select(prompts, rows), self.accelerator.device)
        from_sampler = self.job.ppo.old_logprobs == "sampler"
        rollout = self._sample(own_prompts, noise[rows], as_old=from_sampler)
        requested = replace(self.requested, policy_forward=not from_sampler)
        own = self._compute_logprobs_and_values(rollout, requested, first_forward)
        return gather_rollout(own, rows, self.accelerator)

    def play(self, prompts: Prompts, key: Sequence[int], first_forward: FirstForward | None = None) -> Rollout:
        """An episode of the environment for every prompt: a scored rollout with log-probabilities and values.

        Args:
            key: of the random numbers.
            first_forward: as for `generate`.

        Raises:
            UserError: on all ranks, where an environment fails and `reward.on_error` is stop, or too many do.
        """
        assert self.player is not None
        rows = self._own_rows(len(prompts))
        own = to_device(select(prompts, rows), self.accelerator.device)
        self.policy.eval()
        with raise_on_all_ranks(self.accelerator), self.timer("generate"), self.accelerator.autocast():
            rollout = self.player.play(self.policy, own, key, rows.tolist(), len(prompts))
            rollout = check_episodes(rollout, skip=self.job.reward.on_error == "skip")
        rollout = penalise(rollout, self.job.reward, self.job.max_response_tokens)
        rollout = self._compute_logprobs_and_values(rollout, self.requested, first_forward)
        rollout = gather_rollout(rollout, rows, self.accelerator)
        check_errors(rollout.errors, self.job.reward)
        return rollout

    def compute_logprobs_and_values(self, rollout: Rollout) -> Rollout:
        """The rollout with the present log-probabilities and values of its tokens."""
        self.policy.eval()
        rows = self._own_rows(len(rollout))
        own = self._compute_logprobs_and_values(select(rollout, rows), self.requested)
        return gather_rollout(own, rows, self.accelerator)

    def score(self, rollout: Rollout, step: int = 0) -> Rollout:
        """The rollout with its scores, and for ReMax those of the greedy responses to its prompts.

        Args:
            step: finished training steps, for sources that depend on it.
        """
        rows = self._own_rows(len(rollout))
        with self.timer("score"):
            own = select(replace(rollout, old_states=None, ref_states=None), rows)
            own = self._score(own, step)
            if self.job.ppo.estimator == "remax":
                own = self._with_greedy_scores(own, rollout.prompts, rows, step)
        scored = gather_rollout(own, rows, self.accelerator)
        check_errors(scored.errors, self.job.reward)
        by_token = scored.score_by_token
        return replace(
            rollout,
            scores=scored.scores,
            baseline_scores=scored.baseline_scores,
            score_by_token=by_token if by_token is not None and bool(by_token.any()) else None,
            source_scores=scored.source_scores,
            errors=scored.errors,
            task_scores=scored.task_scores,
        )

    def _own_rows(self, count: int) -> Int[Tensor, "_"]:
        """The rows of a batch that this process computes."""
        ranks = self.accelerator.num_processes
        if count % ranks:
            raise UserError(f"{count} prompts or responses cannot be shared evenly by {ranks} processes")
        return torch.arange(self.accelerator.process_index, count, ranks)

    def _sample(self, prompts: Prompts, noise: Float[Tensor, "B R"] | None, as_old: bool = False) -> Rollout:
        self.policy.eval()
        with raise_on_all_ranks(self.accelerator), self.timer("generate"), self.accelerator.autocast():
            return with_less_memory(
                lambda: sample_responses(self.policy, self._limited_sampler(), prompts, noise, as_old),
                lambda error: self._sample_fewer_rows(error, len(prompts)),
            )

    def _limited_sampler(self) -> Sampler:
        return replace(self.sampler, config=replace(self.sampler.config, max_rows=self.max_rows))

    def _sample_fewer_rows(self, error: BaseException, rows: int) -> None:
        """Halve the responses that are sampled at once; they do not depend on it, up to rounding."""
        rows = min(self.max_rows or rows, rows)
        if rows == 1:
            raise UserError("out of memory while sampling a single response; use shorter ones") from error
        self.max_rows = rows // 2
        print(
            f"warning: out of memory; generation.max_rows is {self.max_rows} from here on", file=sys.stderr, flush=True
        )
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _compute_logprobs_and_values(
        self, rollout: Rollout, requested: RequestedOutputs, first_forward: FirstForward | None = None
    ) -> Rollout:
        minibatch_size = self.job.ppo.minibatch_size // self.accelerator.num_processes

        def compute() -> Rollout:
            groups = first_epoch_microbatches(rollout, minibatch_size, self.forward_size.config, self.policy.packs_rows)
            covers_minibatch = len(groups[0]) == minibatch_size  # else the activations of several would stay in memory
            with self.timer("score"), self.accelerator.autocast():
                return compute_logprobs_and_values(
                    self.policy,
                    self.reference,
                    rollout,
                    groups,
                    self.sampler.transform,
                    requested,
                    first_forward if covers_minibatch else None,
                )

        return with_less_memory(compute, lambda error: self.forward_size.halve(error, self.accelerator.num_processes))

    def _score(self, rollout: Rollout, step: int) -> Rollout:
        assert self.source is not None
        max_new_tokens, tokenizer = self.job.generation.max_new_tokens, self.sampler.tokenizer
        with raise_on_all_ranks(self.accelerator):
            return score_rollout(rollout, self.source, self.job.reward, max_new_tokens, tokenizer, step)

    def _with_greedy_scores(self, own: Rollout, prompts: Prompts, rows: Int[Tensor, "N"], step: int) -> Rollout:
        """Some rows with the scores of the greedy responses to their prompts; each prompt is answered once."""
        group_size = self.job.ppo.samples_per_prompt
        groups, group_of_row = (rows // group_size).unique(return_inverse=True)
        batch = to_device(select(prompts, groups * group_size), self.accelerator.device)
        greedy = self._score(self._sample(batch, None), step)
        scores = greedy.scores[group_of_row.to(self.accelerator.device)]
        if own.errors is None or greedy.errors is None:
            return replace(own, baseline_scores=scores)
        of_greedy = [greedy.errors[group] for group in group_of_row.tolist()]
        errors = [error or other for error, other in zip(own.errors, of_greedy, strict=True)]
        return replace(own, baseline_scores=scores, errors=errors)
