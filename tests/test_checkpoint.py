"""Bundles are whole or not there, the last two stay, damage shows, locks end with processes."""

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
    CheckpointFolder,
    DamagedError,
    read_checkpoint,
    write_checkpoint,
)
from gaprune.io.lock import Lock, lock_owner

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool)


def content(number: int) -> tuple[dict[str, int], dict[str, Tensor]]:
    """Return what the tests keep under a number."""
    return {"number": number}, {"scores": torch.full((1000,), float(number))}


def number_in(found: Checkpoint | None) -> int | None:
    """Return the number under which it was kept; all of it must be of that number."""
    if found is None:
        return None
    number = int(found.facts["number"])
    assert torch.equal(found.tensors["scores"], content(number)[1]["scores"])
    return number


def flip(path: Path, bit: int) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[bit // 8 % len(data)] ^= 1 << bit % 8
    path.write_bytes(data)


def silent(_: str) -> None:
    """Hear no warning."""


@given(facts=st.dictionaries(st.text(), PLAIN, max_size=4), seed=st.integers(0, 99))
def test_what_is_read_is_what_was_written(facts: dict[str, object], seed: int) -> None:
    """Plain data of any kind, floats to the last bit, and tensors of every dtype."""
    noise = torch.randn(7, 3, generator=torch.Generator().manual_seed(seed)) * 100
    tensors = {str(dtype): noise.to(dtype) for dtype in DTYPES} | {"turned": noise.t()}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "bundle"
        write_checkpoint(place, facts, tensors)
        found = read_checkpoint(place)
        assert {path.name for path in Path(folder).iterdir()} == {"bundle"}
    assert repr(found.facts) == repr(json.loads(json.dumps(facts)))
    assert set(found.tensors) == set(tensors)
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor), name


@settings(max_examples=60)
@given(name=st.sampled_from([FACTS, TENSORS, SUMS]), bit=st.integers(0, 10**6))
def test_a_flipped_bit_is_noticed_in_every_file(name: str, bit: int) -> None:
    """No bit matters so little that nobody would see it."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "bundle"
        write_checkpoint(place, *content(1))
        flip(place / name, bit)
        with pytest.raises(DamagedError, match="bundle"):
            read_checkpoint(place)


@pytest.mark.parametrize("name", [FACTS, TENSORS, SUMS])
@pytest.mark.parametrize("harm", ["missing", "cut", "folder"])
def test_a_file_that_is_not_whole_is_noticed(name: str, harm: str, tmp_path: Path) -> None:
    """Whatever has become of it."""
    place = tmp_path / "bundle"
    write_checkpoint(place, *content(1))
    data = (place / name).read_bytes()
    (place / name).unlink()
    if harm == "cut":
        (place / name).write_bytes(data[:-1])
    elif harm == "folder":
        (place / name).mkdir()
    with pytest.raises(DamagedError):
        read_checkpoint(place)


def test_the_last_two_stay_and_the_newest_is_read(tmp_path: Path) -> None:
    """Other names in the folder are left alone."""
    shelf = CheckpointFolder(tmp_path / "shelf")
    assert shelf.newest(pytest.fail) is None
    for number in range(1, 6):
        shelf.write(*content(number))
        (shelf.path / "start").mkdir(exist_ok=True)
        assert number_in(shelf.newest(pytest.fail)) == number
    assert {path.name for path in shelf.path.iterdir()} == {"000004", "000005", "start"}


def test_where_the_newest_is_damaged_the_one_before_is_used(tmp_path: Path) -> None:
    """That is said; what is written next does not push out the good one."""
    shelf, told = CheckpointFolder(tmp_path), list[str]()
    for number in (1, 2):
        shelf.write(*content(number))
    flip(tmp_path / "000002" / TENSORS, 9999)
    assert number_in(shelf.newest(told.append)) == 1
    (text,) = told
    assert "000002" in text
    assert "the one before is used" in text
    shelf.write(*content(3))
    flip(next(tmp_path.glob("*2")) / TENSORS, 9999)
    assert number_in(shelf.newest(told.append)) == 1


def test_where_all_are_damaged_that_is_an_error(tmp_path: Path) -> None:
    """It names them, and never looks like a run that has not begun."""
    shelf = CheckpointFolder(tmp_path)
    for number in (1, 2):
        shelf.write(*content(number))
        flip(tmp_path / f"{number:06d}" / FACTS, 3)
    with pytest.raises(GapruneError, match=r"000002.*000001"):
        shelf.newest(pytest.fail)


class Malicious:
    """A pickle that makes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        """Run code."""
        return os.mkdir, (str(self.path),)


def test_a_pickle_in_the_place_of_tensors_is_damage_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even under a hash that fits, and with the variable set that makes torch trust pickles."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    place, trace = tmp_path / "bundle", tmp_path / "trace"
    write_checkpoint(place, *content(1))
    torch.save(Malicious(trace), place / TENSORS)
    sums = subprocess.run(
        ["sha256sum", FACTS, TENSORS],  # noqa: S607 - whichever the system has
        cwd=place,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    (place / SUMS).write_text(sums)
    with pytest.raises(DamagedError, match="cannot be read"):
        read_checkpoint(place)
    (place / TENSORS).write_bytes(pickle.dumps(Malicious(trace)))
    with pytest.raises(DamagedError, match="SHA-256"):
        read_checkpoint(place)
    assert not trace.exists()


def test_killed_at_any_step_of_writing_the_newest_whole_one_is_read(tmp_path: Path) -> None:
    """The third checkpoint is either there as a whole or the second one is the newest.

    A process of its own writes it in forks that kill themselves at their first, second, … call to
    the system; half of what a call writes is on the disk by then.
    """
    helper = Path(__file__).with_name("killed_writers.py")
    subprocess.run([sys.executable, helper, tmp_path], check=True, timeout=120)
    folders = sorted(tmp_path.iterdir(), key=lambda folder: int(folder.name))
    assert len(folders) > 20
    found = [number_in(CheckpointFolder(folder).newest(pytest.fail)) for folder in folders]
    assert found == sorted(found, key=int)  # type: ignore[arg-type] # none is None
    assert set(found) == {2, 3}
    for folder in folders:  # what the dead have left is in nobody's way
        shelf = CheckpointFolder(folder)
        shelf.write(*content(4))
        assert number_in(shelf.newest(pytest.fail)) == 4
        left = {path.name for path in folder.iterdir()}
        assert len(left) == 2, left


@contextmanager
def small_disk(place: Path) -> Iterator[None]:
    """Mount a file system of 64 KiB; skip where that is not allowed."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("only root can mount a small disk")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)  # noqa: S607 - as above


@contextmanager
def small_files(place: Path) -> Iterator[None]:
    """Allow no file beyond 6 KB."""
    place.mkdir()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [small_disk, small_files], ids=["no space", "files too large"])
def test_without_space_what_was_kept_stays(
    room: Callable[[Path], Iterator[None]], tmp_path: Path
) -> None:
    """The error is the system's, no rest is left, and with space it goes on."""
    shelf, large = CheckpointFolder(tmp_path / "disk" / "shelf"), {"scores": torch.zeros(100_000)}
    with room(tmp_path / "disk"):  # type: ignore[attr-defined] # made by contextmanager
        for number in (1, 2):
            shelf.write(*content(number))
        for _ in range(3):
            with pytest.raises(OSError) as caught:  # noqa: PT011 - its number is looked at
                shelf.write({"number": 3}, large)
            assert caught.value.errno in (errno.ENOSPC, errno.EFBIG)
            assert {path.name for path in shelf.path.iterdir()} == {"000001", "000002"}
        assert number_in(shelf.newest(pytest.fail)) == 2
        shelf.write(*content(3))
        assert number_in(shelf.newest(pytest.fail)) == 3


def test_a_lock_is_for_one(tmp_path: Path) -> None:
    """Whoever comes second is told who has it; after its release it can be had."""
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
    """No file has to be removed by hand after SIGKILL."""
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
