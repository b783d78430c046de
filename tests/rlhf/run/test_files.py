"""Atomic writes: a failed one leaves the old content and nothing else."""

import os

import pytest

from rlhf.run import files
from rlhf.run.files import replacing, write_text


def test_interrupted_write_leaves_the_old_text(tmp_path, monkeypatch):
    write_text(tmp_path / "config.yaml", "old")

    def kill(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", kill)
        with pytest.raises(KeyboardInterrupt):
            write_text(tmp_path / "config.yaml", "new")
    assert (tmp_path / "config.yaml").read_text() == "old"
    write_text(tmp_path / "config.yaml", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_failed_write_leaves_the_old_content_and_no_partial(tmp_path, kind):
    def write(path, text):
        if kind == "folder":
            path.mkdir()
            (path / "text").write_text(text)
        elif kind == "link":
            path.symlink_to(text)
        else:
            path.write_text(text)

    def content(path):
        return str(path.readlink()) if kind == "link" else ((path / "text") if kind == "folder" else path).read_text()

    def fail(path):
        with replacing(path) as partial:
            write(partial, "new")
            raise OSError("full")

    path = tmp_path / "name"
    with replacing(path) as partial:
        write(partial, "old")
    with pytest.raises(OSError, match="full"):
        fail(path)
    assert content(path) == "old"
    assert list(tmp_path.iterdir()) == [path]
    with replacing(path) as partial:
        write(partial, "new")
    assert content(path) == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_new_files_have_the_permissions_of_the_umask(tmp_path):
    """safetensors writes files that only their owner can read."""
    mask = os.umask(0o022)
    try:
        with replacing(tmp_path / "folder") as partial:
            partial.mkdir()
            (partial / "weights").touch(mode=0o600)
        with replacing(tmp_path / "file") as partial:
            partial.touch(mode=0o600)
    finally:
        os.umask(mask)
    for path in (tmp_path / "folder" / "weights", tmp_path / "file"):
        assert path.stat().st_mode & 0o777 == 0o644


def test_what_a_link_points_to_is_left_alone(tmp_path):
    """A checkpoint's files were written through already when `latest` is pointed at them."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "weights").touch(mode=0o600)
    with replacing(tmp_path / "latest") as partial:
        partial.symlink_to("folder")
    assert (tmp_path / "latest" / "weights").stat().st_mode & 0o777 == 0o600
