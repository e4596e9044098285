"""Weights under weight_norm, spectral_norm and parametrizations are folded into plain ones."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import gaprune
from gaprune.errors import GapruneError, InputError
from gaprune.exports.pruned_network import read_pruned
from gaprune.models.input_spec import InputOptions
from gaprune.models.parametrizations import fold_parametrizations
from gaprune.models.target import load_target, target_from_module
from gaprune.runs.warnings import network_warnings

INPUTS = InputOptions(shape=(6,), range=(-1, 1))
QUICK: dict[str, Any] = {
    "sparsity": 0.5,
    "method": "magnitude",
    "calibration_count": 8,
    "validation_count": 8,
}
FACTORY = """
import torch
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

def make():
    torch.manual_seed(0)
    return nn.Sequential(
        parametrizations.weight_norm(nn.Linear(6, 8)), nn.ReLU(), spectral_norm(nn.Linear(8, 3))
    )
"""
KINDS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "hook weight_norm": nn.utils.weight_norm,
    "hook spectral_norm": nn.utils.spectral_norm,
}
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")


class Drifting(nn.Module):
    """A parametrization with another value at every use."""

    def __init__(self) -> None:
        super().__init__()
        self.uses = 0

    def forward(self, weight: Tensor) -> Tensor:
        """Scale the weight by the number of uses."""
        self.uses += 1
        return weight * self.uses


def net(kind: str) -> nn.Sequential:
    """Return a network with one layer of a kind, as it is after training."""
    torch.manual_seed(0)
    model = nn.Sequential(KINDS[kind](nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 3))
    model(torch.randn(4, 6)).sum().backward()  # power iterations of spectral_norm
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_folding_keeps_the_function_and_the_users_network(kind: str) -> None:
    """The pruned copy has plain names and equal outputs; the network of the caller is the same."""
    model, inputs = net(kind), torch.randn(5, 6)
    names, values = list(model.state_dict()), copy.deepcopy(dict(model.state_dict()))
    with pytest.raises(InputError, match="fold_parametrizations"):
        gaprune.prune(model, inputs=INPUTS, **QUICK)
    result = gaprune.prune(model, inputs=INPUTS, fold_parametrizations=True, **QUICK)
    assert model.training
    assert list(model.state_dict()) == names
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    assert set(result.masks) == {"0.weight", "2.weight"}
    assert result.target.folded == ("0.weight",)
    assert any("0.weight" in text for text in network_warnings(result.target))
    expected = model.eval()(inputs)
    torch.testing.assert_close(result.target.model(inputs), expected.detach())
    # the documented way to load the weights
    fresh = gaprune.fold_parametrizations(net(kind))
    fresh.load_state_dict(result.state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_a_folded_copy_leaves_the_original_alone(kind: str) -> None:
    """A copy shares the class that torch makes for a layer; folding one changes only that one."""
    model = net(kind).eval()
    with torch.no_grad():  # a hook's weight can be copied only without gradient history
        expected = model(torch.ones(1, 6))
    assert torch.allclose(fold_parametrizations(copy.deepcopy(model))(torch.ones(1, 6)), expected)
    assert torch.equal(model(torch.ones(1, 6)), expected)
    assert fold_parametrizations(model).get_parameter("0.weight").requires_grad


def test_a_fold_that_changes_the_outputs_is_refused() -> None:
    """A weight that changes from pass to pass has no plain value."""
    model = nn.Sequential(nn.Linear(6, 3))
    nn.utils.parametrize.register_parametrization(model[0], "weight", Drifting())
    with pytest.raises(GapruneError, match=r"0\.weight"):
        target_from_module(model, inputs=INPUTS, fold_parametrizations=True)


def test_a_factory_is_folded_again(tmp_path: Path) -> None:
    """A run of a factory is read, resumed and exported; its weights can be pruned further."""
    (tmp_path / "net.py").write_text(FACTORY)
    spec = f"{tmp_path / 'net.py'}:make"
    with pytest.raises(InputError, match="fold_parametrizations"):
        load_target(spec, inputs=INPUTS)
    target = load_target(spec, inputs=INPUTS, fold_parametrizations=True)
    save_file(target.model.state_dict(), tmp_path / "plain.safetensors")
    model = net("weight_norm")
    torch.save(model.state_dict(), tmp_path / "trained.pt")
    only_first = FACTORY.replace("spectral_norm(nn.Linear(8, 3))", "nn.Linear(8, 3)")
    (tmp_path / "first.py").write_text(only_first)
    trained = load_target(
        f"{tmp_path / 'first.py'}:make",
        weights=tmp_path / "trained.pt",
        inputs=INPUTS,
        fold_parametrizations=True,
    )
    computed = model.get_submodule("0").weight
    assert isinstance(computed, torch.Tensor)
    assert torch.equal(trained.weights["0.weight"], computed)
    plain = load_target(
        spec, weights=tmp_path / "plain.safetensors", inputs=INPUTS, fold_parametrizations=True
    )
    assert plain.weights_sha256 == target.weights_sha256
    assert plain.folded == ()


def test_a_run_of_a_folded_network(tmp_path: Path) -> None:
    """Run directories remember the option: the dense network of an export is folded too."""
    model = net("hook weight_norm")
    out = tmp_path / "run"
    settings = {**QUICK, "method": "evolved", "generations": 1, "offspring": 2, "steps": 1}
    result = gaprune.prune(model, inputs=INPUTS, fold_parametrizations=True, out=out, **settings)
    assert read_pruned(out, model=model).target().weights_sha256 == result.target.weights_sha256
    again = gaprune.resume(out, model=model)
    assert all(torch.equal(again.masks[name], mask) for name, mask in result.masks.items())
    gaprune.export(out, format="dense", out=tmp_path / "export", model=model)
    exported = load_file(tmp_path / "export" / "model.safetensors")
    assert exported.keys() == result.state_dict().keys()
