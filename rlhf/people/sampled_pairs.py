"""Answers that one or two models give to the same prompts, and their scores by a reward model."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlhf.config.compare import CompareJob, ppo_run_of, read_config
from rlhf.config.shared import GenerationConfig
from rlhf.data.encoding import encode_prompts
from rlhf.data.prompts import load_held_out_prompts, load_prompts, make_prompts
from rlhf.errors import UserError
from rlhf.models.actor_critic import ActorCritic
from rlhf.models.loading import context_length_of, load_tokenizer, resolve
from rlhf.people.pairs import Pair
from rlhf.records import to_device
from rlhf.rewards.models import ModelReward
from rlhf.rollouts.sampling import uniform_noise
from rlhf.rollouts.stages import Sampler, sample_responses
from rlhf.run.saved_policy import load_policy

BATCH_SIZE = 8
"""Pairs that are sampled or scored at a time: the page opens after the first ones."""

_NOISE_KEY = 3_141_592
"""Separates these random numbers from those of training and of evaluations."""


@dataclass(frozen=True)
class Side:
    """A model with a temperature: where one of the two answers comes from."""

    model: str
    temperature: float
    origin: str


@dataclass(frozen=True)
class SampledPairs:
    """Answers of two models, or two answers of one, to the same prompts."""

    name: str
    prompts: list[Any]
    positions: list[int]
    """Of the prompts in their file, in the order in which they are answered."""
    sides: tuple[Side, Side]
    generation: GenerationConfig
    seed: int

    @classmethod
    def of(cls, job: CompareJob) -> "SampledPairs":
        """Load and check the prompts.

        Raises:
            UserError: there are no prompts, or a model does not exist.
        """
        sides = sides_of(job)
        for side in sides:
            resolve(side.model)
        if job.data.path is None:
            raise UserError("data.path is not set; name a file of prompts with --data.path, or compare a PPO run")
        tokenizer = load_tokenizer(sides[0].model)
        run = ppo_run_of(job.sources)
        settings = {} if run is None else read_config(run)
        if run is not None and settings["data"]["path"] == job.data.path:
            prompts = load_held_out_prompts(tokenizer, job.data, settings["seed"])
        else:
            prompts = load_prompts(tokenizer, replace(job.data, eval_fraction=0.0), 0)[0]
        order = np.random.default_rng(job.seed).permutation(len(prompts))[: job.pairs].tolist()
        key = [[asdict(side), _stamp(side.model)] for side in sides]
        name = json.dumps(["models", key, asdict(job.generation), asdict(job.data), job.seed])
        return cls(name, [prompts.prompts[i] for i in order], order, sides, job.generation, job.seed)

    @property
    def count(self) -> int:
        return len(self.prompts)

    def batches(self, done: set[int]) -> Iterator[list[tuple[int, Pair]]]:
        """Sample both answers to a few prompts at a time."""
        rows = [i for i, position in enumerate(self.positions) if position not in done]
        if not rows:
            return
        policies: dict[str, Policy] = {}
        for side in self.sides:
            policies.setdefault(side.model, Policy(side.model))
        for side in self.sides:
            policies[side.model].check_lengths(self.prompts, self.generation.max_new_tokens)
        origins = [side.origin for side in self.sides]
        for start in range(0, len(rows), BATCH_SIZE):
            batch = rows[start : start + BATCH_SIZE]
            prompts, positions = [self.prompts[i] for i in batch], [self.positions[i] for i in batch]
            answers = []
            for number, side in enumerate(self.sides):
                config = replace(self.generation, temperature=side.temperature)
                answers.append(policies[side.model].answer(prompts, positions, config, [self.seed, number]))
            texts = zip(prompts, *answers, strict=True)
            yield [(position, Pair(*text, *origins)) for position, text in zip(positions, texts, strict=True)]


def sides_of(job: CompareJob) -> tuple[Side, Side]:
    """Which two models, or which model twice, a job compares.

    Raises:
        UserError: a PPO run is compared with the model it started from, and its config does not name one.
    """
    first = job.sources[0]
    default = job.generation.temperature
    if job.temperatures is not None:
        low, high = (Side(first, t, f"{first} at temperature {t:g}") for t in job.temperatures)
        return low, high
    models = job.sources
    if len(models) == 1 and ppo_run_of(models) is not None:
        start = read_config(first)["model"]["path"]
        if start is None:
            raise UserError(f"{first} does not name the model that it started from; name both models")
        models = [start, first]
    a, b = models[0], models[-1]
    return Side(a, default, a), Side(b, default, b)


def _stamp(model: str) -> list[Any]:
    """Size and time of a model's weights, so that a model which was trained anew gives new pairs."""
    folder = Path(resolve(model))
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


class Policy:
    """A model that answers prompts, on the GPU if there is one."""

    def __init__(self, path: str):
        """Load it.

        Raises:
            UserError: it is no causal language model.
        """
        self.path = path
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        lm, self.tokenizer = load_policy(path)
        self.lm = lm.to(self.device).eval()
        self.policy = ActorCritic(self.lm, critic=None)

    def check_lengths(self, prompts: Sequence[Any], new_tokens: int) -> None:
        """Raise UserError if a prompt with its answer may exceed the context length."""
        limit = context_length_of(self.lm.config)
        longest = max(map(len, encode_prompts(self.tokenizer, prompts)))
        if limit is not None and longest + new_tokens > limit:
            raise UserError(
                f"a prompt of {longest} tokens and generation.max_new_tokens = {new_tokens} exceed the context length "
                f"of {self.path}, which is {limit}; lower one of them"
            )

    def answer(
        self, prompts: Sequence[Any], positions: Sequence[int], config: GenerationConfig, key: Sequence[int]
    ) -> list[str]:
        """An answer to each prompt; it depends on its position and the key, not on the others of the batch."""
        sampler = Sampler.of(self.tokenizer, self.lm, config)
        noise = None
        if not sampler.is_greedy:
            numbers = [
                uniform_noise([*key, _NOISE_KEY, position], [0], 1, config.max_new_tokens) for position in positions
            ]
            noise = torch.cat(numbers)
        batch = to_device(make_prompts(self.tokenizer, prompts), torch.device(self.device))
        return sample_responses(self.policy, sampler, batch, noise).completions


class PairScorer:
    """Scores both answers of pairs by a reward model."""

    def __init__(self, path: str):
        """Load it.

        Raises:
            UserError: it is no reward model.
        """
        self.reward = ModelReward(path, "cuda" if torch.cuda.is_available() else "cpu")

    def __call__(self, pairs: Sequence[Pair]) -> list[Pair]:
        """The pairs with their scores."""
        prompts = [pair.prompt for pair in pairs]
        a = self.reward(prompts, [pair.a for pair in pairs], {})
        b = self.reward(prompts, [pair.b for pair in pairs], {})
        return [replace(pair, score_a=x, score_b=y) for pair, x, y in zip(pairs, a, b, strict=True)]
