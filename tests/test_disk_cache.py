"""The disk cache of generated inputs: hits, damage, limits."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from gaprune.calibration import disk_cache as cache
from gaprune.calibration.disk_cache import cache_folder, cache_key, cached

KEY = cache_key("0" * 64, {"steps": 150})


class Maker:
    """Makes a different batch in every call, and counts the calls."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.calls = 0
        self.dtype = dtype

    def __call__(self) -> Tensor:
        """Return the batch of this call."""
        self.calls += 1
        return torch.full((3, 2), float(self.calls)).to(self.dtype).t()  # not contiguous


@pytest.fixture
def warnings() -> list[str]:
    """Return the list that receives warnings."""
    return []


def file_of(folder: Path) -> Path:
    """Return the only file under a cache folder."""
    (path,) = (p for p in folder.rglob("*") if p.is_file())
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_a_batch_is_made_once(dtype: torch.dtype, tmp_path: Path, warnings: list[str]) -> None:
    """The second call reads the same bits; another key makes a new batch."""
    make = Maker(dtype)
    first, second = (
        cached(KEY, make, warnings.append, tmp_path / "new" / "folder") for _ in range(2)
    )
    assert make.calls == 1
    assert torch.equal(first, second)
    assert second.dtype == dtype
    cached(cache_key("1" * 64, {"steps": 150}), make, warnings.append, tmp_path / "new" / "folder")
    assert make.calls == 2
    assert warnings == []


def misname(path: Path) -> None:
    """Replace a file by that of another key."""
    other = path.parent.parent / "other"
    cached("f" * 64, Maker(), print, other)
    file_of(other).replace(path)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "bit": lambda p: p.write_bytes(p.read_bytes()[:-1] + bytes([p.read_bytes()[-1] ^ 1])),
    "cut": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
    "no metadata": lambda p: save_file(load_file(p), p),
    "empty": lambda p: p.write_bytes(b""),
    "another key": misname,
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_made_anew(damage: str, tmp_path: Path, warnings: list[str]) -> None:
    """There is one warning; the new batch replaces the file, and the next call reads it."""
    make = Maker()
    cached(KEY, make, warnings.append, tmp_path)
    DAMAGE[damage](file_of(tmp_path))
    again, after = (cached(KEY, make, warnings.append, tmp_path) for _ in range(2))
    assert make.calls == 2
    assert torch.equal(again, torch.full((2, 3), 2.0))
    assert torch.equal(after, again)
    assert len(warnings) == 1
    assert KEY in warnings[0]


def test_a_cache_that_cannot_be_written_is_not_used(tmp_path: Path, warnings: list[str]) -> None:
    """If the folder is a file, the batch is made with one warning, and the file stays."""
    blocked = tmp_path / "file"
    blocked.write_text("mine")
    make = Maker()
    assert torch.equal(cached(KEY, make, warnings.append, blocked), torch.ones(2, 3))
    assert len(warnings) == 1
    assert "GAPRUNE_CACHE" in warnings[0]
    assert blocked.read_text() == "mine"


def test_a_failure_leaves_no_file(tmp_path: Path, warnings: list[str]) -> None:
    """The error is passed on."""

    def fail() -> Tensor:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        cached(KEY, fail, warnings.append, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_keys_depend_on_weights_and_settings() -> None:
    """Weights and every setting change the key; the order of settings does not."""
    settings = {"steps": 150, "rate": 0.05, "spec": {"shape": [3, 8, 8], "mean": [0.1]}}
    changed: list[dict[str, object]] = [
        {**settings, "steps": 151},
        {**settings, "rate": 0.050000001},
        {"steps": 150},
    ]
    keys = {cache_key("a", settings), cache_key("b", settings)}
    keys |= {cache_key("a", other) for other in changed}
    assert len(keys) == 5
    assert cache_key("a", dict(reversed(settings.items()))) == cache_key("a", settings)
    assert all(len(key) == 64 for key in keys)


def test_the_oldest_files_are_removed(
    tmp_path: Path, warnings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above the limit, the least recently used file goes; foreign files stay."""
    foreign = tmp_path / "model.safetensors"
    foreign.write_bytes(bytes(10_000))
    keys = [letter * 64 for letter in "abc"]
    for age, key in enumerate(keys[:2]):
        cached(key, Maker(), warnings.append, tmp_path)
        os.utime(tmp_path / "calibration" / f"{key}.safetensors", (1000 + age, 1000 + age))
    cached(keys[0], Maker(), warnings.append, tmp_path)  # used again: now the younger one
    size = (tmp_path / "calibration" / f"{keys[0]}.safetensors").stat().st_size
    monkeypatch.setattr(cache, "MAX_BYTES", 2 * size)
    cached(keys[2], Maker(), warnings.append, tmp_path)
    left = {path.stem[0] for path in (tmp_path / "calibration").iterdir()}
    assert left == {"a", "c"}
    assert foreign.exists()


def test_environment_variables_set_the_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """$GAPRUNE_CACHE has precedence over $XDG_CACHE_HOME, which has it over the home folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("GAPRUNE_CACHE", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "gaprune"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "gaprune"
    monkeypatch.setenv("GAPRUNE_CACHE", str(tmp_path / "here"))
    assert cache_folder() == tmp_path / "here"


def test_without_a_home_folder_the_batch_is_made(
    monkeypatch: pytest.MonkeyPatch, warnings: list[str]
) -> None:
    """The warning names the variable."""
    for name in ("HOME", "XDG_CACHE_HOME", "GAPRUNE_CACHE"):
        monkeypatch.delenv(name, raising=False)

    def fail(cls: type[Path]) -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", classmethod(fail))
    assert torch.equal(cached(KEY, Maker(), warnings.append), torch.ones(2, 3))
    assert len(warnings) == 1
    assert "GAPRUNE_CACHE" in warnings[0]
