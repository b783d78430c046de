"""What a user did wrong, said in one sentence that names the value and the fix."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


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


def end_at_once() -> None:
    """End one of several processes whose work is done, without taking the interpreter down.

    Threads of gloo outlive their group, and one that asks for the interpreter meanwhile aborts a run that has finished:
    seen once in many runs on a busy machine.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


@contextmanager
def together(accelerator: Any) -> Iterator[None]:
    """What is bad input to one process ends all of them: alone, the others would wait for it for ever."""
    failure = None
    try:
        yield
    except UserError as error:
        failure = error
    if accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        said = [message for message in gather_object([failure and str(failure)]) if message is not None]
        failure = failure or (UserError(said[0]) if said else None)
    if failure is not None:
        raise failure
