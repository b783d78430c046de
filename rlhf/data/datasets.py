"""Data files, saved folders and hub data sets as checked rows.

Everything is read, checked and tokenised before a model is loaded, so that a bad row ends a run in its first seconds.
"""

import difflib
from pathlib import Path
from typing import Any

import numpy as np

from rlhf.config.shared import DataConfig
from rlhf.data.json_rows import JsonRows, check_rows_are_objects, read_plain_json
from rlhf.errors import UserError

_FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".txt": "text"}
LINES = "text"
"""The column that holds the lines of a text file."""


def load_rows(path: str, split: str, streaming: bool = False) -> Any:
    """Load rows from a hub id, a local file, or a folder written by `save_to_disk`.

    Args:
        streaming: leave the rows on disk, in memory-mapped Arrow files.

    Returns:
        A `datasets.Dataset`, or `JsonRows` for a file that needs no `datasets`, which takes long to import.

    Raises:
        UserError: the path does not exist, cannot be read, or has no rows.
    """
    local_path = Path(path).expanduser()
    try:
        if local_path.is_file():
            rows = _load_file(local_path, path, split, streaming)
        elif local_path.is_dir() and (
            (local_path / "state.json").exists() or (local_path / "dataset_dict.json").exists()
        ):
            rows = _load_saved_folder(local_path, path, split)
        elif local_path.suffix in _FORMATS or path.startswith((".", "/", "~")):
            raise UserError(f"data file {path} does not exist")
        else:
            rows = _datasets().load_dataset(path, split=split)
    except UserError:
        raise
    except Exception as error:  # the library raises a dozen kinds for bad files, refused downloads and wrong splits
        if "corresponds to no data" in str(error):
            raise UserError(f"data file {path} has no rows") from error
        cause = error.__cause__ or error
        raise UserError(f"cannot read data from {path} (split {split}): {type(cause).__name__}: {cause}") from error
    if len(rows) == 0:
        raise UserError(f"data file {path} has no rows")
    return rows


def _datasets() -> Any:
    """The `datasets` library, without progress bars."""
    import datasets

    datasets.disable_progress_bars()
    return datasets


def _load_file(file: Path, path: str, split: str, streaming: bool) -> Any:
    if file.suffix not in _FORMATS:
        raise UserError(f"data file {path} ends in {file.suffix!r}; supported: {', '.join(_FORMATS)}")
    if file.stat().st_size == 0:
        raise UserError(f"data file {path} is empty")
    _check_split_is_default(path, split)
    file_format = _FORMATS[file.suffix]
    if streaming and file.suffix == ".json":
        raise UserError(f"data.streaming is true, but {path} is one JSON list, which is read whole; save it as jsonl")
    if streaming and file_format == "text":
        return _datasets().load_dataset("text", data_files=str(file), split="train").filter(_has_text)
    if file_format == "text":
        return _read_lines(file, path)
    rows = read_plain_json(file) if file_format == "json" and not streaming else None
    if rows is not None:
        return rows
    if file_format == "json":
        check_rows_are_objects(file)
    options = {"sep": "\t"} if file.suffix == ".tsv" else {}
    return _datasets().load_dataset(file_format, data_files=str(file), split="train", **options)


def _has_text(row: dict[str, Any]) -> bool:
    return bool(row[LINES].strip())


def _read_lines(file: Path, path: str) -> JsonRows:
    """The lines of a text file that are not blank, as the column `text`."""
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from None
    return JsonRows({LINES: [line.removesuffix("\r") for line in lines if line.strip()]})


def holds_lines(path: str | None) -> bool:
    """Whether a path names a text file, of which each line is a prompt or a text."""
    return path is not None and Path(path).suffix == ".txt"


def _load_saved_folder(folder: Path, path: str, split: str) -> Any:
    datasets = _datasets()
    rows = datasets.load_from_disk(str(folder))
    if not isinstance(rows, datasets.DatasetDict):
        _check_split_is_default(path, split)
        return rows
    if split not in rows:
        raise UserError(f"data folder {path} has no split {split!r}; it has {', '.join(map(str, rows))}")
    return rows[split]


def _check_split_is_default(path: str, split: str) -> None:
    if split != "train":
        raise UserError(f"{path} is not divided into splits, so it has no split {split!r}; name a separate file")


def split_rows(config: DataConfig, seed: int) -> tuple[Any, Any | None]:
    """Training rows, and held-out rows or None where nothing is held out."""
    assert config.path is not None
    rows = load_rows(config.path, config.split, config.streaming)
    if has_held_out_rows(config):
        return rows, load_held_out_rows(config)
    training, held_out = split_indices(len(rows), config.eval_fraction, seed)
    return (rows.select(training), rows.select(held_out)) if held_out else (rows, None)


def has_held_out_rows(config: DataConfig) -> bool:
    """Whether the held-out rows are a file or a split of their own."""
    return config.eval_path is not None or config.eval_split is not None


def load_held_out_rows(config: DataConfig) -> Any:
    """The held-out rows of a file or split of their own."""
    return load_rows(config.eval_path or config.path or "", config.eval_split or config.split, config.streaming)


def split_indices(count: int, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Which of `count` examples are trained on, and which are held out: a random `fraction`, rounded down."""
    held_out = int(count * fraction)
    order = np.random.default_rng(seed).permutation(count)
    return np.sort(order[held_out:]).tolist(), np.sort(order[:held_out]).tolist()


def read_column(rows: Any, name: str, path: str | None) -> list[Any]:
    """All values of a column, unchecked.

    Raises:
        UserError: its text cannot be decoded.
    """
    try:
        return list(rows[name])
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from error


def checked_column(rows: Any, name: str, path: str | None) -> list[Any]:
    """All values of a column of text or messages.

    Raises:
        UserError: the column is missing, or a value is null, empty, or neither text nor a list.
    """
    if name not in rows.column_names:
        columns = ", ".join(map(repr, rows.column_names))
        similar = difflib.get_close_matches(name, rows.column_names, n=1, cutoff=0.6)
        hint = delimiter_hint(rows) or f"; rename {repr(similar[0]) if similar else 'the column to use'} to {name!r}"
        raise UserError(f"{path} has no column {name!r}; it has {columns}{hint}")
    values = read_column(rows, name, path)
    for i, value in enumerate(values):
        if not isinstance(value, str | list | None):
            raise UserError(f"{path}, row {i + 1}: {name!r} is {value!r}, but must be text or a list of messages")
        if not value or (isinstance(value, str) and not value.strip()):
            raise UserError(f"{path}, row {i + 1}: {name!r} is {'null' if value is None else 'empty'}")
    return values


def delimiter_hint(rows: Any) -> str:
    """The fix for a csv file that is not delimited by commas, as the end of an error message; "" for other rows."""
    name = rows.column_names[0] if len(rows.column_names) == 1 else ""
    if ";" in name:
        return " (the file is delimited by semicolons: save it with commas)"
    return " (the file is delimited by tabs: rename it to .tsv)" if "\t" in name else ""
