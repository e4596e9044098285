"""Physical channel removal: coupled channels go together, and the rest computes the same."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import pytest
import torch
from channel_networks import (
    Enlarging,
    Joined,
    Residual,
    Separable,
    Summed,
    built,
    images,
    parameters,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from gaprune.errors import InputError
from gaprune.io.weights import sha256_of
from gaprune.models.channel_groups import ChannelGraph
from gaprune.models.channel_removal import masked_equivalent, remove_channels
from gaprune.models.zoo.networks import LeNet, MobileStudent

Channels = Mapping[str, Sequence[int]]


@torch.no_grad()
def check_same(
    model: nn.Module, removed: Channels, unread: Channels, inputs: Tensor
) -> tuple[nn.Module, int]:
    """Compare compact, masked and original network; return the compact one and its size.

    The layers in `unread` of the original network read zeros for these input channels.
    """

    def set_zero(channels: Sequence[int], _: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        copied = inputs[0].clone()
        copied[:, list(channels)] = 0
        return copied

    compact = remove_channels(model, inputs[:1], removed)
    masked = masked_equivalent(model, inputs[:1], removed)
    reference = copy.deepcopy(model)
    for layer, channels in unread.items():
        reference.get_submodule(layer).register_forward_pre_hook(partial(set_zero, channels))
    expected = reference(inputs)
    assert torch.allclose(masked(inputs), expected, atol=1e-5)
    assert torch.allclose(compact(inputs), expected, atol=1e-5)
    assert parameters(masked) == parameters(model)
    return compact, parameters(compact)


def subsets(size: int) -> st.SearchStrategy[list[int]]:
    """Draw some of the channels, in any order, never all."""
    return st.lists(st.integers(0, size - 1), max_size=size - 1, unique=True)


@settings(max_examples=8)
@given(subsets(6), subsets(8), st.sampled_from(["stem", "stem_norm", "deep", "deep_norm"]))
def test_depthwise_block(first: list[int], second: list[int], layer: str) -> None:
    """Stem, norms and depthwise filters lose channels together, whichever layer is named."""
    removed, unread = {layer: first, "point": second}, {"point": first, "head": second}
    _, size = check_same(built(Separable), removed, unread, images(7))
    assert size == Separable.count(6 - len(first), 8 - len(second))


@settings(max_examples=8)
@given(subsets(5), subsets(7), st.sampled_from(["stem", "back", "back_norm"]))
def test_residual_sum(outer: list[int], inner: list[int], layer: str) -> None:
    """Both terms of a sum lose the same channels, and the linear layer nine inputs for each."""
    flat = [9 * channel + i for channel in outer for i in range(9)]
    removed, unread = {layer: outer, "down": inner}, {"down": outer, "back": inner, "head": flat}
    _, size = check_same(built(Residual), removed, unread, images(7))
    assert size == Residual.count(5 - len(outer), 7 - len(inner))


@settings(max_examples=8)
@given(subsets(4), subsets(5), subsets(6))
def test_concatenation(left: list[int], right: list[int], last: list[int]) -> None:
    """Branches lose channels independently; the reader loses them at their joined positions."""
    joined = left + [4 + channel for channel in right]
    flat = [4 * channel + i for channel in last for i in range(4)]
    removed = {"left": left, "right": right, "last": last}
    _, size = check_same(built(Joined), removed, {"last": joined, "head": flat}, images(7))
    assert size == Joined.count(4 - len(left), 5 - len(right), 6 - len(last))


def test_a_joined_branch_that_is_added() -> None:
    """A channel of a joined branch is coupled with the channel that it is added to."""
    model = built(Summed)
    unread = {"head": [2, 3, 4]}
    compact, _ = check_same(model, {"left": [2], "right": [0, 1]}, unread, images(7))
    same, _ = check_same(model, {"whole": [2, 3, 4]}, unread, images(7))
    assert sha256_of(compact.state_dict()) == sha256_of(same.state_dict())
    convolutions = [(3, 2, 3, 3), (2, 2, 3, 3), (1, 2, 3, 3)]
    shapes = [tuple(p.shape) for p in compact.parameters()]
    assert shapes == [*convolutions, (3,), (3,), (3, 3), (3,)]
    groups = ChannelGraph.trace(model, images(1)).groups
    assert [group.layers for group in groups] == [
        (*pair, "norm") for pair in (("whole", "left"), ("whole", "right"))
    ]


def test_transposed_convolutions_and_a_gate() -> None:
    """Transposed weights have outputs on the second axis; a gate loses the channels it scales."""
    unread = {"wide": [3], "squeeze": [1, 5], "gate": [0], "head": [1, 5]}
    removed = {"first": [3], "deep": [1, 5], "squeeze": [0]}
    compact, _ = check_same(built(Enlarging), removed, unread, images(7))
    assert compact.get_parameter("wide.weight").shape == (3, 4, 3, 3)
    assert compact.get_parameter("deep.weight").shape == (4, 1, 3, 3)
    assert compact.get_parameter("gate.weight").shape == (4, 3)


def test_the_groups_of_a_network() -> None:
    """Each group lists the layers that compute its channels, and each channel its readers."""
    graph = ChannelGraph.trace(built(Residual), images(1))
    groups = {group.layers: group for group in graph.groups}
    assert {layers: len(group.channels) for layers, group in groups.items()} == {
        ("stem", "stem_norm", "back", "back_norm"): 5,
        ("down", "down_norm"): 7,
    }
    channel = groups["stem", "stem_norm", "back", "back_norm"].channels[3]
    assert channel.outputs == (("stem", 3), ("stem_norm", 3), ("back", 3), ("back_norm", 3))
    assert channel.inputs == (("down", 3), *(("head", 27 + i) for i in range(9)))


@pytest.mark.parametrize("build", [lambda: MobileStudent(0.5), LeNet])
@torch.no_grad()
def test_networks_of_the_zoo(build: Callable[[], nn.Module]) -> None:
    """With every second channel of every group removed, compact and masked network agree."""
    model = built(build)
    inputs = torch.rand(9, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    groups = ChannelGraph.trace(model, inputs[:1]).groups
    removed = {group.layers[0]: range(0, len(group.channels), 2) for group in groups}
    compact = remove_channels(model, inputs[:1], removed)
    masked = masked_equivalent(model, inputs[:1], removed)
    assert torch.allclose(compact(inputs), masked(inputs), atol=1e-5)
    assert (masked(inputs) - model(inputs)).abs().max() > 1e-3
    for group in groups:
        name, layers = group.layers[0], map(masked.get_submodule, group.layers)
        assert len(compact.get_parameter(f"{name}.weight")) == len(group.channels) // 2
        assert not any(p[::2].any() for layer in layers for p in layer.parameters())


def test_removal_copies_the_network() -> None:
    """The original stays unchanged; gradient flags are preserved in the copy."""
    model = built(Separable)
    model.get_parameter("point.weight").requires_grad_()
    before = sha256_of(model.state_dict())
    compact = remove_channels(model, images(1), {"stem": [0], "point": [2]})
    assert sha256_of(model.state_dict()) == before
    assert [name for name, p in compact.named_parameters() if p.requires_grad] == ["point.weight"]
    assert not compact.training
    nothing = remove_channels(model, images(1), {"stem": []})
    assert sha256_of(nothing.state_dict()) == before


def test_double_precision() -> None:
    """Compact and masked networks in float64 agree to float64 precision."""
    model, inputs = built(Separable).double(), images(7).double()
    compact = remove_channels(model, inputs[:1], {"stem": [1], "point": [0, 3]})
    masked = masked_equivalent(model, inputs[:1], {"stem": [1], "point": [0, 3]})
    assert (compact(inputs) - masked(inputs)).abs().max() < 1e-13


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ({"head": [0]}, "'head' .*outputs"),
        ({"stm": [0]}, r"channels: .*'stm' .*'stem'"),
        ({"act": [0]}, r"'act' \(ReLU\) .*stem"),
        ({"stem": [6]}, "'stem' .* 0 to 5, got 6"),
        ({"stem": [-1]}, "'stem' .* 0 to 5, got -1"),
        ({"point": range(8)}, "'point'"),
        ({"stem": [0, 1, 2], "deep": [3, 4, 5]}, "'stem'"),
    ],
)
def test_channels_that_cannot_be_removed(removed: Channels, message: str) -> None:
    """Outputs, unknown layers, missing channels and whole layers are refused, masked or not."""
    for change in (remove_channels, masked_equivalent):
        with pytest.raises(InputError, match=message):
            change(built(Separable), images(1), removed)


class Custom(nn.Module):
    """A convolution, any function of its outputs, and a linear layer."""

    def __init__(self, then: Callable[[nn.Module, Tensor, Tensor], Tensor], features: int) -> None:
        super().__init__()
        self.then = then
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.pair = nn.Conv2d(2, 2, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.scale = nn.Parameter(torch.rand(4, 6, 6))
        self.unused = nn.Conv2d(2, 4, 3)
        self.head = nn.Linear(features, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.then(self, images, self.conv(images)).mean((2, 3)))
        return logits


FIXED: dict[str, tuple[Callable[[nn.Module, Tensor, Tensor], Tensor], int, str, str]] = {
    "sum": (lambda net, x, _: x + net.get_submodule("pair")(x), 2, "pair", "network's inputs"),
    "split": (lambda _, x, y: torch.cat(y.split([1, 3], 1), 1), 4, "conv", "unequal parts"),
    "group norm": (lambda net, _, y: net.get_submodule("norm")(y), 4, "conv", "GroupNorm"),
    "grouped": (lambda net, _, y: net.get_submodule("grouped")(y), 4, "conv", "grouped"),
    "parameter": (lambda net, _, y: net.get_parameter("scale") + y, 4, "conv", "parameter"),
    "halves": (lambda _, x, y: torch.cat([y[:, :2] * 2, y[:, 2:]], 1), 4, "conv", "computes"),
    "fixed shape": (lambda _, x, y: y.relu().reshape(len(y), 4, 6, 6), 4, "conv", "doesn't run"),
    "not traced": (lambda net, x, y: y, 4, "unused", r"'unused' \(Conv2d\)"),
}


@pytest.mark.parametrize("case", FIXED)
def test_channels_that_must_stay(case: str) -> None:
    """The error names why channels are fixed; a test run detects wrong dependencies."""
    then, features, layer, message = FIXED[case]
    model = built(lambda: Custom(then, features))
    with pytest.raises(InputError, match=message):
        remove_channels(model, images(1), {layer: [0]})


def test_tracing_that_fails() -> None:
    """Errors of the network become input errors."""
    with pytest.raises(InputError, match=r"model: .*RuntimeError"):
        ChannelGraph.trace(built(Separable), torch.rand(1, 5))
