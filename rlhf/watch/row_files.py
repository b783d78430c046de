"""Growing files of one JSON object a line, read from where the last reading ended."""

import json
import os
import threading
from pathlib import Path
from typing import Any

from rlhf.report.numbers import Row

TAIL = 200_000
"""Bytes at the end of a file that hold its newest rows."""

MARK = 200
"""Bytes before the place where a reading ended, by which the next one knows the file again."""


class RowFile:
    """The rows of a file that a run appends to. A line that is being written waits for its end.

    Several threads may read: the server answers each open page in one.

    Attributes:
        version: rises with each reading that brought something new.
    """

    def __init__(self, path: Path, keys: tuple[str, ...]):
        """With the names of the numbers that identify a row; of two rows with the same ones the later counts."""
        self.path, self.keys = path, keys
        self.version = 0
        self._by_key: dict[tuple[int, ...], dict[str, Any]] = {}
        self._offset = 0
        self._mark = b""
        self._lock = threading.Lock()

    def rows(self) -> list[Row]:
        """All rows in the order of their keys, after reading what is new."""
        with self._lock:
            return self._read()

    def _read(self) -> list[Row]:
        try:
            with open(self.path, "rb") as file:
                file.seek(self._offset - len(self._mark))
                # A resumed run rewrites the file without the rows of later steps, and another run of the same name
                # begins a new one. Its inode says nothing: that of a removed file is given to the next one.
                if file.read(len(self._mark)) != self._mark:
                    self._restart()
                file.seek(self._offset)
                complete, newline, _ = file.read().rpartition(b"\n")
        except OSError:  # not there yet, or removed
            if self._offset:
                self._restart()
            return []
        if newline:
            self._offset += len(complete) + 1
            self._mark = (self._mark + complete + newline)[-MARK:]
            for line in complete.split(b"\n"):
                self._add(line)
            self.version += 1
        return [self._by_key[key] for key in sorted(self._by_key)]

    def _restart(self) -> None:
        self._by_key.clear()
        self._offset, self._mark = 0, b""
        self.version += 1

    def _add(self, line: bytes) -> None:
        row = parse(line, self.keys)
        if row is not None:
            self._by_key[tuple(row[key] for key in self.keys)] = row


def parse(line: bytes, keys: tuple[str, ...]) -> dict[str, Any] | None:
    """A line as a row with whole numbers under `keys`; None where it is none, as after a kill."""
    try:
        row = json.loads(line)
        return row | {key: int(row[key]) for key in keys}
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def newest_rows(path: Path, count: int) -> list[Row]:
    """The last rows of a file by step, without reading more than its end."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - TAIL))
            lines = file.read().split(b"\n")[(size > TAIL) :]
    except OSError:
        return []
    rows = (parse(line, ("step",)) for line in lines[-count - 1 :])
    return sorted((row for row in rows if row is not None), key=lambda row: row["step"])
