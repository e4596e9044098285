"""Patterns hold in every group of every layer, and units sum up what their weights say."""

from __future__ import annotations

from itertools import combinations

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
from gaprune.evolution.operators import MUTATIONS, threshold_swap
from gaprune.masks.budget import keep_total
from gaprune.masks.supermask import Layout, global_mask, layer_counts
from gaprune.masks.units import BlockUnits, Units
from gaprune.models.channel_removal import remove_channels
from gaprune.models.patterns import channel_groups, channels_of, searched_layout, units_of
from gaprune.models.target import Target, target_from_module
from gaprune.pattern_names import parse_pattern
from gaprune.runs.setup import check_settings, resolve_settings

FEW = settings(max_examples=30)
QUOTAS = ("1:2", "2:4", "3:4", "4:8", "2:40")


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
        """Return logits `[N, 3]`."""
        hidden = self.wide(self.deep(self.first(inputs)).relu()).flatten(1)
        logits: Tensor = self.head(self.inner(hidden).relu())
        return logits


def target_of(model: nn.Module) -> Target:
    """Return a target of images."""
    return target_from_module(model, inputs=InputOptions(shape=IMAGE, range=(0, 1)))


with torch.random.fork_rng():
    torch.manual_seed(0)
    MIXED = target_of(Mixed())


def quota_layout(pattern: str) -> Layout:
    """Return what is searched in `MIXED` under a quota."""
    return searched_layout(MIXED, make_settings({"pattern": pattern}))


def groups_of(layer: Tensor, name: str, of: int) -> Tensor:
    """Return the groups of a layer by hand `[groups, M]`: neighbours along its inputs."""
    inputs_last = layer.movedim(0 if name == "wide.weight" else 1, -1)
    return inputs_last.reshape(-1, of)


def oracle(scores: Tensor, pattern: str) -> Tensor:
    """Return the mask of flat scores, group by group: the largest, ties in index order."""
    keep, of = map(int, pattern.split(":"))
    found = {}
    for name, layer in MIXED.layout.split(scores).items():
        axis = 0 if name == "wide.weight" else 1
        mask = torch.ones(layer.shape, dtype=torch.bool)
        if layer.shape[axis] % of == 0:
            moved, held = layer.movedim(axis, -1), mask.movedim(axis, -1)
            for start in range(0, layer.shape[axis], of):
                group = moved[..., start : start + of].reshape(-1, of).tolist()
                ranked = [sorted(range(of), key=lambda i: (-one[i], i))[:keep] for one in group]
                rows = [[place in best for place in range(of)] for best in ranked]
                shape = (*moved.shape[:-1], of)
                held[..., start : start + of] = torch.tensor(rows).view(shape)
        found[name] = mask
    return MIXED.layout.flatten(found)


@FEW
@given(st.integers(0, 2**32), st.sampled_from(QUOTAS), st.booleans())
def test_a_quota_keeps_the_best_of_every_group(seed: int, pattern: str, few: bool) -> None:
    """In every layer it fits, also under ties and in half precision; the others stay whole."""
    layout = quota_layout(pattern)
    scores = torch.rand(layout.total, generator=seeded(seed))
    scores = (scores * 4).floor() if few else scores
    counts = tuple(layer_counts(oracle(scores, pattern), layout))
    genes = Genes(scores, counts, sum(counts), fixed=True)
    mask = genes.decode(layout)
    assert torch.equal(mask, oracle(scores, pattern))
    assert keep_total(layout, 0.123) == sum(counts)
    small = to_float16(genes, layout)
    assert small.scores.dtype == torch.float16
    assert torch.equal(small.scores > 0, mask)
    assert torch.equal(small.decode(layout), mask)
    assert torch.equal(small.as_float32().decode(layout), mask)


@FEW
@given(st.integers(0, 2**32), st.sampled_from(QUOTAS), st.sampled_from(sorted(MUTATIONS)))
def test_no_mutation_breaks_a_quota(seed: int, pattern: str, name: str) -> None:
    """N of every M stay, whatever happened to the scores."""
    layout, (keep, of) = quota_layout(pattern), map(int, pattern.split(":"))
    counts = layout.n_of_m.counts(layout.sizes) if layout.n_of_m else ()
    scores = torch.rand(layout.total, generator=seeded(seed))
    genes = Genes(scores, counts, sum(counts), fixed=True)
    child = MUTATIONS[name](genes, layout, seeded(seed + 1))
    for layer, mask in layout.split(child.decode(layout)).items():
        if mask.shape[0 if layer == "wide.weight" else 1] % of == 0:
            assert (groups_of(mask, layer, of).sum(1) == keep).all()
        else:
            assert mask.all()


def test_a_swap_exchanges_within_groups() -> None:
    """As many weights leave a group as enter it, and some do."""
    layout = quota_layout("2:4")
    counts = layout.n_of_m.counts(layout.sizes) if layout.n_of_m else ()
    genes = Genes(torch.rand(layout.total, generator=seeded(3)), counts, sum(counts), fixed=True)
    before, changed = genes.decode(layout), 0
    for seed in range(20):
        child = threshold_swap(genes, layout, seeded(seed))
        assert torch.equal(child.scores.sort().values, genes.scores.sort().values)
        changed += int((child.decode(layout) != before).sum())
    assert changed > 20


def test_scores_that_are_not_numbers_are_refused() -> None:
    """They have no rank in a group either."""
    layout = quota_layout("2:4")
    with pytest.raises(InputError, match="scores: 1 of"):
        Genes(
            torch.full((layout.total,), torch.nan).index_fill_(
                0, torch.arange(1, layout.total), 0.0
            ),
            None,
            1,
            fixed=True,
        ).decode(layout)


BLOCKS = ("4x1", "16x1", "1x4", "3x5", "2x2")


@FEW
@given(st.integers(0, 2**32), st.sampled_from(BLOCKS), st.floats(0.1, 0.8))
def test_blocks_share_their_fate(seed: int, pattern: str, sparsity: float) -> None:
    """Exactly so many blocks stay, and all weights of each; sums are those of the blocks."""
    chosen = make_settings({"pattern": pattern, "sparsity": sparsity})
    units, layout = units_of(MIXED, chosen), searched_layout(MIXED, chosen)
    assert isinstance(units, BlockUnits)
    rows, columns = map(int, pattern.split("x"))
    keep = keep_total(layout, sparsity)
    mask = global_mask(torch.rand(layout.total, generator=seeded(seed)), layout, keep)
    assert int(mask.sum()) == keep
    values = torch.randn(MIXED.layout.total, generator=seeded(seed + 1))
    sums, means = units.unit_gradient(values, mask), units.unit_mean(values)
    whole = MIXED.layout.split(units.weight_mask(mask))
    unit = 0
    for name, weight in MIXED.layout.split(values).items():
        axis = 1 if name == "wide.weight" else 0
        matrix = weight.movedim(axis, 0).flatten(1)
        shown = whole[name].movedim(axis, 0).flatten(1)
        for top in range(0, matrix.shape[0], rows):
            for left in range(0, matrix.shape[1], columns):
                part = slice(top, top + rows), slice(left, left + columns)
                assert (shown[part] == mask[unit]).all()
                assert sums[unit] == pytest.approx(float(matrix[part].sum()), abs=1e-4)
                assert means[unit] == pytest.approx(float(matrix[part].mean()), abs=1e-4)
                unit += 1
    assert unit == layout.total


def test_a_vector_has_blocks_of_outputs() -> None:
    """Biases that are pruned too go by the rows of a block."""
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
    found = target.layout.split(units.weight_mask(mask))
    assert found["bias"].tolist() == [True] * 4 + [False]
    assert not found["weight"].any()


NETWORKS: tuple[type[nn.Module], ...] = (Separable, Residual, Joined, Mixed)


def network(kind: type[nn.Module]) -> Target:
    """Return a target; norms have seen something."""
    return target_of(built(kind))


TARGETS = {kind.__name__: network(kind) for kind in NETWORKS}


def removed(target: Target, mask: Tensor) -> dict[str, list[int]]:
    """Return layer → output channels that the dropped units stand for."""
    channels = [one for group in channel_groups(target) for one in group.channels]
    found: dict[str, list[int]] = {}
    for one, stays in zip(channels, mask.tolist(), strict=True):
        if not stays:
            found.setdefault(one.outputs[0].layer, []).append(one.outputs[0].channel)
    return found


@FEW
@given(st.integers(0, 2**32), st.sampled_from(sorted(TARGETS)), st.floats(0.1, 0.8))
def test_masks_of_channels_compute_what_the_smaller_network_does(
    seed: int, kind: str, sparsity: float
) -> None:
    """Residual, depthwise and joined channels agree: taken out or masked, outputs are equal."""
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
def test_channels_sum_up_what_they_alone_decide_on(seed: int, kind: str) -> None:
    """A gradient is what the sum over weights changes by when the channel comes or goes."""
    target = TARGETS[kind]
    units: Units = channels_of(target)
    mask = torch.rand(units.layout.total, generator=seeded(seed)) < 0.6
    values = torch.randn(units.weights.total, generator=seeded(seed + 1), dtype=torch.float64)
    found = units.unit_gradient(values, mask)
    for unit in range(units.layout.total):
        on, off = mask.clone(), mask.clone()
        on[unit], off[unit] = True, False
        change = units.weight_mask(on).double() - units.weight_mask(off).double()
        assert found[unit] == pytest.approx(float((change * values).sum()), abs=1e-4)
    everything = torch.ones(units.layout.total, dtype=torch.bool)
    for unit in range(units.layout.total):
        without = everything.clone()
        without[unit] = False
        own = ~units.weight_mask(without)
        assert units.unit_mean(values)[unit] == pytest.approx(float(values[own].mean()), abs=1e-4)


def test_every_pair_of_groups_names_other_channels() -> None:
    """No channel of a layer is in two units, and outputs are in none."""
    for kind, target in TARGETS.items():
        units = [set(one.outputs) for group in channel_groups(target) for one in group.channels]
        assert all(not a & b for a, b in combinations(units, 2)), kind
        assert not any(place.layer == "head" for unit in units for place in unit)


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
def test_what_is_no_pattern_is_refused(text: str, message: str) -> None:
    """With the rule and an example."""
    with pytest.raises(InputError, match=message):
        parse_pattern(text)


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ({"sparsity": 0.9}, "^sparsity: .*'2:4' .* 0.5 .* 0.9"),
        ({"scope": "global"}, "^scope: .*'2:4'"),
        ({"floor": 0.1}, "^floor: .*'2:4'.*--floor"),
        ({"pareto": True}, "^pareto: .*'2:4'"),
        ({"max_drop": 0.1}, "--max-drop"),
    ],
)
def test_what_contradicts_a_quota_is_refused(stated: dict[str, object], message: str) -> None:
    """Before anything is computed."""
    with pytest.raises(InputError, match=message):
        check_settings(make_settings({"pattern": "2:4", **stated}))


def test_a_quota_says_the_sparsity_and_the_scope() -> None:
    """None has to be stated; it may be, rounded."""
    stated = make_settings({"pattern": "1:3"})
    assert stated.sparsity == pytest.approx(2 / 3)
    assert make_settings({"pattern": "1:3", "sparsity": 0.667}).sparsity == 0.667
    check_settings(make_settings({"pattern": "1:3", "sparsity": 0.667}))
    resolved = resolve_settings(
        check_settings(make_settings({"pattern": "2:4", "calibration": ("noise",)})), MIXED
    ).settings
    assert resolved.scope == "layer"
    assert resolved.density_search == 0


def test_networks_without_a_place_for_a_pattern_are_refused() -> None:
    """The message says why, and what there is."""
    tiny = target_from_module(nn.Linear(6, 5), inputs=InputOptions(range=(0, 1)))
    with pytest.raises(InputError, match=r"4.*\(5, 6\)"):
        searched_layout(tiny, make_settings({"pattern": "2:4"}))
    with pytest.raises(InputError, match="^pattern: "):
        searched_layout(tiny, make_settings({"pattern": "channel", "sparsity": 0.5}))


@pytest.mark.parametrize("pattern", QUOTAS)
def test_ties_in_groups_are_kept_in_index_order(pattern: str) -> None:
    """As everywhere else, on any device."""
    layout, (keep, of) = quota_layout(pattern), map(int, pattern.split(":"))
    assert layout.n_of_m is not None
    mask = layout.n_of_m.mask(torch.zeros(layout.total), layout.slices, layout.shapes)
    tied = layout.split(mask)["inner.weight" if of != 40 else "head.weight"]
    assert groups_of(tied, "head.weight", of)[:, :keep].all()
    assert layout.satisfies_pattern(mask)
