"""Mask files: written and read back, identical for identical masks, invalid masks refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from search_cases import seeded
from torch import Tensor

from gaprune.errors import GapruneError, InputError
from gaprune.io.mask_file import save_masks
from gaprune.io.serialization import from_metadata
from gaprune.masks.supermask import Layout
from gaprune.runs.directory import load_masks


def some_masks(seed: int = 0) -> dict[str, Tensor]:
    """Return two masks that share memory, one of them not contiguous."""
    layout = Layout(("a.weight", "b.weight"), ((3, 4), (5,)))
    masks = layout.split(torch.rand(layout.total, generator=seeded(seed)) < 0.5)
    return {**masks, "a.weight": masks["a.weight"].T}


@given(st.integers(0, 50))
def test_saved_masks_are_loaded(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """Names, shapes and every entry are read back."""
    path = tmp_path_factory.mktemp("masks") / "m.safetensors"
    masks = some_masks(seed)
    assert save_masks(masks, path) == path
    loaded = load_masks(path)
    assert set(loaded) == set(masks)
    assert all(torch.equal(loaded[name], mask) for name, mask in masks.items())


def test_equal_masks_give_equal_files(tmp_path: Path) -> None:
    """A file has one byte per weight and the caller's metadata; no temporary file stays."""
    files = [tmp_path / "first.safetensors", tmp_path / "second.safetensors"]
    for file in (*files, files[0]):  # the third call replaces the first file
        save_masks(some_masks(), str(file), target="lenet")
    assert set(tmp_path.iterdir()) == set(files)
    assert files[0].read_bytes() == files[1].read_bytes()
    with safe_open(files[0], "pt") as opened:
        about = from_metadata(opened.metadata())
        assert about.pop("sha256")
        assert about == {"format": "gaprune mask", "target": "lenet"}
        assert opened.get_tensor("b.weight").dtype == torch.uint8


@pytest.mark.parametrize(
    ("masks", "name", "error", "message"),
    [
        ({}, "m.safetensors", InputError, "masks: "),
        ({"a": torch.ones(2)}, "m.safetensors", InputError, r"masks\['a'\]: .*torch.float32"),
        (some_masks(), "m.pt", InputError, r"path: .*\.safetensors.*m\.pt"),
        (some_masks(), "missing/m.safetensors", GapruneError, "path: "),
        (some_masks(), "folder.safetensors", GapruneError, "path: "),
    ],
)
def test_masks_that_cannot_be_written(
    tmp_path: Path, masks: dict[str, Tensor], name: str, error: type[Exception], message: str
) -> None:
    """Invalid masks and paths are refused; existing files and folders stay as they are."""
    (tmp_path / "folder.safetensors" / "content").mkdir(parents=True)
    with pytest.raises(error, match=message):
        save_masks(masks, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.safetensors"]
