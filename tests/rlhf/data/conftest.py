"""Tokenizers with a chat template: <|end|> 1, <|start|> 3, <|user|> 4, <|assistant|> 5, the 7, film 8, is 9, a 10,
good 11, bad 12."""

import pytest

from rlhf.models.loading import load_tokenizer


@pytest.fixture
def tokenizer(models):
    return load_tokenizer(str(models("llama", chat=True)))


@pytest.fixture
def bos_tokenizer(models):
    """Puts <|start|> before every text, unless called with add_special_tokens=False."""
    return load_tokenizer(str(models("llama", bos="<|start|>", chat=True)))
