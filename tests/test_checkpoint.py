"""Checkpoints are whole or missing, damage is noticed, locks end with their process."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gaprune.errors import GapruneError
from gaprune.io.checkpoints import (
    FACTS,
    SUMS,
    TENSORS,
    Checkpoint,
    DamagedError,
    read_checkpoint,
    read_newest,
    write_checkpoint,
    write_next,
)
from gaprune.io.lock import Lock, lock_owner

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


def content(number: int) -> tuple[dict[str, int], dict[str, Tensor]]:
    """Return facts and tensors that hold a number."""
    return {"number": number}, {"scores": torch.full((1000,), float(number))}


def number_in(checkpoint: Checkpoint | None) -> int | None:
    """Return the number that `content` was called with; facts and tensors must agree."""
    if checkpoint is None:
        return None
    number = int(checkpoint.facts["number"])
    assert torch.equal(checkpoint.tensors["scores"], content(number)[1]["scores"])
    return number


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(data)


@given(facts=st.dictionaries(st.text(), PLAIN, max_size=4), seed=st.integers(0, 99))
def test_what_is_read_is_what_was_written(facts: dict[str, object], seed: int) -> None:
    """Plain data of any kind, floats to the last bit, and tensors of every dtype."""
    noise = torch.randn(7, 3, generator=torch.Generator().manual_seed(seed)) * 100
    tensors = {str(dtype): noise.to(dtype) for dtype in DTYPES} | {"turned": noise.t()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"
        write_checkpoint(path, facts, tensors)
        checkpoint = read_checkpoint(path)
        assert {path.name for path in Path(folder).iterdir()} == {"checkpoint"}
    assert repr(checkpoint.facts) == repr(json.loads(json.dumps(facts)))
    assert set(checkpoint.tensors) == set(tensors)
    for name, tensor in tensors.items():
        assert checkpoint.tensors[name].dtype == tensor.dtype
        assert torch.equal(checkpoint.tensors[name], tensor), name


@settings(max_examples=60)
@given(name=st.sampled_from([FACTS, TENSORS, SUMS]), bit=st.integers(0, 10**6))
def test_a_flipped_bit_is_noticed_in_every_file(name: str, bit: int) -> None:
    """A checkpoint with any bit flipped is damaged."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint"
        write_checkpoint(path, *content(1))
        flip(path / name, bit)
        with pytest.raises(DamagedError, match="checkpoint"):
            read_checkpoint(path)


@pytest.mark.parametrize("name", [FACTS, TENSORS, SUMS])
@pytest.mark.parametrize("harm", ["missing", "cut", "folder"])
def test_a_file_that_is_not_whole_is_noticed(name: str, harm: str, tmp_path: Path) -> None:
    """A missing, truncated or replaced file is damage."""
    path = tmp_path / "checkpoint"
    write_checkpoint(path, *content(1))
    data = (path / name).read_bytes()
    (path / name).unlink()
    if harm == "cut":
        (path / name).write_bytes(data[:-1])
    elif harm == "folder":
        (path / name).mkdir()
    with pytest.raises(DamagedError):
        read_checkpoint(path)


def test_the_last_two_stay_and_the_newest_is_read(tmp_path: Path) -> None:
    """Other names in the folder are left alone."""
    folder = tmp_path / "search"
    assert read_newest(folder, pytest.fail) is None
    for number in range(1, 6):
        write_next(folder, *content(number))
        (folder / "start").mkdir(exist_ok=True)
        assert number_in(read_newest(folder, pytest.fail)) == number
    assert {path.name for path in folder.iterdir()} == {"000004", "000005", "start"}


def test_the_one_before_a_damaged_checkpoint_is_used(tmp_path: Path) -> None:
    """A warning names the damaged one; writing the next does not remove the good one."""
    warnings: list[str] = []
    for number in (1, 2):
        write_next(tmp_path, *content(number))
    flip(tmp_path / "000002" / TENSORS, 9999)
    assert number_in(read_newest(tmp_path, warnings.append)) == 1
    (text,) = warnings
    assert "000002" in text
    write_next(tmp_path, *content(3))
    flip(next(tmp_path.glob("*2")) / TENSORS, 9999)
    assert number_in(read_newest(tmp_path, warnings.append)) == 1


def test_only_damaged_checkpoints_are_an_error(tmp_path: Path) -> None:
    """The error names all of them."""
    for number in (1, 2):
        write_next(tmp_path, *content(number))
        flip(tmp_path / f"{number:06d}" / FACTS, 3)
    with pytest.raises(GapruneError, match=r"000002.*000001"):
        read_newest(tmp_path, pytest.fail)


class Malicious:
    """A pickle that makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        """Run code."""
        return os.mkdir, (str(self.path),)


def test_a_pickle_instead_of_tensors_is_damage_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even with a valid hash, and with the variable set that makes torch trust pickles."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path, trace = tmp_path / "checkpoint", tmp_path / "trace"
    write_checkpoint(path, *content(1))
    torch.save(Malicious(trace), path / TENSORS)
    sums = subprocess.run(
        ["sha256sum", FACTS, TENSORS],  # noqa: S607 - whichever the system has
        cwd=path,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (path / SUMS).write_text(sums)
    with pytest.raises(DamagedError, match="cannot be read"):
        read_checkpoint(path)
    (path / TENSORS).write_bytes(pickle.dumps(Malicious(trace)))
    with pytest.raises(DamagedError, match="SHA-256"):
        read_checkpoint(path)
    assert not trace.exists()


def test_killed_at_any_step_of_writing_the_newest_whole_one_is_read(tmp_path: Path) -> None:
    """The third checkpoint is either there as a whole or the second one is the newest.

    Forks write it and kill themselves at their first, second, … system call, which has written half
    of its data by then.
    """
    helper = Path(__file__).with_name("killed_writers.py")
    subprocess.run([sys.executable, helper, tmp_path], check=True, timeout=120)
    folders = sorted(tmp_path.iterdir(), key=lambda folder: int(folder.name))
    assert len(folders) > 20
    numbers = [number_in(read_newest(folder, pytest.fail)) for folder in folders]
    assert numbers == sorted(numbers, key=lambda number: number or 0)
    assert set(numbers) == {2, 3}
    for folder in folders:  # what killed processes left is removed
        write_next(folder, *content(4))
        assert number_in(read_newest(folder, pytest.fail)) == 4
        left = {path.name for path in folder.iterdir()}
        assert len(left) == 2, left


@contextmanager
def small_disk(path: Path) -> Iterator[None]:
    """Mount a file system of 64 KiB; skip where that is not allowed."""
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(path)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", str(path)], check=True)  # noqa: S607 - as above


@contextmanager
def small_files(path: Path) -> Iterator[None]:
    """Allow no file beyond 6 KB."""
    path.mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("limited", [small_disk, small_files], ids=["no space", "files too large"])
def test_without_space_earlier_checkpoints_stay(
    limited: Callable[[Path], Iterator[None]], tmp_path: Path
) -> None:
    """The error is that of the system, nothing is left, and writing works again with space."""
    folder, large = tmp_path / "disk" / "search", {"scores": torch.zeros(100_000)}
    with limited(tmp_path / "disk"):  # type: ignore[attr-defined] # made by contextmanager
        for number in (1, 2):
            write_next(folder, *content(number))
        for _ in range(3):
            with pytest.raises(OSError) as caught:  # noqa: PT011 - its number is looked at
                write_next(folder, {"number": 3}, large)
            assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)
            assert {path.name for path in folder.iterdir()} == {"000001", "000002"}
        assert number_in(read_newest(folder, pytest.fail)) == 2
        write_next(folder, *content(3))
        assert number_in(read_newest(folder, pytest.fail)) == 3


def test_a_lock_is_exclusive(tmp_path: Path) -> None:
    """A second one is refused and learns the owner; after the release it succeeds."""
    path = tmp_path / "lock"
    assert lock_owner(path) is None
    first = Lock(path)
    assert lock_owner(path) == f"process {os.getpid()}"
    with pytest.raises(BlockingIOError):
        Lock(path)
    first.release()
    first.release()
    assert lock_owner(path) is None
    Lock(path).release(remove=True)
    assert not path.exists()


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    """SIGKILL releases the lock."""
    path = tmp_path / "lock"
    code = (
        "import sys, time; from pathlib import Path; from gaprune.io.lock import Lock\n"
        "lock = Lock(Path(sys.argv[1])); print(flush=True); time.sleep(60)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdout=subprocess.PIPE, env=environment
    ) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        assert lock_owner(path) == f"process {owner.pid}"
        with pytest.raises(BlockingIOError):
            Lock(path)
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    Lock(path).release()
