"""`timm:NAME`: the network, what it takes, and weights that are on this machine only."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gaprune.errors import InputError
from gaprune.models.input_spec import InputSpec
from gaprune.models.sources import is_sourced, load_source
from gaprune.models.sources.optional_packages import import_extra

SMALL = "test_resnet"  # 469,688 weights; timm ships its code, not its weights


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Empty caches, and a failure where anything tries to connect."""

    def refuse(*arguments: object) -> None:
        raise AssertionError(f"connects to {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    timm = import_extra("timm", "timm", "test")
    assert timm.is_model(SMALL)
    hub = import_extra("huggingface_hub", "timm", "test")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return iter([None])


def save(path: Path, **settings: int) -> dict[str, torch.Tensor]:
    """Write weights of the small network, drawn by a seed, and return them."""
    timm = import_extra("timm", "timm", "test")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        state = timm.create_model(SMALL, **settings).state_dict()
    plain = {name: value.contiguous() for name, value in state.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(plain, path)
    else:
        torch.save(plain, path)
    return plain


def test_weights_of_ones_own(tmp_path: Path) -> None:
    """A network comes with the user's weights, bit for bit, and with what timm knows of it."""
    file = tmp_path / "own.safetensors"
    state = save(file)
    loaded = load_source(f"timm:{SMALL}", weights=file)
    assert all(torch.equal(loaded.model.state_dict()[name], value) for name, value in state.items())
    half = (0.5, 0.5, 0.5)
    assert loaded.inputs == InputSpec(shape=(3, 160, 160), kind="image", mean=half, std=half)
    assert not loaded.model.training
    assert SMALL in loaded.origin
    assert str(file) in loaded.origin


@pytest.mark.parametrize("prefix", ["", "module."])
def test_the_network_is_built_for_its_weights(tmp_path: Path, prefix: str) -> None:
    """Classes and input channels are those of the checkpoint, also of a wrapped network."""
    file = tmp_path / "own.pth"
    state = save(file, num_classes=7, in_chans=1)
    torch.save({prefix + name: value for name, value in state.items()}, file)
    loaded = load_source(f"timm:{SMALL}", weights=file)
    assert loaded.inputs is not None
    assert loaded.inputs.shape == (1, 160, 160)
    assert loaded.inputs.mean == (0.5,)
    assert loaded.model(torch.rand(2, 1, 64, 64)).shape == (2, 7)


def test_weights_in_the_cache_of_the_hub(tmp_path: Path) -> None:
    """What huggingface_hub fetched before is found and loaded, without a connection."""
    snapshot = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k"
    (snapshot / "refs").mkdir(parents=True)
    (snapshot / "refs" / "main").write_text("abc")
    state = save(snapshot / "snapshots" / "abc" / "model.safetensors")
    loaded = load_source(f"timm:{SMALL}")
    assert torch.equal(loaded.model.state_dict()["fc.weight"], state["fc.weight"])
    assert "local cache" in loaded.origin


def test_weights_in_the_cache_of_torch(tmp_path: Path) -> None:
    """Older weights lie where `torch.hub` puts them, under the name in their address."""
    timm = import_extra("timm", "timm", "test")
    name = "resnet10t"  # among the smallest whose weights have an address
    url = timm.get_pretrained_cfg(name).url
    with torch.random.fork_rng():
        torch.manual_seed(5)
        state = timm.create_model(name).state_dict()
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.save(state, folder / url.rpartition("/")[2])
    loaded = load_source(f"timm:{name}")
    assert torch.equal(loaded.model.state_dict()["fc.weight"], state["fc.weight"])


def test_nothing_is_downloaded_unasked() -> None:
    """Weights that are not at hand are an error that names the ways out."""
    with pytest.raises(InputError, match=r"--weights FILE.*allow-download"):
        load_source(f"timm:{SMALL}")


def test_a_download_that_fails_is_an_input_error() -> None:
    """Allowed, it is tried; here the network refuses."""
    with pytest.raises(InputError, match=r"weights: .*--weights FILE"):
        load_source(f"timm:{SMALL}", allow_download=True)


def test_an_unknown_name_lists_the_nearest() -> None:
    """There are more than a thousand names: the nearest are shown."""
    with pytest.raises(InputError, match=r"'resnet_18'.*resnet18"):
        load_source("timm:resnet_18")
    with pytest.raises(InputError, match=r"no weights 'resnet18\.nope'.*resnet18\.a1_in1k"):
        load_source("timm:resnet18.nope")


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    """The names and shapes must be those of the network that is named."""
    file = tmp_path / "own.safetensors"
    save(file)
    with pytest.raises(InputError, match="weights:"):
        load_source("timm:test_vit", weights=file)


def test_schemes() -> None:
    """Only known schemes are taken from paths of factories; a scheme alone names no network."""
    assert is_sourced("timm:resnet18")
    assert is_sourced("hf:folder")
    assert not is_sourced("mnist-mlp")
    assert not is_sourced("file.py:factory")
    with pytest.raises(InputError, match="names no network"):
        load_source("timm:")
    with pytest.raises(InputError, match=r"'tim'.*'timm'"):
        load_source("tim:resnet18")
