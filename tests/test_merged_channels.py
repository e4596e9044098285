"""Channels that are merged or folded into others: exact where channels repeat each other."""

from __future__ import annotations

import pytest
import torch
from channel_networks import IMAGE, Joined, Residual, Separable, built, images
from test_compensation import copy_channel, masks_without
from torch import nn

from gaprune import InputOptions, compare
from gaprune.comparison import ComparisonSpec, find_methods
from gaprune.comparison.context import ComparisonContext, ComparisonObserver, MethodResult
from gaprune.comparison.methods.folding import folded
from gaprune.comparison.methods.neuron_merging import merged
from gaprune.config import make_settings
from gaprune.errors import InputError
from gaprune.models.channel_removal import remove_channels
from gaprune.models.channel_slicing import input_axis
from gaprune.models.macs import macs_per_input
from gaprune.models.patterns import channel_groups, channels_of, silent_channels
from gaprune.models.target import Target, target_from_module

IMAGES = InputOptions(shape=IMAGE, range=(0, 1))
CHANGING = ("neuron-merging", "folding", "structured-l1-repaired")


def with_copies(kind: type[nn.Module]) -> Target:
    """Return a network in which channels 2 and 3 of every group compute what 0 and 1 do."""
    target = target_from_module(built(kind).double(), inputs=IMAGES)
    for group in channel_groups(target):
        for copy in (2, 3):
            copy_channel(target.model, group.channels[copy - 2], group.channels[copy])
    return target


def without(model: nn.Module, target: Target, removed: list[list[int]]) -> nn.Module:
    """Return the network without channels, weights that connect them set to 0."""
    with torch.no_grad():
        for name, mask in masks_without(target, removed).items():
            model.get_parameter(name)[~mask] = 0
    return model


def result_of(name: str, target: Target, sparsity: float = 0.5, **settings: object) -> MethodResult:
    """Return what a method makes of a network under the pattern `channel`."""
    options = {"pattern": "channel", "calibration": ("procedural",), "calibration_count": 16}
    chosen = make_settings({"sparsity": sparsity, **options, **settings})
    spec = ComparisonSpec((sparsity,), settings=chosen)
    context = ComparisonContext(target, spec, None, ComparisonObserver())
    (result,) = find_methods((name,))[0].run(context, (sparsity,), 0)
    return result


def test_a_copy_merges_into_its_original() -> None:
    """In residual sums, too, where the filters of all addends are compared side by side."""
    target = with_copies(Residual)
    groups = channel_groups(target)
    removed = [[2, 3] for _ in groups]
    kept = ~torch.cat(
        [torch.tensor([c in (2, 3) for c in range(len(group.channels))]) for group in groups]
    )
    model = without(merged(target, groups, kept), target, removed)
    inputs = images(9).double()
    with torch.no_grad():
        assert torch.allclose(model(inputs), target.model(inputs), atol=1e-10)
        cut = target.masked_copy(masks_without(target, removed))
        assert not torch.allclose(cut(inputs), target.model(inputs), atol=1e-3)


class Chain(nn.Module):
    """A convolution, BatchNorm, ReLU and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.norm(self.conv(inputs)))
        logits: torch.Tensor = self.head(hidden.mean((2, 3)))
        return logits


@torch.no_grad()
def test_a_scaled_channel_merges_by_its_scale() -> None:
    """Filter, statistics and affine part of BatchNorm: channel 3 is 3 times channel 1 after it."""
    model = built(Chain).double()
    conv, norm = model.get_submodule("conv"), model.get_submodule("norm")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_var is not None
    assert norm.running_mean is not None
    for tensor, factor in (
        (conv.get_parameter("weight"), 2.0),
        (conv.get_parameter("bias"), 2.0),
        (norm.running_mean, 2.0),
        (norm.weight, 3.0),
        (norm.bias, 3.0),
    ):
        tensor[3] = factor * tensor[1]
    norm.running_var[3] = 4 * (norm.running_var[1] + norm.eps) - norm.eps
    target = target_from_module(model, inputs=IMAGES)
    kept = torch.tensor([True, True, True, False])
    changed = without(merged(target, channel_groups(target), kept), target, [[3]])
    weight, dense = changed.get_parameter("head.weight"), target.weights["head.weight"]
    assert torch.allclose(weight[:, 1], dense[:, 1] + 3 * dense[:, 3])
    inputs = images(9).double()
    assert torch.allclose(changed(inputs), target.model(inputs), atol=1e-10)


def test_channels_that_pass_a_depthwise_layer_are_not_merged() -> None:
    """The paper has no rule for them: their readers keep their weights."""
    target = with_copies(Separable)
    groups = channel_groups(target)
    deep = next(group for group in groups if "deep" in group.layers)
    kept = torch.cat(
        [torch.arange(len(group.channels)) < (2 if group is deep else 99) for group in groups]
    )
    changed = merged(target, groups, kept)
    for name, weight in target.weights.items():
        assert torch.equal(changed.get_parameter(name), weight)


@pytest.mark.parametrize("kind", [Residual, Separable, Joined])
def test_folding_repeated_channels_is_exact(kind: type[nn.Module]) -> None:
    """One cluster for every different channel; the copies are read as their originals are."""
    target = with_copies(kind)
    groups = channel_groups(target)
    with torch.no_grad():
        for group in groups:
            for copy in (2, 3):
                pairs = zip(
                    group.channels[copy - 2].inputs, group.channels[copy].inputs, strict=True
                )
                for (layer, index), (_, other) in pairs:
                    module = target.model.get_submodule(layer)
                    columns = module.get_parameter("weight").movedim(input_axis(module), 0)
                    columns[other] = columns[index]
    model, kept = folded(target, groups, [len(group.channels) - 2 for group in groups], seed=0)
    parts = kept.split([len(group.channels) for group in groups])
    removed = [(~part).nonzero().flatten().tolist() for part in parts]
    assert removed == [[2, 3] for _ in groups]
    model = without(model, target, removed)
    inputs = images(9).double()
    with torch.no_grad():
        assert torch.allclose(model(inputs), target.model(inputs), atol=1e-10)


@torch.no_grad()
def test_the_variance_of_a_mean_counts_how_filters_correlate() -> None:
    """Of the mean of two filters on white noise, the oracle of which is the noise itself."""
    target = target_from_module(built(Chain).double(), inputs=IMAGES)
    conv, norm = target.model.get_submodule("conv"), target.model.get_submodule("norm")
    assert isinstance(norm, nn.BatchNorm2d)
    noise = torch.randn(20_000, 2, 3, 3, dtype=torch.float64)
    outputs = conv(noise).flatten(1)
    norm.running_var = outputs.var(0)
    changed, kept = folded(target, channel_groups(target), [1], seed=0)
    assert kept.tolist() == [True, False, False, False]
    variance = changed.get_submodule("norm").get_buffer("running_var")[0]
    assert variance == pytest.approx(float(outputs.mean(1).var()), rel=0.05)


@pytest.mark.parametrize("kind", [Residual, Separable, Joined])
@pytest.mark.parametrize("name", CHANGING)
@pytest.mark.parametrize("budget", ["weights", "macs"])
def test_budgets_hold_and_the_compact_network_is_the_same(
    name: str, kind: type[nn.Module], budget: str
) -> None:
    """The same number of channels, or of multiply-adds, as strict masks; removed weights are 0."""
    target = target_from_module(built(kind), inputs=IMAGES)
    result, strict = (
        result_of(method, target, budget=budget) for method in (name, "structured-l1")
    )
    masks = {name: result.model.get_parameter(name) != 0 for name in target.weights}
    compact, other = (
        remove_channels(
            made.model,
            target.example(),
            silent_channels(
                target, {name: made.model.get_parameter(name) != 0 for name in target.weights}
            ),
        )
        for made in (result, strict)
    )
    sizes = [macs_per_input(network, target.example()) for network in (compact, other)]
    assert sizes[0] == sizes[1] < macs_per_input(target.model, target.example())
    assert sum(int(mask.sum()) for mask in masks.values()) <= result.keep_count
    with torch.no_grad():
        assert torch.allclose(compact(images(5)), result.model(images(5)), atol=1e-5)


def test_batchnorm_scale_removes_the_smallest_scales() -> None:
    """Over all layers together, at the exact budget."""
    target = target_from_module(built(Separable), inputs=IMAGES)
    norms = {
        name: module.weight.detach().abs()
        for name, module in target.model.named_modules()
        if isinstance(module, nn.BatchNorm2d)
    }
    scales = torch.cat([(norms["stem_norm"] + norms["deep_norm"]) / 2, norms["point_norm"]])
    masks = result_of("batchnorm-scale", target).model
    units = channels_of(target)
    flat = torch.cat([masks.get_parameter(name).flatten() != 0 for name in target.weights])
    alive = ~units.unread(flat)
    assert int(alive.sum()) == 7
    assert float(scales[alive].min()) >= float(scales[~alive].max())


def test_batchnorm_scale_does_not_remove_other_channels() -> None:
    """A network without BatchNorm, of which nothing may be removed."""

    class Plain(Chain):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.head(torch.relu(self.conv(inputs)).mean((2, 3)))
            return logits

    target = target_from_module(built(Plain), inputs=IMAGES)
    with pytest.raises(InputError, match="sparsity"):
        result_of("batchnorm-scale", target)


def test_rows_say_what_changes() -> None:
    """They come after the methods that change nothing, whatever their scores."""
    comparison = compare(
        built(Residual),
        sparsity=0.5,
        methods=("folding", "structured-l1", "structured-l1-repaired"),
        inputs=IMAGES,
        pattern="channel",
        calibration=("procedural",),
        progress=False,
    )
    changes = {row.method: row.needs.changes for row in comparison.rows}
    assert changes == {
        "folding": "weights",
        "structured-l1": "",
        "structured-l1-repaired": "statistics",
    }
    assert comparison.summaries[0].method == "structured-l1"
