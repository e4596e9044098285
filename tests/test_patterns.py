"""N:M patterns hold in every group of every layer; units sum values of their weights."""

from __future__ import annotations

import pytest
import torch
from channel_networks import IMAGE, Joined, Residual, Separable, built, images
from hypothesis import given, settings
from hypothesis import strategies as st
from search_cases import seeded
from torch import Tensor, nn

from gaprune import InputOptions
from gaprune.config import make_settings
from gaprune.errors import InputError
from gaprune.evolution.genome import Genes, to_float16
from gaprune.evolution.operators import MUTATIONS
from gaprune.masks.budget import keep_total
from gaprune.masks.supermask import Layout, global_mask, layer_counts
from gaprune.masks.units import BlockUnits, Units
from gaprune.models.channel_removal import remove_channels
from gaprune.models.patterns import channel_groups, channels_of, searched_layout, units_of
from gaprune.models.target import Target, target_from_module
from gaprune.pattern_names import parse_pattern
from gaprune.runs.setup import check_settings

FEW = settings(max_examples=20)
N_OF_M = ("1:2", "2:4", "3:4", "4:8", "2:40")


class Mixed(nn.Module):
    """Layers of every kind of axis: convolutions, a transposed and a depthwise one, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 8, 3)
        self.deep = nn.Conv2d(8, 8, 3, groups=8)
        self.wide = nn.ConvTranspose2d(8, 4, 2)
        self.inner = nn.Linear(36, 40)
        self.head = nn.Linear(40, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.wide(self.deep(self.first(inputs)).relu()).flatten(1)
        logits: Tensor = self.head(self.inner(hidden).relu())
        return logits


def target_of(model: nn.Module) -> Target:
    """Return a target of images."""
    return target_from_module(model, inputs=InputOptions(shape=IMAGE, range=(0, 1)))


with torch.random.fork_rng():
    torch.manual_seed(0)
    MIXED = target_of(Mixed())


def n_of_m_layout(pattern: str) -> Layout:
    """Return the layout of `MIXED` under an N:M pattern."""
    return searched_layout(MIXED, make_settings({"pattern": pattern}))


def group_mask(scores: Tensor, pattern: str) -> Tensor:
    """Return the mask of flat scores by sorting every group, ties in index order."""
    keep, of = map(int, pattern.split(":"))
    masks = {}
    for name, layer in MIXED.layout.split(scores).items():
        axis = 0 if name == "wide.weight" else 1
        mask = torch.ones(layer.shape, dtype=torch.bool)
        if layer.shape[axis] % of == 0:
            moved, moved_mask = layer.movedim(axis, -1), mask.movedim(axis, -1)
            for start in range(0, layer.shape[axis], of):
                group = moved[..., start : start + of].reshape(-1, of).tolist()
                ranked = [sorted(range(of), key=lambda i: (-row[i], i))[:keep] for row in group]
                rows = [[index in best for index in range(of)] for best in ranked]
                shape = (*moved.shape[:-1], of)
                moved_mask[..., start : start + of] = torch.tensor(rows).view(shape)
        masks[name] = mask
    return MIXED.layout.flatten(masks)


@FEW
@given(
    st.integers(0, 2**32),
    st.sampled_from(N_OF_M),
    st.booleans(),
    st.sampled_from(sorted(MUTATIONS)),
)
def test_n_of_m_keeps_the_best_of_every_group(
    seed: int, pattern: str, few: bool, mutation: str
) -> None:
    """Also under ties, in half precision and after a mutation; other layers stay dense."""
    layout = n_of_m_layout(pattern)
    scores = torch.rand(layout.total, generator=seeded(seed))
    scores = (scores * 4).floor() if few else scores
    counts = tuple(layer_counts(group_mask(scores, pattern), layout))
    genes = Genes(scores, counts, sum(counts), fixed=True)
    mask = genes.decode(layout)
    assert torch.equal(mask, group_mask(scores, pattern))
    assert keep_total(layout, 0.123) == sum(counts)
    small = to_float16(genes, layout)
    assert small.scores.dtype == torch.float16
    assert torch.equal(small.scores > 0, mask)
    assert torch.equal(small.decode(layout), mask)
    assert torch.equal(small.as_float32().decode(layout), mask)
    child = MUTATIONS[mutation](genes, layout, seeded(seed + 1))
    assert layout.satisfies_pattern(child.decode(layout))
    assert torch.equal(child.decode(layout), group_mask(child.scores, pattern))


BLOCKS = ("4x1", "16x1", "1x4", "3x5", "2x2")


@pytest.mark.slow
@FEW
@given(st.integers(0, 2**32), st.sampled_from(BLOCKS), st.floats(0.1, 0.8))
def test_blocks_stay_or_go_as_a_whole(seed: int, pattern: str, sparsity: float) -> None:
    """At an exact number of blocks; sums and means are those of their weights."""
    chosen = make_settings({"pattern": pattern, "sparsity": sparsity})
    units, layout = units_of(MIXED, chosen), searched_layout(MIXED, chosen)
    assert isinstance(units, BlockUnits)
    rows, columns = map(int, pattern.split("x"))
    keep = keep_total(layout, sparsity)
    mask = global_mask(torch.rand(layout.total, generator=seeded(seed)), layout, keep)
    assert int(mask.sum()) == keep
    values = torch.randn(MIXED.layout.total, generator=seeded(seed + 1))
    sums, means = units.unit_gradient(values, mask), units.unit_mean(values)
    masks = MIXED.layout.split(units.weight_mask(mask))
    unit = 0
    for name, weight in MIXED.layout.split(values).items():
        axis = 1 if name == "wide.weight" else 0
        matrix = weight.movedim(axis, 0).flatten(1)
        mask_matrix = masks[name].movedim(axis, 0).flatten(1)
        for top in range(0, matrix.shape[0], rows):
            for left in range(0, matrix.shape[1], columns):
                part = slice(top, top + rows), slice(left, left + columns)
                assert (mask_matrix[part] == mask[unit]).all()
                assert sums[unit] == pytest.approx(float(matrix[part].sum()), abs=1e-4)
                assert means[unit] == pytest.approx(float(matrix[part].mean()), abs=1e-4)
                unit += 1
    assert unit == layout.total


def test_a_vector_has_blocks_of_outputs() -> None:
    """A pruned bias is split by the rows of a block."""
    target = target_from_module(
        nn.Linear(6, 5), inputs=InputOptions(range=(0, 1)), prune_also=("bias",)
    )
    units = units_of(target, make_settings({"pattern": "4x1", "sparsity": 0.5}))
    assert units is not None
    assert dict(zip(units.layout.names, units.layout.shapes, strict=True)) == {
        "weight": (2, 6),
        "bias": (2, 1),
    }
    mask = torch.zeros(units.layout.total, dtype=torch.bool)
    mask[-2] = True
    masks = target.layout.split(units.weight_mask(mask))
    assert masks["bias"].tolist() == [True] * 4 + [False]
    assert not masks["weight"].any()


NETWORKS: tuple[type[nn.Module], ...] = (Separable, Residual, Joined, Mixed)


TARGETS = {kind.__name__: target_of(built(kind)) for kind in NETWORKS}


def removed(target: Target, mask: Tensor) -> dict[str, list[int]]:
    """Return layer → output channels of the removed units."""
    channels = [channel for group in channel_groups(target) for channel in group.channels]
    by_layer: dict[str, list[int]] = {}
    for channel, stays in zip(channels, mask.tolist(), strict=True):
        if not stays:
            output = channel.outputs[0]
            by_layer.setdefault(output.layer, []).append(output.channel)
    return by_layer


@FEW
@given(st.integers(0, 2**32), st.sampled_from(sorted(TARGETS)), st.floats(0.1, 0.8))
def test_masked_channels_give_the_outputs_of_the_smaller_network(
    seed: int, kind: str, sparsity: float
) -> None:
    """For residual, depthwise and joined channels."""
    target = TARGETS[kind]
    layout = channels_of(target).layout
    keep = keep_total(layout, min(sparsity, 1 - len(layout.names) / layout.total))
    mask = global_mask(torch.rand(layout.total, generator=seeded(seed)), layout, keep)
    assert int(mask.sum()) == keep
    assert min(layer_counts(mask, layout)) >= 1
    masks = target.layout.split(channels_of(target).weight_mask(mask))
    pruned = target.masked_copy(masks)
    inputs = images(5)
    with torch.no_grad():
        expected = pruned(inputs)
        compact = remove_channels(pruned, inputs[:1], removed(target, mask))
        assert torch.allclose(compact(inputs), expected, atol=1e-5)
    assert torch.equal(channels_of(target).unread(target.layout.flatten(masks)), ~mask)


@FEW
@given(st.integers(0, 2**32), st.sampled_from(sorted(TARGETS)))
def test_the_gradient_of_a_channel_is_the_change_when_it_is_added(seed: int, kind: str) -> None:
    """Summed over the weights that it alone decides on; the mean is over all of its weights."""
    target = TARGETS[kind]
    units: Units = channels_of(target)
    mask = torch.rand(units.layout.total, generator=seeded(seed)) < 0.6
    values = torch.randn(units.weights.total, generator=seeded(seed + 1), dtype=torch.float64)
    gradient, means = units.unit_gradient(values, mask), units.unit_mean(values)
    everything = torch.ones_like(mask)
    for unit in range(units.layout.total):
        on, off = mask.clone(), mask.clone()
        on[unit], off[unit] = True, False
        change = units.weight_mask(on).double() - units.weight_mask(off).double()
        assert gradient[unit] == pytest.approx(float((change * values).sum()), abs=1e-4)
        without = everything.clone()
        without[unit] = False
        removed_weights = ~units.weight_mask(without)
        mean = float(values[removed_weights].mean())
        assert means[unit] == pytest.approx(mean, abs=1e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4:2", "^pattern: .*'4:2'"),
        ("4:4", "0 < N < M"),
        ("0:4", "0 < N < M"),
        ("1x1", "^pattern: .*4x1"),
        ("0x4", "^pattern: .*4x1"),
        ("channels", "^pattern: .*2:4"),
    ],
)
def test_an_invalid_pattern_is_refused(text: str, message: str) -> None:
    """The error names the rule."""
    with pytest.raises(InputError, match=message):
        parse_pattern(text)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"sparsity": 0.9}, "^sparsity: .*'2:4' .* 0.5 .* 0.9"),
        ({"scope": "global"}, "^scope: .*'2:4'"),
        ({"floor": 0.1}, "^floor: .*'2:4'.*floor="),
        ({"pareto": True}, "^pareto: .*'2:4'"),
        ({"max_drop": 0.1}, "max_drop"),
    ],
)
def test_options_that_contradict_n_of_m_fail(stated: dict[str, object], message: str) -> None:
    """Such as a sparsity that it does not have; a rounded one is accepted."""
    with pytest.raises(InputError, match=message):
        check_settings(make_settings({"pattern": "2:4", **stated}))
    check_settings(make_settings({"pattern": "1:3", "sparsity": 0.667}))


def test_a_pattern_that_fits_no_layer_is_refused() -> None:
    """The error names the shapes."""
    tiny = target_from_module(nn.Linear(6, 5), inputs=InputOptions(range=(0, 1)))
    with pytest.raises(InputError, match=r"4.*\(5, 6\)"):
        searched_layout(tiny, make_settings({"pattern": "2:4"}))
    with pytest.raises(InputError, match=r"^pattern: "):
        searched_layout(tiny, make_settings({"pattern": "channel", "sparsity": 0.5}))
