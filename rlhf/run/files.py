"""Atomic writes: a reader sees the old content of a path or the new, never half of it, after a power cut too."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlhf.errors import UserError


def new_file(name: str) -> Path:
    """The path of a file that does not exist yet, in a folder that does.

    Raises:
        UserError: it exists, or its folder cannot be created.
    """
    path = Path(name).expanduser()
    if path.exists():
        raise UserError(f"output file {name} exists; name another with --output")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"output file {name} cannot be created: {error.strerror}") from None
    return path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Within it, write a file, folder or link to the path it yields, which then replaces `path`.

    If the body raises, what it wrote is deleted and `path` is left as it was. A killed process leaves it behind, under
    a name that begins with a dot, until the next write to `path`. New files are written through to the disk before the
    rename, and get the permissions of the umask, which safetensors does not give them.
    """
    partial = path.with_name(f".{path.name}.partial")
    _delete(partial)
    try:
        yield partial
        for file in () if partial.is_symlink() else (partial, *partial.rglob("*")):
            if not file.is_symlink():
                _set_permissions(file)
                _sync(file)
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        os.replace(partial, path)
        _sync(path.parent)
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


def _set_permissions(path: Path) -> None:
    """Make a file readable and writable as far as the umask allows."""
    if path.is_file():
        mask = os.umask(0)
        os.umask(mask)
        path.chmod(path.stat().st_mode | (0o666 & ~mask))


def _sync(path: Path) -> None:
    """Have a file or the entries of a folder written to the disk; Windows cannot open folders for that."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
