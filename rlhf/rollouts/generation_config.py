"""A model's own `generation_config`: which of its options the sampler ignores."""

from typing import Any

from rlhf.models.trunk import unwrap_peft

DISTRIBUTION_OPTIONS = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "top_h",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "repetition_penalty",
    "no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "min_length",
    "min_new_tokens",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "sequence_bias",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "exponential_decay_length_penalty",
)
"""Options of a `generation_config` that change the distribution of tokens."""


def ignored_generation_settings(lm: Any) -> str:
    """The options of a model's own `generation_config` that would change its distribution, as text; empty if none."""
    config = getattr(unwrap_peft(lm), "generation_config", None)
    options = config.to_diff_dict() if config is not None else {}
    return ", ".join(f"{name} {options[name]!r}" for name in DISTRIBUTION_OPTIONS if options.get(name) is not None)
