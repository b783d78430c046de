"""Responses and what everyone says of them: each process samples, reads and scores a share, and gets the whole.

A rollout is small beside a model, so it is gathered at once; what follows is computed on all of it, everywhere alike.
"""

from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import gather_object
from jaxtyping import Float
from torch import Tensor

from rlhf.config.jobs import PPOJob
from rlhf.errors import UserError
from rlhf.models.actor_critic import ActorCritic, Reference
from rlhf.records import Prompts, Rollout, interleave, select, to_device
from rlhf.rewards.sources import RewardSource
from rlhf.rollouts.rollout import RequestedOutputs, Sampler, forward_groups, read, sample_responses, score
from rlhf.run.distributed import raise_on_all_ranks
from rlhf.run.metrics import PhaseTimer


class Collector:
    """`generate`, `read` and `score`, over all processes. They are given the same rows everywhere."""

    def __init__(
        self,
        job: PPOJob,
        policy: ActorCritic,
        reference: Reference,
        sampler: Sampler,
        source: RewardSource | None,
        extras: RequestedOutputs,
        accelerator: Any,
    ):
        self.job, self.policy, self.reference, self.sampler = job, policy, reference, sampler
        self.source, self.extras, self.accelerator = source, extras, accelerator
        self.clock = PhaseTimer()

    def generate(self, prompts: Prompts, noise: Float[Tensor, "B R"]) -> Rollout:
        """A response to every prompt, read by policy and reference; the scores are still nan."""
        mine = self._share(len(prompts))
        share = to_device(select(prompts, mine), self.accelerator.device)
        self.policy.eval()
        with self.accelerator.autocast():
            rollout = sample_responses(self.policy, self.sampler, share, noise[mine], self.clock)
        return self._gather(self._read(rollout))

    def read(self, rollout: Rollout) -> Rollout:
        """The rollout with what policy, critic and reference say of its tokens now."""
        self.policy.eval()
        return self._gather(self._read(select(rollout, self._share(len(rollout)))))

    def score(self, rollout: Rollout) -> Rollout:
        """The rollout with its scores, and for ReMax those of the greedy responses to its prompts."""
        mine = self._share(len(rollout))
        with self.clock("score"):
            part = self._score(select(rollout, mine))
            if self.job.ppo.estimator == "remax":
                part = replace(part, baseline_scores=self._greedy_scores(rollout.prompts, mine))
        scored = self._gather(part)
        return replace(rollout, scores=scored.scores, baseline_scores=scored.baseline_scores)

    def _share(self, count: int) -> Tensor:
        """The rows of a batch that this process takes."""
        ranks = self.accelerator.num_processes
        if count % ranks:
            raise UserError(f"{count} prompts or responses cannot be shared evenly by {ranks} processes")
        return torch.arange(self.accelerator.process_index, count, ranks)

    def _gather(self, rollout: Rollout) -> Rollout:
        """All processes' rows, on each of them."""
        if self.accelerator.num_processes == 1:
            return rollout
        return to_device(interleave(gather_object([to_device(rollout, "cpu")])), self.accelerator.device)

    def _read(self, rollout: Rollout) -> Rollout:
        config, ranks = self.job.ppo, self.accelerator.num_processes
        groups = forward_groups(len(rollout), config.minibatch_size // ranks, config.microbatch_size)
        with self.clock("score"), self.accelerator.autocast():
            return read(self.policy, self.reference, rollout, groups, self.sampler.decoding, self.extras)

    def _score(self, rollout: Rollout) -> Rollout:
        assert self.source is not None
        with raise_on_all_ranks(self.accelerator):
            return score(rollout, self.source, self.job.reward, self.job.generation.max_new_tokens)

    def _greedy_scores(self, prompts: Prompts, rows: Tensor) -> Tensor:
        """The scores of the greedy responses to the prompts of some rows; each prompt is answered once."""
        size = self.job.ppo.samples_per_prompt
        numbers, place = (rows // size).unique(return_inverse=True)
        batch = to_device(select(prompts, numbers * size), self.accelerator.device)
        with self.accelerator.autocast():
            greedy = sample_responses(self.policy, self.sampler, batch, None, self.clock)
        return self._score(greedy).scores[place.to(self.accelerator.device)]


def check_reference_matches_policy(rollout: Rollout) -> None:
    """Before the first update policy and reference are one model; if they differ, every KL of the run is wrong."""
    apart = float((rollout.old_logprobs - rollout.ref_logprobs).abs().max())
    if apart > 1e-3:
        raise UserError(
            f"before the first update policy and reference differ by {apart:.3g} nats on a token, but they must "
            "be the same model; does the model behave at random, or depend on more than its inputs?"
        )
