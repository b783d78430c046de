"""Where pairs come from: a file here, models in `sampled_pairs`, which needs torch."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from rlhf.config.compare import CompareJob, is_pair_file
from rlhf.data.datasets import checked_column, load_rows, read_column
from rlhf.errors import UserError
from rlhf.people.pairs import Pair


@runtime_checkable
class PairSource(Protocol):
    """Makes pairs."""

    @property
    def name(self) -> str:
        """The same in every session that would make the same pairs."""
        ...

    @property
    def count(self) -> int:
        """How many pairs there are in the end."""
        ...

    def batches(self, done: set[int]) -> Iterator[list[tuple[int, Pair]]]:
        """Positions and pairs, without those whose positions are `done`.

        Raises:
            UserError: an answer cannot be sampled or scored.
        """
        ...


def open_source(job: CompareJob) -> PairSource:
    """The source of a job, with everything checked that needs no model.

    Raises:
        UserError: a file or a model does not exist, or cannot be compared.
    """
    if is_pair_file(job.sources[0]):
        return FilePairs.read(job.sources[0])
    from rlhf.people.sampled_pairs import SampledPairs

    return SampledPairs.of(job)


@dataclass(frozen=True)
class FilePairs:
    """The rows of a file."""

    name: str
    pairs: list[Pair]

    @classmethod
    def read(cls, path: str) -> "FilePairs":
        """Read and check a file with the columns `prompt`, `a`, `b` and perhaps `origin_a`, `origin_b`.

        Raises:
            UserError: a column is missing, or a value is null or of another type.
        """
        rows = load_rows(path, "train")
        columns = {"prompt": checked_column(rows, "prompt", path)}
        for name in ("a", "b"):
            if name not in rows.column_names:
                raise UserError(f"{path} has no column {name!r}; a file of pairs has the columns prompt, a and b")
            columns[name] = _texts(read_column(rows, name, path), name, path)
            origin = f"origin_{name}"
            has_origin = origin in rows.column_names
            values = read_column(rows, origin, path) if has_origin else [name] * len(columns[name])
            columns[origin] = _texts(values, origin, path)
        digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
        pairs = [Pair(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]
        return cls(f"file {digest}", pairs)

    @property
    def count(self) -> int:
        return len(self.pairs)

    def batches(self, done: set[int]) -> Iterator[list[tuple[int, Pair]]]:
        """All at once: nothing has to be computed."""
        yield [(position, pair) for position, pair in enumerate(self.pairs) if position not in done]


def _texts(values: list[Any], name: str, path: str) -> list[str]:
    """The values of a column, each a text that may be empty."""
    for number, value in enumerate(values, start=1):
        if not isinstance(value, str):
            raise UserError(f"{path}, row {number}: {name!r} is {value!r}, but must be text")
    return values
