"""The preflight of a PPO run: what it is about to do and how much memory it will take, printed before it starts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from rlhf.config.jobs import PPOJob
from rlhf.models.actor_critic import ActorCritic
from rlhf.models.sharding import gathered_bytes
from rlhf.models.token_statistics import token_statistics_bytes
from rlhf.models.trunk import unwrap_peft
from rlhf.rewards.sources import RewardSource, model_sources
from rlhf.rollouts.generation_config import ignored_generation_settings
from rlhf.trainers.setup import RunData, RunModels

MiB = 2**20
SHOWN_CHARACTERS, SHOWN_IDS = 200, 24
"""Of the first prompt, at most."""


def preflight(job: PPOJob, data: RunData, models: RunModels, accelerator: Any) -> str:
    """What a run with this data and these models will do, and its memory."""
    ranks = accelerator.num_processes
    longest = data.longest_prompt + job.max_response_tokens
    others = {} if models.reference is None else {"reference": models.reference.lm}
    resident, offloaded = reward_models(models.scorers, accelerator.device)
    others |= resident
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
            scoring=float(max((sum(map(_bytes, model.parameters())) for model in offloaded), default=0)),
        ),
    )
    lines = [description, *describe_prompts(data)]
    if offloaded and accelerator.device.type == "cpu":
        lines.append("offload of a reward model has no effect: the run is on the CPU, in whose memory it is anyway")
    return "\n".join(lines)


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
    memory: "MemoryEstimate",
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


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device, by what they are for."""

    models: dict[str, float]
    """Weights, by model; with `model.shard` one process's share."""
    optimizer: float
    """Gradients and AdamW's two moments; with DDP also its buckets."""
    activations: float
    logits: float
    kv_cache: float
    whole: float = 0.0
    """With `model.shard`: whole weights of all models while responses are collected."""
    gathered: float = 0.0
    """With `model.shard`: the whole weights and gradients that an update holds at once."""
    scoring: float = 0.0
    """Of the largest reward model that is on the GPU only while it scores."""

    def parts(self) -> dict[str, float]:
        sharded = {"whole weights while collecting": self.whole, "gathered in an update": self.gathered}
        return self.models | {
            "gradients and AdamW": self.optimizer,
            "activations": self.activations,
            "logits": self.logits,
            "cache while sampling": self.kv_cache,
            **(sharded if self.whole else {}),
            **({"reward model while scoring": self.scoring} if self.scoring else {}),
        }

    @property
    def peak(self) -> float:
        """Sampling, scoring and updating alternate: weights and optimizer, and the most that one of them needs."""
        phases = self.activations + self.logits + self.gathered, self.kv_cache + self.whole, self.scoring + self.whole
        return sum(self.models.values()) + self.optimizer + max(phases)


def estimate_memory(
    job: PPOJob, longest: int, ranks: int, policy: ActorCritic, others: Mapping[str, Any]
) -> MemoryEstimate:
    """An estimate of the memory of one process.

    Args:
        longest: the longest prompt and response together, in tokens.
        ranks: number of processes.
        others: the models besides the policy, by name; weights shared with the policy are counted once.

    Activations are 34 bytes for each token, layer and unit of width at 2 bytes a number (Korthikanti et al., 2022),
    without attention matrices; with gradient checkpointing, the inputs of each layer and the activations of one.
    """
    lm = unwrap_peft(policy.lm)
    config = lm.config.get_text_config()
    n_layers = config.num_hidden_layers
    width = config.hidden_size
    itemsize = 2 if job.model.mixed_precision in ("bf16", "fp16") else max(2, lm.dtype.itemsize)

    share = ranks if job.model.shard else 1
    half = job.model.mixed_precision == "bf16" and job.model.lora.rank == 0
    whole, gathered = gathered_bytes(policy, half) if job.model.shard else (0.0, 0.0)
    models = {"policy and critic": float(sum(_bytes(p) for p in policy.parameters()))}
    policy_ids = {id(p) for p in policy.parameters()}
    for name, model in others.items():
        if own_bytes := sum(_bytes(p) for p in model.parameters() if id(p) not in policy_ids):
            models[name] = float(own_bytes)
            if job.model.shard:
                whole += gathered_bytes(model, half and name == "reference")[0]
    trained = sum(_bytes(p) for p in policy.trainable().values())

    rows = job.ppo.minibatch_size // ranks
    if job.ppo.microbatch_tokens is None:
        tokens = min(job.ppo.microbatch_size, rows) * longest
    else:
        tokens = min(job.ppo.microbatch_tokens, rows * longest)
    one_layer = 34 * tokens * width * itemsize / 2
    activations = one_layer * n_layers
    if job.model.gradient_checkpointing:
        activations = 2 * tokens * width * itemsize * n_layers + one_layer
    n_trunks = 2 if policy.critic in ("separate", "adapter") else 1

    sampled_rows = job.ppo.rollout_batch_size // ranks
    sampled_rows = min(sampled_rows, job.generation.max_rows or sampled_rows)
    n_heads = getattr(config, "num_attention_heads", 0)
    n_kv_heads = getattr(config, "num_key_value_heads", None) or n_heads
    head_size = getattr(config, "head_dim", None) or width // max(1, n_heads or 1)
    return MemoryEstimate(
        models={name: size / share for name, size in models.items()},
        optimizer=(3.0 + (ranks > 1 and share == 1)) * trained / share,
        activations=activations * n_trunks,
        logits=token_statistics_bytes(tokens * job.max_response_tokens // longest, config.vocab_size, lm.device),
        kv_cache=2.0 * sampled_rows * longest * n_layers * n_kv_heads * head_size * itemsize,
        whole=whole,
        gathered=gathered,
    )


def _bytes(p: nn.Parameter) -> int:
    return p.numel() * p.element_size()
