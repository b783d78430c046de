"""PPO-ptx: demonstrations mixed into PPO's updates, so that the policy keeps its language ability (InstructGPT).

Ouyang et al. (2022).
"""

from dataclasses import dataclass
from typing import Any

import torch

from rlhf.config.ppo import PTXConfig
from rlhf.data.datasets import load_rows
from rlhf.data.demonstrations import Demonstration, encode_demonstrations, pad_demonstrations
from rlhf.data.encoding import padding_id
from rlhf.data.streams import ShuffledStream
from rlhf.errors import UserError
from rlhf.records import Tokens
from rlhf.trainers.supervised import check_lengths

_STREAM_KEY = 5_555_555
"""Separates the order of these texts from that of the prompts."""


@dataclass(frozen=True)
class TextStream:
    """Demonstrations in endless shuffled batches."""

    examples: list[Demonstration]
    config: PTXConfig
    pad_id: int
    seed: int

    @classmethod
    def load(cls, config: PTXConfig, tokenizer: Any, context_length: int | None, seed: int) -> "TextStream":
        """Load and tokenise the texts.

        Raises:
            UserError: they cannot be read, are too long for the model, or fewer than one batch.
        """
        assert config.path is not None
        rows = load_rows(config.path, config.split)
        examples = encode_demonstrations(tokenizer, rows, config.max_length, config.path, "ptx.max_length")
        check_lengths((len(example.ids) for example in examples), context_length, config.path, "ptx.max_length")
        if len(examples) < config.batch_size:
            raise UserError(
                f"{config.path} holds {len(examples)} texts, fewer than ptx.batch_size = {config.batch_size}; lower it"
            )
        return cls(examples, config, padding_id(tokenizer), seed)

    def batch(self, number: int) -> list[Demonstration]:
        """The texts of the optimizer step with this number, counted from 0 over the run."""
        stream = ShuffledStream(len(self.examples), self.seed, key=(_STREAM_KEY,))
        return [self.examples[i] for i in stream.batch(number, self.config.batch_size)]

    def as_responses(self, examples: list[Demonstration]) -> Tokens:
        """The texts as prompts of one token and responses, whose mask is True on the trained tokens."""
        ids, mask, trained = pad_demonstrations(examples, self.pad_id)
        return Tokens(ids[:, :1], torch.ones_like(mask[:, :1]), ids[:, 1:], trained[:, 1:])

    def count(self, examples: list[Demonstration]) -> int:
        """Trained tokens of a batch."""
        return sum(example.trained_tokens for example in examples)
