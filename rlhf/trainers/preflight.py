"""What a run is about to do, and about how much memory it will take: printed before it starts."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from rlhf.config.jobs import PPOJob
from rlhf.models.actor_critic import unwrap_peft

MiB = 2**20


def plan(
    job: PPOJob, ranks: int, prompts: int, held_out: int, longest: int, policy: Any, memory: Mapping[str, float]
) -> str:
    """Steps, optimizer steps, forwards and memory, in words."""
    config = job.ppo
    share = config.minibatch_size // ranks
    forwards = -(-share // config.microbatch_size)
    trained = sum(p.numel() for p in policy.trainable().values())
    answered = f" ({config.samples_per_prompt} to each of {config.prompts_per_step} prompts)"
    lines = [
        f"{config.steps} steps of {config.rollout_batch_size} responses"
        f"{answered if config.samples_per_prompt > 1 else ''}; {config.ppo_epochs} epochs x {config.minibatches} "
        f"minibatches = {config.ppo_epochs * config.minibatches} optimizer steps each, "
        f"{config.steps * config.ppo_epochs * config.minibatches:,} in all; "
        f"{forwards} forward(s) a minibatch on each of {ranks} process(es)",
        f"{prompts:,} prompts to train on, {held_out} held out; longest prompt and response {longest} tokens; "
        f"{trained:,} trained parameters; run folder {job.output}",
        "memory of each process, estimated: "
        + ", ".join(f"{name} {size / MiB:,.0f} MB" for name, size in memory.items())
        + f"; about {peak(memory) / MiB:,.0f} MB at its peak",
    ]
    if set_aside := ignored_generation_settings(policy.lm):
        lines.append(
            f"the model's generation_config asks for {set_aside}; set aside, for the distribution that is sampled must "
            "be the one that is scored (generation.temperature, min_new_tokens and suppress_ids apply to both)"
        )
    return "\n".join(lines)


def estimate_memory(job: PPOJob, longest: int, ranks: int, policy: Any, models: Mapping[str, Any]) -> dict[str, float]:
    """Bytes on one device, by what they are for.

    `models` are those besides the policy, by name; what shares the policy's weights counts nothing. Activations are
    34 bytes a token, layer and unit of width at 2 bytes a number (Korthikanti et al., 2022), without attention
    matrices; with gradient checkpointing one number of each kind and one layer's worth.
    """
    lm = unwrap_peft(policy.lm)
    config = lm.config.get_text_config()
    layers, width, vocabulary = config.num_hidden_layers, config.hidden_size, config.vocab_size
    number = 2 if job.model.mixed_precision in ("bf16", "fp16") else max(2, lm.dtype.itemsize)
    ours = {id(p) for p in policy.parameters()}
    trained = sum(_bytes(p) for p in policy.trainable().values())

    rows = min(job.ppo.microbatch_size, job.ppo.minibatch_size // ranks)
    tokens, answered = rows * longest, rows * job.generation.max_new_tokens
    a_layer = 34 * tokens * width * number / 2
    kept = 2 * tokens * width * number * layers + a_layer if job.model.gradient_checkpointing else a_layer * layers
    trunks = 2 if policy.critic in ("separate", "adapter") else 1

    sampled = job.ppo.rollout_batch_size // ranks
    sampled = min(sampled, job.generation.max_rows or sampled)
    heads = getattr(config, "num_key_value_heads", None) or getattr(config, "num_attention_heads", 0)
    size = getattr(config, "head_dim", None) or width // max(1, getattr(config, "num_attention_heads", 1))
    found = {"policy and critic": float(sum(_bytes(p) for p in policy.parameters()))}
    for name, model in models.items():
        if others := sum(_bytes(p) for p in model.parameters() if id(p) not in ours):
            found[name] = float(others)
    return found | {
        "gradients and AdamW": (3.0 + (ranks > 1)) * trained,
        "activations": kept * trunks,
        "logits": 4.0 * answered * vocabulary * 4,
        "cache while sampling": 2.0 * sampled * longest * layers * heads * size * number,
    }


def peak(memory: Mapping[str, float]) -> float:
    """Sampling and updating take turns: what lasts, and the larger of what passes."""
    passing = memory["activations"] + memory["logits"], memory["cache while sampling"]
    return sum(memory.values()) - sum(passing) + max(passing)


def _bytes(p: nn.Parameter) -> int:
    return p.numel() * p.element_size()


SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "top_h",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "min_length",
    "min_new_tokens",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "sequence_bias",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "exponential_decay_length_penalty",
)
"""What a `generation_config` may hold that bends the distribution."""


def ignored_generation_settings(lm: Any) -> str:
    """The options of a model's own `generation_config` that would bend its distribution, in words; empty if none."""
    asked = getattr(unwrap_peft(lm), "generation_config", None)
    given = asked.to_diff_dict() if asked is not None else {}
    return ", ".join(f"{name} {given[name]!r}" for name in SAMPLING if given.get(name) is not None)
