"""What a PPO run is made of, checked and loaded in this order: prompts and texts first, then models and scorers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from rlhf.config.jobs import PPOJob
from rlhf.config.parsing import read_yaml
from rlhf.config.ppo import PPOConfig
from rlhf.data.prompts import PromptSet, load_prompts
from rlhf.environments.batch import load_environment
from rlhf.errors import UserError
from rlhf.evaluation.responses import held_out_indices
from rlhf.models.actor_critic import ActorCritic, Reference
from rlhf.models.build import build_policy
from rlhf.models.compiled_layers import compile_layers
from rlhf.models.distribution import check_head
from rlhf.models.loading import check_causal, context_length_of, load_causal_lm, load_tokenizer, resolve
from rlhf.models.sharding import Shards, shard_frozen
from rlhf.models.trunk import disable_dropout
from rlhf.rewards.models import ModelReward
from rlhf.rewards.sources import (
    RewardSource,
    attach_sources,
    combine,
    model_sources,
    open_apart,
    open_function,
    scorers_of,
)
from rlhf.rollouts.episodes import Player
from rlhf.rollouts.stages import Sampler
from rlhf.run.fingerprint import fingerprint_rows, fingerprint_weights
from rlhf.run.precision import warn_about_slow_weights
from rlhf.trainers.ptx import TextStream
from tabular.core.kl import AdaptiveKL, FixedKL, ProportionalIntegralKL


@dataclass(frozen=True)
class RunData:
    """Tokenizer and text of a run."""

    tokenizer: Any
    context_length: int | None
    """The longest prompt and response together, in tokens; None: no limit."""
    prompts: PromptSet | None
    """Prompts to train on; None in a custom loop without data."""
    held_out: PromptSet | None
    eval_indices: list[int]
    """The held-out prompts that evaluations use."""
    texts: TextStream | None
    """Texts of the PTX loss."""

    @property
    def prompt_sets(self) -> list[PromptSet]:
        """The prompts to train on and the held-out ones, where there are any."""
        return [prompts for prompts in (self.prompts, self.held_out) if prompts is not None]

    @property
    def longest_prompt(self) -> int:
        """In tokens, held-out prompts included; 0 without data."""
        return max((len(ids) for prompts in self.prompt_sets for ids in prompts.ids), default=0)

    def check_context_length(self, path: str | None, prompt: int, response: int) -> None:
        """Refuse a prompt and a response, lengths in tokens, that together exceed the context length."""
        if self.context_length is not None and prompt + response > self.context_length:
            raise UserError(
                f"the longest prompt and a response of at most {response} tokens make {prompt + response} tokens, but "
                f"the context length of {path} is {self.context_length}; lower one of them"
            )


@dataclass(frozen=True)
class RunModels:
    """Models of a run, on their device and with dropout disabled."""

    policy: ActorCritic
    reference: Reference | None
    """None with `ppo.use_reference: false`."""
    sampler: Sampler
    scorers: Mapping[str, RewardSource]
    """`score`, the source that is trained on, and for evaluations `judge` and `judge/NAME`; each where there is one."""
    player: Player | None
    """Plays the episodes, where the run has an environment."""
    dropout_rates: dict[str, float]
    """The policy's original dropout rates, for its exported config."""
    frozen: dict[str, Shards] = field(default_factory=dict)
    """With `model.shard`, the shards of what is not trained: of `reference`, and of scorers (`score`, `score.PART`,
    `judge`, ...)."""


def load_data(job: PPOJob) -> RunData:
    """Tokenizer, prompts and texts, all checked before any model is loaded.

    Raises:
        UserError: data or tokenizer cannot be used, or the data is too small or too long.
    """
    assert job.model.path is not None
    config = check_causal(job.model.path, job.model.trust_remote_code)
    context_length = context_length_of(config)
    tokenizer = load_tokenizer(job.model.path, job.model.chat_template, job.model.trust_remote_code)
    prompts = held_out_prompts = None
    if job.data.path is not None:
        prompts, held_out_prompts = load_prompts(tokenizer, job.data, job.seed)
        if len(prompts) < job.ppo.prompts_per_step:
            raise UserError(
                f"{job.data.path} holds {len(prompts)} prompts to train on, fewer than the "
                f"{job.ppo.prompts_per_step} of one batch (ppo.rollout_batch_size = {job.ppo.rollout_batch_size}, "
                f"ppo.samples_per_prompt = {job.ppo.samples_per_prompt}); lower it or bring more prompts"
            )
    data = RunData(
        tokenizer=tokenizer,
        context_length=context_length,
        prompts=prompts,
        held_out=held_out_prompts,
        eval_indices=held_out_indices(len(held_out_prompts), job.eval) if held_out_prompts else [],
        texts=TextStream.load(job.ptx, tokenizer, context_length, job.seed) if job.ptx.path is not None else None,
    )
    if prompts is not None:
        data.check_context_length(job.model.path, data.longest_prompt, job.max_response_tokens)
    if job.critic.init not in (None, "reward"):
        resolve(job.critic.init)  # a folder that is missing should be reported before the policy is loaded
    return data


def load_models(
    job: PPOJob,
    tokenizer: Any,
    device: torch.device,
    reward: Callable[..., Any] | None = None,
    prompt_sets: Sequence[PromptSet] = (),
    mixed_precision: str | None = None,
) -> RunModels:
    """Policy, critic, reference and scorers.

    Args:
        reward: a function to use in place of `job.reward`'s source.
        prompt_sets: the prompts that will be scored, whose columns reward functions are checked against.
        mixed_precision: the accelerator's.

    Raises:
        UserError: a model, a reward function or a setting that depends on them cannot work.
    """
    configs = scorers_of(job.reward, job.eval)
    sources: dict[str, RewardSource] = {}
    if reward is not None:
        del configs["score"]
        name = getattr(reward, "__name__", type(reward).__name__)
        sources["score"] = open_function(reward, name, prompt_sets)
    sources |= open_apart(configs, device, job.model, prompt_sets)
    for part in (part for source in sources.values() for part in model_sources(source)):
        warn_about_slow_weights(part.model.dtype, part.device, part.path)
    environment = None if job.environment.path is None else load_environment(job.environment)
    lm = load_causal_lm(job.model)
    warn_about_slow_weights(lm.dtype, device)
    sampler = Sampler.of(tokenizer, lm, job.generation)
    dropout_rates = disable_dropout(lm)
    check_head(lm)
    policy = build_policy(job, lm)
    frozen: dict[str, Shards] = {}
    if job.model.shard:
        models = {name: source.model for name, source in sources.items() if isinstance(source, ModelReward)}
        frozen = {name: shard_frozen(model, device) for name, model in models.items()}
    sources |= combine(configs, sources | attach_sources(configs, device, job.model, policy.lm))
    reference = None
    if job.ppo.use_reference:
        reference = Reference.of(policy.lm, moves=job.ppo.reference_update_steps is not None)
    if job.model.shard and reference is not None and reference.lm is not policy.lm:
        half = job.model.lora.rank == 0 and mixed_precision == "bf16"
        frozen["reference"] = shard_frozen(reference.lm, device, half)
    elif not job.model.shard and reference is not None:
        reference.to(device, job.ppo.offload_reference)
    if job.model.compile:
        # The reference too: before the first update it must compute exactly the numbers of the policy.
        others = [None if reference is None else reference.lm, policy.critic_lm]
        compile_layers(policy.lm, *(lm for lm in others if lm is not None))
    return RunModels(
        policy=policy,
        reference=reference,
        sampler=sampler,
        scorers={name: sources[name] for name in ("score", *configs) if name in sources},
        player=None if environment is None else Player(job.environment, environment, sampler),
        dropout_rates=dropout_rates,
        frozen=frozen,
    )


def fingerprint_inputs(data: RunData, models: RunModels) -> dict[str, str]:
    """Fingerprints of the start model and of the prompts, by name. Adapters start at random and are left out."""
    base = [(name, p) for name, p in models.policy.lm.named_parameters() if "lora_" not in name]
    fingerprints = {"the model of model.path": fingerprint_weights(base)}
    if data.prompts is not None:
        fingerprints["the prompts of data.path"] = fingerprint_rows(data.prompts.ids)
    return fingerprints


def with_critic_of_run(job: PPOJob, run: Path) -> PPOJob:
    """The job with the kind of critic that a resumed run has, where `critic.kind` is auto."""
    if job.critic.kind != "auto" or not (run / "config.yaml").is_file():
        return job
    critic = read_yaml(run / "config.yaml").get("critic") or {}
    if critic.get("kind") not in ("shared", "separate", "adapter"):
        return job
    return replace(job, critic=replace(job.critic, kind=critic["kind"], init=critic.get("init")))


def make_kl_coef(config: PPOConfig) -> FixedKL | AdaptiveKL | ProportionalIntegralKL:
    """The KL coefficient: constant, or steered to `kl_target`."""
    if config.kl_target is None:
        return FixedKL(config.kl_coef)
    if config.kl_controller == "ziegler":
        return AdaptiveKL(config.kl_coef, config.kl_target, config.kl_time_scale)
    return ProportionalIntegralKL(config.kl_coef, config.kl_target, config.kl_time_scale, config.kl_gain)
