"""Atomic writes: a reader sees the old content of a path or the new, never half of it."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Within it, write a file, folder or link to the path it yields, which then replaces `path`.

    If the body raises, what it wrote is deleted and `path` is left as it was. A killed process leaves it behind, under
    a name that begins with a dot, until the next write to `path`.
    """
    partial = path.with_name(f".{path.name}.partial")
    _delete(partial)
    try:
        yield partial
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        os.replace(partial, path)
    except Exception:
        _delete(partial)
        raise


def write_text(path: Path, text: str) -> None:
    """Replace a text file, in UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Replace a file."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
