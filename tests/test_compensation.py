"""Compensation expresses removed channels by kept ones, in the weights that read them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from channel_networks import IMAGE, Joined, Residual, Separable, built, images
from command_line import Run
from hypothesis import given, settings
from hypothesis import strategies as st
from repair_networks import Perceptron, calibration_for, target_of
from safetensors.torch import load_file
from torch import Tensor, nn

from gaprune import InputOptions, export, load_target, measure, prune
from gaprune.errors import InputError
from gaprune.exports.compact import load_program
from gaprune.masks.supermask import masked_weights
from gaprune.models.channel_groups import CoupledChannels
from gaprune.models.channel_readers import find_readers
from gaprune.models.patterns import channel_groups, channels_of
from gaprune.models.target import Target, target_from_module
from gaprune.repair import RepairResult, find_repair_sites, repair, repaired_copy
from gaprune.repair.compensation import compensated_weights
from gaprune.repair.dense_statistics import measure_dense
from gaprune.repair.repair_sites import RepairSites

IMAGES = InputOptions(shape=IMAGE, range=(0, 1))
SHORT: dict[str, Any] = {
    "method": "magnitude",
    "pattern": "channel",
    "sparsity": 0.5,
    "calibration": ("procedural",),
    "calibration_count": 32,
    "validation_count": 16,
}
Units = list[list[int]]


def masks_without(target: Target, removed: Units) -> dict[str, Tensor]:
    """Return the masks without these channels of each group."""
    units = channels_of(target)
    flat = torch.ones(units.layout.total, dtype=torch.bool)
    for part, indices in zip(units.layout.slices, removed, strict=True):
        flat[part][indices] = False
    return target.layout.split(units.weight_mask(flat))


def compensated(
    target: Target, masks: Mapping[str, Tensor], inputs: Tensor, ridge: float
) -> dict[str, Tensor]:
    """Return the changed weights and biases, without repair behind them."""
    sites = find_repair_sites(target.model, inputs, frozen=target.weights)
    dense = measure_dense(target.model, sites, inputs)
    readers = find_readers(target.model, channels_of(target))
    weights = masked_weights(target.weights, masks)
    return compensated_weights(target.model, weights, readers, dense, ridge)


@torch.no_grad()
def copy_channel(model: nn.Module, source: CoupledChannels, copy: CoupledChannels) -> None:
    """Let a channel compute what another one does, in all of its layers."""
    for (layer, index), (same, other) in zip(source.outputs, copy.outputs, strict=True):
        assert layer == same
        module = model.get_submodule(layer)
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.ndim:
                tensor[other] = tensor[index]


@pytest.mark.parametrize("kind", [Residual, Separable, Joined])
def test_channels_that_kept_ones_express_are_removed_without_loss(kind: type[nn.Module]) -> None:
    """Residual sums, depthwise convolutions, concatenation, a linear layer behind a flatten."""
    target = target_from_module(built(kind).double(), inputs=IMAGES)
    groups = channel_groups(target)
    for group in groups:  # channel 2 repeats channel 0 as 3 repeats 1
        for copy in (2, 3):
            copy_channel(target.model, group.channels[copy - 2], group.channels[copy])
    masks = masks_without(target, [[2, 3] for _ in groups])
    inputs = images(32).double()
    state = compensated(target, masks, inputs, ridge=0)
    model = repaired_copy(target, masks, RepairResult(state, tuple(state), ()))
    fresh = images(9, seed=1).double()
    with torch.no_grad():
        assert torch.allclose(model(fresh), target.model(fresh), rtol=1e-9, atol=1e-9)
        assert not torch.allclose(target.masked_copy(masks)(fresh), target.model(fresh), atol=1e-3)


@settings(max_examples=10)
@given(st.lists(st.integers(0, 11), min_size=1, max_size=8, unique=True), st.booleans())
def test_a_layer_is_the_least_squares_fit_of_the_dense_one(removed: list[int], bias: bool) -> None:
    """Of all weights, and a bias if there is one, that read the kept channels."""
    target = target_of(lambda: Perceptron(middle_bias=bias), (6,))
    masks, inputs = masks_without(target, [sorted(removed), []]), calibration_for(target, 64)
    model = target.model
    hidden = torch.tanh(model.fc1(inputs))  # type: ignore[operator]
    kept = [channel for channel in range(12) if channel not in removed]
    features = hidden[:, kept]
    if bias:
        features = torch.cat([features, torch.ones(64, 1)], 1)
    expected = torch.linalg.lstsq(features, model.fc2(hidden)).solution.T  # type: ignore[operator]
    state = compensated(target, masks, inputs, ridge=0)
    weight = state["fc2.weight"]
    assert torch.allclose(weight[:, kept], expected[:, : len(kept)], rtol=1e-6, atol=1e-8)
    assert not weight[:, removed].any()
    assert set(state) == {"fc2.weight"} | ({"fc2.bias"} if bias else set())
    if bias:
        assert torch.allclose(state["fc2.bias"], expected[:, -1], rtol=1e-6, atol=1e-8)


def test_the_ridge_is_relative_to_the_energy_of_kept_channels() -> None:
    """B = G_HP (G_PP + λI)⁻¹, λ = 1e-3 times the mean diagonal of G_PP."""
    target = target_of(Perceptron, (6,))
    masks, inputs = masks_without(target, [[0, 5], []]), calibration_for(target)
    weight, hidden = target.weights["fc2.weight"], torch.tanh(target.model.fc1(inputs))  # type: ignore[operator]
    kept = [channel for channel in range(12) if channel not in (0, 5)]
    gram = hidden.T @ hidden
    ridge = 1e-3 * gram.diagonal()[kept].mean() * torch.eye(10, dtype=torch.float64)
    factor = gram[[0, 5]][:, kept] @ torch.linalg.inv(gram[kept][:, kept] + ridge)
    state = repair(target, masks, inputs, compensate="channel").state
    assert torch.allclose(
        state["fc2.weight"][:, kept], weight[:, kept] + weight[:, [0, 5]] @ factor
    )


@pytest.mark.parametrize("kind", [Residual, Separable, Joined])
def test_the_compact_network_equals_the_compensated_one(
    kind: type[nn.Module], tmp_path: Path
) -> None:
    """Removed channels stay 0 in its weights, and strict networks are those without the option."""
    result = prune(built(kind), inputs=IMAGES, **SHORT, compensate=True)
    plain = prune(built(kind), inputs=IMAGES, **SHORT)
    assert all(torch.equal(plain.masks[name], mask) for name, mask in result.masks.items())
    for name, value in plain.state_dict().items():
        assert torch.equal(value, result.state_dict()[name])
    model = result.compensated_model()
    assert model is not None
    for name, mask in result.masks.items():
        assert not model.get_parameter(name)[~mask].any()
    program = load_program(export(result, "compact", tmp_path / "out").file)
    inputs = images(7)
    with torch.no_grad():
        assert torch.allclose(program(inputs), model(inputs), atol=1e-5)
        assert not torch.allclose(program(inputs), result.pruned_model()(inputs), atol=1e-3)


def test_a_run_reports_three_networks(tmp_path: Path) -> None:
    """Files, record and exports of each; the compensated one is exported."""
    folder = tmp_path / "run"
    result = prune(
        built(Residual), inputs=IMAGES, **SHORT, compensate=True, repair=True, out=folder
    )
    record = json.loads((folder / "result.json").read_text())
    assert record["compensated"]["in_loop"]
    assert not record["repaired"]["in_loop"]
    assert "down.weight" in record["compensated"]["changed"]
    models = (result.pruned_model(), result.repaired_model(), result.compensated_model())
    names = ("pruned", "repaired", "compensated")
    for name, model in zip(names, models, strict=True):
        assert model is not None
        state = load_file(folder / f"{name}.safetensors")
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    for strict, name in ((False, "compensated"), (True, "pruned")):
        written = export(folder, "dense", tmp_path / name, strict=strict, model=built(Residual))
        assert load_file(written.file).keys() == load_file(folder / f"{name}.safetensors").keys()
        expected = load_file(folder / f"{name}.safetensors")["down.weight"]
        assert torch.equal(load_file(written.file)["down.weight"], expected)
        assert json.loads((written.path / "export.json").read_text())["compensated"] is not strict
    for run in (folder, result):
        path = tmp_path / f"{type(run).__name__}-repaired"
        file = export(run, "dense", path, repaired=True, model=built(Residual)).file
        repaired = load_file(folder / "repaired.safetensors")
        assert all(torch.equal(value, repaired[key]) for key, value in load_file(file).items())
    with pytest.raises(InputError, match="strict"):
        export(folder, "dense", tmp_path / "both", strict=True, repaired=True)
    file = folder / "compensated.safetensors"
    (measured,) = measure(file, target=built(Residual), runtimes=["torch"], batches=[1])
    assert measured.agreement is not None


def test_rows_of_a_masked_layer_are_least_squares_fits() -> None:
    """Each by its own kept weights, on the inputs of the compensated layers before it."""
    target = target_of(Perceptron, (6,))
    inputs, model = calibration_for(target, 256), target.model
    draws = torch.Generator().manual_seed(0)
    masks = {
        name: torch.rand(weight.shape, generator=draws) < 0.5
        for name, weight in target.weights.items()
    }
    masks["fc2.weight"][1] = False  # a row without weights
    sites = RepairSites({}, (), 0)  # no repair between the layers
    weights = masked_weights(target.weights, masks)
    dense = measure_dense(model, sites, inputs)
    state = compensated_weights(model, weights, None, dense, ridge=1e-12)
    hidden, expected = inputs, inputs
    for layer in ("fc1", "fc2"):
        module = model.get_submodule(layer)
        targets, bias = module(expected), state.get(f"{layer}.bias")
        ones = torch.ones(len(inputs), 1, dtype=inputs.dtype)
        for row, mask in enumerate(masks[f"{layer}.weight"]):
            kept = hidden[:, mask]
            if bias is not None:
                kept = torch.cat([kept, ones], 1)
            fit = torch.linalg.lstsq(kept, targets[:, row : row + 1]).solution.flatten()
            weight = state[f"{layer}.weight"][row]
            assert torch.allclose(weight[mask], fit[: int(mask.sum())], rtol=1e-5, atol=1e-7)
            assert not weight[~mask].any()
            if bias is not None:
                assert torch.allclose(bias[row], fit[-1], rtol=1e-5, atol=1e-7)
        hidden = torch.tanh(nn.functional.linear(hidden, state[f"{layer}.weight"], bias))
        expected = torch.tanh(targets)


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_weights_of_convolutions_are_fitted_to_patches(groups: int) -> None:
    """Dense, grouped and depthwise ones, with stride and padding, against unfolded inputs."""
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=groups).double()
    target = target_from_module(nn.Sequential(layer), inputs=InputOptions((8, 9, 9)))
    inputs = torch.randn(64, 8, 9, 9, dtype=torch.float64)
    masks = {"0.weight": torch.rand(layer.weight.shape) < 0.6}
    sites = find_repair_sites(target.model, inputs, frozen=target.weights)
    weights = masked_weights(target.weights, masks)
    dense = measure_dense(target.model, sites, inputs)
    state = compensated_weights(target.model, weights, None, dense, ridge=1e-12)
    patches = nn.functional.unfold(inputs, 3, padding=1, stride=2)
    columns = patches.mT.reshape(-1, groups, 72 // groups)
    targets = layer(inputs).movedim(1, -1).reshape(-1, 8)
    for row, mask in enumerate(masks["0.weight"].flatten(1)):
        kept = columns[:, row * groups // 8, mask]
        kept = torch.cat([kept, torch.ones(len(kept), 1)], 1)
        fit = torch.linalg.lstsq(kept, targets[:, row : row + 1]).solution.flatten()
        assert torch.allclose(state["0.weight"][row].flatten()[mask], fit[:-1], atol=1e-6)
        assert torch.allclose(state["0.bias"][row], fit[-1], atol=1e-6)


def test_a_network_that_is_one_layer_is_compensated() -> None:
    """Its parameters have no path; the weights are those of the regression, as of any layer."""
    torch.manual_seed(0)
    layer, mask = nn.Linear(6, 3).double(), torch.tensor([[True, True, False] * 2] * 3)
    inputs, states = torch.randn(64, 6, dtype=torch.float64), []
    for network, name in ((layer, "weight"), (nn.Sequential(layer), "0.weight")):
        target = target_from_module(network, inputs=InputOptions((6,)))
        states.append(repair(target, {name: mask}, inputs, compensate="unstructured").state)
    assert states[0].keys() == {"weight", "bias"}
    for name, value in states[0].items():
        assert torch.equal(value, states[1][f"0.{name}"])


class PooledTokens(nn.Module):
    """Ids → embedding → linear → norm → mean over the ids that are not 0 → linear: `[N, 3]`."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(11, 8), nn.LayerNorm(8)
        self.hidden, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        is_real = (ids != 0).unsqueeze(-1)
        hidden = self.norm(self.hidden(self.embedding(ids)).relu()) * is_real
        logits: Tensor = self.head(hidden.sum(1) / is_real.sum(1))
        return logits


@pytest.mark.parametrize("compensate", [None, "unstructured"])
def test_padding_does_not_count(compensate: str | None) -> None:
    """Texts that are filled up repair and compensate as the same texts without padding do."""
    torch.manual_seed(0)
    options = InputOptions((5,), vocabulary=11)
    target = target_from_module(PooledTokens().eval(), inputs=options)
    padded_target = replace(target, inputs=replace(target.inputs, padding=0))
    masks = {"hidden.weight": torch.rand(8, 8) < 0.5}
    texts = torch.randint(1, 11, (40, 5))
    padded = nn.functional.pad(texts, (0, 7))
    plain, filled, counted = (
        repair(network, masks, ids, compensate).state
        for network, ids in ((target, texts), (padded_target, padded), (target, padded))
    )
    assert plain.keys() == filled.keys()
    for name, value in plain.items():
        torch.testing.assert_close(filled[name], value)
    assert not torch.allclose(counted["norm.bias"], plain["norm.bias"])


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4x1"])
def test_single_weights_are_compensated_at_the_end(pattern: str, tmp_path: Path) -> None:
    """Masks are those of the frozen network, whose outputs are farther from the dense ones."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 4))
    options = {**SHORT, "pattern": pattern, "calibration": torch.rand(300, 32)}
    result = prune(model, inputs=InputOptions((32,)), **options, compensate=True, out=tmp_path)
    assert result.compensated is not None
    assert not result.compensated.in_loop
    changed = result.compensated_model()
    assert changed is not None
    for name, mask in result.masks.items():
        assert not changed.get_parameter(name)[~mask].any()
    inputs = torch.rand(100, 32)
    with torch.no_grad():
        errors = [
            (network(inputs) - model(inputs)).square().mean()
            for network in (changed, result.pruned_model())
        ]
    assert errors[0] < 0.9 * errors[1]
    assert (tmp_path / "compensated.safetensors").is_file()


@pytest.mark.slow
def test_the_command_compensates_a_zoo_network(run: Run, place: Path) -> None:
    """Accuracy rises far above that of the strict network; a search scores compensated masks."""
    options = ("--pattern", "channel", "--budget", "macs", "--sparsity", "0.55", "--compensate")
    few = ("--calibration", "procedural", "--calibration-count", "256", "--out", "r", "--verbose")
    done = run("prune", "mobile-student", *options, "--method", "magnitude", *few)
    assert done.code == 0, done.err
    record = json.loads((place / "r" / "result.json").read_text())
    assert record["compensated"]["accuracy"] > record["accuracy"]["pruned"] + 0.3
    assert load_target("mobile-student").weights
