"""The reference networks, their checkpoints, and the data bundled with the package."""

from __future__ import annotations

import gzip
import hashlib
import re

import pytest
import torch

from gaprune.errors import InputError
from gaprune.io.weights import sha256_of
from gaprune.models.prunable import find_prunable
from gaprune.models.zoo import ZOO, load_zoo_network, mnist

COUNTS = {  # all parameters, prunable weights: worked out by hand from the layer sizes
    "mnist-mlp": (
        784 * 250 + 250 + 250 * 100 + 100 + 100 * 10 + 10,
        784 * 250 + 250 * 100 + 100 * 10,
    ),
    "mnist-cnn": (1_199_648, 1_199_648),
    "lenet": (
        25 * 6 + 6 + 25 * 6 * 16 + 16 + 400 * 120 + 120 + 120 * 84 + 84 + 84 * 10 + 10,
        25 * 6 + 25 * 6 * 16 + 400 * 120 + 120 * 84 + 84 * 10,
    ),
    "four-layer": (
        49 * 16 + 16 + 25 * 16 * 32 + 32 + 128 * 256 + 256 + 256 * 10 + 10,
        49 * 16 + 25 * 16 * 32 + 128 * 256 + 256 * 10,
    ),
}
# MD5 of the four IDX files as published, before compression
PUBLISHED = {
    "train-images-idx3-ubyte.gz": "6bbc9ace898e44ae57da46a324031adb",
    "train-labels-idx1-ubyte.gz": "a25bea736e30d166cdddb491f175f624",
    "t10k-images-idx3-ubyte.gz": "2646ac647ad5339dbf082846283269ea",
    "t10k-labels-idx1-ubyte.gz": "27ae3e4e09519cfbb04c329615203637",
}


@pytest.mark.parametrize("name", ZOO)
def test_networks_load_frozen_and_reach_their_accuracy(name: str) -> None:
    """A network is in evaluation mode, the same every time, and as accurate as documented."""
    model, entry = load_zoo_network(name), ZOO[name]
    assert not any(module.training for module in model.modules())
    assert sha256_of(model.state_dict()) == sha256_of(load_zoo_network(name).state_dict())
    assert (entry.inputs.low, entry.inputs.high, entry.inputs.assumed) == (0, 1, False)
    images, labels = mnist.test_set()
    with torch.no_grad():
        hits = (model(images[:500]).argmax(1) == labels[:500]).double()
    # 500 of the 10,000 images: the tolerance is some five standard errors
    assert hits.mean().item() == pytest.approx(entry.dense_accuracy, abs=0.03)
    assert 0.97 < entry.dense_accuracy < 1
    assert entry.metadata["network"] == entry.name == name


@pytest.mark.parametrize("name", COUNTS)
def test_networks_have_the_documented_sizes(name: str) -> None:
    """Parameters and prunable weights are as many as layer sizes and docstrings say."""
    model = load_zoo_network(name)
    total = sum(parameter.numel() for parameter in model.parameters())
    prunable = sum(weight.numel() for weight in find_prunable(model).values())
    assert (total, prunable) == COUNTS[name]
    if name in ("mnist-mlp", "four-layer"):
        documentation = (ZOO[name].factory.__doc__ or "").replace(",", "")
        assert all(str(count) in documentation for count in COUNTS[name])


def test_unknown_network() -> None:
    """A name outside the zoo lists the valid ones, the nearest first."""
    with pytest.raises(InputError, match=r"'mnist-cnn'.*lenet, mnist-cnn"):
        load_zoo_network("mnist-cn")


def test_bundled_data() -> None:
    """The licence note lists all files with their hashes; unpacked, they are the published ones."""
    note = (mnist.FOLDER / "LICENSE.md").read_text(encoding="utf-8")
    hashes = dict(re.findall(r"^\| (\S+\.gz) \|.*\| ([0-9a-f]{64}) \|$", note, re.MULTILINE))
    bundled = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in mnist.FOLDER.glob("*.gz")
    }
    assert hashes == bundled
    assert "Attribution-ShareAlike 3.0" in note
    assert all(author in note for author in ("LeCun", "Cortes", "Burges"))
    for name, digest in PUBLISHED.items():
        raw = gzip.decompress((mnist.FOLDER / name).read_bytes())
        assert hashlib.md5(raw, usedforsecurity=False).hexdigest() == digest
