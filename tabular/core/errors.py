"""The error that a user's input causes, and its report as one line."""

import sys
from collections.abc import Generator
from contextlib import contextmanager


class UserError(ValueError):
    """Input that cannot work: a setting, a file, a model, an environment or a reward function."""


@contextmanager
def report_user_errors(errors: type[Exception] = UserError) -> Generator[None]:
    """Print `error: ...` and exit with status 2 instead of showing a traceback when the input is at fault.

    Args:
        errors: the exceptions that the input causes.

    Raises:
        SystemExit: with status 2, after the message went to standard error.
    """
    try:
        yield
    except errors as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
