"""The memory of one of eight GPUs by a run's own estimate, for models of four sizes: the table of docs/scaling.md."""

import copy
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf.config.jobs import PPOJob
from rlhf.config.ppo import CriticConfig, PPOConfig
from rlhf.config.shared import GenerationConfig, LoraConfig, ModelConfig
from rlhf.models.actor_critic import ActorCritic
from rlhf.models.loading import add_lora
from rlhf.trainers.memory_estimate import estimate_memory

GPUS = 8
PROMPT, RESPONSE = 256, 512

SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "0.5B": ("qwen2", {"hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
                       "intermediate_size": 4864, "vocab_size": 151936, "tie_word_embeddings": True}),
    "1.5B": ("qwen2", {"hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12,
                       "num_key_value_heads": 2, "intermediate_size": 8960, "vocab_size": 151936,
                       "tie_word_embeddings": True}),
    "3B": ("qwen2", {"hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16, "num_key_value_heads": 2,
                     "intermediate_size": 11008, "vocab_size": 151936, "tie_word_embeddings": True}),
    "8B": ("llama", {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
                     "intermediate_size": 14336, "vocab_size": 128256, "tie_word_embeddings": False}),
}  # fmt: skip


def peak_gib(size: str, shard: bool, rank: int, offload: bool = False) -> float:
    """The estimated peak of one process, in GiB; with adapters (`rank` > 0) the base is stored as bfloat16.

    Args:
        offload: keep reference and optimizer in the CPU's memory while they are not used.
    """
    dtype = "bfloat16" if rank else "float32"
    job = PPOJob(
        model=ModelConfig(
            path=size,
            shard=shard,
            dtype=dtype,
            mixed_precision="bf16",
            gradient_checkpointing=True,
            lora=LoraConfig(rank=rank),
        ),
        ppo=PPOConfig(
            rollout_batch_size=64,
            minibatch_size=32,
            microbatch_size=4,
            offload_reference=offload,
            offload_optimizer=offload,
        ),
        generation=GenerationConfig(max_new_tokens=RESPONSE),
        critic=CriticConfig(kind="shared"),
    )
    kind, sizes = SIZES[size]
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes), dtype=getattr(torch, dtype))
        lm = add_lora(lm, job.model.lora, "CAUSAL_LM")
        policy = ActorCritic(lm, "shared", None, torch.nn.Linear(sizes["hidden_size"], 1))
    reference = {} if rank else {"reference": copy.deepcopy(lm)}
    if not offload:
        return estimate_memory(job, PROMPT + RESPONSE, GPUS, policy, reference).peak / 2**30
    estimate = estimate_memory(job, PROMPT + RESPONSE, GPUS, policy, {})
    scoring = sum(4.0 * lm.num_parameters() for lm in reference.values())
    return replace(estimate, scoring=scoring).peak / 2**30


if __name__ == "__main__":
    print("| model | DDP | DDP, offloaded | sharded | adapters, DDP | adapters, sharded |\n|---|" + "---:|" * 5)
    for size in SIZES:
        cells = [peak_gib(size, False, 0), peak_gib(size, False, 0, offload=True)]
        cells += [peak_gib(size, True, 0), peak_gib(size, False, 16), peak_gib(size, True, 16)]
        print(f"| {size} | " + " | ".join(f"{cell:.1f}" for cell in cells) + " |")
