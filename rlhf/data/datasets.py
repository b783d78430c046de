"""Data files, saved folders and hub data sets as checked rows.

Everything is read, checked and tokenised before a model is loaded, so that a bad row ends a run in its first seconds.
"""

from pathlib import Path
from typing import Any

import numpy as np

from rlhf.config.jobs import DataConfig
from rlhf.data.json_rows import read_plain_json
from rlhf.errors import UserError

_FORMATS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}


def load_rows(path: str, split: str) -> Any:
    """Load rows from a hub id, a local file, or a folder written by `save_to_disk`.

    Returns:
        A `datasets.Dataset`, or `JsonRows` for a json file that needs no `datasets`, which takes long to import.

    Raises:
        UserError: the path does not exist, cannot be read, or has no rows.
    """
    local_path = Path(path)
    try:
        if local_path.is_file():
            rows = _load_file(local_path, path, split)
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


def _load_file(file: Path, path: str, split: str) -> Any:
    if file.suffix not in _FORMATS:
        raise UserError(f"data file {path} ends in {file.suffix!r}; supported: {', '.join(_FORMATS)}")
    if file.stat().st_size == 0:
        raise UserError(f"data file {path} is empty")
    _check_split_is_default(path, split)
    file_format = _FORMATS[file.suffix]
    rows = read_plain_json(file) if file_format == "json" else None
    if rows is not None:
        return rows
    return _datasets().load_dataset(file_format, data_files=str(file), split="train")


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
    rows = load_rows(config.path, config.split)
    if config.eval_path is not None or config.eval_split is not None:
        return rows, load_rows(config.eval_path or config.path, config.eval_split or config.split)
    held_out = int(len(rows) * config.eval_fraction)
    if held_out == 0:
        return rows, None
    order = np.random.default_rng(seed).permutation(len(rows))
    return rows.select(np.sort(order[held_out:]).tolist()), rows.select(np.sort(order[:held_out]).tolist())


def held_out_rows(config: DataConfig, seed: int) -> Any:
    """The held-out rows alone; all rows of `path` where nothing is held out."""
    rows, held_out = split_rows(config, seed)
    return rows if held_out is None else held_out


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
        raise UserError(f"{path} has no column {name!r}; it has {columns}{delimiter_hint(rows)}")
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
    for delimiter, word in ((";", "semicolons"), ("\t", "tabs")):
        if delimiter in name:
            return f" (the file is delimited by {word}: save it with commas)"
    return ""
