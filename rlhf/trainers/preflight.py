"""The preflight of a PPO run: what it is about to do and how much memory it will take, printed before it starts."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from rlhf.config.jobs import PPOJob
from rlhf.models.actor_critic import ActorCritic
from rlhf.rewards.sources import RewardSource, model_sources
from rlhf.rollouts.generation_config import ignored_generation_settings
from rlhf.trainers.memory_estimate import MemoryEstimate, estimate_memory, weight_bytes
from rlhf.trainers.setup import RunData, RunModels

MiB = 2**20
ADAPTERS_LR = SMALL_LR = 5e-4
"""Learning rates of recipes/arithmetic/lora.yaml and recipes/reviews, and of the demo."""
SMALL = 20_000_000
"""Parameters of a small model."""
SHOWN_CHARACTERS, SHOWN_IDS = 200, 24
"""Of the first prompt, at most."""


def preflight(job: PPOJob, data: RunData, models: RunModels, accelerator: Any) -> str:
    """What a run with this data and these models will do, and its memory."""
    ranks = accelerator.num_processes
    longest = data.longest_prompt + job.max_response_tokens
    resident, offloaded = reward_models(models.scorers, accelerator.device)
    others = resident
    if models.reference is not None and models.reference.is_offloaded:
        offloaded.append(models.reference.lm)
    elif models.reference is not None:
        others = {"reference": models.reference.lm} | others
    description = describe_run(
        job,
        ranks=ranks,
        n_prompts=len(data.prompts) if data.prompts is not None else 0,
        n_held_out=len(data.eval_indices),
        n_dropped=sum(prompts.dropped for prompts in data.prompt_sets),
        longest=longest,
        policy=models.policy,
        memory=replace(
            estimate_memory(job, longest, ranks, models.policy, others),
            scoring=float(max((weight_bytes(model) for model in offloaded), default=0)),
        ),
    )
    lines = [description, *describe_prompts(data)]
    if (offloaded or job.ppo.offload_optimizer) and accelerator.device.type == "cpu":
        lines.append("what is offloaded saves nothing here: the run is on the CPU, in whose memory it is anyway")
    if hint := low_learning_rate(job, sum(p.numel() for p in models.policy.lm.parameters())):
        lines.append(hint)
    return "\n".join(lines)


def low_learning_rate(job: PPOJob, parameters: int) -> str | None:
    """A line about a learning rate below those with which such models have learned; None for the others.

    The default suits all weights of models of billions of parameters. What smaller ones and adapters need is from the
    demo and the recipes.

    Args:
        parameters: of the language model.
    """
    lr = job.ppo.lr
    if job.model.lora.rank > 0 and lr < ADAPTERS_LR / 10:
        return f"ppo.lr is {lr:g}, which is low for adapters; those of the recipes learned with {ADAPTERS_LR:g}"
    if job.model.lora.rank == 0 and parameters < SMALL and lr < SMALL_LR / 10:
        return (
            f"ppo.lr is {lr:g}, which is low for a model of {parameters / 1e6:.1f}M parameters; the demo's, of 1M, "
            f"learned with {SMALL_LR:g}"
        )
    return None


def reward_models(scorers: Mapping[str, RewardSource], device: torch.device) -> tuple[dict[str, Any], list[Any]]:
    """The reward models on the policy's device by names to show, and those that are there only while they score."""
    resident, offloaded = {}, []
    for scorer, source in scorers.items():
        name = "reward model" if scorer == "score" else scorer
        sources = [part for part in model_sources(source) if part.device == device]
        for number, part in enumerate(sources, start=1):
            if part.offloaded is None:
                resident[name if number == 1 else f"{name} {number}"] = part.model
            else:
                offloaded.append(part.model)
    return resident, offloaded


def describe_prompts(data: RunData) -> list[str]:
    """Lines: the data sets with their shares, where there are several, and the first prompt as the model reads it."""
    prompts = data.prompts
    if prompts is None:
        return []
    lines = []
    if prompts.counts:
        shares = zip(prompts.counts.items(), prompts.shares, strict=True)
        lines.append("data sets: " + ", ".join(f"{share:.1%} {name} ({count:,})" for (name, count), share in shares))
    ids = prompts.ids[0]
    text = data.tokenizer.decode(ids)
    shown = repr(text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + " ...")
    numbers = ", ".join(map(str, ids[:SHOWN_IDS])) + (", ..." if len(ids) > SHOWN_IDS else "")
    lines.append(f"the first prompt as the model reads it: {shown}, ids {numbers}")
    if len(ids) > 1 and ids[0] == ids[1] == data.tokenizer.bos_token_id:
        lines.append(
            f"WARNING: the first prompt begins with two start tokens, {data.tokenizer.bos_token!r}; the tokenizer adds "
            "one, so remove those of the data or of the chat template"
        )
    return lines


def describe_run(
    job: PPOJob,
    *,
    ranks: int,
    n_prompts: int,
    n_held_out: int,
    longest: int,
    policy: ActorCritic,
    memory: MemoryEstimate,
    n_dropped: int = 0,
) -> str:
    """Steps, optimizer steps, forward passes, data and memory, a line each; `longest` in tokens."""
    config = job.ppo
    n_trained = sum(p.numel() for p in policy.trainable().values())
    optimizer_steps = config.ppo_epochs * config.minibatches
    forwards = f"{-(-(config.minibatch_size // ranks) // config.microbatch_size)} forward(s) a minibatch"
    if config.microbatch_tokens is not None:
        forwards = f"forward passes of at most {config.microbatch_tokens:,} tokens"
    per_prompt = ""
    if config.samples_per_prompt > 1:
        per_prompt = f" ({config.samples_per_prompt} to each of {config.prompts_per_step} prompts)"
    lines = [
        f"{config.steps} steps of {config.rollout_batch_size} responses{per_prompt}; "
        f"{config.ppo_epochs} epochs x {config.minibatches} minibatches = {optimizer_steps} optimizer steps each, "
        f"{config.steps * optimizer_steps:,} in all; "
        f"{forwards} on each of {ranks} process(es)",
        f"{n_prompts:,} prompts to train on, {n_held_out} held out; longest prompt and response {longest} tokens; "
        f"{n_trained:,} trained parameters; run folder {job.output}",
        "memory of each process, estimated: "
        + ", ".join(f"{name} {size / MiB:,.0f} MB" for name, size in memory.parts().items())
        + f"; about {memory.peak / MiB:,.0f} MB at its peak",
    ]
    if n_dropped:
        limit = job.data.max_prompt_length
        lines.append(f"{n_dropped:,} prompts are longer than data.max_prompt_length = {limit} tokens and were dropped")
    if ignored := ignored_generation_settings(policy.lm):
        lines.append(
            f"ignored from the model's generation_config: {ignored}; the sampled distribution must be the scored one "
            "(generation.temperature, min_new_tokens and suppress_ids apply to both)"
        )
    return "\n".join(lines)
