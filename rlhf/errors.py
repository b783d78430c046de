"""What a user did wrong, said in one sentence that names the value and the fix."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Bad input: a setting, a file, a model or a reward function that cannot work."""


@contextmanager
def reported() -> Iterator[None]:
    """End the process with `error: ...` and status 2 instead of a traceback when the input was at fault."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
