"""glibc's allocator, set to keep the memory of large tensors instead of returning it to the kernel."""

import ctypes
import os
import platform

# Parameters of mallopt(3).
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_GIB = 2**30
_LARGEST_INT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Reuse freed blocks of up to 1 GiB.

    By default glibc maps each block above 32 MiB separately and returns it to the kernel when it is freed, so the next
    one has to be cleared by the kernel page by page. Gradients and logits of a large vocabulary are such blocks: at
    131,072 tokens this takes a fifth of a step. Blocks above 1 GiB are still mapped separately.

    Returns:
        Whether the setting was made: not without glibc, nor where the environment configures or replaces the allocator.
    """
    if platform.libc_ver()[0] != "glibc" or _is_configured_by_user():
        return False
    mallopt = ctypes.CDLL(None).mallopt
    is_accepted = mallopt(_M_MMAP_THRESHOLD, _GIB) == 1  # older versions refuse more than 32 MiB
    return is_accepted and mallopt(_M_TRIM_THRESHOLD, _LARGEST_INT) == 1


def _is_configured_by_user() -> bool:
    """Whether MALLOC_* variables or tunables are set, or another allocator such as jemalloc is loaded first."""
    has_variables = any(name.startswith("MALLOC_") for name in os.environ)
    has_tunables = "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    has_other_allocator = "malloc" in os.environ.get("LD_PRELOAD", "")
    return has_variables or has_tunables or has_other_allocator
