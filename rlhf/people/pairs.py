"""Pairs of answers to one prompt, and the fixed random numbers that decide how each is shown."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

Prompt = str | list[dict[str, Any]]
"""Text, or messages."""


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt, `a` and `b`, wherever they are shown."""

    prompt: Prompt
    a: str
    b: str
    origin_a: str
    """Model and settings that `a` comes from; never shown to those who compare."""
    origin_b: str
    score_a: float | None = None
    """By the reward model, where there is one."""
    score_b: float | None = None

    @property
    def id(self) -> str:
        """A hash of the content: the same pair of two files or sessions is one pair."""
        content = json.dumps([self.prompt, self.a, self.b, self.origin_a, self.origin_b])
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def fraction(*key: object) -> float:
    """A number in [0, 1) that depends on the key alone, uniform over keys."""
    return int.from_bytes(hashlib.sha256(json.dumps(key).encode()).digest()[:6]) / 2**48


def left_answer(annotator: str, pair: str, seed: int) -> str:
    """Which answer, `a` or `b`, stands on the left when somebody sees a pair for the first time."""
    return "a" if fraction("side", annotator, pair, seed) < 0.5 else "b"


def other(answer: str) -> str:
    """`b` for `a`, and `a` for `b`."""
    return "b" if answer == "a" else "a"
