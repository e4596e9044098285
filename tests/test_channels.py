"""Channels that are removed physically: what goes with them, and what is left computes the same."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from torch.nn import functional

from gaprune.errors import GapruneError, InputError
from gaprune.io.weights import sha256_of
from gaprune.models.channel_groups import ChannelGraph
from gaprune.models.channel_removal import masked_equivalent, remove_channels
from gaprune.models.zoo.networks import LeNet, MobileStudent

Chosen = Mapping[str, Sequence[int]]


@contextmanager
def unread(model: nn.Module, readers: Chosen) -> Iterator[None]:
    """Let layers read zeros where these input channels would be; the model stays as it is."""

    def blind(channels: Sequence[int], _: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        seen = inputs[0].clone()
        seen[:, list(channels)] = 0
        return seen

    handles = [
        model.get_submodule(layer).register_forward_pre_hook(partial(blind, channels))
        for layer, channels in readers.items()
    ]
    yield
    for handle in handles:
        handle.remove()


@torch.no_grad()
def check_same(model: nn.Module, chosen: Chosen, readers: Chosen, inputs: Tensor) -> nn.Module:
    """Compare compact, masked, and the network whose readers are blind; return the first."""
    compact = remove_channels(model, inputs[:1], chosen)
    masked = masked_equivalent(model, inputs[:1], chosen)
    with unread(model, readers):
        expected = model(inputs)
    assert torch.allclose(masked(inputs), expected, atol=1e-5)
    assert torch.allclose(compact(inputs), expected, atol=1e-5)
    assert parameters(masked) == parameters(model)
    return compact


def subsets(size: int) -> st.SearchStrategy[list[int]]:
    """Some of the channels, in any order, never all."""
    return st.lists(st.integers(0, size - 1), max_size=size - 1, unique=True)


@settings(max_examples=20)
@given(subsets(6), subsets(8), st.sampled_from(["stem", "stem_norm", "deep", "deep_norm"]))
def test_depthwise_block(first: list[int], second: list[int], named: str) -> None:
    """Stem, norms and depthwise filters go together, whichever of them is named."""
    chosen, readers = {named: first, "point": second}, {"point": first, "head": second}
    compact = check_same(built(Separable), chosen, readers, images(7))
    assert parameters(compact) == Separable.count(6 - len(first), 8 - len(second))


@settings(max_examples=20)
@given(subsets(5), subsets(7), st.sampled_from(["stem", "back", "back_norm"]))
def test_residual_sum(outer: list[int], inner: list[int], named: str) -> None:
    """Both terms of a sum lose the same channels; behind it nine inputs of the linear layer go."""
    flat = [9 * channel + place for channel in outer for place in range(9)]
    chosen, readers = {named: outer, "down": inner}, {"down": outer, "back": inner, "head": flat}
    compact = check_same(built(Residual), chosen, readers, images(7))
    assert parameters(compact) == Residual.count(5 - len(outer), 7 - len(inner))


@settings(max_examples=20)
@given(subsets(4), subsets(5), subsets(6))
def test_concatenation(left: list[int], right: list[int], last: list[int]) -> None:
    """Branches lose their channels apart; the reader loses them where they were joined."""
    joined = left + [4 + channel for channel in right]
    flat = [4 * channel + place for channel in last for place in range(4)]
    chosen = {"left": left, "right": right, "last": last}
    compact = check_same(built(Joined), chosen, {"last": joined, "head": flat}, images(7))
    assert parameters(compact) == Joined.count(4 - len(left), 5 - len(right), 6 - len(last))


def test_halves_that_are_added_to_a_whole() -> None:
    """A channel of a joined branch goes with the one that it is added to."""
    model = built(Summed)
    compact = check_same(model, {"one": [2], "two": [0, 1]}, {"head": [2, 3, 4]}, images(7))
    same = check_same(model, {"whole": [2, 3, 4]}, {"head": [2, 3, 4]}, images(7))
    assert sha256_of(compact.state_dict()) == sha256_of(same.state_dict())
    assert [tuple(p.shape) for p in compact.parameters()] == [
        (3, 2, 3, 3),
        (2, 2, 3, 3),
        (1, 2, 3, 3),
        (3,),
        (3,),
        (3, 3),
        (3,),
    ]
    assert [group.layers for group in ChannelGraph.trace(model, images(1)).groups] == [
        ("whole", "one", "norm"),
        ("whole", "two", "norm"),
    ]


def test_transposed_convolutions_and_a_gate() -> None:
    """Transposed weights have their outputs on the second axis; a gate loses what it scales."""
    readers = {"wide": [3], "squeeze": [1, 5], "gate": [0], "head": [1, 5]}
    chosen = {"first": [3], "deep": [1, 5], "squeeze": [0]}
    compact = check_same(built(Enlarging), chosen, readers, images(7))
    assert compact.get_parameter("wide.weight").shape == (3, 4, 3, 3)
    assert compact.get_parameter("deep.weight").shape == (4, 1, 3, 3)
    assert compact.get_parameter("gate.weight").shape == (4, 3)


def test_the_groups_of_a_network() -> None:
    """Each group lists the layers that make its channels and what reads each of them."""
    found = {group.layers: group for group in ChannelGraph.trace(built(Residual), images(1)).groups}
    assert {layers: len(group.channels) for layers, group in found.items()} == {
        ("stem", "stem_norm", "back", "back_norm"): 5,
        ("down", "down_norm"): 7,
    }
    channel = found["stem", "stem_norm", "back", "back_norm"].channels[3]
    assert channel.outputs == (("stem", 3), ("stem_norm", 3), ("back", 3), ("back_norm", 3))
    assert channel.inputs == (("down", 3), *(("head", 27 + place) for place in range(9)))


@pytest.mark.parametrize("build", [lambda: MobileStudent(0.5), LeNet])
def test_networks_of_the_zoo(build: Callable[[], nn.Module]) -> None:
    """Every second channel of every group goes, and the rest computes what the masked one does."""
    model = built(build)
    inputs = torch.rand(9, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    groups = ChannelGraph.trace(model, inputs[:1]).groups
    chosen = {group.layers[0]: range(0, len(group.channels), 2) for group in groups}
    compact = remove_channels(model, inputs[:1], chosen)
    masked = masked_equivalent(model, inputs[:1], chosen)
    with torch.no_grad():
        assert torch.allclose(compact(inputs), masked(inputs), atol=1e-5)
        assert (masked(inputs) - model(inputs)).abs().max() > 1e-3
    halves = {group.layers[0]: len(group.channels) // 2 for group in groups}
    assert {name: len(compact.get_parameter(f"{name}.weight")) for name in halves} == halves
    assert all(
        not masked.get_parameter(f"{layer}.{kind}")[::2].any()
        for group in groups
        for layer in group.layers
        for kind in ("weight", "bias")
        if hasattr(model.get_submodule(layer), kind)
        and kind in dict(model.get_submodule(layer).named_parameters())
    )


def test_the_network_stays_and_its_switches_are_kept() -> None:
    """Removal copies; what took gradients takes them, what was frozen is frozen."""
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
    """A network in float64 loses channels without losing digits."""
    model, inputs = built(Separable).double(), images(7).double()
    compact = remove_channels(model, inputs[:1], {"stem": [1], "point": [0, 3]})
    masked = masked_equivalent(model, inputs[:1], {"stem": [1], "point": [0, 3]})
    assert (compact(inputs) - masked(inputs)).abs().max() < 1e-13


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"head": [0]}, "'head' .*outputs"),
        ({"stm": [0]}, r"channels: unknown name 'stm' \(did you mean 'stem'\?\)"),
        ({"act": [0]}, r"layer 'act' \(ReLU\) has none that can be removed; layers .*stem"),
        ({"stem": [6]}, "layer 'stem' has channels 0 to 5, got 6"),
        ({"stem": [-1]}, "layer 'stem' has channels 0 to 5, got -1"),
        ({"point": range(8)}, "nothing would be left of layer 'point'; keep at least one"),
        ({"stem": [0, 1, 2], "deep": [3, 4, 5]}, "nothing would be left of layer 'stem'"),
    ],
)
def test_what_cannot_be_removed_is_named(chosen: Chosen, message: str) -> None:
    """Outputs, unknown layers, missing channels and whole layers are refused, masked or not."""
    for change in (remove_channels, masked_equivalent):
        with pytest.raises(InputError, match=message):
            change(built(Separable), images(1), chosen)


class Odd(nn.Module):
    """A convolution that a function of one's own follows, then a linear layer."""

    def __init__(self, then: Callable[[nn.Module, Tensor, Tensor], Tensor], features: int) -> None:
        """Take what happens to (self, the images, two or four channels of the convolution)."""
        super().__init__()
        self.then = then
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.pair = nn.Conv2d(2, 2, 3, padding=1)
        self.norm = nn.GroupNorm(2, 4)
        self.grouped = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.scale = nn.Parameter(torch.rand(4, 1, 1))
        self.unused = nn.Conv2d(2, 4, 3)
        self.head = nn.Linear(features, 3)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.then(self, images, self.conv(images)).mean((2, 3)))
        return logits


FIXED: dict[str, tuple[Callable[[nn.Module, Tensor, Tensor], Tensor], int, str, str]] = {
    "sum with the inputs": (
        lambda net, x, _: x + net.get_submodule("pair")(x),
        2,
        "pair",
        "network's inputs",
    ),
    "joined with the inputs": (
        lambda _, x, y: torch.cat([x, y], 1),
        6,
        "conv",
        "model: torch-pruning cannot trace it",
    ),
    "group norm": (
        lambda net, _, y: net.get_submodule("norm")(y),
        4,
        "conv",
        "GroupNorm",
    ),
    "grouped convolution": (
        lambda net, _, y: net.get_submodule("grouped")(y),
        4,
        "conv",
        "grouped convolution",
    ),
    "parameter": (
        lambda net, _, y: net.get_parameter("scale") * y,
        4,
        "conv",
        "parameter of no layer",
    ),
    "halves by position": (
        lambda _, x, y: torch.cat([y[:, :2] * 2, y[:, 2:]], 1),
        4,
        "conv",
        "computes something else",
    ),
    "stated shape": (
        lambda _, x, y: functional.relu(y).reshape(len(y), 4, 6, 6),
        4,
        "conv",
        "doesn't run",
    ),
    "not traced": (lambda net, x, y: y, 4, "unused", r"'unused' \(Conv2d\) has none that can be"),
}


@pytest.mark.parametrize("case", FIXED)
def test_channels_that_have_to_stay_say_why(case: str) -> None:
    """What the graph knows to be fixed is named; what it takes wrong is found by trying."""
    then, features, layer, message = FIXED[case]
    model = built(lambda: Odd(then, features))
    with pytest.raises(InputError, match=message):
        remove_channels(model, images(1), {layer: [0]})


def test_a_network_that_cannot_be_traced() -> None:
    """What torch-pruning says about it reaches the user as one message."""
    with pytest.raises(InputError, match="model: torch-pruning"):
        ChannelGraph.trace(built(Separable), torch.rand(1, 5))


def test_without_torch_pruning(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing package is named with the extra that brings it."""
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(
        GapruneError, match=r"needs torch-pruning; pip install 'gaprune\[compare\]'"
    ):
        ChannelGraph.trace(built(Separable), images(1))
