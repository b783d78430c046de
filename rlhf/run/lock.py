"""The lock on a run folder, which keeps a second run out while the first one writes.

The operating system holds the lock for the process and releases it when the process ends, even by SIGKILL, so that no
stale lock has to be removed by hand. Where there are no such locks (Windows, some network file systems), nothing is
locked.
"""

import json
import os
import platform
import time
from pathlib import Path
from typing import IO

from rlhf.errors import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = ".lock"
ATTEMPTS, PAUSE = 5, 0.05
"""Times that a lock is tried again, and the seconds between."""
_held: dict[Path, IO[str]] = {}
"""Lock files of this process, by folder: a process does not keep itself out."""


def check_unlocked(folder: Path) -> None:
    """Raise UserError if another process writes to a run folder. Creates nothing; every rank may call it."""
    path = folder / LOCK
    if fcntl is None or folder.resolve() in _held or not path.exists():
        return
    with open(path, encoding="utf-8") as file:
        _lock(file, fcntl.LOCK_SH, folder)


def lock(folder: Path) -> None:
    """Keep other processes out of a run folder until `unlock` or the end of this process.

    Raises:
        UserError: another process writes to it.
    """
    if fcntl is None or folder.resolve() in _held:
        return
    file = open(folder / LOCK, "a+", encoding="utf-8")  # noqa: SIM115 - open as long as the lock is held
    try:
        _lock(file, fcntl.LOCK_EX, folder)
    except UserError:
        file.close()
        raise
    file.truncate(0)
    file.write(json.dumps({"process": os.getpid(), "host": platform.node()}) + "\n")
    file.flush()
    _held[folder.resolve()] = file


def unlock(folder: Path) -> None:
    """Release the lock of `lock`, if this process holds it."""
    file = _held.pop(folder.resolve(), None)
    if file is not None:
        file.close()


def _lock(file: IO[str], kind: int, folder: Path) -> None:
    assert fcntl is not None
    # `check_unlocked` of a program that only looks holds a shared lock for a moment.
    for _ in range(ATTEMPTS if kind == fcntl.LOCK_EX else 0):
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return
        except OSError:
            time.sleep(PAUSE)
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        try:
            owner = json.loads(file.read())
            writer = f"process {owner['process']} on {owner['host']}"
        except (ValueError, KeyError, TypeError):
            writer = "another process"
        raise UserError(
            f"{writer} is writing to {folder}; wait until it ends, stop it, or name another folder with --output"
        ) from None
    except OSError:
        return  # the file system has no locks
