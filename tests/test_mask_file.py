"""Saved masks come back, from our own reader and from any other."""

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
def test_what_is_saved_is_loaded(tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """Names, shapes and every entry."""
    path = tmp_path_factory.mktemp("masks") / "m.safetensors"
    masks = some_masks(seed)
    assert save_masks(masks, path) == path
    found = load_masks(path)
    assert set(found) == set(masks)
    assert all(torch.equal(found[name], mask) for name, mask in masks.items())


def test_the_file_says_what_it_is_and_equal_masks_are_equal_files(tmp_path: Path) -> None:
    """One byte per weight, with the caller's facts; nothing else is left in the folder."""
    for name in ("one", "two", "one"):  # the third replaces the first
        save_masks(some_masks(), str(tmp_path / f"{name}.safetensors"), target="lenet")
    assert {path.name for path in tmp_path.iterdir()} == {"one.safetensors", "two.safetensors"}
    one, two = (tmp_path / f"{name}.safetensors" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    with safe_open(one, "pt") as file:
        assert from_metadata(file.metadata()) == {"format": "gaprune mask", "target": "lenet"}
        assert file.get_tensor("b.weight").dtype == torch.uint8


def test_what_is_no_mask_is_refused(tmp_path: Path) -> None:
    """Before anything is written."""
    path = tmp_path / "m.safetensors"
    with pytest.raises(InputError, match="masks: "):
        save_masks({}, path)
    with pytest.raises(InputError, match=r"masks\['a'\]: must be bool, got torch.float32"):
        save_masks({"a": torch.ones(2)}, path)
    with pytest.raises(InputError, match=r"path: .*\.safetensors.*m\.pt"):
        save_masks(some_masks(), path.with_suffix(".pt"))
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """A missing folder, or a folder in the file's place; an earlier content stays."""
    with pytest.raises(GapruneError, match="path: cannot write"):
        save_masks(some_masks(), tmp_path / "missing" / "m.safetensors")
    (tmp_path / "m.safetensors" / "kept").mkdir(parents=True)
    with pytest.raises(GapruneError, match="path: cannot write"):
        save_masks(some_masks(), tmp_path / "m.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]
