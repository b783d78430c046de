"""One event loop in a thread of its own, on which everything that sources await runs at the same time.

The caller may have an event loop of its own, as notebooks do, and clients that a user's coroutine holds keep their
connections from step to step.
"""

import asyncio
import threading
from collections.abc import Awaitable
from typing import Any

_loops: list[asyncio.AbstractEventLoop] = []
_starting = threading.Lock()


def wait_for(awaitable: Awaitable[Any], timeout: float | None = None) -> Any:
    """The result of an awaitable; from several threads at once, all are awaited at the same time.

    Args:
        timeout: in seconds; None: no limit.

    Raises:
        TimeoutError: it took longer, and was cancelled.
    """

    async def awaited() -> Any:
        try:
            return await awaitable
        except SystemExit as error:  # would end the loop, on which everything else would then wait forever
            raise RuntimeError(f"SystemExit: {error}") from error

    future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(awaited(), timeout), _running_loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def _running_loop() -> asyncio.AbstractEventLoop:
    with _starting:
        if not _loops:
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="rewards", daemon=True).start()
            _loops.append(loop)
    return _loops[0]
