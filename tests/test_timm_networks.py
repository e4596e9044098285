"""`timm:NAME`: the network, its inputs, and weights that must be on this machine."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from gaprune.errors import InputError
from gaprune.models.input_spec import InputSpec
from gaprune.models.sources import is_sourced, load_source
from gaprune.models.sources.optional_packages import import_extra

SMALL = "test_resnet"  # 469,688 weights; timm ships its code, not its weights


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Use empty caches, and fail if anything tries to connect."""

    def refuse(*arguments: object) -> None:
        raise AssertionError(f"connects to {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def save(path: Path, name: str = SMALL, prefix: str = "", **settings: int) -> dict[str, Tensor]:
    """Write seeded weights of a network of timm to a file, and return them."""
    timm = import_extra("timm", "timm", "test")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        state = timm.create_model(name, **settings).state_dict()
    plain = {prefix + key: value.contiguous() for key, value in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    (save_file if path.suffix == ".safetensors" else torch.save)(plain, path)
    return plain


def test_the_users_weights(tmp_path: Path) -> None:
    """A network comes with the user's weights, bit for bit, and with timm's input description."""
    file = tmp_path / "mine.safetensors"
    state = save(file)
    loaded = load_source(f"timm:{SMALL}", weights=file)
    assert all(torch.equal(loaded.model.state_dict()[name], value) for name, value in state.items())
    half = (0.5, 0.5, 0.5)
    assert loaded.inputs == InputSpec(shape=(3, 160, 160), kind="image", mean=half, std=half)
    assert not loaded.model.training
    assert SMALL in loaded.origin
    assert str(file) in loaded.origin


@pytest.mark.parametrize("prefix", ["", "module.", "model."])
def test_the_network_is_built_for_its_weights(tmp_path: Path, prefix: str) -> None:
    """Classes and input channels are those of the checkpoint, also of a wrapped network."""
    file = tmp_path / "mine.pth"
    save(file, prefix=prefix, num_classes=7, in_chans=1)
    loaded = load_source(f"timm:{SMALL}", weights=file)
    assert loaded.inputs is not None
    assert loaded.inputs.shape == (1, 160, 160)
    assert loaded.inputs.mean == (0.5,)
    assert loaded.model(torch.rand(2, 1, 64, 64)).shape == (2, 7)


def test_weights_in_the_cache_of_the_hub(tmp_path: Path) -> None:
    """Weights in the cache of huggingface_hub are loaded without a connection."""
    snapshot = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k"
    (snapshot / "refs").mkdir(parents=True)
    (snapshot / "refs" / "main").write_text("abc")
    state = save(snapshot / "snapshots" / "abc" / "model.safetensors")
    loaded = load_source(f"timm:{SMALL}")
    assert torch.equal(loaded.model.state_dict()["fc.weight"], state["fc.weight"])
    assert "local cache" in loaded.origin


def test_weights_in_the_cache_of_torch(tmp_path: Path) -> None:
    """Weights in the cache of `torch.hub` are loaded under the file name of their address."""
    name = "resnet10t"  # among the smallest whose weights have an address
    url = import_extra("timm", "timm", "test").get_pretrained_cfg(name).url
    file = tmp_path / "torch" / "hub" / "checkpoints" / url.rpartition("/")[2]
    state = save(file, name)
    loaded = load_source(f"timm:{name}")
    assert torch.equal(loaded.model.state_dict()["fc.weight"], state["fc.weight"])


@pytest.mark.parametrize(
    ("spec", "options", "message"),
    [
        (f"timm:{SMALL}", {}, r"weights=FILE.*allow_download"),
        (f"timm:{SMALL}", {"allow_download": True}, r"weights: .*weights=FILE"),
        ("timm:resnet_18", {}, "'resnet_18'.*resnet18"),
        ("timm:resnet18.nope", {}, r"'resnet18\.nope'.*resnet18\.a1_in1k"),
        ("timm:", {}, "'timm:'"),
    ],
)
def test_networks_that_cannot_be_loaded(spec: str, options: dict[str, bool], message: str) -> None:
    """No download without permission, a failed download, and unknown names are input errors."""
    with pytest.raises(InputError, match=message):
        load_source(spec, **options)  # type: ignore[arg-type]


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    """Names and shapes must be those of the named network."""
    save(tmp_path / "mine.safetensors")
    with pytest.raises(InputError, match="weights:"):
        load_source("timm:test_vit", weights=tmp_path / "mine.safetensors")


def test_schemes() -> None:
    """Only known schemes are distinguished from paths of factories."""
    specs = ("timm:resnet18", "hf:folder", "mnist-mlp", "file.py:factory")
    assert [is_sourced(spec) for spec in specs] == [True, True, False, False]
