"""The memory of one process of a PPO run, estimated before it starts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from rlhf.config.jobs import PPOJob
from rlhf.models.actor_critic import ActorCritic
from rlhf.models.sharding import gathered_bytes
from rlhf.models.token_statistics import token_statistics_bytes
from rlhf.models.trunk import unwrap_peft
from rlhf.trainers.optimizer import moment_bytes


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one device, by what they are for."""

    models: dict[str, float]
    """Weights, by model; with `model.shard` one process's share."""
    optimizer: float
    """AdamW's two moments."""
    gradients: float
    """In an update."""
    activations: float
    """What the forward pass of a microbatch stores for its backward pass."""
    logits: float
    kv_cache: float
    recomputed: float = 0.0
    """With gradient checkpointing: activations of the layer whose backward pass it is."""
    whole: float = 0.0
    """With `model.shard`: whole weights of all models while responses are collected."""
    gathered: float = 0.0
    """With `model.shard`: the whole weights and gradients that an update holds at once."""
    scoring: float = 0.0
    """Of the largest model that is on the GPU only while it reads responses."""
    offloads_optimizer: bool = False
    """Whether the moments are on the GPU in an update only."""
    accumulates: bool = True
    """Whether a minibatch has several microbatches."""
    keeps_gradients: bool = False
    """Whether the gradients' memory is not freed after an update: DDP communicates in it."""

    def parts(self) -> dict[str, float]:
        sharded = {"whole weights while collecting": self.whole, "gathered in an update": self.gathered}
        return self.models | {
            "AdamW": self.optimizer,
            "gradients": self.gradients,
            "activations": self.activations + self.recomputed,
            "logits": self.logits,
            "cache while sampling": self.kv_cache,
            **(sharded if self.whole else {}),
            **({"offloaded models while they score": self.scoring} if self.scoring else {}),
        }

    @property
    def peak(self) -> float:
        """Sampling, scoring and updating alternate: what is always there, and the most that one of them needs.

        Without sharding, the first minibatch's forward pass may be stored while responses are scored. Gradients are
        there in a forward pass where an earlier microbatch has made them; else after it, when the logits are gone.
        """
        forward = self.activations + self.logits
        backward = self.activations + self.recomputed + self.gradients
        if self.accumulates or self.keeps_gradients:
            updating = max(self.gradients + forward, backward)
        else:
            updating = max(forward, backward)
        updating += self.gathered
        collecting = self.whole + max(self.kv_cache, self.scoring + (0.0 if self.whole else forward))
        if self.keeps_gradients:
            collecting += self.gradients
        if not self.offloads_optimizer:
            collecting += self.optimizer
        return sum(self.models.values()) + max(collecting, updating + self.optimizer)


def estimate_memory(
    job: PPOJob, longest: int, ranks: int, policy: ActorCritic, others: Mapping[str, Any]
) -> MemoryEstimate:
    """An estimate of the memory of one process.

    Args:
        longest: the longest prompt and response together, in tokens.
        ranks: number of processes.
        others: the models besides the policy, by name; weights shared with the policy are counted once.

    With gradient checkpointing, activations are the inputs of each layer and all of one layer. Against what torch's
    allocator counts on a CPU, peaks of small models are within 20% (tests/rlhf/trainers/test_memory_estimate.py).
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
    one_layer = float(tokens * itemsize * _numbers_per_token(lm))
    activations, recomputed = one_layer * n_layers, 0.0
    if job.model.gradient_checkpointing:
        activations, recomputed = float(tokens * width * itemsize * n_layers), one_layer
    n_trunks = 2 if policy.critic in ("separate", "adapter") else 1

    sampled_rows = job.ppo.rollout_batch_size // ranks
    sampled_rows = min(sampled_rows, job.generation.max_rows or sampled_rows)
    return MemoryEstimate(
        models={name: size / share for name, size in models.items()},
        optimizer=moment_bytes(policy.trainable().values(), job.ppo) / share,
        gradients=trained / share,
        accumulates=rows * longest > tokens,
        keeps_gradients=ranks > 1 and share == 1,
        activations=activations * n_trunks,
        logits=token_statistics_bytes(tokens * job.max_response_tokens // longest, config.vocab_size, lm.device),
        kv_cache=2.0 * sampled_rows * longest * n_layers * _key_width(config) * itemsize,
        recomputed=recomputed,
        whole=whole,
        gathered=gathered,
        offloads_optimizer=job.ppo.offload_optimizer,
    )


def _numbers_per_token(lm: Any) -> int:
    """Numbers that a decoder layer keeps of each token for the backward pass, without attention matrices.

    17 times the width (34 bytes at 2 bytes a number; Korthikanti et al., 2022) where an MLP of four times the width
    has one input matrix. A gated one (LLaMA, Qwen, Gemma) keeps four tensors of its inner width.
    """
    config = lm.config.get_text_config()
    width = config.hidden_size
    if not any(name.endswith("gate_proj") for name, _ in lm.named_modules()):
        return 17 * width
    return 8 * width + 2 * _key_width(config) + 4 * config.intermediate_size


def _key_width(config: Any) -> int:
    """Numbers of a token's keys in one layer, of all heads together."""
    n_heads = getattr(config, "num_attention_heads", 0)
    n_kv_heads = getattr(config, "num_key_value_heads", None) or n_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // max(1, n_heads or 1)
    return n_kv_heads * head_size


def weight_bytes(model: Any) -> int:
    """Of all weights of a model."""
    return sum(map(_bytes, model.parameters()))


def _bytes(p: nn.Parameter) -> int:
    return p.numel() * p.element_size()
