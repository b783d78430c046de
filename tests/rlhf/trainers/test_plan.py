"""What is said before a run starts: its steps, and memory counted by hand for a model of 20,320 weights."""

import pytest
import torch

from rlhf.config.jobs import LoraConfig, ModelConfig
from rlhf.models.actor_critic import Reference
from rlhf.models.adapters import CRITIC
from rlhf.models.build import build_policy
from rlhf.models.loading import load_causal_lm, load_reward_model
from rlhf.trainers.preflight import SAMPLING, MiB, estimate_memory, ignored_generation_settings, peak, plan

# Width 32, 2 layers, 4 heads of 8 numbers, 2 of keys and values, 64 between, 27 tokens; 4 bytes a number.
LAYER = 32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 64 + 2 * 32
LM = 27 * 32 + 2 * LAYER + 32 + 32 * 27
HEAD = 32 + 1
LONGEST = 12


@pytest.fixture
def made(job, change):
    """Policy and reference of the job with other settings, and what is estimated for them."""

    def estimated(ranks=1, models=None, **groups):
        changed = change(job, **groups)
        lm = load_causal_lm(changed.model)
        policy = build_policy(changed, lm)
        models = {"reference": Reference.of(policy.lm).lm} if models is None else models
        return estimate_memory(changed, LONGEST, ranks, policy, models), policy, changed

    return estimated


def test_memory_of_a_tiny_model_by_hand(made):
    """2 rows of 12 tokens in a forward, 8 answered; 8 rows sampled at once."""
    found, policy, _ = made()
    assert (LM, sum(p.numel() for p in policy.parameters())) == (20_320, 20_353)
    assert found == {
        "policy and critic": 4 * (LM + HEAD),
        "reference": 4 * LM,
        "gradients and AdamW": 3 * 4 * (LM + HEAD),
        "activations": 2 * (34 * 2 * 12 * 32 * 2),
        "logits": 4 * (2 * 8) * 27 * 4,
        "cache while sampling": 2 * (8 * 12) * 2 * (2 * 8) * 4,
    }


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ({"ppo": {"microbatch_size": 1}}, {"activations": 34 * 12 * 32 * 2 * 2, "logits": 4 * 8 * 27 * 4}),
        ({"ppo": {"microbatch_size": 99}}, {"activations": 34 * 48 * 32 * 2 * 2, "logits": 4 * 32 * 27 * 4}),
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
                "gradients and AdamW": 3 * (2 * LM + 4 * HEAD),
                "activations": 34 * 24 * 32 * 2,
                "cache while sampling": 12288,
            },
        ),
        ({"model": {"gradient_checkpointing": True}}, {"activations": 2 * 24 * 32 * 4 * 2 + 34 * 24 * 32 * 2}),
        (
            {"critic": {"kind": "separate"}},
            {
                "policy and critic": 4 * (LM + LM - 27 * 32 + HEAD),
                "gradients and AdamW": 12 * (LM + LM - 27 * 32 + HEAD),
                "activations": 2 * 34 * 24 * 32 * 2 * 2,
            },
        ),
        ({"ppo": {"estimator": "remax"}}, {"policy and critic": 4 * LM, "gradients and AdamW": 12 * LM}),
    ],
)
def test_what_a_setting_changes_in_the_estimate(made, groups, expected):
    """And nothing else of it."""
    assert made(**groups)[0] == made()[0] | expected


def test_each_process_has_its_share(made):
    """Gradients are there once more, for processes to average."""
    one, two = made(1)[0], made(2, ppo={"microbatch_size": 4})[0]
    assert two["cache while sampling"] == one["cache while sampling"] / 2
    assert two["gradients and AdamW"] == 4 / 3 * one["gradients and AdamW"]
    assert two["activations"] == one["activations"]  # a share of two rows, though four would be allowed


def test_adapters_share_the_base_with_the_reference(made):
    """Rank 2 on every linear layer but the head: 2 (in + out) weights each."""
    low = 2 * (4 * 32 + 32 + 16 + 32 + 16 + 3 * (32 + 64))
    assert low == 2 * sum(a + b for a, b in [(32, 32), (32, 16), (32, 16), (32, 32), (32, 64), (32, 64), (64, 32)])
    lora = {"model": {"lora": LoraConfig(rank=2)}}
    found, policy, _ = made(**lora)
    assert "reference" not in found
    assert found["policy and critic"] == 4 * (LM + 2 * low + HEAD)
    assert found["gradients and AdamW"] == 12 * (2 * low + HEAD)
    both, policy, _ = made(**lora, critic={"kind": "adapter"})
    assert both["policy and critic"] == 4 * (LM + 4 * low + HEAD)
    assert both["gradients and AdamW"] == 12 * (4 * low + HEAD)
    assert both["activations"] == 2 * found["activations"]
    assert any(f".{CRITIC}." in name for name in policy.trainable())


def test_reward_model_counts_for_itself(made, reward_folder):
    model = load_reward_model(str(reward_folder))
    found, policy, changed = made(models={"reward model": model})
    assert found["reward model"] == 4 * sum(p.numel() for p in model.parameters()) == 4 * (LM - 27 * 32 + 32)
    assert "reference" not in found
    assert estimate_memory(changed, LONGEST, 1, policy, {}).keys() == found.keys() - {"reward model"}


def test_peak_is_what_lasts_and_the_larger_of_what_passes():
    memory = {"policy and critic": 100.0, "reference": 40.0, "gradients and AdamW": 300.0}
    passing = {"activations": 20.0, "logits": 7.0, "cache while sampling": 25.0}
    assert peak(memory | passing) == 440 + 27
    assert peak(memory | passing | {"cache while sampling": 28.0}) == 440 + 28


def test_plan_in_words(made):
    memory, policy, changed = made(ppo={"total_episodes": 20_000, "microbatch_size": 3}, output="runs/x")
    lines = plan(changed, 1, 32, 8, LONGEST, policy, memory).splitlines()
    assert lines[0] == (
        "2500 steps of 8 responses; 2 epochs x 2 minibatches = 4 optimizer steps each, 10,000 in all; "
        "2 forward(s) a minibatch on each of 1 process(es)"
    )
    assert lines[1] == (
        "32 prompts to train on, 8 held out; longest prompt and response 12 tokens; 20,353 trained parameters; "
        "run folder runs/x"
    )
    megabytes = {name: size * MiB for name, size in {"policy and critic": 1500.4, "activations": 20.0}.items()}
    megabytes |= {"logits": 3.0 * MiB, "cache while sampling": 30.0 * MiB}
    assert plan(changed, 1, 32, 8, LONGEST, policy, megabytes).splitlines()[2:] == [
        "memory of each process, estimated: policy and critic 1,500 MB, activations 20 MB, logits 3 MB, "
        "cache while sampling 30 MB; about 1,530 MB at its peak"
    ]


def test_plan_says_how_often_each_prompt_is_answered_and_what_each_process_does(made):
    memory, policy, changed = made(ppo={"samples_per_prompt": 2, "microbatch_size": 1})
    first = plan(changed, 2, 32, 8, LONGEST, policy, memory).splitlines()[0]
    assert first == (
        "3 steps of 8 responses (2 to each of 4 prompts); 2 epochs x 2 minibatches = 4 optimizer steps each, "
        "12 in all; 2 forward(s) a minibatch on each of 2 process(es)"
    )


BENDING = {
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


@pytest.mark.parametrize("name", SAMPLING)
def test_every_option_that_bends_the_distribution_is_named(models, name):
    lm = load_causal_lm(ModelConfig(path=str(models("llama"))))
    assert ignored_generation_settings(lm) == ""
    setattr(lm.generation_config, name, BENDING[name])
    assert ignored_generation_settings(lm) == f"{name} {BENDING[name]!r}"


def test_what_is_set_aside_stands_in_the_plan(made):
    memory, policy, changed = made(model={"lora": LoraConfig(rank=2)})
    assert len(plan(changed, 1, 32, 8, LONGEST, policy, memory).splitlines()) == 3
    config = policy.lm.get_base_model().generation_config
    config.top_p, config.repetition_penalty, config.do_sample, config.max_length = 0.9, 1.1, True, 77
    last = plan(changed, 1, 32, 8, LONGEST, policy, memory).splitlines()[3]
    assert last == (
        "the model's generation_config asks for top_p 0.9, repetition_penalty 1.1; set aside, for the distribution "
        "that is sampled must be the one that is scored (generation.temperature, min_new_tokens and suppress_ids apply "
        "to both)"
    )


def test_a_model_without_a_generation_config_asks_for_nothing():
    assert ignored_generation_settings(torch.nn.Linear(1, 1)) == ""
