"""A reward with a loophole, for one of the examples of `draw_tuning.py`."""

from typing import Any


def words(prompts: list[str], completions: list[str], **columns: Any) -> list[float]:
    """A tenth of the number of words: "good reviews are detailed" as somebody might write it down."""
    return [len(text.split()) / 10 for text in completions]
