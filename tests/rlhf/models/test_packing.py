"""Packed rows against single ones, for families that can and families that cannot."""

import pytest
import torch

from rlhf.config.shared import LoraConfig, ModelConfig
from rlhf.models import packing
from rlhf.models.actor_critic import ActorCritic, Reference
from rlhf.models.loading import add_lora, load_causal_lm
from rlhf.models.packing import PACKED_SDPA, packed_states, packs_rows
from rlhf.models.trunk import disable_dropout, text_states, unwrap_peft


@pytest.fixture(autouse=True)
def tiny_models_are_worth_packing(monkeypatch):
    monkeypatch.setattr(packing, "MIN_SAVED_PRODUCTS", 1)


IDS = torch.tensor(
    [[5, 6, 7, 8, 9, 10, 11], [12, 13, 2, 2, 2, 2, 2], [14, 15, 16, 17, 18, 2, 2], [19, 2, 2, 2, 2, 2, 2]]
)
LENGTHS = torch.tensor([7, 2, 5, 1])


def load(models, family, **config):
    lm = load_causal_lm(ModelConfig(path=str(models(family)), **config))
    disable_dropout(lm)
    return lm.eval()


def single_states(lm):
    model = unwrap_peft(lm)
    rows = [model.base_model(input_ids=row[None, :n]).last_hidden_state[0] for row, n in zip(IDS, LENGTHS, strict=True)]
    return torch.cat(rows)


def all_states(states):
    rows = [torch.arange(n) + start for n, start in zip(LENGTHS, states.starts, strict=True)]
    return states.flat[torch.cat(rows)]


@pytest.mark.parametrize(
    ("family", "packs"),
    [(name, True) for name in ("llama", "gpt2", "qwen2", "gpt_neox", "opt", "mistral", "qwen3", "phi3")]
    + [(name, False) for name in ("gemma2", "falcon", "bloom", "mamba")],
)
def test_states_of_a_batch_are_those_of_each_text_alone(models, family, packs):
    lm = load(models, family)
    with torch.no_grad():
        states = text_states(lm, IDS, LENGTHS)
        torch.testing.assert_close(all_states(states), single_states(lm), rtol=1e-4, atol=1e-5)
    assert packs_rows(lm) == packs
    assert len(states.flat) == (int(LENGTHS.sum()) if packs else IDS.numel())
    assert (lm.config._attn_implementation == PACKED_SDPA) == packs


def test_gradients_of_packed_rows_are_those_of_padded_ones(models, monkeypatch):
    gradients = []
    for packs in (True, False):
        lm = load(models, "llama", gradient_checkpointing=True).train()
        monkeypatch.setitem(packing._supported, lm, packs) if not packs else packs_rows(lm)
        states = all_states(text_states(lm, IDS, LENGTHS))
        (states * torch.arange(1.0, 1 + len(states)).unsqueeze(-1).cos()).sum().backward()
        gradients.append({name: p.grad for name, p in lm.named_parameters() if p.grad is not None})
    assert len(gradients[0]) > 10
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-6)


def test_sliding_windows_hold_within_each_text(models):
    lm = load(models, "mistral")
    assert packs_rows(lm)
    lm.config.sliding_window = 3
    for layer in lm.model.layers:
        layer.self_attn.sliding_window = 3
    with torch.no_grad():
        windowed = packed_states(lm, IDS, LENGTHS)
        torch.testing.assert_close(windowed, single_states(lm), rtol=1e-4, atol=1e-5)
        lm.config.sliding_window = None
        for layer in lm.model.layers:
            layer.self_attn.sliding_window = None
        assert (packed_states(lm, IDS, LENGTHS) - windowed).abs().max() > 1e-4


def test_adapters_and_the_copied_reference_read_packed_rows(models):
    lm = add_lora(load(models, "llama"), LoraConfig(rank=2), "CAUSAL_LM")
    with torch.no_grad():
        for name, p in lm.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.02, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(all_states(text_states(lm, IDS, LENGTHS)), single_states(lm), rtol=1e-4, atol=1e-5)
    assert packs_rows(unwrap_peft(lm))
    copied = Reference.of(ActorCritic(load(models, "llama")).lm).lm
    assert len(text_states(copied, IDS, LENGTHS).flat) == int(LENGTHS.sum())


def test_other_attention_implementations_are_left_alone(models):
    lm = load(models, "llama", attn_implementation="eager")
    assert not packs_rows(lm)
    assert lm.config._attn_implementation == "eager"


def test_the_implementation_is_not_written_into_a_saved_model(models, tmp_path):
    lm = load(models, "llama")
    assert packs_rows(lm)
    lm.save_pretrained(tmp_path)
    assert PACKED_SDPA not in (tmp_path / "config.json").read_text()


def test_a_model_that_mixes_packed_texts_is_detected(models, monkeypatch):
    """With attention over the whole packed row the second text would see the first."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    def mixing(module, query, key, value, attention_mask, **options):
        return sdpa_attention_forward(module, query, key, value, None, **options)

    monkeypatch.setattr(packing, "_packed_sdpa", mixing)
    lm = load(models, "llama")
    assert not packs_rows(lm)
    assert lm.config._attn_implementation == "sdpa"


def test_the_check_draws_no_random_numbers_and_keeps_the_mode(models):
    lm = load_causal_lm(ModelConfig(path=str(models("llama")))).train()
    lm.config.attention_dropout = 0.5
    for layer in lm.model.layers:
        layer.self_attn.attention_dropout = 0.5
    before = torch.get_rng_state()
    assert packs_rows(lm)
    assert torch.equal(torch.get_rng_state(), before)
    assert lm.training


def test_rows_are_packed_where_their_padding_costs_more_than_attention_text_by_text(models, monkeypatch):
    """13 padding tokens on 4 rows: 3.25 times the weights of a layer for each text."""
    lm = load(models, "llama")
    weights = sum(p.numel() for p in [*lm.model.layers.parameters(), *lm.model.norm.parameters()]) / 2
    for limit, packs in ((3.2 * weights, True), (3.3 * weights, False)):
        monkeypatch.setattr(packing, "MIN_SAVED_PRODUCTS", limit)
        assert len(text_states(lm, IDS, LENGTHS).flat) == (15 if packs else 28)
    monkeypatch.setattr(packing, "MIN_SAVED_PRODUCTS", 0)
    assert not packing.is_worth_packing(lm, IDS[:1], LENGTHS[:1])
