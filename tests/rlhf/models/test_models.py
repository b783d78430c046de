"""Actor-critic, reference and loading against plain transformers, on tiny models of many families."""

import pytest
import torch

from rlhf.config.shared import LoraConfig, ModelConfig
from rlhf.data.encoding import padding_id
from rlhf.errors import UserError
from rlhf.models.actor_critic import ActorCritic, Reference
from rlhf.models.distribution import LogitTransform, check_head, compute_logits
from rlhf.models.export import export_lm, export_policy
from rlhf.models.loading import add_lora, check_causal, load_causal_lm, load_tokenizer, resolve
from rlhf.models.trunk import disable_dropout
from rlhf.records import Tokens

FAMILIES = [
    "llama",
    "gpt2",
    "qwen2",
    "gpt_neox",
    "opt",
    "mistral",
    "qwen3",
    "gemma2",
    "phi3",
    "falcon",
    "bloom",
    "mamba",
]
PROMPTS = [[7, 8, 9], [10], [11, 12]]
RESPONSES = [[13, 1], [14, 15, 16, 17], [18]]
TEMPERATURE = 0.7


def reference_logprobs(reference, temperature=TEMPERATURE):
    """Log-probabilities of the responses under a reference, computed from its states and head."""
    tokens = padded()
    return reference.logprobs(reference.states(tokens), tokens, LogitTransform(temperature))


def load(models, family, **config):
    lm = load_causal_lm(ModelConfig(path=str(models(family)), **config))
    disable_dropout(lm)
    return lm.eval()


def actor_critic(lm):
    """With a value head that says something; it starts as zero."""
    policy = ActorCritic(lm)
    torch.manual_seed(5)
    torch.nn.init.normal_(policy.value_head.weight)
    torch.nn.init.constant_(policy.value_head.bias, 0.5)
    return policy


def padded(left=0, right=0, filler=2):
    """The prompts and responses as a batch, with more padding than is needed."""
    width, length = max(map(len, PROMPTS)) + left, max(map(len, RESPONSES)) + right
    prompts = torch.tensor([[filler] * (width - len(p)) + p for p in PROMPTS])
    responses = torch.tensor([r + [filler] * (length - len(r)) for r in RESPONSES])
    prompt_mask = torch.arange(width) >= width - torch.tensor([[len(p)] for p in PROMPTS])
    response_mask = torch.arange(length) < torch.tensor([[len(r)] for r in RESPONSES])
    return Tokens(prompts, prompt_mask, responses, response_mask)


def assert_close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


# ----------------------------------------------------------------------------------------------- actor, critic, padding


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_outputs_are_those_of_plain_transformers_row_by_row_without_padding(models, family):
    lm = load(models, family)
    policy = actor_critic(lm)
    out = policy(padded(), LogitTransform(TEMPERATURE))
    for i, (prompt, response) in enumerate(zip(PROMPTS, RESPONSES, strict=True)):
        ids = torch.tensor([prompt + response])
        told = slice(len(prompt) - 1, -1)
        logprobs = (lm(ids).logits[0, told].float() / TEMPERATURE).log_softmax(-1)
        states = lm.base_model(ids).last_hidden_state[0, told]
        assert_close(out.logprobs[i, : len(response)], logprobs.gather(-1, torch.tensor([response]).T).squeeze(-1))
        assert_close(out.entropy[i, : len(response)], -(logprobs.exp() * logprobs).sum(-1))
        assert_close(out.values[i, : len(response)], policy.value_head(states).squeeze(-1))
        assert not torch.stack([out.logprobs, out.entropy, out.values])[:, i, len(response) :].any()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_outputs_do_not_depend_on_padding(models, family):
    """Also where padding and end are one token, and where it is a word of its own."""
    policy = actor_critic(load(models, family))
    tight = policy(padded(), LogitTransform(TEMPERATURE))
    for filler in (1, 26):
        wide = policy(padded(left=4, right=3, filler=filler), LogitTransform(TEMPERATURE))
        for name in ("logprobs", "entropy", "values"):
            assert_close(getattr(wide, name)[:, :4], getattr(tight, name))
            assert not getattr(wide, name)[:, 4:].any()


@torch.no_grad()
def test_sliding_window_shorter_than_the_text_is_respected_under_padding(models):
    lm = load(models, "mistral")
    wide = ActorCritic(lm)(padded(), LogitTransform()).logprobs
    lm.config.sliding_window = 2
    ids = torch.tensor([PROMPTS[1] + RESPONSES[1]])
    plain = lm(ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1)
    narrow = ActorCritic(lm)(padded(left=3), LogitTransform()).logprobs
    assert_close(narrow[1], plain)
    assert (narrow[1] - wide[1]).abs().max() > 0.01


def test_outputs_are_float32_whatever_the_model_s_dtype(models):
    lm = load(models, "llama", dtype="bfloat16")
    policy = actor_critic(lm)
    assert lm.dtype == torch.bfloat16
    assert policy.value_head.weight.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        out = policy(padded(), LogitTransform())
    assert {out.logprobs.dtype, out.entropy.dtype, out.values.dtype} == {torch.float32}
    with torch.no_grad():
        state = lm.base_model(torch.tensor([PROMPTS[1]])).last_hidden_state[0, 0].float()
    expected = state @ policy.value_head.weight[0] + 0.5  # in full precision, of a state that has none
    torch.testing.assert_close(out.values[1, 0], expected, rtol=0.02, atol=0.02)
    assert out.values[1, 0] != out.values[1, 0].bfloat16()


def test_value_head_starts_at_zero(models):
    out = ActorCritic(load(models, "llama"))(padded(), LogitTransform())
    assert not out.values.any()


def test_gradient_checkpointing_gives_the_same_gradients(models):
    grads = []
    for checkpointing in (False, True):
        policy = actor_critic(load(models, "llama", gradient_checkpointing=checkpointing)).train()
        assert policy.lm.is_gradient_checkpointing == checkpointing
        out = policy(padded(), LogitTransform(TEMPERATURE))
        (out.logprobs.sum() + out.entropy.sum() + out.values.square().sum()).backward()
        grads.append({name: p.grad for name, p in policy.trainable().items()})
    for name, grad in grads[0].items():
        assert grad.any(), name
        torch.testing.assert_close(grads[1][name], grad, rtol=1e-6, atol=1e-7)


def test_tied_weights_are_trained_once(models):
    policy = ActorCritic(load(models, "gpt2"))
    assert policy.lm.lm_head.weight is policy.lm.transformer.wte.weight
    weights = policy.trainable()
    assert "lm.transformer.wte.weight" in weights
    assert "lm.lm_head.weight" not in weights
    assert len({p.data_ptr() for p in weights.values()}) == len(weights)


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "mamba"])  # which has none
def test_dropout_is_disabled_in_training_mode(models, family):
    """Whatever the family calls its rates: all of them at one half, two forwards of training mode are equal."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(models(family))
    for name in [name for name, value in vars(config).items() if "drop" in name and isinstance(value, float)]:
        setattr(config, name, 0.5)
    lm = AutoModelForCausalLM.from_config(config).train()
    ids = torch.tensor([[7, 8, 9, 10]])
    torch.manual_seed(0)
    with torch.no_grad():
        one, two = lm(ids).logits, lm(ids).logits
    assert not torch.equal(one, two)
    disable_dropout(lm)
    with torch.no_grad():
        one, two = lm(ids).logits, lm(ids).logits
    assert torch.equal(one, two)


# ------------------------------------------------------------------------------------------------------------- the head


@torch.no_grad()
def test_softcap_of_logits_is_respected(models):
    lm = load(models, "gemma2")
    lm.config.final_logit_softcapping = 0.5
    ids = torch.tensor([[7, 8, 9]])
    hidden = lm.base_model(ids).last_hidden_state[0]
    assert lm.lm_head(hidden).abs().max() > 1.0
    assert_close(compute_logits(lm, hidden), lm(ids).logits[0])
    assert compute_logits(lm, hidden).abs().max() <= 0.5
    check_head(lm)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_head_of_the_trunk_in_every_supported_family(models, family):
    check_head(load(models, family))


def test_model_that_scales_its_logits_is_refused(models, monkeypatch):
    lm = load(models, "llama")
    original = lm.forward

    def scaled(**kwargs):
        out = original(**kwargs)
        out.logits = out.logits * 1.1
        return out

    monkeypatch.setattr(lm, "forward", scaled)
    with pytest.raises(UserError, match="LlamaForCausalLM changes its logits after the output head"):
        check_head(lm)


def test_family_that_scales_its_logits_is_refused(models):
    with pytest.raises(UserError, match="CohereForCausalLM changes its logits"):
        check_head(load(models, "cohere"))


# -------------------------------------------------------------------------------------------------------- the reference


@torch.no_grad()
def test_reference_of_a_fully_trained_policy_is_a_frozen_copy(models):
    lm = load(models, "llama")
    reference, policy = Reference.of(lm), ActorCritic(lm)
    before = reference_logprobs(reference)
    assert torch.equal(before, policy(padded(), LogitTransform(TEMPERATURE)).logprobs)
    lm.get_output_embeddings().weight.mul_(1.5)
    assert torch.equal(reference_logprobs(reference), before)
    assert not torch.equal(policy(padded(), LogitTransform(TEMPERATURE)).logprobs, before)
    assert not any(p.requires_grad for p in reference.lm.parameters())
    assert all(p.requires_grad for p in lm.parameters())


@torch.no_grad()
def test_reference_of_adapters_is_the_model_without_them(models):
    lm = add_lora(load(models, "llama"), LoraConfig(rank=2), "CAUSAL_LM")
    reference, policy = Reference.of(lm), ActorCritic(lm)
    assert reference.lm is lm  # the weights are in memory once
    before = reference_logprobs(reference)
    assert torch.equal(policy(padded(), LogitTransform(TEMPERATURE)).logprobs, before)
    for name, p in lm.named_parameters():
        if "lora_B" in name:
            p.fill_(0.3)
    moved = policy(padded(), LogitTransform(TEMPERATURE)).logprobs
    assert (moved - before).abs().max() > 0.01
    assert torch.equal(reference_logprobs(reference), before)
    assert torch.equal(policy(padded(), LogitTransform(TEMPERATURE)).logprobs, moved)  # the adapters are on again
    assert [name for name, p in lm.named_parameters() if p.requires_grad and "lora_" not in name] == []


@torch.no_grad()
def test_adapter_of_an_earlier_stage_is_part_of_the_reference(models, tmp_path):
    """PPO with adapters on the adapter of SFT: with its own adapters off, the SFT model is left, not its base."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    config = ModelConfig(path=str(models("llama")), lora=LoraConfig(rank=2))
    tuned = add_lora(load(models, "llama"), config.lora, "CAUSAL_LM")
    for name, p in tuned.named_parameters():
        if "lora_B" in name:
            p.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    export_lm(tuned, load_tokenizer(config.path), tmp_path / "sft" / "model", config)
    assert not (tmp_path / "sft" / "model" / "config.json").exists()  # an adapter, not whole weights
    base = ActorCritic(load(models, "llama"))(padded(), LogitTransform()).logprobs
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(config.path), tmp_path / "sft" / "model")
    expected = ActorCritic(plain.eval())(padded(), LogitTransform()).logprobs
    assert (expected - base).abs().max() > 0.01

    second = ModelConfig(path=str(tmp_path / "sft"), lora=LoraConfig(rank=2))
    lm = add_lora(load_causal_lm(second), second.lora, "CAUSAL_LM")
    assert_close(reference_logprobs(Reference.of(lm), temperature=1.0), expected)
    assert_close(ActorCritic(lm)(padded(), LogitTransform()).logprobs, expected)

    # What it exports stands alone: the weights under it lie in no folder.
    for name, p in lm.named_parameters():
        if "lora_B" in name:
            p.fill_(0.3)
    moved = ActorCritic(lm)(padded(), LogitTransform()).logprobs
    export_policy(ActorCritic(lm), load_tokenizer(str(tmp_path / "sft")), tmp_path / "ppo", second, {})
    alone = AutoModelForCausalLM.from_pretrained(tmp_path / "ppo")
    assert_close(ActorCritic(alone)(padded(), LogitTransform()).logprobs, moved)
    assert (moved - expected).abs().max() > 0.01


def test_adapter_targets_that_no_module_has_are_refused(models):
    with pytest.raises(UserError, match=r"model.lora.targets is \['nothing'\]"):
        add_lora(load(models, "llama"), LoraConfig(rank=2, targets=["nothing"]), "CAUSAL_LM")


def test_a_rank_beyond_the_models_width_is_refused(models):
    with pytest.raises(UserError, match=r"model.lora.rank is 33, but must be at most the model's width, 32"):
        add_lora(load(models, "llama"), LoraConfig(rank=33), "CAUSAL_LM")


# ---------------------------------------------------------------------------------------------------------------- paths


def test_a_run_folder_resolves_to_its_model(models, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(models("llama"))
    assert resolve(str(tmp_path / "run")) == str(tmp_path / "run" / "model")
    assert load_causal_lm(ModelConfig(path=str(tmp_path / "run"))).config.model_type == "llama"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("./nothing", "does not exist"),
        ("a/b/c", "does not exist"),
        ("{tmp}", "holds no model"),
        ("{tmp}/f", "is no folder"),
    ],
)
def test_paths_without_a_model_are_refused_by_name(tmp_path, path, message):
    (tmp_path / "f").write_text("")
    with pytest.raises(UserError, match=message):
        resolve(path.format(tmp=tmp_path))


def test_models_that_are_no_causal_language_models_are_refused(reward_folder):
    with pytest.raises(UserError, match="holds a LlamaForSequenceClassification, which is no causal language model"):
        check_causal(str(reward_folder))


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2"])
def test_tokenizer_is_the_one_that_was_saved_whatever_the_family(models, family):
    tokenizer = load_tokenizer(str(models(family)))
    assert tokenizer("the film<|end|>good  é").input_ids == [7, 8, 1, 11, 0]
    assert padding_id(tokenizer) == 2
    assert padding_id(load_tokenizer(str(models(family, pad=None)))) == 1


def test_chat_template_can_come_from_a_file(models, tmp_path):
    (tmp_path / "chat.jinja").write_text("{{ messages[0]['content'] }}!")
    tokenizer = load_tokenizer(str(models("llama")), str(tmp_path / "chat.jinja"))
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "a!"
    with pytest.raises(UserError, match=r"model.chat_template .*no.jinja does not exist"):
        load_tokenizer(str(models("llama")), str(tmp_path / "no.jinja"))
