"""Settings of an environment that answers the policy's turns."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from rlhf.config.checks import POSITIVE, check, check_ranges, reject_unused
from rlhf.config.scores import RewardConfig
from rlhf.config.shared import GenerationConfig
from rlhf.errors import UserError


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


def check_environment(environment: EnvironmentConfig, generation: GenerationConfig, reward: RewardConfig) -> None:
    """Raise UserError for settings of generation and reward that episodes cannot have."""
    if reward.is_set:
        raise UserError(
            "environment.path gives the scores, but a reward source is set too; unset one, as with "
            "--environment.path null"
        )
    check(
        environment.max_tokens >= generation.max_new_tokens,
        "environment.max_tokens",
        environment.max_tokens,
        f"at least generation.max_new_tokens = {generation.max_new_tokens}, the longest turn",
    )
    if generation.min_new_tokens > 0:
        raise UserError(
            f"generation.min_new_tokens is {generation.min_new_tokens}, but with environment.path it would apply to "
            "each turn when sampled and to the whole episode when trained on; set it to 0"
        )
