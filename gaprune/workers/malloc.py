"""Memory that is freed and asked for again all the time stays with the process."""

from __future__ import annotations

import ctypes
import os
from functools import cache

BLOCK = 32 << 20  # bytes: glibc takes no more for blocks that come from the heap
SPARE = 128 << 20  # bytes that the process keeps, free, at the end of its heap
VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


@cache
def keep_heap() -> bool:
    """Make glibc keep what evaluations free, from now on and once per process; tell if it does.

    It would give activations back to the system after one forward pass and get them page by page,
    filled with zeros, in the next: up to half of the time of small convolutional networks. For that
    the process holds up to `SPARE` bytes more. Nothing is done where the user steers it by one of
    `VARIABLES`, or where there is no glibc.
    """
    if any(os.environ.get(name) for name in VARIABLES):
        return False
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018 - others have another mallopt, or none
        return bool(libc.mallopt(_MMAP_THRESHOLD, BLOCK) and libc.mallopt(_TRIM_THRESHOLD, SPARE))
    except (AttributeError, OSError, TypeError):
        return False
