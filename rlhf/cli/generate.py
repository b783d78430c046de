"""`rlhf generate`: responses of any model to a prompt or to the prompts of a file."""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from rlhf.config.commands import GenerateJob, SamplingOptions
from rlhf.config.shared import DataConfig, GenerationConfig
from rlhf.data.datasets import load_rows
from rlhf.data.encoding import encode_prompts, pad, padding_id
from rlhf.data.prompts import prepare_prompts
from rlhf.errors import UserError
from rlhf.models.actor_critic import ActorCritic
from rlhf.models.loading import context_length_of
from rlhf.records import Prompts
from rlhf.rollouts.sampling import uniform_noise
from rlhf.rollouts.stages import Sampler, sample_responses
from rlhf.run.files import new_file
from rlhf.run.saved_policy import generation_of_run, load_policy

BATCH_SIZE = 64
"""Responses that are sampled in parallel."""

DEFAULT_NEW_TOKENS = 128
"""Maximum length of a response where none is set."""


def generate(job: GenerateJob) -> None:
    """Print or write the responses to a prompt or to the prompts of a file.

    Raises:
        UserError: the model or the file cannot be used, or the output file exists.
    """
    output = None if job.output is None else new_file(job.output)
    assert job.model is not None
    generator = Generator(job.model, job)
    prompts = [prompt for prompt in _prompts(job, generator.tokenizer) for _ in range(job.count)]
    rows = [
        {"prompt": prompt, "response": response}
        for start in range(0, len(prompts), BATCH_SIZE)
        for prompt, response in generator.respond(prompts[start : start + BATCH_SIZE], start)
    ]
    if output is not None:
        output.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        return
    for row in rows:
        print(f"{row['prompt']}{row['response']}" if isinstance(row["prompt"], str) else row["response"])


def generation_config(model: str, options: SamplingOptions) -> GenerationConfig:
    """How responses are sampled: as set, else as in the PPO run that the model comes from, else by the defaults.

    Raises:
        UserError: a value is out of range.
    """
    run = generation_of_run(model)
    config = GenerationConfig(max_new_tokens=DEFAULT_NEW_TOKENS)
    if run is not None:
        config = replace(run, max_rows=None, engine="auto")
        print(f"settings of the run: {_differences(config)}", file=sys.stderr)
    names = ("temperature", "min_new_tokens", "suppress_ids", "stop_ids", "stop_strings")
    changes = {name: value for name in names if (value := getattr(options, name)) is not None}
    return replace(_with_length(config, options.max_new_tokens or config.max_new_tokens), **changes)


def _differences(config: GenerationConfig) -> str:
    """The length, and the settings that are not at their defaults, as text."""
    defaults = GenerationConfig()
    names = [field.name for field in fields(config) if field.name != "max_new_tokens"]
    changed = [name for name in names if getattr(config, name) != getattr(defaults, name)]
    return ", ".join(f"{name} {getattr(config, name)!r}" for name in ("max_new_tokens", *changed))


def _with_length(config: GenerationConfig, max_new_tokens: int) -> GenerationConfig:
    """The settings with another maximum length, which a minimum length is lowered to."""
    shortest = min(config.min_new_tokens, max_new_tokens - 1)
    return replace(config, max_new_tokens=max_new_tokens, min_new_tokens=shortest)


class Generator:
    """A policy with its tokenizer and sampler, on the GPU if there is one."""

    def __init__(self, model: str, options: SamplingOptions):
        """Load the model.

        Raises:
            UserError: it is no causal language model, or has no end token.
        """
        self.name = model
        self.seed = options.seed
        config = generation_config(model, options)
        self.max_new_tokens = options.max_new_tokens
        self.default_new_tokens = self.shortened_to = config.max_new_tokens
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        lm, self.tokenizer = load_policy(model)
        lm.to(self.device).eval()
        self.context_length = context_length_of(lm.config)
        self.policy = ActorCritic(lm, critic=None)
        self.sampler = Sampler.of(self.tokenizer, lm, config)

    def respond(
        self, prompts: Sequence[Any], stream: int, on_token: Callable[[Tensor], None] | None = None
    ) -> list[tuple[Any, str]]:
        """Each prompt with a sampled response.

        Args:
            prompts: texts or lists of messages.
            stream: number that gives each call of a run its own random numbers.
            on_token: called with each token of a single response as soon as it is drawn.

        Raises:
            UserError: prompt and response may exceed the model's context length.
        """
        ids, mask = pad(encode_prompts(self.tokenizer, list(prompts)), padding_id(self.tokenizer), "left")
        new_tokens = self._new_tokens(ids.shape[1])
        config = _with_length(self.sampler.config, new_tokens)
        sampler = replace(self.sampler, config=replace(config, engine="growing") if on_token else config)
        noise = None
        if not sampler.is_greedy:
            noise = uniform_noise([self.seed, stream], range(len(prompts)), len(prompts), new_tokens)
        batch = Prompts(ids.to(self.device), mask.to(self.device), list(prompts), {})
        completions = sample_responses(self.policy, sampler, batch, noise, on_token=on_token).completions
        return list(zip(prompts, completions, strict=True))

    def _new_tokens(self, prompt_length: int) -> int:
        """The maximum length of the responses to prompts of that many tokens.

        Raises:
            UserError: the context length does not hold the length that was set, or no response at all.
        """
        new_tokens = self.max_new_tokens or self.default_new_tokens
        if self.context_length is None or prompt_length + new_tokens <= self.context_length:
            return new_tokens
        left = self.context_length - prompt_length
        if self.max_new_tokens is not None or left < 1:
            raise UserError(
                f"a prompt of {prompt_length} tokens and --max_new_tokens {new_tokens} exceed the context length of "
                f"{self.name}, which is {self.context_length}; lower one of them"
            )
        if left < self.shortened_to:
            self.shortened_to = left
            print(
                f"responses are shortened to {left} tokens: {self.name} has a context length of {self.context_length}, "
                f"and the longest prompt has {prompt_length}",
                file=sys.stderr,
            )
        return left


def _prompts(job: GenerateJob, tokenizer: Any) -> list[Any]:
    if job.file is None:
        return [job.prompt]
    config = DataConfig(path=job.file, max_prompt_length=10**9)  # the context length is the only limit
    return list(prepare_prompts(tokenizer, load_rows(job.file, "train"), config, padding_id(tokenizer)).prompts)
