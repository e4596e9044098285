"""What is freed and asked for again costs no page faults; measured in processes of their own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from gaprune.workers import malloc as heap
from gaprune.workers.malloc import BLOCK, SPARE, VARIABLES

ROUNDS, BLOCKS, SIZE = 10, 4, 8 << 20  # of a forward pass: together less than SPARE
SCRIPT = f"""
import resource, runpy, sys

kept = runpy.run_path(sys.argv[1])["keep_heap"]() if sys.argv[2] == "kept" else None

def once():
    return [b"x" * {SIZE} for _ in range({BLOCKS})]

once(), once()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({ROUNDS}):
    once()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = ROUNDS * BLOCKS * SIZE // os.sysconf("SC_PAGE_SIZE")

glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is steered")


def measured(how: str, **environment: str) -> tuple[str, int]:
    """Return what `keep_heap` returned in a process of its own, and the page faults of rounds."""
    inherited = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    printed = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(Path(heap.__file__)), how],
        env={**inherited, **environment},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    kept, faults = printed.split()
    return kept, int(faults)


@glibc
def test_memory_is_kept_between_evaluations() -> None:
    """Hardly a page is faulted in again; without it most of them are."""
    assert SIZE <= BLOCK
    assert BLOCKS * SIZE <= SPARE
    kept, faults = measured("kept")
    assert kept == "True"
    assert faults < PAGES / 100
    assert measured("as it is")[1] > PAGES / 2


@pytest.mark.parametrize("name", VARIABLES)
def test_who_steers_the_allocation_is_left_alone(name: str) -> None:
    """One of glibc's own variables, set, is the user's word."""
    value = "glibc.malloc.trim_threshold=65536" if name == "GLIBC_TUNABLES" else "65536"
    assert measured("kept", **{name: value})[0] == "False"


@glibc
def test_free_memory_between_small_blocks_is_returned() -> None:
    """Small blocks that stay keep large freed ones in the process, until the heap is trimmed."""
    script = """
import pathlib, runpy, sys
heap = runpy.run_path(sys.argv[1])
assert heap["keep_heap"]()

def resident():
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

blocks = [(b"x" * (1 << 20), b"y" * 1000) for _ in range(64)]
blocks = [small for _, small in blocks]
before = resident()
heap["trim_heap"]()
print(before - resident())
"""
    printed = subprocess.run(
        [sys.executable, "-c", script, str(Path(heap.__file__))],
        env={name: value for name, value in os.environ.items() if name not in VARIABLES},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert int(printed) > 48 * 1024  # kB, of 64 MB
