"""The estimate beside the bytes of tensors that torch's allocator hands out on a CPU in two steps of small models."""

import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import AutoConfig, AutoModelForCausalLM

from rlhf.config.scores import RewardConfig
from rlhf.config.shared import LoraConfig
from rlhf.trainers.memory_estimate import estimate_memory
from rlhf.trainers.ppo import PPOTrainer


@pytest.fixture
def small_model(build, tmp_path):
    """A model whose weights and activations are large beside what else a run holds."""

    def make(kind, **sizes):
        tokenizer = build.tokenizer()
        torch.manual_seed(0)
        config = AutoConfig.for_model(
            kind, vocab_size=1000, pad_token_id=tokenizer.pad_token_id, eos_token_id=tokenizer.eos_token_id, **sizes
        )
        folder = tmp_path / "small"
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    return make


def allocated_peak(prof):
    """The most bytes that were allocated at a time, in tensors that the profiled code made."""
    events = [e for e in prof.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


LLAMA = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 3}
GPT2 = {"n_embd": 128, "n_head": 4, "n_layer": 3}


CASES = {
    "llama": ("llama", LLAMA | {"intermediate_size": 256}, {}),
    "wide MLP, microbatches": ("llama", LLAMA | {"intermediate_size": 768}, {"ppo": {"microbatch_size": 2}}),
    "checkpointing": ("llama", LLAMA | {"intermediate_size": 512}, {"model": {"gradient_checkpointing": True}}),
    "separate critic": ("llama", LLAMA | {"intermediate_size": 512}, {"critic": {"kind": "separate"}}),
    "adapters": ("llama", LLAMA | {"intermediate_size": 512}, {"model": {"lora": LoraConfig(rank=4)}}),
    "gpt2": ("gpt2", GPT2, {"ppo": {"microbatch_size": 4}}),
}
SLOW = ("llama", "separate critic", "adapters")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in CASES])
def test_the_estimate_is_within_a_fifth_of_the_allocated_peak(job, change, small_model, name):
    kind, sizes, groups = CASES[name]
    groups = {name: dict(values) for name, values in groups.items()}
    groups["model"] = {"path": small_model(kind, **sizes)} | groups.get("model", {})
    groups["ppo"] = {"total_episodes": 32, "rollout_batch_size": 16, "minibatch_size": 16, "microbatch_size": 16} | (
        groups.get("ppo", {})
    )
    reward = RewardConfig(function=job.reward.function)
    job = change(job, **groups, generation={"max_new_tokens": 48, "min_new_tokens": 47}, reward=reward)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        trainer = PPOTrainer(job)
        trainer.step()
        trainer.step()
    assert trainer.models.reference is not None
    longest = trainer.data.longest_prompt + job.generation.max_new_tokens
    estimate = estimate_memory(trainer.job, longest, 1, trainer.policy, {"reference": trainer.models.reference.lm})
    assert allocated_peak(prof) / estimate.peak == pytest.approx(1.0, abs=0.2)
