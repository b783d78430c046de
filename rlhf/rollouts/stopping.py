"""Where a response ends: stop tokens and stop strings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from rlhf.config.shared import GenerationConfig
from rlhf.errors import UserError
from rlhf.models.distribution import LogitTransform


def resolve_stop_ids(
    tokenizer: Any, lm_config: Any, config: GenerationConfig, generation_config: Any = None
) -> list[int]:
    """Ids of the tokens that end a response: the configured ones, or every end token of tokenizer and model.

    Raises:
        UserError: a configured id is not in the vocabulary, or there is no end token, so that no response could end.
    """
    if config.stop_ids is not None:
        vocabulary = lm_config.get_text_config().vocab_size
        if invalid := [i for i in config.stop_ids if not 0 <= i < vocabulary]:
            raise UserError(f"generation.stop_ids names {invalid[0]}, but the model's tokens are 0 to {vocabulary - 1}")
        return config.stop_ids
    candidates = (tokenizer.eos_token_id, lm_config.eos_token_id, getattr(generation_config, "eos_token_id", None))
    stop_ids = {i for ids in candidates if ids is not None for i in (ids if isinstance(ids, list) else [ids])}
    if not stop_ids and not config.stop_strings:
        raise UserError(
            "neither the tokenizer nor the model names an end token, so no response could end; "
            "name its ids with --generation.stop_ids '[...]'"
        )
    return sorted(stop_ids)


def make_logit_transform(config: GenerationConfig, stop_ids: Sequence[int], vocabulary: int) -> LogitTransform:
    """The transform of the logits by a run's generation settings.

    Raises:
        UserError: an id is not in the vocabulary, or no token or no end of a response would be possible.
    """
    suppressed = config.suppress_ids
    if invalid := [i for i in suppressed if not 0 <= i < vocabulary]:
        raise UserError(f"generation.suppress_ids names {invalid[0]}, but the model's tokens are 0 to {vocabulary - 1}")
    if len(set(suppressed)) >= vocabulary:
        raise UserError("generation.suppress_ids holds every token of the model, so no token could be sampled")
    if stop_ids and all(i in suppressed for i in stop_ids) and not config.stop_strings:
        raise UserError(
            f"generation.suppress_ids holds every end token ({', '.join(map(str, stop_ids))}), so no response could end"
        )
    return LogitTransform(
        temperature=config.temperature or 1.0,  # greedy responses have the probabilities of temperature 1
        suppress_ids=tuple(suppressed),
        min_new_tokens=config.min_new_tokens,
        stop_ids=tuple(stop_ids),
    )


@dataclass(frozen=True)
class StopStrings:
    """Texts that end a response: the token that completes one is the response's last."""

    tokenizer: Any
    strings: tuple[str, ...]

    def completed(self, ids: Int[Tensor, "B T"]) -> Bool[Tensor, "B"]:
        """Whether the last token of each row completes a stop string."""
        return torch.tensor(self._completed(ids.tolist()), device=ids.device)

    def first_end(self, ids: list[int], first: int) -> int | None:
        """Number of tokens up to the first one, at position `first` or later, that completes a stop string."""
        lengths = range(first + 1, len(ids) + 1)
        completed = self._completed([ids[:length] for length in lengths])
        return next((length for length, ends in zip(lengths, completed, strict=True) if ends), None)

    def _completed(self, rows: list[list[int]]) -> list[bool]:
        # A token stands for one byte at least, so this many tokens hold the longest string; decoding may lose the first
        # one's leading space, so there is one more.
        n_tail = 1 + max(len(s.encode()) for s in self.strings)
        tails = [row[-n_tail:] for row in rows]
        texts = self.tokenizer.batch_decode(tails, skip_special_tokens=False)
        shorter_texts = self.tokenizer.batch_decode([tail[:-1] for tail in tails], skip_special_tokens=False)
        return [
            any(text.count(s) > shorter.count(s) for s in self.strings)
            for text, shorter in zip(texts, shorter_texts, strict=True)
        ]

    def cut(self, ids: list[int], text: str) -> str:
        """A response's text before its first stop string.

        Args:
            ids: the response, in which the stop string is searched with special tokens in place.
            text: the response decoded without special tokens, which is returned where there is no stop string.
        """
        with_special_tokens = self.tokenizer.decode(ids, skip_special_tokens=False)
        starts = [i for s in self.strings if (i := with_special_tokens.find(s)) >= 0]
        if not starts:
            return text
        before = with_special_tokens[: min(starts)]
        for token in self.tokenizer.added_tokens_decoder.values():
            before = before.replace(token.content, "") if token.special else before
        return before
