"""The allocator's setting, in processes of their own: it lasts until a process ends."""

import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is one of glibc")

MAPPED_BLOCKS = """
import ctypes

class Statistics(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    _fields_ = list(zip(names, [ctypes.c_int] * len(names)))

libc = ctypes.CDLL(None)
libc.mallinfo.restype = Statistics
libc.malloc.restype = ctypes.c_void_p

def mapped_blocks(mebibytes):
    before = libc.mallinfo().hblks
    libc.malloc(ctypes.c_size_t(mebibytes * 2**20))
    return libc.mallinfo().hblks - before
"""


def run_python(code, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def test_blocks_of_up_to_one_gibibyte_are_not_mapped_separately():
    code = (
        "from rlhf.run.allocator import keep_freed_memory\n"
        "print(mapped_blocks(64), keep_freed_memory(), mapped_blocks(64), mapped_blocks(1025))"
    )
    assert run_python(MAPPED_BLOCKS + code) == ["1", "True", "0", "1"]


def test_opening_the_accelerator_makes_the_setting(tmp_path):
    code = (
        "import sys\n"
        "from rlhf.run.distributed import open_accelerator\n"
        f"open_accelerator({str(tmp_path)!r}, None, [], 0)\n"
        "print(mapped_blocks(64))"
    )
    assert run_python(MAPPED_BLOCKS + code) == ["0"]


@pytest.mark.parametrize(
    "environment",
    [
        {"MALLOC_TRIM_THRESHOLD_": "131072"},
        {"MALLOC_ARENA_MAX": "2"},
        {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=7"},
        {"LD_PRELOAD": "libnojemalloc.so"},
    ],
)
def test_settings_of_the_environment_are_respected(environment):
    code = "from rlhf.run.allocator import keep_freed_memory\nprint(keep_freed_memory(), mapped_blocks(64))"
    assert run_python(MAPPED_BLOCKS + code, **environment) == ["False", "1"]


def test_other_c_libraries_are_left_alone(monkeypatch):
    from rlhf.run import allocator

    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocator, "ctypes", None)
    assert not allocator.keep_freed_memory()
