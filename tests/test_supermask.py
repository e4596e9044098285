"""Exact top-k under ties in every dtype; layouts; masks that leave weights and model unchanged."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from gaprune.errors import InputError
from gaprune.masks import supermask
from gaprune.masks.n_of_m import NOfM
from gaprune.masks.supermask import (
    Layout,
    attach,
    bake,
    check_masks,
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
from gaprune.models.prunable import find_prunable
from gaprune.models.zoo.networks import LeNet, MobileStudent

FLOAT_DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
INTEGER_DTYPES = [torch.int64, torch.int32, torch.uint8]
INF = math.inf
ODD = 2**24 + 1  # the first integer that float32 cannot represent
LAYOUT = Layout(("a", "b"), ((3, 4), (2, 2)))


def best_by_sorting(scores: Sequence[float], keep: int) -> list[bool]:
    """Keep the head of a stable sort by Python, larger scores first."""
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    best = set(order[:keep])
    return [index in best for index in range(len(scores))]


TIED = st.sampled_from([-INF, -2.0, -1.0, -0.0, 0.0, 0.5, 1.0, 2.0, INF])


@pytest.mark.parametrize(
    ("values", "dtypes"), [(TIED, FLOAT_DTYPES), (st.integers(0, 255), INTEGER_DTYPES)]
)
@given(data=st.data())
def test_top_k_is_the_head_of_a_stable_sort(
    values: st.SearchStrategy[float], dtypes: list[torch.dtype], data: st.DataObject
) -> None:
    """Exactly `keep` scores stay; ties go to the lower index."""
    scores = data.draw(st.lists(values, min_size=1, max_size=60))
    keep, dtype = data.draw(st.integers(0, len(scores))), data.draw(st.sampled_from(dtypes))
    mask = top_k_mask(torch.tensor(scores, dtype=dtype), keep)
    assert mask.tolist() == best_by_sorting(scores, keep)


def test_large_integers_are_not_rounded() -> None:
    """Neighbouring integers beyond 2²⁴ rank differently."""
    assert top_k_mask(torch.tensor([ODD - 1, ODD, ODD - 1]), 1).tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", [*FLOAT_DTYPES, *INTEGER_DTYPES])
@pytest.mark.parametrize("keep", [0, 1, 99_999, 200_000])
def test_the_budget_is_exact_among_many_ties(dtype: torch.dtype, keep: int) -> None:
    """In the coarse dtypes nearly all scores tie; the count stays exact."""
    scores = (torch.rand(200_000, generator=torch.Generator().manual_seed(0)) * 100).to(dtype)
    assert int(top_k_mask(scores, keep).count_nonzero()) == keep


PATTERNS: dict[str, Callable[[int], NDArray[Any]]] = {
    "rising": np.arange,
    "falling": lambda n: -np.arange(n),
    "constant": np.zeros,
    "a spike at every sample": lambda n: np.arange(n) % sample_stride(n) == 0,
    "a dip at every sample": lambda n: -(np.arange(n) % sample_stride(n) == 0).astype(float),
    "columns of different scale": lambda n: np.sin(np.arange(n)) + np.arange(n) % 144,
    "mostly zeros": lambda n: np.maximum(np.random.default_rng(0).standard_normal(n) - 1, 0),
    "infinite at both ends": lambda n: np.where(
        np.arange(n) % 7 < 2, (np.arange(n) % 7 - 0.5) * np.inf, np.arange(n)
    ),
    "two clusters": lambda n: np.where(np.arange(n) < n // 2, -1e30, 1e30) + np.arange(n),
    "heavy tails": lambda n: np.random.default_rng(0).standard_cauchy(n),
    "few values": lambda n: np.random.default_rng(0).integers(0, 3, n),
}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("keep", [1, 16_667, 50_000, 99_999])
def test_no_order_of_scores_misleads_the_sampled_threshold(pattern: str, keep: int) -> None:
    """Long vectors whose threshold is estimated from a sample."""
    scores = PATTERNS[pattern](100_000).astype(np.float32)
    expected = np.zeros(len(scores), dtype=bool)
    expected[np.argsort(-scores, kind="stable")[:keep]] = True
    assert np.array_equal(top_k_mask(torch.from_numpy(scores), keep).numpy(), expected)


@pytest.mark.parametrize("columns", [9, 144, 1024, 9216, 10_000])
def test_samples_come_from_all_columns_of_a_layer(columns: int) -> None:
    """Scores of a layer differ by column; a sample of a few columns would mislead."""
    for rows in (1 << 10, 128 * 9, 1500):
        total = rows * columns
        sampled = np.unique(np.arange(0, total, sample_stride(total)) % columns)
        assert len(sampled) == min(columns, -(-total // sample_stride(total)))


def test_top_k_returns_the_shape_of_the_scores() -> None:
    """Strided scores that need gradients are accepted and not changed."""
    scores = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    before = scores.detach().clone()
    mask = top_k_mask(scores.mT, 7)
    assert mask.shape == (3, 5, 4)
    assert mask.flatten().tolist() == top_k_mask(scores.mT.flatten(), 7).tolist()
    assert torch.equal(scores, before)


@pytest.mark.parametrize("keep", [-1, 5])
def test_an_impossible_count_is_refused(keep: int) -> None:
    """A count below 0 or above the number of scores."""
    with pytest.raises(InputError, match=f"^keep: .* 4 .* {keep}$"):
        top_k_mask(torch.zeros(4), keep)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("keep", [0, 1, 3])
def test_nan_scores_are_refused(dtype: torch.dtype, keep: int) -> None:
    """NaN has no rank."""
    with pytest.raises(InputError, match="scores: 1 of 3"):
        top_k_mask(torch.tensor([0.0, math.nan, 1.0], dtype=dtype), keep)


# --- layouts ------------------------------------------------------------------------------------

SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=6)


def layout_of(sizes: Sequence[int]) -> Layout:
    """Return a layout of vectors."""
    return Layout(tuple(f"l{i}" for i in range(len(sizes))), tuple((size,) for size in sizes))


@given(SIZES, st.data())
def test_a_global_mask_never_empties_a_layer(sizes: list[int], data: st.DataObject) -> None:
    """The budget is exact, every layer keeps its best weight, all else follows the ranking.

    Oracle: force the best weight of every empty layer until none is empty.
    """
    layout, total = layout_of(sizes), sum(sizes)
    keep = data.draw(st.integers(len(sizes), total))
    values = st.sampled_from([0.0, 1.0, 2.0, 3.0, INF, -INF])
    scores = data.draw(st.lists(values, min_size=total, max_size=total))
    mask = global_mask(torch.tensor(scores), layout, keep)
    layers = [range(part.start, part.stop) for part in layout.slices]
    forced: set[int] = set()
    expected: set[int] = set()
    while any(expected.isdisjoint(layer) for layer in layers):
        order = sorted(range(total), key=lambda i: (i not in forced, -scores[i], i))
        expected = set(order[:keep])
        empty = [layer for layer in layers if expected.isdisjoint(layer)]
        forced |= {max(layer, key=lambda i: (scores[i], -i)) for layer in empty}
    assert set(mask.nonzero().flatten().tolist()) == expected


def test_a_global_budget_below_one_weight_per_layer_is_refused() -> None:
    """Three layers cannot share two weights."""
    with pytest.raises(InputError, match=r"^keep: .* 3 .* 2$"):
        global_mask(torch.arange(9.0), layout_of([3, 3, 3]), 2)


@given(SIZES, st.data())
def test_a_layered_mask_keeps_every_count(sizes: list[int], data: st.DataObject) -> None:
    """Every layer is masked independently of the others."""
    layout = layout_of(sizes)
    counts = [data.draw(st.integers(0, size)) for size in sizes]
    scores = torch.rand(sum(sizes), generator=torch.Generator().manual_seed(len(sizes)))
    mask = layered_mask(scores, layout, counts)
    assert layer_counts(mask, layout) == counts
    layers = zip(layout.slices, counts, strict=True)
    expected = [best_by_sorting(scores[part].tolist(), count) for part, count in layers]
    assert mask.tolist() == [bit for layer in expected for bit in layer]


def test_a_layout_splits_what_it_flattened() -> None:
    """`split` returns views in the shapes of the layers, `flatten` joins them."""
    layers = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(9.0), "c": torch.zeros(2, 1, 2)}
    layout = Layout.of(layers)
    flat = layout.flatten(layers)
    assert (layout.sizes, layout.total) == ((6, 1, 4), 11)
    split = layout.split(flat)
    assert all(torch.equal(split[name], layer) for name, layer in layers.items())
    split["c"].fill_(5)
    assert flat[7:].tolist() == [5, 5, 5, 5]


def test_satisfies_pattern_checks_every_group() -> None:
    """Without an N:M pattern any mask is valid."""
    nothing, everything = torch.zeros(16, dtype=torch.bool), torch.ones(16, dtype=torch.bool)
    assert LAYOUT.satisfies_pattern(nothing)
    layout = replace(LAYOUT, n_of_m=NOfM(2, 4, (1, None)))
    halves = torch.tensor([True, True, False, False] * 3 + [True] * 4)
    assert layout.satisfies_pattern(halves)
    assert not any(map(layout.satisfies_pattern, (everything, nothing, halves.roll(1))))


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_packed_masks_unpack_to_the_same_mask(values: list[bool]) -> None:
    """One bit per weight, rounded up to whole bytes."""
    packed = pack(torch.tensor(values))
    assert packed.nbytes == -(-len(values) // 8)
    assert unpack(packed, len(values)).tolist() == values


# --- masks on networks --------------------------------------------------------------------------

BUILDERS = {"lenet": LeNet, "mobile-student": lambda: MobileStudent(0.25)}


def seeded_model(build: Callable[[], nn.Module]) -> nn.Module:
    """Return an untrained network with seeded weights, in evaluation mode."""
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
    """All ways to apply a mask give the output bits of zeros written by hand; detach undoes it."""
    model = seeded_model(BUILDERS[name])
    weights, inputs = prunable(model), torch.rand(3, 1, 28, 28)
    masks, before = random_masks(weights), state_bits(model)
    types = [type(module) for module in model.modules()]
    zeroed = copy.deepcopy(model)
    with torch.no_grad():
        for key, mask in masks.items():
            zeroed.get_parameter(key)[~mask] = 0
        expected = bits(zeroed(inputs))
        assert bits(functional_call(model, masked_weights(weights, masks), (inputs,))) == expected
        assert state_bits(model) == before
        attach(model, masks)
        assert bits(model(inputs)) == expected
        for _ in range(2):  # a second detach changes nothing
            detach(model)
            assert list(state_bits(model).items()) == list(before.items())
            assert [type(module) for module in model.modules()] == types
        bake(attach(model, masks))
        assert bits(model(inputs)) == expected
    assert state_bits(model) == state_bits(zeroed)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("batch", [(), (3,)], ids=["one mask", "three masks"])
@pytest.mark.parametrize("shape", [(6,), (5, 7), (4, 3, 3, 3), (6, 1, 5, 5)])
def test_masking_selects_bit_by_bit(
    shape: tuple[int, ...], batch: tuple[int, ...], dtype: torch.dtype
) -> None:
    """As `torch.where`, for −0, NaN, infinite and subnormal weights and every memory order."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator).to(dtype)
    weight.view(-1)[:5] = torch.tensor([-0.0, 1e-7, -INF, INF, math.nan], dtype=dtype)
    masks = torch.rand(*batch, *shape, generator=generator) < 0.5
    orders = [weight]
    if len(shape) > 1:
        orders.append(weight.transpose(0, 1).contiguous().transpose(0, 1))
    if len(shape) == 4:
        orders.append(weight.contiguous(memory_format=torch.channels_last))
    for ordered in orders:
        expected = torch.where(masks, ordered, torch.zeros((), dtype=dtype))
        masked = masked_weights({"w": ordered}, {"w": masks})["w"]
        assert (masked.dtype, masked.stride()) == (dtype, expected.stride())
        assert bits(masked) == bits(expected)


def test_gradients_pass_a_mask_only_where_it_keeps() -> None:
    """For masked weights and for attached masks."""
    weight, mask = torch.ones(3, requires_grad=True), torch.tensor([True, False, True])
    (masked_weights({"w": weight}, {"w": mask})["w"] @ torch.tensor([1.0, 2.0, 4.0])).backward()
    layer = attach(nn.Linear(3, 1, bias=False), {"weight": mask[None]})
    layer(torch.tensor([[1.0, 2.0, 4.0]])).sum().backward()
    attached = layer.get_parameter("parametrizations.weight.original").grad
    assert weight.grad is not None
    assert attached is not None
    assert weight.grad.tolist() == attached[0].tolist() == [1, 0, 4]


@pytest.mark.parametrize("finish", [bake, detach], ids=["bake", "detach"])
def test_parameters_stay_the_same_objects_in_the_same_order(
    finish: Callable[[nn.Module], nn.Module],
) -> None:
    """An optimizer made before the masks refers to the same parameters afterwards."""
    model = nn.Sequential(nn.Linear(4, 3), nn.MultiheadAttention(4, 2, kdim=3, vdim=3))
    before = list(model.named_parameters())
    finish(attach(model, random_masks(prunable(model))))
    after = list(model.named_parameters())
    assert [name for name, _ in after] == [name for name, _ in before]
    assert all(new is old for (_, new), (_, old) in zip(after, before, strict=True))


def tied() -> nn.Module:
    """Ids → embedding → logits by the same table: `[N]` → `[N, 5]`."""
    table, head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
    head.weight = table.weight
    return nn.Sequential(table, head)


def test_a_second_mask_of_a_parameter_is_refused() -> None:
    """As when a cell of a notebook runs again; the first mask stays."""
    layer, masks = nn.Linear(3, 1), {"weight": torch.tensor([[True, False, True]])}
    attach(layer, masks)
    with pytest.raises(InputError, match=r"gaprune\.detach"):
        attach(layer, masks)
    assert layer.weight.count_nonzero() == 2


def test_a_tied_parameter_is_masked_in_every_module() -> None:
    """It has its first name; after detach or bake embedding and head share one parameter again."""
    model, ids = seeded_model(tied), torch.arange(5)
    assert list(find_prunable(model, ["1.weight"])) == ["0.weight"]
    weights, dense = prunable(model), model(ids)
    masks = random_masks(weights)
    table = weights["0.weight"] * masks["0.weight"]
    expected = functional_call(model, masked_weights(weights, masks), (ids,))
    torch.testing.assert_close(expected, table @ table.T)
    for finish, outputs in ((detach, dense), (bake, expected)):
        attach(model, masks)
        assert torch.equal(model(ids), expected)
        finish(model)
        assert model.get_parameter("1.weight") is model.get_parameter("0.weight")
        assert torch.equal(model(ids), outputs)


def test_an_attached_mask_is_saved_with_the_model() -> None:
    """The state of a network with attached masks holds dense weights and masks."""
    first, second = nn.Linear(4, 3), nn.Linear(4, 3)
    attach(first, {"weight": torch.eye(3, 4, dtype=torch.bool)})
    attach(second, {"weight": torch.zeros(3, 4, dtype=torch.bool)})
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.weight, first.weight)
    assert int(second.weight.count_nonzero()) == 3


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        ({"head.weight": torch.ones(3, 4, dtype=torch.bool)}, "'head.weight'.*weight"),
        ({"weight": torch.ones(4, 3, dtype=torch.bool)}, r"bool.*\(3, 4\).*4, 3"),
        ({"weight": torch.ones(3, 4)}, r"bool.*\(3, 4\).*torch.float32"),
    ],
)
def test_masks_that_fit_no_parameter_are_refused(masks: dict[str, Tensor], message: str) -> None:
    """Nothing is attached then, not even the masks that fit."""
    layer = nn.Linear(4, 3)
    before, masks = state_bits(layer), {"bias": torch.ones(3, dtype=torch.bool), **masks}
    for check in (lambda: attach(layer, masks), lambda: check_masks(masks, layer.state_dict())):
        with pytest.raises(InputError, match=message):
            check()
    assert state_bits(layer) == before


def test_large_weights_are_masked_in_pieces_with_the_same_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also infinite ones, and pieces that do not divide the rows."""
    weight = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    weight[0, 0] = torch.inf
    mask = weight > 0
    whole = masked_weights({"w": weight}, {"w": mask})["w"]
    monkeypatch.setattr(supermask, "PIECE", 10)
    assert torch.equal(masked_weights({"w": weight}, {"w": mask})["w"], whole)
    assert torch.equal(whole, torch.where(mask, weight, 0.0))


@pytest.mark.parametrize("remove", [bake, detach])
def test_copies_are_independent(remove: Callable[[nn.Module], nn.Module]) -> None:
    """Masks removed from a copy stay attached to the original."""
    model = attach(nn.Sequential(nn.Linear(3, 2)), {"0.weight": torch.zeros(2, 3) > 1})
    copied = remove(copy.deepcopy(model))
    assert isinstance(copied.get_submodule("0").weight, nn.Parameter)
    layer: Any = model.get_submodule("0")
    assert not layer.weight.any()
    assert detach(model).get_parameter("0.weight").any()
