"""JSON files as rows without the `datasets` library, whose import takes longer than reading a file of prompts."""

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.errors import UserError

_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\d")
_INT64 = range(-(2**63), 2**63)


@dataclass(frozen=True)
class JsonRows:
    """Rows by column; the part of `datasets.Dataset` that reading data needs."""

    columns: dict[str, list[Any]]

    @property
    def column_names(self) -> list[str]:
        return list(self.columns)

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, name: str) -> list[Any]:
        return self.columns[name]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for values in zip(*self.columns.values(), strict=True):
            yield dict(zip(self.columns, values, strict=True))

    def select(self, indices: Sequence[int]) -> "JsonRows":
        """The rows with these indices, in this order."""
        return JsonRows({name: [values[i] for i in indices] for name, values in self.columns.items()})


def read_plain_json(file: Path) -> JsonRows | None:
    """The rows of a json or jsonl file, where `datasets` would read exactly the same.

    Returns:
        None for everything else, such as malformed files, columns of mixed types, and text that `datasets` takes for
        timestamps.
    """
    try:
        rows = _parse(file.read_text(encoding="utf-8"))
        names = dict.fromkeys(name for row in rows for name in row)
        columns = {name: [row.get(name) for row in rows] for name in names}
        return JsonRows(columns) if columns and all(map(_is_plain, columns.values())) else None
    except (ValueError, AttributeError, TypeError, RecursionError):  # not UTF-8, no JSON, or no rows of objects
        return None


def check_rows_are_objects(file: Path) -> None:
    """Check what the library under `datasets` answers with a crash: rows that are no objects, and very deep ones.

    Raises:
        UserError: a row is not an object, is nested deeper than Python's parser goes, or the file is not UTF-8.
    """
    try:
        with open(file, encoding="utf-8-sig") as lines:  # a line at a time: the file may be larger than memory
            is_list = lines.read(1) == "["
            lines.seek(0)
            rows = json.loads(lines.read()) if is_list else map(_loads_or_skip, lines)
            for number, row in enumerate(rows, start=1):
                if not isinstance(row, dict):
                    raise UserError(
                        f"row {number} of {file} is {json.dumps(row)[:40]}, but must be an object with columns"
                    )
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 ({error}); save it as UTF-8") from None
    except RecursionError:
        raise UserError(f"{file} has a row that is nested too deeply; flatten it, or leave it out") from None
    except json.JSONDecodeError:
        return  # `datasets` says where, or reads what is JSON for it alone


def _loads_or_skip(line: str) -> Any:
    """The value of a line; an object for lines that are part of a longer value."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return {}


def _parse(text: str) -> list[dict[str, Any]]:
    """The objects of a JSON list, or one object a line.

    Raises:
        ValueError: the text is neither, or an object has a key twice.
    """
    decoder = json.JSONDecoder(object_pairs_hook=_unique_keys)
    if text.startswith("["):
        return decoder.decode(text)
    return [decoder.decode(line) for line in text.rstrip("\r\n").split("\n")]


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        raise ValueError("a key occurs twice")
    return row


def _is_plain(values: list[Any]) -> bool:
    """Whether all values have one type, which `datasets` keeps as it is; some may be null."""
    values = [value for value in values if value is not None]
    types = {type(value) for value in values}
    if len(types) != 1:
        return False
    kind = types.pop()
    if kind is str:
        "".join(values).encode()  # raises ValueError on half of a surrogate pair
        return not all(map(_TIMESTAMP.match, values))
    if kind is int:
        return all(value in _INT64 for value in values)
    if kind is float:
        return all(map(math.isfinite, values))
    if kind is list:
        return _is_plain([item for value in values for item in value])
    if kind is dict:
        keys = list(values[0])
        have_same_keys = bool(keys) and all(list(value) == keys for value in values)
        return have_same_keys and all(_is_plain([value[key] for value in values]) for key in keys)
    return kind is bool
