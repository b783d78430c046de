"""The preflight of a run: its description, and its memory counted by hand for a model of 20,320 weights."""

import json
from dataclasses import replace

import pytest
import torch

from rlhf.config.scores import JudgeConfig, RewardConfig, WeightedSource
from rlhf.config.shared import LoraConfig, ModelConfig
from rlhf.models.actor_critic import Reference
from rlhf.models.adapters import CRITIC
from rlhf.models.build import build_policy, choose_critic
from rlhf.models.loading import load_causal_lm
from rlhf.models.reward_models import load_reward_model
from rlhf.rewards.sources import open_sources
from rlhf.rollouts.generation_config import DISTRIBUTION_OPTIONS, ignored_generation_settings
from rlhf.trainers.memory_estimate import MemoryEstimate, estimate_memory
from rlhf.trainers.ppo import PPOTrainer
from rlhf.trainers.preflight import (
    MiB,
    describe_prompts,
    describe_run,
    low_learning_rate,
    preflight,
    reward_models,
)
from rlhf.trainers.setup import load_data

# Width 32, 2 layers, 4 heads of 8 numbers, 2 of keys and values, 64 between, 27 tokens; 4 bytes a number.
LAYER = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64 + 2 * 32
LM = 27 * 32 + 2 * LAYER + 32 + 32 * 27
HEAD = 32 + 1
LONGEST = 12


@pytest.fixture
def estimated(job, change):
    """`estimated(ranks, models, **groups)`: memory estimate, policy and job for the job with other settings."""

    def estimate(ranks=1, models=None, **groups):
        changed, _ = choose_critic(change(job, **groups))
        lm = load_causal_lm(changed.model)
        policy = build_policy(changed, lm)
        models = {"reference": Reference.of(policy.lm).lm} if models is None else models
        return estimate_memory(changed, LONGEST, ranks, policy, models), policy, changed

    return estimate


def test_the_first_prompt_is_shown_as_the_model_reads_it(job, change, models, tmp_path):
    """With the start token that the tokenizer adds; a second one from the data gets a warning."""

    def lines(prompt, **changes):
        (tmp_path / "one.jsonl").write_text((json.dumps({"prompt": prompt}) + "\n") * 20)
        data = {"path": str(tmp_path / "one.jsonl")} | changes
        return describe_prompts(
            load_data(change(job, model={"path": str(models("llama", bos="<|start|>"))}, data=data))
        )

    assert lines("the film") == ["the first prompt as the model reads it: '<|start|> the film', ids 3, 7, 8"]
    shown, warning = lines("<|start|> the film")
    assert shown.endswith("ids 3, 3, 7, 8")
    assert "begins with two start tokens, '<|start|>'" in warning
    (long,) = lines("the film " * 50)
    assert long.endswith("7, 8, 7, 8, 7, 8, 7, ...")
    assert " ...', ids 3, 7" in long


def test_several_data_sets_are_listed_with_their_shares(job, change, tmp_path):
    (tmp_path / "two.jsonl").write_text('{"prompt": "a"}\n' * 20)
    data = load_data(change(job, data={"more": [str(tmp_path / "two.jsonl")], "shares": [0.75, 0.25]}))
    assert describe_prompts(data)[0] == "data sets: 75.0% prompts (32), 25.0% two (16)"


def test_memory_of_a_tiny_model_by_hand(estimated):
    """2 rows of 12 tokens in a forward, 8 answered; 8 rows sampled at once. Each layer keeps 8 * 32 + 2 * 16 + 4 * 64 =
    17 * 32 numbers of a token.
    """
    memory, policy, _ = estimated()
    assert (LM, sum(p.numel() for p in policy.parameters())) == (20_320, 20_353)
    assert memory.parts() == {
        "policy and critic": 4 * (LM + HEAD),
        "reference": 4 * LM,
        "AdamW": 2 * 4 * (LM + HEAD),
        "gradients": 4 * (LM + HEAD),
        "activations": 2 * (34 * 2 * 12 * 32 * 2),
        "logits": 4 * (2 * 8) * 27 * 4,
        "cache while sampling": 2 * (8 * 12) * 2 * (2 * 8) * 4,
    }


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ({"ppo": {"microbatch_size": 1}}, {"activations": 34 * 12 * 32 * 2 * 2, "logits": 4 * 8 * 27 * 4}),
        ({"ppo": {"microbatch_size": 99}}, {"activations": 34 * 48 * 32 * 2 * 2, "logits": 4 * 32 * 27 * 4}),
        (
            {"ppo": {"microbatch_size": 16, "microbatch_tokens": 36}},
            {"activations": 34 * 36 * 32 * 2 * 2, "logits": 4 * 24 * 27 * 4},
        ),
        (
            {"ppo": {"microbatch_size": 16, "microbatch_tokens": 999}},
            {"activations": 34 * 48 * 32 * 2 * 2, "logits": 4 * 32 * 27 * 4},
        ),
        ({"generation": {"max_new_tokens": 5}}, {"logits": 4 * 10 * 27 * 4}),
        ({"generation": {"max_rows": 3}}, {"cache while sampling": 2 * 3 * 12 * 2 * 16 * 4}),
        ({"generation": {"max_rows": 99}}, {"cache while sampling": 2 * 8 * 12 * 2 * 16 * 4}),
        ({"model": {"mixed_precision": "bf16"}}, {"activations": 34 * 24 * 32 * 2, "cache while sampling": 12288}),
        ({"model": {"mixed_precision": "fp16"}}, {"activations": 34 * 24 * 32 * 2, "cache while sampling": 12288}),
        (
            {"model": {"dtype": "bfloat16"}},
            {
                "reference": 2 * LM,
                "policy and critic": 2 * LM + 4 * HEAD,
                "AdamW": 2 * (2 * LM + 4 * HEAD),
                "gradients": 2 * LM + 4 * HEAD,
                "activations": 34 * 24 * 32 * 2,
                "cache while sampling": 12288,
            },
        ),
        ({"model": {"gradient_checkpointing": True}}, {"activations": 24 * 32 * 4 * 2 + 34 * 24 * 32 * 2}),
        (
            {"critic": {"kind": "separate"}},
            {
                "policy and critic": 4 * (LM + LM - 27 * 32 + HEAD),
                "AdamW": 8 * (LM + LM - 27 * 32 + HEAD),
                "gradients": 4 * (LM + LM - 27 * 32 + HEAD),
                "activations": 2 * 34 * 24 * 32 * 2 * 2,
            },
        ),
        (
            {"ppo": {"estimator": "remax"}},
            {"policy and critic": 4 * LM, "AdamW": 8 * LM, "gradients": 4 * LM},
        ),
        ({"ppo": {"adam_8bit": True}}, {"AdamW": 8 * (LM + HEAD)}),  # every weight has fewer than 4,096 numbers
    ],
)
def test_a_setting_changes_only_its_parts_of_the_estimate(estimated, groups, expected):
    assert estimated(**groups)[0].parts() == estimated()[0].parts() | expected


def test_estimate_counts_the_share_of_one_process(estimated):
    """Gradients count twice: DDP holds a second copy in its buckets."""
    one = estimated(1)[0].parts()
    two = estimated(2, ppo={"microbatch_size": 4})[0].parts()
    assert two["cache while sampling"] == one["cache while sampling"] / 2
    assert (two["gradients"], two["AdamW"]) == (one["gradients"], one["AdamW"])
    assert two["activations"] == one["activations"]  # a share of two rows, though four would be allowed


def test_adapters_share_the_base_with_the_reference(estimated):
    """Rank 2 on every linear layer but the head: 2 (in + out) weights each."""
    low = 2 * (4 * 32 + 32 + 16 + 32 + 16 + 3 * (32 + 64))
    assert low == 2 * sum(a + b for a, b in [(32, 32), (32, 16), (32, 16), (32, 32), (32, 64), (32, 64), (64, 32)])
    lora = {"model": {"lora": LoraConfig(rank=2)}}
    memory, policy, _ = estimated(**lora)
    assert "reference" not in memory.parts()
    assert memory.parts()["policy and critic"] == 4 * (LM + 2 * low + HEAD)
    assert memory.parts()["AdamW"] == 2 * memory.parts()["gradients"] == 8 * (2 * low + HEAD)
    both, policy, _ = estimated(**lora, critic={"kind": "adapter"})
    assert both.parts()["policy and critic"] == 4 * (LM + 4 * low + HEAD)
    assert both.parts()["AdamW"] == 2 * both.parts()["gradients"] == 8 * (4 * low + HEAD)
    assert both.parts()["activations"] == 2 * memory.parts()["activations"]
    assert any(f".{CRITIC}." in name for name in policy.trainable())


def test_reward_model_is_counted_separately(estimated, reward_folder):
    model = load_reward_model(str(reward_folder))
    memory, policy, changed = estimated(models={"reward model": model})
    assert memory.parts()["reward model"] == 4 * sum(p.numel() for p in model.parameters()) == 4 * (LM - 27 * 32 + 32)
    assert "reference" not in memory.parts()
    assert estimate_memory(changed, LONGEST, 1, policy, {}).parts().keys() == memory.parts().keys() - {"reward model"}


def test_peak_is_what_stays_in_memory_and_the_larger_of_the_two_phases():
    memory = MemoryEstimate({"policy and critic": 100.0, "reference": 40.0}, 200.0, 100.0, 20.0, 7.0, kv_cache=25.0)
    assert memory.peak == 340 + 100 + 27
    assert replace(memory, kv_cache=128.0).peak == 340 + 128
    assert replace(memory, kv_cache=128.0, keeps_gradients=True).peak == 440 + 128  # DDP's are not freed
    assert replace(memory, kv_cache=128.0, offloads_optimizer=True).peak == 140 + 300 + 27
    assert replace(memory, kv_cache=400.0, offloads_optimizer=True).peak == 140 + 400


def described(memory, policy, job, ranks=1):
    text = describe_run(job, ranks=ranks, n_prompts=32, n_held_out=8, longest=LONGEST, policy=policy, memory=memory)
    return text.splitlines()


def test_a_run_is_described_by_its_steps_data_and_memory(estimated):
    _, policy, job = estimated(ppo={"total_episodes": 20_000, "microbatch_size": 3}, output="runs/x")
    memory = MemoryEstimate(
        {"policy and critic": 1500.4 * MiB}, 10.0 * MiB, 5.0 * MiB, 20.0 * MiB, 3.0 * MiB, 30.0 * MiB
    )
    assert described(memory, policy, job) == [
        "2500 steps of 8 responses; 2 epochs x 2 minibatches = 4 optimizer steps each, 10,000 in all; "
        "2 forward(s) a minibatch on each of 1 process(es)",
        "32 prompts to train on, 8 held out; longest prompt and response 12 tokens; 20,353 trained parameters; "
        "run folder runs/x",
        "memory of each process, estimated: policy and critic 1,500 MB, AdamW 10 MB, gradients 5 MB, activations "
        "20 MB, logits 3 MB, cache while sampling 30 MB; about 1,540 MB at its peak",
    ]


def test_description_names_samples_per_prompt_and_the_share_of_each_process(estimated):
    memory, policy, job = estimated(ppo={"samples_per_prompt": 2, "microbatch_size": 1})
    assert described(memory, policy, job, ranks=2)[0] == (
        "3 steps of 8 responses (2 to each of 4 prompts); 2 epochs x 2 minibatches = 4 optimizer steps each, "
        "12 in all; 2 forward(s) a minibatch on each of 2 process(es)"
    )


OPTION_VALUES = {
    "temperature": 0.6,
    "top_k": 20,
    "top_p": 0.9,
    "min_p": 0.1,
    "top_h": 0.4,
    "typical_p": 0.9,
    "epsilon_cutoff": 0.1,
    "eta_cutoff": 0.1,
    "repetition_penalty": 1.1,
    "no_repeat_ngram_size": 3,
    "encoder_repetition_penalty": 1.5,
    "min_length": 4,
    "min_new_tokens": 3,
    "bad_words_ids": [[5]],
    "suppress_tokens": [5],
    "begin_suppress_tokens": [5],
    "sequence_bias": [[[5], -10.0]],
    "forced_bos_token_id": 5,
    "forced_eos_token_id": 5,
    "exponential_decay_length_penalty": (5, 1.5),
}


@pytest.mark.parametrize("name", DISTRIBUTION_OPTIONS)
def test_every_option_that_changes_the_distribution_is_listed(models, name):
    lm = load_causal_lm(ModelConfig(path=str(models("llama"))))
    assert ignored_generation_settings(lm) == ""
    setattr(lm.generation_config, name, OPTION_VALUES[name])
    assert ignored_generation_settings(lm) == f"{name} {OPTION_VALUES[name]!r}"


def test_ignored_generation_settings_are_part_of_the_description(estimated):
    memory, policy, job = estimated(model={"lora": LoraConfig(rank=2)})
    assert len(described(memory, policy, job)) == 3
    config = policy.lm.get_base_model().generation_config
    config.top_p = 0.9
    config.repetition_penalty = 1.1
    config.do_sample = True
    config.max_length = 77
    assert described(memory, policy, job)[3] == (
        "ignored from the model's generation_config: top_p 0.9, repetition_penalty 1.1; the sampled distribution must "
        "be the scored one (generation.temperature, min_new_tokens and suppress_ids apply to both)"
    )


@pytest.mark.parametrize(
    ("rank", "lr", "parameters", "words"),
    [
        (2, 1e-5, 10**9, "ppo.lr is 1e-05, which is low for adapters; those of the recipes learned with 0.0005"),
        (2, 5e-5, 10**9, None),
        (
            0,
            1e-5,
            10**6,
            "ppo.lr is 1e-05, which is low for a model of 1.0M parameters; the demo's, of 1M, learned",
        ),
        (0, 5e-5, 10**6, None),
        (0, 1e-6, 10**9, None),
    ],
)
def test_a_learning_rate_that_suits_larger_models_is_reported_as_low(job, change, rank, lr, parameters, words):
    line = low_learning_rate(change(job, model={"lora": LoraConfig(rank=rank)}, ppo={"lr": lr}), parameters)
    assert line is None if words is None else line.startswith(words)


def test_the_low_learning_rate_stands_in_the_preflight(job, change):
    for lr, stands in ((1e-5, True), (1e-3, False)):
        trainer = PPOTrainer(change(job, ppo={"lr": lr}))
        text = preflight(trainer.job, trainer.data, trainer.models, trainer.accelerator)
        assert ("which is low for a model of 0.0M parameters" in text) == stands


def test_a_model_without_a_generation_config_has_no_ignored_settings():
    assert ignored_generation_settings(torch.nn.Linear(1, 1)) == ""


def test_estimate_of_sharded_weights_by_hand(estimated):
    """Half of all that is held; whole weights while collecting; root, two layers and gradients in an update."""
    parts = estimated(2, model={"shard": True})[0].parts()
    assert parts == estimated(2)[0].parts() | {
        "policy and critic": 4 * (LM + HEAD) / 2,
        "reference": 4 * LM / 2,
        "AdamW": 2 * 4 * (LM + HEAD) / 2,
        "gradients": 4 * (LM + HEAD) / 2,
        "whole weights while collecting": 4 * (LM + HEAD + LM),
        "gathered in an update": 4 * (2 * (LM + HEAD - 2 * LAYER) + 3 * LAYER),
    }
    held = {"policy and critic": 50.0}
    memory = MemoryEstimate(held, 70.0, 30.0, 20.0, 7.0, kv_cache=25.0, whole=200.0, gathered=60.0)
    assert memory.peak == 50 + 70 + max(30 + 20 + 7 + 60, 25 + 200)
    assert replace(memory, whole=50.0).peak == 50 + 70 + 30 + 20 + 7 + 60


def test_estimate_of_layers_gathered_as_bfloat16(estimated):
    parts = estimated(4, model={"shard": True, "mixed_precision": "bf16"})[0].parts()
    root = LM + HEAD - 2 * LAYER
    assert parts["whole weights while collecting"] == 4 * root + 2 * 2 * LAYER + 4 * (LM - 2 * LAYER) + 2 * 2 * LAYER
    assert parts["gathered in an update"] == 2 * 4 * root + 3 * 2 * LAYER
    assert parts["reference"] == LM  # a quarter of 4 bytes each: what is held stays float32


def test_a_reward_model_that_leaves_the_gpu_counts_only_while_it_scores():
    base = MemoryEstimate({"policy": 10.0}, optimizer=5.0, gradients=1.0, activations=2.0, logits=1.0, kv_cache=2.5)
    assert base.peak == 19.0
    assert replace(base, scoring=1.0).peak == 19.0
    large = replace(base, scoring=7.0)
    assert large.peak == 25.0  # the first minibatch's forward pass is stored meanwhile
    assert large.parts()["offloaded models while they score"] == 7.0


def test_reward_models_and_judges_are_counted_where_they_are(reward_folder, job, change):
    """Of a mix each, of a judge too; not those on another device, and those that leave it only while they score."""
    path = str(reward_folder)
    mix = {"a": WeightedSource(model=path), "b": WeightedSource(model=path), "c": WeightedSource(rule="repetition")}
    sources = open_sources({"score": RewardConfig(sources=mix), "judge": JudgeConfig(model=path)}, "cpu")
    resident, offloaded = reward_models(sources, torch.device("cpu"))
    assert list(resident) == ["reward model", "reward model 2", "judge"]
    assert offloaded == []
    assert reward_models(sources, torch.device("cuda:0")) == ({}, [])
    sources = open_sources({"score": RewardConfig(model=path, offload=True)}, "cpu")
    resident, (model,) = reward_models(sources, torch.device("cpu"))
    assert (resident, model) == ({}, sources["score"].model)
    trainer = PPOTrainer(change(job, reward={"function": None, "model": path, "offload": True}))
    text = preflight(trainer.job, trainer.data, trainer.models, trainer.accelerator)
    assert "what is offloaded saves nothing here: the run is on the CPU" in text
    assert "offloaded models while they score" in text
    trainer = PPOTrainer(change(job, ppo={"offload_reference": True, "offload_optimizer": True}))
    text = preflight(trainer.job, trainer.data, trainer.models, trainer.accelerator)
    assert ", reference" not in text
    assert "offloaded models while they score" in text
