"""The limit on responses without a score where failures of the reward source are skipped."""

from collections.abc import Sequence

from rlhf.config.scores import RewardConfig
from rlhf.errors import UserError


def check_errors(errors: Sequence[str | None] | None, config: RewardConfig) -> None:
    """Refuse a batch in which more responses have no score than `reward.max_error_fraction` allows.

    Args:
        errors: why a response has no score, or None; of all processes.

    Raises:
        UserError: with the first of the reasons.
    """
    messages = [error for error in errors or [] if error is not None]
    if errors and len(messages) > config.max_error_fraction * len(errors):
        raise UserError(
            f"{len(messages)} of {len(errors)} responses have no score, more than reward.max_error_fraction = "
            f"{config.max_error_fraction:g} allows; the first: {messages[0]}"
        )
