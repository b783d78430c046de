"""New models: a tokenizer trained on a text, and a language model with random weights."""

from collections.abc import Iterable
from typing import Any

import torch

from rlhf.config.shared import ScratchConfig
from rlhf.errors import UserError


def train_tokenizer(texts: Iterable[str], config: ScratchConfig) -> Any:
    """A byte-level BPE tokenizer (Sennrich et al., 2016; Radford et al., 2019) with an end and a padding token."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    if config.lowercase:
        core.normalizer = normalizers.Lowercase()  # pyright: ignore[reportAttributeAccessIssue]
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore[reportAttributeAccessIssue]
    core.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=["<|end|>", "<|pad|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|end|>", pad_token="<|pad|>", model_max_length=config.max_positions
    )


def new_lm(config: ScratchConfig, tokenizer: Any) -> Any:
    """A causal language model with random weights, in float32.

    Raises:
        UserError: `scratch.model_type` is not an architecture of transformers.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    assert config.model_type is not None
    try:
        defaults = AutoConfig.for_model(config.model_type)
    except ValueError:
        raise UserError(
            f"scratch.model_type is {config.model_type!r}, which is not an architecture of transformers; "
            "try llama or gpt2"
        ) from None
    sizes = {
        "vocab_size": len(tokenizer),
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_heads,
        "intermediate_size": 4 * config.hidden_size,
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    dropout_rates = [
        name
        for name, value in vars(defaults).items()
        if isinstance(value, float) and ("dropout" in name or "pdrop" in name)
    ]
    settings = {name: value for name, value in sizes.items() if hasattr(defaults, name)}
    settings |= dict.fromkeys(dropout_rates, config.dropout)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(config.model_type, **settings), dtype=torch.float32)
