"""Channels that are split, padded, joined and shuffled: right groups, or whole with a reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from channel_networks import built
from torch import Tensor, nn
from torch.nn import functional

import gaprune
from gaprune.errors import GapruneError
from gaprune.exports.compact import load_program, removed_channels
from gaprune.io.tensor_files import load_tensors
from gaprune.models.channel_groups import ChannelGraph
from gaprune.models.channel_removal import masked_equivalent, remove_channels
from gaprune.models.channel_slicing import num_outputs
from gaprune.models.mac_cost import MacCounts, kept_macs, mac_cost_of
from gaprune.models.patterns import channels_of, whole_layers
from gaprune.models.target import target_from_module
from gaprune.runs import budget_check

Middle = Callable[["Split", Tensor], Tensor]


class Split(nn.Module):
    """A convolution of 8 channels, any function of them with layers of 4, and a linear layer."""

    def __init__(self, middle: Middle, features: int) -> None:
        super().__init__()
        self.middle = middle
        self.first = nn.Conv2d(2, 8, 3, padding=1)
        self.part, self.other = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.wide = nn.Conv2d(8, 8, 1)
        self.width, self.thin, self.widths = 4, 3, [3, 5]
        self.grid, self.weights = torch.rand(36, 36), [torch.rand(2), torch.rand(2)]
        self.mean, self.variance = nn.Buffer(torch.rand(8)), nn.Buffer(torch.rand(8) + 0.5)
        self.scale, self.shift = nn.Parameter(torch.rand(8, 1, 1)), nn.Parameter(torch.rand(6))
        self.norm = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)
        self.grouped, self.gate = nn.Conv2d(8, 16, 3, padding=1, groups=8), nn.Conv2d(8, 1, 1)
        self.head = nn.Linear(features, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = functional.silu(self.first(images))
        joined = torch.cat([self.middle(self, features), images], 1)
        logits: Tensor = self.head(joined.mean((2, 3)))
        return logits


def _c2f(net: nn.Module, x: Tensor) -> Tensor:
    parts = list(x.chunk(2, 1))
    parts.append(net.get_submodule("part")(parts[-1]).relu())
    return torch.cat(parts, 1)


def _res2net(net: nn.Module, x: Tensor) -> Tensor:
    left, right = torch.split(x, 4, 1)
    left = net.get_submodule("part")(left)
    return torch.cat([left, net.get_submodule("other")(left + right)], 1)


def _res2net_of_width(net: Split, x: Tensor) -> Tensor:
    left, right = torch.split(x, net.width, 1)
    return torch.cat([net.part(left), net.other(left + right)], 1)


def _unequal(net: Split, x: Tensor) -> Tensor:
    left, right = torch.split(x, net.widths, 1)
    return torch.cat([left.relu(), right.tanh()], 1)


def _unequal_slices(net: Split, x: Tensor) -> Tensor:
    return torch.cat([x[:, : net.thin].relu(), x[:, net.thin :].tanh()], 1)


def _viewed(net: Split, x: Tensor) -> Tensor:
    heads = x.view(len(x), 2, net.width, *x.shape[2:])
    part: Tensor = net.part(heads[:, 0] * heads[:, 1])
    return part


def _scaled(net: Split, x: Tensor) -> Tensor:
    wide: Tensor = net.wide(x * net.scale)
    return wide + net.shift[2] * net.shift  # along the width


def _normed(net: Split, x: Tensor) -> Tensor:
    normed: Tensor = net.norm(x)
    return normed


def _pooled(net: Split, x: Tensor) -> Tensor:
    x = net.wide(x).contiguous(memory_format=torch.channels_last)
    return functional.adaptive_avg_pool2d(x, 1).expand(-1, -1, 6, 6)


def _in_groups(net: Split, x: Tensor) -> Tensor:
    grouped: Tensor = net.grouped(x)
    return grouped


def _gated(net: Split, x: Tensor) -> Tensor:
    gate: Tensor = net.gate(x)
    return x * gate.sigmoid()


def _csp(net: nn.Module, x: Tensor) -> Tensor:
    left, right = x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]
    return torch.cat([net.get_submodule("part")(left), right], 1)


def _shuffled(net: nn.Module, x: Tensor) -> Tensor:
    count, channels, *size = x.shape
    x = x.view(count, 2, channels // 2, *size).transpose(1, 2).reshape(count, channels, *size)
    left, right = x.chunk(2, 1)
    return torch.cat([left, net.get_submodule("part")(right)], 1)


def _pixels_by_hand(_: nn.Module, x: Tensor) -> Tensor:
    count, channels, height, width = x.shape
    x = x.view(count, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
    x = x.reshape(count, channels // 4, 2 * height, 2 * width)
    return functional.avg_pool2d(x, 2)


def _pixels(_: nn.Module, x: Tensor) -> Tensor:
    return functional.avg_pool2d(functional.pixel_shuffle(x, 2), 2)


def _glu(net: nn.Module, x: Tensor) -> Tensor:
    part: Tensor = net.get_submodule("part")(functional.glu(x, 1))
    return part


def _branches(net: nn.Module, x: Tensor) -> Tensor:
    left, right = x.chunk(2, 1)
    stacked = torch.stack([net.get_submodule("part")(left), net.get_submodule("other")(right)], 1)
    weights = stacked.mean((3, 4), keepdim=True).softmax(1)
    return (stacked * weights).sum(1)


def _shifted(_: nn.Module, x: Tensor) -> Tensor:
    shifted = torch.zeros_like(x)
    shifted[:, :, 1:] = x[:, :, :-1]
    return torch.cat([shifted, x.new_zeros(len(x), x.shape[1], 1, 6)], 2)[:, :, 1:]


def _around(_: nn.Module, x: Tensor) -> Tensor:
    return functional.max_pool2d(functional.pad(x, (1, 1, 1, 1), mode="circular"), 3, 1)


def _over_places(net: Split, x: Tensor) -> Tensor:
    return (x.flatten(2) @ net.grid).view_as(x).rot90(dims=(2, 3))


def _frozen_norm(net: Split, x: Tensor) -> Tensor:
    scale = net.scale.flatten()
    return functional.batch_norm(x, net.mean, net.variance, scale)


# name → function, features of the head, and layer → sets of removable channels
CASES: dict[str, tuple[Middle, int, dict[str, int]]] = {
    "C2f": (_c2f, 14, {"first": 4, "part": 4}),
    "CSP": (_csp, 10, {"first": 4, "part": 4}),
    "channel shuffle": (_shuffled, 10, {"first": 2, "part": 4}),
    "pixel shuffle": (_pixels, 4, {"first": 2}),
    "pixel shuffle by hand": (_pixels_by_hand, 4, {"first": 2}),
    "GLU": (_glu, 6, {"first": 4, "part": 4}),
    "selected branches": (_branches, 6, {"first": 4, "part": 4}),
    "Res2Net, sizes fixed in the code": (_res2net, 10, {"other": 4}),
    "Res2Net, the size an attribute": (_res2net_of_width, 10, {"first": 4, "part": 4, "other": 4}),
    "parts of unequal sizes": (_unequal, 10, {"first": 8}),
    "slices of unequal sizes": (_unequal_slices, 10, {"first": 8}),
    "a view of a size": (_viewed, 6, {"first": 4, "part": 4}),
    "LayerScale": (_scaled, 10, {"first": 8, "wide": 8}),
    "InstanceNorm": (_normed, 10, {"first": 8}),
    "pooling in channels-last order": (_pooled, 10, {"first": 8, "wide": 8}),
    "grouped convolution": (_in_groups, 18, {"first": 8}),
    "a gate of one channel": (_gated, 10, {"first": 8}),
    "places shifted into zeros": (_shifted, 10, {"first": 8}),
    "circular padding": (_around, 10, {"first": 8}),
    "a product over places": (_over_places, 10, {"first": 8}),
    "BatchNorm as a function": (_frozen_norm, 10, {"first": 8}),
}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_groups_of_split_channels(case: str) -> None:
    """All channels exist, removal equals the mask, and what cannot be removed has a reason."""
    middle, features, expected = CASES[case]
    model = built(lambda: Split(middle, features))
    images = torch.rand(1, 2, 6, 6, generator=torch.Generator().manual_seed(1))
    graph = ChannelGraph.trace(model, images)
    assert {group.layers[0]: len(group.channels) for group in graph.groups} == expected
    for group in graph.groups:
        for layer, channel in (output for sets in group.channels for output in sets.outputs):
            assert 0 <= channel < num_outputs(model.get_submodule(layer))
    removed = {group.layers[0]: [group.channels[1].outputs[0].channel] for group in graph.groups}
    compact = remove_channels(model, images, removed)
    assert torch.allclose(compact(images), masked_equivalent(model, images, removed)(images))
    assert {"head"} <= graph.whole_layers().keys()
    assert ("first" in graph.whole_layers()) == ("first" not in expected)
    assert (vars(model)["width"], vars(model)["widths"]) == (4, [3, 5])


INPUTS = gaprune.InputOptions(shape=(2, 6, 6), range=(0, 1))
OPTIONS: dict[str, Any] = {
    "calibration_count": 32,
    "validation_count": 32,
    "calibration": ("noise",),
    "method": "magnitude",
    "budget": "macs",
    "sparsity": 0.4,
}
EXPORTED = ("Res2Net, the size an attribute", "grouped convolution")


@pytest.mark.parametrize("case", EXPORTED)
@torch.no_grad()
def test_compact_networks_of_split_channels(case: str, tmp_path: Path) -> None:
    """The exported program and its state dict are those of the network with lowered numbers."""
    middle, features, _ = CASES[case]
    model = built(lambda: Split(middle, features))
    result = gaprune.prune(model, pattern="channel", inputs=INPUTS, **OPTIONS)
    gaprune.export(result, "compact", tmp_path / "compact")
    state = load_tensors(tmp_path / "compact" / "model.safetensors")
    removed = removed_channels(tmp_path / "compact" / "model.safetensors")
    smaller = remove_channels(model, torch.rand(1, 2, 6, 6), removed)
    assert {name: value.shape for name, value in smaller.state_dict().items()} == {
        name: value.shape for name, value in state.items()
    }
    smaller.load_state_dict(state)
    images = torch.rand(3, 2, 6, 6)
    program = load_program(tmp_path / "compact" / "model.pt2")
    assert torch.allclose(program(images), smaller(images), atol=1e-6)


class OptionA(nn.Module):
    """A residual block whose shortcut pads 4 channels to 8, as those of CIFAR ResNets."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.inner, self.outer = nn.Conv2d(4, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.stem(images)))
        shortcut = functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        x = functional.relu(shortcut + self.outer(functional.relu(self.inner(x))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def test_padded_shortcuts() -> None:
    """Channel i of a stage joins channel i + 2 of the next; those that meet padding stay."""
    graph = ChannelGraph.trace(built(OptionA), torch.rand(1, 2, 6, 6))
    groups = {group.layers: group.channels for group in graph.groups}
    stem = groups["stem", "norm", "outer"]
    assert [sets.outputs for sets in stem] == [
        (("stem", i), ("norm", i), ("outer", i + 2)) for i in range(4)
    ]
    assert [sets.inputs for sets in stem] == [(("inner", i), ("head", i + 2)) for i in range(4)]
    assert len(groups["inner",]) == 8
    assert graph.whole_layers()["outer"].startswith("4 of 8 channels")
    target = target_from_module(built(OptionA), inputs=INPUTS)
    cost = mac_cost_of(target, channels_of(target, alike=True))
    assert cost.macs(cost.sizes) == cost.dense == MacCounts.of(target).total
    assert whole_layers(target).keys() == {"outer", "head"}


class Padded(nn.Module):
    """Convolutions whose images are padded in front of them, as TensorFlow's "same" is written."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 8, 3), nn.Conv2d(8, 6, 2)
        self.third, self.head = nn.Conv2d(6, 4, 3), nn.Linear(4, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = functional.relu(self.first(functional.pad(images, (1, 1, 1, 1))))
        x = functional.relu(self.second(functional.pad(x, (0, 1, 0, 1), value=0.5)))
        x = functional.avg_pool2d(functional.pad(x, (1, 0, 1, 0)), 2)
        logits: Tensor = self.head(functional.relu(self.third(x)).mean((2, 3)))
        return logits


def test_padded_images() -> None:
    """Padding beside the values of a channel is removed with the channel."""
    model, images = built(Padded), torch.rand(2, 2, 7, 7)
    graph = ChannelGraph.trace(model, images[:1])
    assert [(group.layers, len(group.channels)) for group in graph.groups] == [
        (("first",), 8),
        (("second",), 6),
        (("third",), 4),
    ]
    channels = {"first": [0, 5], "second": [1], "third": [2]}
    smaller = remove_channels(model, images[:1], channels)
    masked = masked_equivalent(model, images[:1], channels)
    assert num_outputs(smaller.get_submodule("first")) == 6
    assert torch.allclose(smaller(images), masked(images), atol=1e-6)


@pytest.mark.parametrize("pattern", ["channel", "4x4"])  # some blocks at edges are smaller
def test_a_result_that_is_not_what_was_asked(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The masks of a result cost what the budget says, or the run fails."""

    def prune() -> gaprune.Result:
        return gaprune.prune(built(OptionA), pattern=pattern, inputs=INPUTS, **OPTIONS)

    result = prune()
    dense = MacCounts.of(result.target).total
    assert 0.35 < kept_macs(result.target, result.masks) / dense <= 0.6
    monkeypatch.setattr(budget_check, "kept_macs", lambda *_: dense)
    with pytest.raises(GapruneError, match="result: "):
        prune()
