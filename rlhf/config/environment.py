"""Settings of an environment that answers the policy's turns."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from rlhf.config.checks import POSITIVE, check, check_ranges, reject_unused


@dataclass(frozen=True)
class EnvironmentConfig:
    """Several turns: an environment of yours answers the policy, and its rewards are the score."""

    section: ClassVar[str] = "environment"

    path: str | None = None
    """Environment class, `file.py:Class` or `package.module:Class`, with reset(prompt, **columns) -> text and
    step(text) -> (reply or None, reward), plain or async; null: one response a prompt."""
    parameters: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments of the class's constructor."""
    max_turns: int = 4
    """Most turns of the policy in an episode."""
    max_tokens: int = 512
    """Most tokens of an episode after its prompt, the environment's included; one turn of the policy has at most
    generation.max_new_tokens of them."""
    chat: bool = False
    """Render the environment's texts as a user's messages by the chat template; false: the bare texts."""
    timeout: float | None = None
    """Seconds that reset or step of one environment may take; null: no limit."""

    def __post_init__(self):
        check_ranges(self, {POSITIVE: ("max_turns", "max_tokens", "timeout")})
        if self.path is None:
            names = ("parameters", "max_turns", "max_tokens", "chat", "timeout")
            reject_unused(self, names, "environment.path is null")
        else:
            check(":" in self.path, "environment.path", self.path, "of the form file.py:Class or module:Class")
