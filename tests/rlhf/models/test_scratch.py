"""New tokenizers and models."""

import pytest

from rlhf.config.shared import ScratchConfig
from rlhf.models.scratch import new_lm, train_tokenizer


@pytest.mark.parametrize("lowercase", [False, True])
def test_new_tokenizer_round_trips_texts(lowercase):
    tokenizer = train_tokenizer(["The film is good"] * 3, ScratchConfig(vocab_size=300, lowercase=lowercase))
    text = "The film é 😀 is\n\tgood"
    assert tokenizer.decode(tokenizer(text).input_ids) == (text.lower() if lowercase else text)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1)
    assert tokenizer("The film is good<|end|>").input_ids[-1] == 0


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen2", "gpt_neox"])
def test_new_model_has_the_configured_sizes_and_dropout(kind):
    config = ScratchConfig(model_type=kind, vocab_size=270, hidden_size=48, num_heads=3, num_layers=2, max_positions=64)
    tokenizer = train_tokenizer(["the film"], config)
    lm = new_lm(config, tokenizer)
    sizes = lm.config
    assert (sizes.hidden_size, sizes.num_attention_heads, sizes.num_hidden_layers) == (48, 3, 2)
    assert (sizes.max_position_embeddings, sizes.vocab_size, sizes.eos_token_id) == (64, len(tokenizer), 0)
    assert lm.get_input_embeddings().weight is lm.get_output_embeddings().weight
    assert {value for name, value in vars(sizes).items() if "dropout" in name or "pdrop" in name} >= {0.1}
