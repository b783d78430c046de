"""The error that a user's input causes, and its report as one line."""

import sys
from collections.abc import Generator
from contextlib import contextmanager

INTERRUPTED = 130
"""Exit status of a run that was interrupted before its end, so that a script which runs several commands stops."""


class UserError(ValueError):
    """Input that cannot work: a setting, a file, a model, an environment or a reward function."""


@contextmanager
def report_user_errors(errors: type[Exception] = UserError) -> Generator[None]:
    """Print one line instead of a traceback: for a fault of the input, with status 2, and for an interrupt, with 130.

    Args:
        errors: the exceptions that the input causes.

    Raises:
        SystemExit: after the line went to standard error.
    """
    try:
        yield
    except errors as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        raise SystemExit(INTERRUPTED) from None
