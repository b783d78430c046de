"""Text that is learnt beside PPO, so that the policy does not forget what it could say: InstructGPT's PPO-ptx."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rlhf.config.jobs import PTXConfig
from rlhf.data.datasets import load_rows
from rlhf.data.encoding import pad, padding_id
from rlhf.errors import UserError
from rlhf.records import Tokens
from rlhf.trainers.sft import Demonstration, encode, trained_token_count
from rlhf.trainers.supervised import check_lengths

_ORDER = 5_555_555
"""Tells the order of these texts from that of the prompts."""


@dataclass(frozen=True)
class TextStream:
    """Demonstrations in an endless random order that is a function of the seed."""

    examples: list[Demonstration]
    config: PTXConfig
    filler: int
    seed: int

    @classmethod
    def load(cls, config: PTXConfig, tokenizer: Any, context_length: int | None, seed: int) -> "TextStream":
        """Read and tokenise the texts.

        Raises:
            UserError: they cannot be read, are too long for the model, or fewer than one batch.
        """
        assert config.path is not None
        examples = encode(tokenizer, load_rows(config.path, config.split), config.max_length, config.path)
        check_lengths((len(ids) for ids, _ in examples), context_length, config.path, "ptx.max_length")
        if len(examples) < config.batch_size:
            raise UserError(
                f"{config.path} holds {len(examples)} texts, fewer than ptx.batch_size = {config.batch_size}; lower it"
            )
        return cls(examples, config, padding_id(tokenizer), seed)

    def batch(self, number: int) -> list[Demonstration]:
        """The texts of the `number`-th optimizer step of a run; each pass drops those that fill no last batch."""
        size = self.config.batch_size
        turn, index = divmod(number, len(self.examples) // size)
        order = np.random.default_rng([self.seed, _ORDER, turn]).permutation(len(self.examples))
        return [self.examples[i] for i in order[index * size : (index + 1) * size]]

    def as_responses(self, examples: list[Demonstration]) -> Tokens:
        """The texts as a policy reads responses: the first token is the prompt, the learnt ones are scored."""
        ids, real = pad([ids for ids, _ in examples], self.filler, "right")
        learn, _ = pad([learn for _, learn in examples], 0, "right")
        return Tokens(ids[:, :1], torch.ones_like(real[:, :1]), ids[:, 1:], learn[:, 1:].bool())

    def count(self, examples: list[Demonstration]) -> int:
        """Tokens that a batch teaches."""
        return sum(map(trained_token_count, examples))
