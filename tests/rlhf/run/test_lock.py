"""The lock on a run folder: another process is kept out, and no lock outlives its process."""

import os
import signal
import subprocess
import sys

import pytest

from rlhf.errors import UserError
from rlhf.run.folder import RunFolder
from rlhf.run.lock import LOCK, check_unlocked, lock, unlock

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such locks")


@pytest.fixture
def other_process(tmp_path):
    """Another process that holds the lock on a folder until it is killed."""
    code = f"from pathlib import Path; from rlhf.run.lock import lock; lock(Path({str(tmp_path)!r})); print(); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_another_process_is_kept_out_until_it_is_killed(other_process, tmp_path):
    message = (
        f"process {other_process.pid} on .* is writing to {tmp_path}; wait until it ends, stop it, or name another"
    )
    for locked in (check_unlocked, lock, lambda folder: RunFolder(str(folder), "auto")):
        with pytest.raises(UserError, match=message):
            locked(tmp_path)
    os.kill(other_process.pid, signal.SIGKILL)
    other_process.wait()
    check_unlocked(tmp_path)
    lock(tmp_path)
    unlock(tmp_path)


def test_a_process_does_not_keep_itself_out(tmp_path):
    lock(tmp_path)
    lock(tmp_path)
    check_unlocked(tmp_path)
    unlock(tmp_path)
    unlock(tmp_path)


def test_check_creates_nothing(tmp_path):
    check_unlocked(tmp_path)
    check_unlocked(tmp_path / "none")
    assert list(tmp_path.iterdir()) == []
    lock(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [LOCK]
    unlock(tmp_path)
