"""Sampling through packed linear layers: the same responses, and nothing of it left afterwards."""

import pytest
import torch
from torch import nn

from rlhf.config.shared import LoraConfig, ModelConfig
from rlhf.data.encoding import pad
from rlhf.models.adapters import active_adapter
from rlhf.models.distribution import LogitTransform
from rlhf.models.loading import add_lora, load_causal_lm
from rlhf.rollouts import packed_linear
from rlhf.rollouts.packed_linear import packed_linear_layers
from rlhf.rollouts.sampling import sample, uniform_noise

PROMPTS = [[7, 8, 9, 10], [11], [12, 13], [14, 15, 16], [17], [18, 19]]

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")


@pytest.fixture
def load(models):
    def loaded(family="llama"):
        return load_causal_lm(ModelConfig(path=str(models(family)))).eval()

    return loaded


@pytest.fixture
def small_models_too(monkeypatch):
    monkeypatch.setattr(packed_linear, "MIN_LAYER_WEIGHTS", 1)
    monkeypatch.setattr(packed_linear, "MIN_MODEL_BYTES", 1)
    monkeypatch.setattr(packed_linear, "MIN_STEPS", 1)


def own_forwards(lm):
    return [module for module in lm.modules() if isinstance(module, nn.Linear) and "forward" in vars(module)]


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt_neox", "gemma2"])
@pytest.mark.parametrize("engine", ["growing", "static"])
def test_packed_layers_sample_the_same_responses(load, family, engine, monkeypatch):
    """Layers with and without biases; rows that end leave batches too small for the packed product."""
    lm = load(family)
    ids, mask = pad(PROMPTS * 2, 2, "left")
    noise = uniform_noise([0], range(12), 12, 20)
    transform = LogitTransform(stop_ids=(1, 9, 21, 25))
    expected = sample(lm, ids, mask, noise, transform, 20, engine=engine)
    for name in ("MIN_LAYER_WEIGHTS", "MIN_MODEL_BYTES"):
        monkeypatch.setattr(packed_linear, name, 1)
    packed_rows = []
    packed_forward = packed_linear._packed_forward

    def recorded(layer, linear):
        forward = packed_forward(layer, linear)
        return lambda x: (packed_rows.append(x.numel() // linear.in_features), forward(x))[1]

    monkeypatch.setattr(packed_linear, "_packed_forward", recorded)
    sampled = sample(lm, ids, mask, noise, transform, 20, engine=engine)
    assert {12} < set(packed_rows)
    assert torch.equal(sampled.ids, expected.ids)
    assert torch.equal(sampled.mask, expected.mask)
    torch.testing.assert_close(sampled.logprobs, expected.logprobs, rtol=0, atol=1e-5)
    assert not own_forwards(lm)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("n_rows", [1, 2, 3, 16, 64, 65])
@pytest.mark.usefixtures("small_models_too")
def test_packed_product_equals_the_layer_s_own(bias, n_rows):
    """For batches of any shape, also strided ones."""
    layer = nn.Linear(48, 40, bias=bias)
    model = nn.Sequential(layer)
    x = torch.randn(n_rows, 3, 48)[:, -1]
    expected = layer(x)
    with torch.no_grad(), packed_linear_layers(model, n_rows=8, n_steps=32):
        assert own_forwards(model) == [layer]
        torch.testing.assert_close(layer(x), expected)
        torch.testing.assert_close(layer(x.unsqueeze(1)), expected.unsqueeze(1))


@pytest.mark.usefixtures("small_models_too")
def test_packed_weights_are_those_of_the_present_rollout():
    layer = nn.Linear(8, 8)
    x = torch.randn(4, 8)
    for _ in range(2):
        with torch.no_grad(), packed_linear_layers(nn.Sequential(layer), n_rows=4, n_steps=32):
            torch.testing.assert_close(layer(x), nn.functional.linear(x, layer.weight, layer.bias))
            layer.weight.mul_(2)  # after packing


@pytest.mark.usefixtures("small_models_too")
def test_layers_are_restored_after_an_error(load):
    lm = load()

    def interrupted():
        with packed_linear_layers(lm, n_rows=4, n_steps=32):
            assert own_forwards(lm)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not own_forwards(lm)
    assert lm(torch.tensor([[7, 8]])).logits.requires_grad


@pytest.fixture
def adapted(models):
    """A model with LoRA adapters that change what it says, and the responses it samples without packing."""
    lm = load_causal_lm(ModelConfig(path=str(models("llama"))))
    lm = add_lora(lm, LoraConfig(rank=4), task="CAUSAL_LM").eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in lm.named_parameters():
            if "lora_B" in name:
                p.normal_(std=0.3)
    return lm


def sampled_by(lm):
    ids, mask = pad(PROMPTS * 2, 2, "left")
    return sample(lm, ids, mask, uniform_noise([0], range(12), 12, 20), LogitTransform(stop_ids=(1, 9, 21, 25)), 20)


def test_adapters_are_merged_in_the_packed_copy_alone(adapted, monkeypatch):
    expected = sampled_by(adapted)
    with active_adapter(adapted, None):
        of_base = sampled_by(adapted)
    assert not torch.equal(of_base.ids, expected.ids)
    before = {name: p.clone() for name, p in adapted.named_parameters()}
    monkeypatch.setattr(packed_linear, "MIN_LAYER_WEIGHTS", 1)
    monkeypatch.setattr(packed_linear, "MIN_MODEL_BYTES", 1)
    adapter_rows = []
    for name, module in adapted.named_modules():
        if name.endswith("lora_A.default"):
            module.register_forward_pre_hook(lambda _, inputs: adapter_rows.append(inputs[0].shape[:-1].numel()))
    sampled = sampled_by(adapted)
    assert not {rows for rows in adapter_rows if 3 <= rows <= 64}  # only the longer prefill, and the last two rows
    torch.testing.assert_close(sampled.logprobs, expected.logprobs, rtol=0, atol=1e-5)
    assert torch.equal(sampled.ids, expected.ids)
    assert all(torch.equal(p, before[name]) for name, p in adapted.named_parameters())
    assert "forward" not in {name for module in adapted.modules() for name in vars(module)}
    with active_adapter(adapted, None):
        assert torch.equal(sampled_by(adapted).ids, of_base.ids)


@pytest.mark.parametrize("change", ["lora_bias", "lora_variant", "training"])
@pytest.mark.usefixtures("small_models_too")
def test_adapters_that_do_more_than_add_a_product_are_not_merged(adapted, change):
    layer = next(module for module in adapted.modules() if hasattr(module, "lora_A"))
    if change == "training":
        layer.train()
    else:
        getattr(layer, change)["default"] = True
    with packed_linear_layers(adapted, n_rows=4, n_steps=32):
        assert "forward" not in vars(layer)
        assert "forward" in vars(layer.base_layer)


@pytest.mark.parametrize(
    ("rows", "steps", "dtype", "least_bytes"),
    [
        (2, 32, "float32", 1),
        (65, 32, "float32", 1),
        (8, 15, "float32", 1),
        (8, 32, "bfloat16", 1),
        (8, 32, "float32", 2**40),
    ],
)
def test_layers_are_left_alone_where_packing_gains_nothing(load, monkeypatch, rows, steps, dtype, least_bytes):
    monkeypatch.setattr(packed_linear, "MIN_LAYER_WEIGHTS", 1)
    monkeypatch.setattr(packed_linear, "MIN_MODEL_BYTES", least_bytes)
    lm = load().to(getattr(torch, dtype))
    with packed_linear_layers(lm, rows, steps):
        assert not own_forwards(lm)
