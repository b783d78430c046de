"""What evaluations share: prompts, sources of scores and sampling, opened once and used for any number of models."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from rlhf.config.commands import BestOfNJob, EvaluateJob
from rlhf.data.prompts import PromptSet
from rlhf.environments.batch import Environment, load_environment
from rlhf.errors import UserError
from rlhf.evaluation.responses import EvaluatedResponse, evaluate_responses
from rlhf.models.actor_critic import ActorCritic, Reference
from rlhf.rewards.sources import RewardSource, open_sources, scorers_of
from rlhf.rollouts.episodes import Player
from rlhf.rollouts.stages import Sampler
from rlhf.run.precision import usable_precision


def open_accelerator(job: EvaluateJob | BestOfNJob) -> Any:
    """The device and precision of an evaluation."""
    from accelerate import Accelerator

    torch.set_float32_matmul_precision(job.model.matmul_precision)
    precision = usable_precision(job.model.mixed_precision, cpu=not torch.accelerator.is_available())
    return Accelerator(mixed_precision=precision)


@dataclass(frozen=True)
class Evaluator:
    """Responses of models to the same prompts, with the same random numbers and the same sources."""

    job: EvaluateJob | BestOfNJob
    accelerator: Any
    prompts: PromptSet
    sources: dict[str, RewardSource]
    """`score`, and `judge` and `judge/NAME` where there are such."""
    environment: Callable[..., Environment] | None = None
    """The class that plays with the models, where the rewards come from it."""

    @classmethod
    def open(cls, job: EvaluateJob | BestOfNJob, accelerator: Any, prompts: PromptSet) -> "Evaluator":
        """Open the sources that score the responses to some prompts.

        Raises:
            UserError: one of them cannot be opened, or there is none.
        """
        sources = open_sources(scorers_of(job.reward, job.eval), accelerator.device, prompt_sets=[prompts])
        environment = None
        if isinstance(job, EvaluateJob) and job.environment.path is not None:
            environment = load_environment(job.environment)
        elif not sources:
            raise UserError("nothing to score with: set reward.model, reward.function or another source, or eval.judge")
        return cls(job, accelerator, prompts, sources, environment)

    def respond(
        self,
        lm: Any,
        tokenizer: Any,
        reference: Reference | None,
        indices: Sequence[int],
        *,
        prompts: PromptSet | None = None,
        noise_key: Sequence[int] = (),
        with_judges: bool = True,
    ) -> list[EvaluatedResponse]:
        """A model's scored response to each of the prompts `indices`.

        Args:
            prompts: as the model's own tokenizer encodes them; None: the evaluator's.
            noise_key: gives further samples random numbers of their own.
            with_judges: False scores by the reward alone.
        """
        sampler = Sampler.of(tokenizer, lm, self.job.generation)
        player = None
        if self.environment is not None:
            assert isinstance(self.job, EvaluateJob)
            player = Player(self.job.environment, self.environment, sampler)
        return evaluate_responses(
            ActorCritic(lm, critic=None),
            reference,
            sampler,
            prompts=prompts or self.prompts,
            indices=indices,
            sources={name: source for name, source in self.sources.items() if with_judges or name == "score"},
            reward=self.job.reward,
            batch_size=self.job.eval.batch_size,
            seed=self.job.seed,
            accelerator=self.accelerator,
            noise_key=noise_key,
            player=player,
        )
