"""Exact top-k under ties and in every dtype; masks that leave the weights and the model alone."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import prune

from gaprune.errors import InputError
from gaprune.masks.supermask import (
    Layout,
    attach,
    bake,
    detach,
    global_mask,
    layer_counts,
    layered_mask,
    masked_weights,
    pack,
    top_k_mask,
    unpack,
)
from gaprune.masks.top_k import sample_stride
from gaprune.models.zoo.networks import LeNet, MobileStudent

REAL_DTYPES = [
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
]
INF = math.inf
ODD = 2**24 + 1  # the first whole number that float32 cannot hold


@st.composite
def tied_scores(draw: st.DrawFn) -> list[float]:
    """Draw 1 to 60 scores of few different values, infinities and both zeros among them."""
    values = st.sampled_from([-INF, -2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 2.0, INF])
    return draw(st.lists(values, min_size=1, max_size=60))


def best_by_sorting(scores: Sequence[float], keep: int) -> list[bool]:
    """Sort by score, larger first, equal ones by index; Python's floats and its stable sort."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    kept = set(order[:keep])
    return [index in kept for index in range(len(scores))]


@given(tied_scores(), st.data())
def test_top_k_is_the_head_of_a_stable_sort(scores: list[float], data: st.DataObject) -> None:
    """Exactly `keep` stay, ties go to the lower index, for every float type."""
    keep = data.draw(st.integers(0, len(scores)))
    dtype = data.draw(st.sampled_from([d for d in REAL_DTYPES if d.is_floating_point]))
    mask = top_k_mask(torch.tensor(scores, dtype=dtype), keep)
    assert mask.tolist() == best_by_sorting(scores, keep)


@given(st.lists(st.integers(0, 255), min_size=1, max_size=40), st.data())
def test_top_k_of_whole_numbers(scores: list[int], data: st.DataObject) -> None:
    """Integer scores rank as integers."""
    keep = data.draw(st.integers(0, len(scores)))
    dtype = data.draw(st.sampled_from([d for d in REAL_DTYPES if not d.is_floating_point]))
    mask = top_k_mask(torch.tensor(scores, dtype=dtype), keep)
    assert mask.tolist() == best_by_sorting(scores, keep)


def test_neighbouring_large_integers_are_told_apart() -> None:
    """Counts beyond 2²⁴ differ though float32 rounds them to one value."""
    assert top_k_mask(torch.tensor([ODD - 1, ODD, ODD - 1]), 1).tolist() == [False, True, False]


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=50), st.data())
def test_kept_scores_are_no_smaller_than_dropped_ones(
    scores: list[float], data: st.DataObject
) -> None:
    """Over all float32, subnormal ones too, the worst kept score bounds the best dropped one."""
    keep = data.draw(st.integers(1, len(scores)))
    values = torch.tensor(scores)
    mask = top_k_mask(values, keep)
    assert int(mask.count_nonzero()) == keep
    assert keep == len(scores) or values[mask].min() >= values[~mask].max()


@pytest.mark.parametrize("dtype", REAL_DTYPES)
@pytest.mark.parametrize("keep", [0, 1, 99_999, 100_000, 999_999, 1_000_000])
def test_the_budget_is_exact_among_a_million_ties(dtype: torch.dtype, keep: int) -> None:
    """In the coarse types nearly all scores tie; the count is still the asked one."""
    generator = torch.Generator().manual_seed(0)
    scores = (torch.rand(1_000_000, generator=generator) * 100).to(dtype)
    assert int(top_k_mask(scores, keep).count_nonzero()) == keep


PATTERNS: dict[str, Callable[[int], NDArray[Any]]] = {
    "rising": np.arange,
    "falling": lambda n: -np.arange(n),
    "constant": np.zeros,
    "a spike at every sampled place": lambda n: np.arange(n) % sample_stride(n) == 0,
    "a dip at every sampled place": lambda n: -(np.arange(n) % sample_stride(n) == 0).astype(float),
    "columns of their own sizes": lambda n: np.sin(np.arange(n)) + np.arange(n) % 144,
    "mostly zeros": lambda n: np.maximum(np.random.default_rng(0).standard_normal(n) - 1, 0),
    "infinite at both ends": lambda n: np.where(
        np.arange(n) % 7 < 2, (np.arange(n) % 7 - 0.5) * np.inf, np.arange(n)
    ),
    "two heaps": lambda n: np.where(np.arange(n) < n // 2, -1e30, 1e30) + np.arange(n),
    "heavy tails": lambda n: np.random.default_rng(0).standard_cauchy(n),
    "few values": lambda n: np.random.default_rng(0).integers(0, 3, n),
}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("keep", [1, 2, 16_667, 50_000, 99_998, 99_999])
def test_long_vectors_of_any_pattern(pattern: str, keep: int) -> None:
    """The threshold is found from a sample, and no order of the scores misleads it."""
    scores = PATTERNS[pattern](100_000).astype(np.float32)
    expected = np.zeros(len(scores), dtype=bool)
    expected[np.argsort(-scores, kind="stable")[:keep]] = True
    assert np.array_equal(top_k_mask(torch.from_numpy(scores), keep).numpy(), expected)


@pytest.mark.parametrize("columns", [9, 144, 1024, 9216, 10_000])
def test_samples_come_from_all_columns_of_a_layer(columns: int) -> None:
    """A layer's margins are alike in all rows; a sample of some columns would mislead."""
    for rows in (1 << 14, 128 * 9, 1500):
        total = rows * columns
        met = np.unique(np.arange(0, total, sample_stride(total)) % columns)
        assert len(met) == min(columns, -(-total // sample_stride(total)))


def test_top_k_keeps_shape_and_scores() -> None:
    """The mask has the shape of the scores, which stay as they were; a gradient is no obstacle."""
    scores = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    before = scores.detach().clone()
    mask = top_k_mask(scores.mT, 7)
    assert mask.shape == (3, 5, 4)
    assert mask.flatten().tolist() == top_k_mask(scores.mT.flatten(), 7).tolist()
    assert torch.equal(scores, before)


@pytest.mark.parametrize("keep", [-1, 5])
def test_an_impossible_count_is_refused(keep: int) -> None:
    """More than there are, or fewer than none."""
    with pytest.raises(InputError, match=f"^keep: .* 4 .* {keep}$"):
        top_k_mask(torch.zeros(4), keep)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keep", [0, 1, 2, 3])
def test_nan_scores_are_refused(dtype: torch.dtype, keep: int) -> None:
    """NaN has no rank, so a mask from it would be an accident."""
    with pytest.raises(InputError, match="scores: 1 of 3 are NaN"):
        top_k_mask(torch.tensor([0.0, math.nan, 1.0], dtype=dtype), keep)


@given(st.integers(0, 2**32 - 1), st.integers(1, 199))
def test_top_k_of_magnitudes_is_l1_unstructured(seed: int, keep: int) -> None:
    """Without ties, torch's own magnitude pruning keeps the same weights."""
    layer = nn.Linear(20, 10)
    with torch.no_grad():
        layer.weight.copy_(torch.rand(10, 20, generator=torch.Generator().manual_seed(seed)))
        layer.weight.add_(torch.arange(200).view(10, 20) * 2)  # no two alike
    mask = top_k_mask(layer.weight.abs(), keep)
    prune.l1_unstructured(layer, "weight", amount=200 - keep)
    assert torch.equal(mask, layer.get_buffer("weight_mask").bool())


def test_global_mask_is_global_unstructured() -> None:
    """Where no layer runs empty, torch's own global pruning keeps the same weights."""
    model = seeded_model(LeNet)
    weights = prunable(model)
    layout = Layout.of(weights)
    magnitudes = layout.flatten({name: weight.abs() for name, weight in weights.items()})
    mask = global_mask(magnitudes, layout, 20_000)
    pruned = [(model.get_submodule(name.rpartition(".")[0]), "weight") for name in weights]
    prune.global_unstructured(pruned, prune.L1Unstructured, amount=layout.total - 20_000)
    expected = torch.cat([layer.get_buffer("weight_mask").flatten() for layer, _ in pruned])
    assert torch.equal(mask, expected.bool())


# --- layers -------------------------------------------------------------------------------------

SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=6)


def layout_of(sizes: Sequence[int]) -> Layout:
    """Return a layout of vectors."""
    return Layout(tuple(f"l{i}" for i in range(len(sizes))), tuple((size,) for size in sizes))


@given(SIZES, st.data())
def test_a_global_mask_never_empties_a_layer(sizes: list[int], data: st.DataObject) -> None:
    """The budget is exact, every layer keeps its best, and nothing else departs from the ranking.

    Oracle: force the best weight of every starved layer until no layer starves.
    """
    layout, total = layout_of(sizes), sum(sizes)
    keep = data.draw(st.integers(len(sizes), total))
    values = st.sampled_from([0.0, 1.0, 2.0, 3.0, INF, -INF])
    scores = data.draw(st.lists(values, min_size=total, max_size=total))
    mask = global_mask(torch.tensor(scores), layout, keep)
    assert int(mask.count_nonzero()) == keep
    assert min(layer_counts(mask, layout)) >= 1
    layers = [range(part.start, part.stop) for part in layout.slices]
    forced: set[int] = set()
    kept: set[int] = set()
    while any(kept.isdisjoint(layer) for layer in layers):  # one that made room may starve in turn
        order = sorted(range(total), key=lambda i: (i not in forced, -scores[i], i))
        kept = set(order[:keep])
        forced |= {max(la, key=lambda i: (scores[i], -i)) for la in layers if kept.isdisjoint(la)}
    assert set(mask.nonzero().flatten().tolist()) == kept


def test_a_global_budget_below_one_weight_a_layer_is_refused() -> None:
    """Three layers cannot share two weights."""
    with pytest.raises(InputError, match="^keep: .* 3 .* 2$"):
        global_mask(torch.arange(9.0), layout_of([3, 3, 3]), 2)


@given(SIZES, st.data())
def test_a_layered_mask_keeps_each_count(sizes: list[int], data: st.DataObject) -> None:
    """Every layer is masked as if it were alone."""
    layout = layout_of(sizes)
    counts = [data.draw(st.integers(0, size)) for size in sizes]
    scores = torch.rand(sum(sizes), generator=torch.Generator().manual_seed(len(sizes)))
    mask = layered_mask(scores, layout, counts)
    assert layer_counts(mask, layout) == counts
    expected = [
        best_by_sorting(scores[part].tolist(), n)
        for part, n in zip(layout.slices, counts, strict=True)
    ]
    assert mask.tolist() == [kept for layer in expected for kept in layer]


def test_a_layout_splits_what_it_flattened() -> None:
    """`split` gives views of the flat vector in the layers' own shapes, `flatten` joins them."""
    layers = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(9.0), "c": torch.zeros(2, 1, 2)}
    layout = Layout.of(layers)
    flat = layout.flatten(layers)
    assert (layout.sizes, layout.total) == ((6, 1, 4), 11)
    split = layout.split(flat)
    assert all(torch.equal(split[name], layer) for name, layer in layers.items())
    split["c"].fill_(5)
    assert flat[7:].tolist() == [5, 5, 5, 5]


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_packed_masks_come_back(bits: list[bool]) -> None:
    """One bit per weight, rounded up to whole bytes, and the same mask again."""
    mask = torch.tensor(bits)
    packed = pack(mask)
    assert packed.nbytes == -(-len(bits) // 8)
    assert unpack(packed, len(bits)).tolist() == bits


# --- masks on networks --------------------------------------------------------------------------

BUILDERS = {"lenet": LeNet, "mobile-student": lambda: MobileStudent(0.25)}


def seeded_model(build: Callable[[], nn.Module]) -> nn.Module:
    """Return an untrained network of seeded weights, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        return build().eval()


def prunable(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights of more than one axis."""
    return {name: p.detach() for name, p in model.named_parameters() if p.ndim > 1}


def random_masks(weights: dict[str, Tensor], density: float = 0.3) -> dict[str, Tensor]:
    """Return seeded masks of about that density."""
    generator = torch.Generator().manual_seed(2)
    return {n: torch.rand(w.shape, generator=generator) < density for n, w in weights.items()}


def bits(tensor: Tensor) -> bytes:
    """Return the raw bytes: −0.0 differs from 0.0, NaN equals itself."""
    return tensor.detach().contiguous().view(torch.uint8).numpy().tobytes()


def state_bits(model: nn.Module) -> dict[str, bytes]:
    """Return the bytes of every parameter and buffer."""
    return {name: bits(tensor.reshape(-1)) for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", BUILDERS)
def test_masked_attached_and_baked_networks_agree_bit_for_bit(name: str) -> None:
    """Four ways to apply one mask give the same output bits; the fourth is zeroing by hand."""
    model = seeded_model(BUILDERS[name])
    weights, inputs = prunable(model), torch.rand(3, 1, 28, 28)
    masks, before = random_masks(weights), state_bits(model)
    zeroed = copy.deepcopy(model)
    with torch.no_grad():
        for key, mask in masks.items():
            zeroed.get_parameter(key)[~mask] = 0
        expected = bits(zeroed(inputs))
        assert bits(functional_call(model, masked_weights(weights, masks), (inputs,))) == expected
        assert state_bits(model) == before  # the functional call touched nothing
        attach(model, masks)
        assert bits(model(inputs)) == expected
        bake(model)
        assert bits(model(inputs)) == expected
    assert state_bits(model) == state_bits(zeroed)


@pytest.mark.parametrize("name", BUILDERS)
def test_detach_brings_every_bit_back(name: str) -> None:
    """Names, order, values and classes are those of before; a second detach changes nothing."""
    model = seeded_model(BUILDERS[name])
    before, kinds = state_bits(model), [type(module) for module in model.modules()]
    attach(model, random_masks(prunable(model), density=0.01))
    assert state_bits(model) != before
    for _ in range(2):
        detach(model)
        assert state_bits(model) == before
        assert list(state_bits(model)) == list(before)
        assert [type(module) for module in model.modules()] == kinds


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_kept_weights_keep_their_bits(dtype: torch.dtype) -> None:
    """Subnormal, negative zero and infinite weights pass; dropped ones become plain zero."""
    weight = torch.tensor([-0.0, 1e-7, -INF, INF, math.nan, 3.0], dtype=dtype)
    keep = torch.tensor([True, True, True, False, False, False])
    masked = masked_weights({"w": weight}, {"w": keep})["w"]
    assert masked.dtype == dtype
    assert bits(masked[:3]) == bits(weight[:3])
    assert bits(masked[3:]) == bits(torch.zeros(3, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("batch", [(), (3,)], ids=["one mask", "three masks"])
@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 3, 3), (6, 1, 5, 5), (8, 4, 1, 1)])
def test_masking_is_a_choice_bit_by_bit(
    shape: tuple[int, ...], batch: tuple[int, ...], dtype: torch.dtype
) -> None:
    """As `torch.where`, in every memory order: kernels are chosen by it, and round by that."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator).to(dtype)
    masks = torch.rand(*batch, *shape, generator=generator) < 0.5
    orders = [weight, weight.transpose(0, 1).contiguous().transpose(0, 1)]
    if len(shape) == 4:
        orders.append(weight.contiguous(memory_format=torch.channels_last))
    for ordered in orders:
        expected = torch.where(masks, ordered, torch.zeros((), dtype=dtype))
        found = masked_weights({"w": ordered}, {"w": masks})["w"]
        assert found.stride() == expected.stride()
        assert bits(found) == bits(expected)


def test_gradients_pass_a_mask() -> None:
    """Of a weight that has them, where the mask keeps it."""
    weight, mask = torch.ones(4, requires_grad=True), torch.tensor([True, False, True, False])
    masked_weights({"w": weight}, {"w": mask})["w"].sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("finish", [bake, detach], ids=["bake", "detach"])
def test_parameters_stay_the_same_objects_in_the_same_order(
    finish: Callable[[nn.Module], nn.Module],
) -> None:
    """An optimizer made before still holds the network's parameters, at the same positions."""
    model = nn.Sequential(nn.Linear(4, 3), nn.MultiheadAttention(4, 2, kdim=3, vdim=3))
    before = list(model.named_parameters())
    finish(attach(model, random_masks(prunable(model))))
    after = list(model.named_parameters())
    assert [name for name, _ in after] == [name for name, _ in before]
    assert all(new is old for (_, new), (_, old) in zip(after, before, strict=True))


class Tied(nn.Module):
    """Ids → embedding → logits by the same table: `[N]` → `[N, 5]`."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.table(ids))
        return logits


def test_a_tied_parameter_is_masked_in_all_its_places() -> None:
    """Attached, the mask shows in embedding and head; taken off, they are one parameter again."""
    model, ids = seeded_model(Tied), torch.arange(5)
    weights, dense = prunable(model), model(ids)
    masks = random_masks(weights)
    expected = functional_call(model, masked_weights(weights, masks), (ids,))
    assert not torch.equal(expected, dense)
    for finish, outputs in ((detach, dense), (bake, expected)):
        attach(model, masks)
        assert torch.equal(model(ids), expected)
        finish(model)
        assert model.get_parameter("head.weight") is model.get_parameter("table.weight")
        assert torch.equal(model(ids), outputs)


def test_gradients_pass_a_supermask_only_where_it_keeps() -> None:
    """A dropped weight has no influence, so its gradient is zero."""
    layer = nn.Linear(3, 1, bias=False)
    attach(layer, {"weight": torch.tensor([[True, False, True]])})
    layer(torch.tensor([[1.0, 2.0, 4.0]])).sum().backward()
    gradient = layer.get_parameter("parametrizations.weight.original").grad
    assert gradient is not None
    assert gradient.tolist() == [[1.0, 0.0, 4.0]]


def test_an_attached_mask_is_saved_with_the_model() -> None:
    """The state of an attached network holds dense weights and mask; another one takes it over."""
    first, second = nn.Linear(4, 3), nn.Linear(4, 3)
    masks = {"weight": torch.eye(3, 4, dtype=torch.bool)}
    attach(first, masks)
    attach(second, {"weight": torch.zeros(3, 4, dtype=torch.bool)})
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.weight, first.weight)
    assert int(second.weight.count_nonzero()) == 3


BAD_MASKS = {
    "unknown": ({"head.weight": torch.ones(3, 4, dtype=torch.bool)}, "'head.weight'.*weight, bias"),
    "shape": (
        {"weight": torch.ones(4, 3, dtype=torch.bool)},
        r"bool.*\(3, 4\).*4, 3",
    ),
    "dtype": ({"weight": torch.ones(3, 4)}, r"bool.*\(3, 4\).*torch.float32"),
}


@pytest.mark.parametrize("case", BAD_MASKS)
def test_masks_that_fit_no_parameter_are_refused(case: str) -> None:
    """And then nothing is attached, not even the masks that would fit."""
    layer = nn.Linear(4, 3)
    masks, message = BAD_MASKS[case]
    before = state_bits(layer)
    with pytest.raises(InputError, match=message):
        attach(layer, {"bias": torch.ones(3, dtype=torch.bool), **masks})
    assert state_bits(layer) == before
