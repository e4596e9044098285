"""Freed memory stays in the process, since evaluations allocate the same blocks again and again.

What lies unused between small blocks that stay is returned now and then: it is too scattered for
large blocks, so a long search would take more and more memory.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

BLOCK = 32 << 20  # bytes: the largest block that glibc takes from the heap
SPARE = 128 << 20  # bytes of free memory that the process keeps at the end of its heap
VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of mallopt in glibc's malloc.h


@cache
def keep_heap() -> bool:
    """Make glibc keep freed memory, once per process; return whether it does.

    By default glibc returns activations to the system after each forward pass, and the next pass
    gets them back page by page, filled with zeros: up to half of the time of small convolutional
    networks. The price is up to `SPARE` bytes more per process, unless `VARIABLES` say otherwise.
    """
    if any(os.environ.get(name) for name in VARIABLES):
        return False
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018 - other C libraries have no mallopt like this one
        return bool(libc.mallopt(_MMAP_THRESHOLD, BLOCK) and libc.mallopt(_TRIM_THRESHOLD, SPARE))
    except (AttributeError, OSError, TypeError):
        return False


def trim_heap() -> None:
    """Return the pages of freed memory to the system, if glibc was made to keep them.

    It takes milliseconds, and the next evaluation gets the pages back one by one.
    """
    if keep_heap():
        ctypes.CDLL(None).malloc_trim(0)
