"""Errors that the user can fix, each one sentence that names the value and the fix."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Bad input: a setting, a file, a model or a reward function that cannot work."""


@contextmanager
def report_user_errors() -> Iterator[None]:
    """Print `error: ...` and exit with status 2 instead of showing a traceback when the input is at fault."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
