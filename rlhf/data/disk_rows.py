"""Tokenised rows on disk, for data sets larger than memory (`data.streaming`).

The rows themselves stay in memory-mapped Arrow files, as `datasets` makes them. They are checked and tokenised once, in
pieces, and their token ids are appended to a temporary file, from which a row is read when a batch needs it. Any row
can be read at any time, so the order of the data is the same function of the seed as with rows in memory.
"""

import os
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic, TypeVar, overload

import numpy as np

Row = TypeVar("Row")
PIECE = 1_000
"""Rows that are checked and tokenised together."""


class LazyRows(Sequence[Row], Generic[Row]):
    """A sequence whose rows are made when they are asked for."""

    def row(self, index: int) -> Row:
        """The row with this number, which is at least 0 and below the length."""
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        places = range(len(self))[index]  # takes negative numbers, and raises IndexError
        return [self.row(i) for i in places] if isinstance(places, range) else self.row(places)


class DiskRows(LazyRows[Row]):
    """Rows of whole numbers in a temporary file, which the operating system removes with the process."""

    def __init__(
        self,
        rows: Iterable[Row],
        to_lists: Callable[[Row], list[list[int]]],
        from_lists: Callable[[list[list[int]]], Row],
    ):
        """Write all rows.

        Args:
            to_lists: a row as lists of numbers below 2**31, the same number of lists for each row.
            from_lists: the row again.
        """
        self._from_lists = from_lists
        self._file = tempfile.TemporaryFile(prefix="rlhf-rows-")  # noqa: SIM115 - open as long as the rows are read
        ends = array("q", [0])
        self._parts = 1
        for row in rows:
            lists = to_lists(row)
            self._parts = len(lists)
            for numbers in lists:
                self._file.write(np.array(numbers, dtype=np.int32).tobytes())
                ends.append(ends[-1] + len(numbers))
        self._file.flush()
        self._ends = np.frombuffer(ends, dtype=np.int64)

    def __len__(self) -> int:
        return (len(self._ends) - 1) // self._parts

    def row(self, index: int) -> Row:
        first = index * self._parts
        ends = self._ends[first : first + self._parts + 1]
        count = int(ends[-1] - ends[0])
        numbers = np.frombuffer(os.pread(self._file.fileno(), 4 * count, 4 * int(ends[0])), dtype=np.int32)
        return self._from_lists([part.tolist() for part in np.split(numbers, (ends[1:-1] - ends[0]).tolist())])


class Column(LazyRows[Any]):
    """Some values of a column of memory-mapped rows, each read when it is asked for."""

    def __init__(self, rows: Any, indices: np.ndarray, value: Callable[[dict[str, Any]], Any]):
        """With the indices of the rows, and what is taken of a row."""
        self._rows, self._indices, self._value = rows, indices, value

    def __len__(self) -> int:
        return len(self._indices)

    def row(self, index: int) -> Any:
        return self._value(self._rows[int(self._indices[index])])


class Selection(LazyRows[Row]):
    """Some rows of a sequence, in an order of their own, without a copy."""

    def __init__(self, rows: Sequence[Row], indices: Sequence[int]):
        self._rows, self._indices = rows, np.asarray(indices, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._indices)

    def row(self, index: int) -> Row:
        return self._rows[int(self._indices[index])]


class Joined(LazyRows[Row]):
    """Several sequences one after the other, without a copy."""

    def __init__(self, parts: Sequence[Sequence[Row]]):
        self._parts = list(parts)
        self._ends = np.cumsum([len(part) for part in self._parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def row(self, index: int) -> Row:
        part = int(np.searchsorted(self._ends, index, side="right"))
        return self._parts[part][index - (int(self._ends[part - 1]) if part else 0)]


class Repeated(LazyRows[Row]):
    """One value many times."""

    def __init__(self, value: Row, count: int):
        self._value, self._count = value, count

    def __len__(self) -> int:
        return self._count

    def row(self, index: int) -> Row:
        return self._value


def pieces(rows: Any, path: str | None) -> Iterator[tuple[Any, str]]:
    """The rows in pieces, each with the path and its row numbers for error messages."""
    for start in range(0, len(rows), PIECE):
        stop = min(start + PIECE, len(rows))
        yield rows.select(range(start, stop)), f"{path}, rows {start + 1} to {stop}"
