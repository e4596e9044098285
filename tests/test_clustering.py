"""Weight clustering: k-means codebooks per layer, what they cost, and how few values do."""

from __future__ import annotations

import sys
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from search_cases import seeded, tiny_model
from torch import Tensor, nn

from gaprune.calibration.samples import Samples
from gaprune.errors import GapruneError, InputError
from gaprune.export.clustering import (
    BINS,
    ClusterPoint,
    ClusterSweep,
    Codebooks,
    cluster_weights,
    sweep_clusters,
)
from gaprune.masks.supermask import top_k_mask
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import Target, load_target, target_from_module
from gaprune.models.zoo import mnist

Values = NDArray[np.float64]


def target_of(*rows: list[list[float]]) -> Target:
    """Return a chain of linear layers with these weights and biases of 0.5."""
    layers = []
    for values in rows:
        weight = torch.tensor(values)
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight = nn.Parameter(weight)
        nn.init.constant_(layer.bias, 0.5)
        layers.append(layer)
    model = nn.Sequential(*layers)
    return target_from_module(model, inputs=InputOptions(shape=(layers[0].in_features,)))


def one_layer(values: list[float]) -> Target:
    """Return one neuron with these weights."""
    return target_of([values])


def optimum(values: list[float], clusters: int) -> float:
    """Return the least sum of squares of any k clusters: in one dimension they are intervals."""
    ordered, count = np.sort(values), len(values)
    splits = combinations(range(1, count), min(clusters, count) - 1)
    return min(
        sum(float(((part - part.mean()) ** 2).sum()) for part in np.split(ordered, split))
        for split in splits
    )


def distinct(books: Codebooks, name: str) -> int:
    """Count the different values other than 0 of a layer."""
    return int(books.layers[name].centroids.count_nonzero())


def squares(target: Target, clustered: Tensor) -> float:
    """Return the sum of squares between a layer's weights and what they became."""
    return float((target.weights["0.weight"] - clustered).double().square().sum())


def distinct_lists(smallest: int, largest: int) -> st.SearchStrategy[list[float]]:
    """Lists of different float32 values of ordinary size."""
    numbers = st.integers(-1000, 1000).map(lambda number: number / 100)
    return st.lists(numbers, min_size=smallest, max_size=largest, unique=True)


@given(st.lists(st.integers(-2, 2), min_size=1, max_size=4), st.integers(1, 2))
def test_bunches_are_found_as_brute_force_finds_them(shifts: list[int], spread: int) -> None:
    """Of values in tight bunches, some evenly spaced, k-means makes the best clusters there are."""
    centres = [10 * place + shift for place, shift in enumerate(shifts)]
    values = [centre + offset / 100 for centre in centres for offset in range(-spread, spread)]
    target = one_layer(values)
    found = cluster_weights(target, None, len(centres)).state()["0.weight"]
    assert squares(target, found) == pytest.approx(optimum(values, len(centres)), rel=1e-3)


@given(distinct_lists(2, 9), st.integers(1, 6))
def test_no_worse_than_where_it_starts_and_no_better_than_the_best(
    values: list[float], clusters: int
) -> None:
    """The loss lies between the least possible and that of evenly spaced centroids."""
    target = one_layer(values)
    loss = squares(target, cluster_weights(target, None, clusters).state()["0.weight"])
    start = np.linspace(min(values), max(values), clusters)
    at_start = np.abs(np.subtract.outer(values, start)).min(1)
    assert optimum(values, clusters) - 1e-4 <= loss <= float((at_start**2).sum()) + 1e-4


@given(distinct_lists(1, 30), st.integers(1, 8))
def test_every_weight_takes_its_nearest_centroid_and_each_is_the_mean_of_its_own(
    values: list[float], clusters: int
) -> None:
    """What comes back is a fixed point of Lloyd's algorithm with no empty cluster."""
    target = one_layer(values)
    book = cluster_weights(target, None, clusters).layers["0.weight"]
    weights = target.weights["0.weight"].flatten()
    assert len(book.centroids) == min(clusters, len(values))
    assert torch.equal(book.centroids, book.centroids.unique())
    for place, centroid in enumerate(book.centroids):
        members = weights[book.assignment == place]
        assert float(members.mean()) == pytest.approx(float(centroid), abs=1e-5)
    nearest = (weights[:, None] - book.centroids).abs().min(1).values
    mine = (weights - book.centroids[book.assignment]).abs()
    assert torch.allclose(mine, nearest, atol=1e-5)


@given(st.integers(1, 40), st.integers(1, 200), st.integers(0, 99))
def test_counts_of_distinct_values(clusters: int, keep: int, seed: int) -> None:
    """At most k values per layer and k · layers in the network, and dropped weights are 0."""
    target = target_from_module(tiny_model(seed), inputs=InputOptions(shape=(6,)))
    flat = top_k_mask(torch.rand(target.layout.total, generator=seeded(seed)), keep)
    masks = target.layout.split(flat)
    books = cluster_weights(target, masks, clusters)
    state = books.state()
    for name, mask in masks.items():
        kept = int(mask.count_nonzero())
        assert distinct(books, name) == len(state[name][mask].unique())
        assert distinct(books, name) == min(clusters, kept)  # random: all values differ
        assert not state[name][~mask].any()
    everything = torch.cat([weight.flatten() for weight in state.values()])
    assert books.distinct == len(everything[everything != 0].unique())
    assert books.distinct <= clusters * len(masks)
    assert books.keep_count == keep


def lloyd(values: Values, clusters: int) -> float:
    """Return the sum of squares of Lloyd's algorithm from evenly spaced centroids, done exactly."""
    ordered = np.sort(values)
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centroids = np.linspace(ordered[0], ordered[-1], clusters)
    for _ in range(300):
        inner = np.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2)
        edges = np.concatenate([[0], inner, [len(ordered)]])
        counts = np.diff(edges)
        centroids = np.where(counts > 0, np.diff(sums[edges]) / np.maximum(counts, 1), centroids)
    nearest = np.abs(np.subtract.outer(values, centroids)).min(1)
    return float((nearest**2).sum())


def test_a_large_layer_is_clustered_through_a_summary_without_loss() -> None:
    """With more weights than the summary holds, the loss is that of all weights, or less."""
    weights = torch.randn(1, 4 * BINS, generator=seeded())
    target = one_layer(weights[0].tolist())
    loss = squares(target, cluster_weights(target, None, 16).state()["0.weight"])
    assert loss <= 1.01 * lloyd(weights[0].double().numpy(), 16)


def test_an_outlier_does_not_blind_the_summary() -> None:
    """One weight a million times larger than the others leaves them their own centroids."""
    values = torch.cat([torch.randn(3 * BINS, generator=seeded()), torch.tensor([1e6])])
    target = one_layer(values.tolist())
    rest = cluster_weights(target, None, 9).state()["0.weight"][0, :-1]
    assert len(rest.unique()) == 8
    assert (rest - values[:-1]).square().mean() < 0.1  # one centroid for all would leave 1


def test_the_example_of_the_paper() -> None:
    """Figure 3 of Han et al.: 16 weights and 4 centroids make a compression rate of 3.2."""
    weights = [
        [2.09, -0.98, 1.48, 0.09],
        [0.05, -0.14, -1.08, 2.12],
        [-0.91, 1.92, 0.0, -1.03],
        [1.87, 0.0, 1.53, 1.49],
    ]
    books = cluster_weights(target_of(weights), None, 4)
    assert books.layers["0.weight"].centroids.tolist() == pytest.approx([-1, 0, 1.5, 2], abs=1e-6)
    indices = books.layers["0.weight"].assignment.view(4, 4).tolist()
    assert indices == [[3, 0, 2, 1], [1, 1, 0, 3], [0, 3, 1, 0], [3, 1, 2, 2]]
    assert books.compression == pytest.approx(3.2)
    assert books.bits_per_weight == (16 * 2 + 4 * 32) / 16


def test_bits_of_a_pruned_network_in_closed_form() -> None:
    """Kept weights have indices, every weight a bit of mask, every centroid 32 bits."""
    target = target_from_module(tiny_model(), inputs=InputOptions(shape=(6,)))
    keep = {"0.weight": 40, "2.weight": 30, "4.weight": 3}
    masks = {name: top_k_mask(weight.abs(), keep[name]) for name, weight in target.weights.items()}
    books = cluster_weights(target, masks, {"0.weight": 5, "2.weight": 16, "4.weight": 16})
    stored = (40 * 3 + 5 * 32) + (30 * 4 + 16 * 32) + 3 * 32  # the last keeps its own values
    assert books.keep_count == 73
    assert books.bits_per_weight == pytest.approx(stored / 73)
    assert books.compression == pytest.approx(200 * 32 / (stored + 200))
    assert [distinct(books, name) for name in books.layers] == [5, 16, 3]


def test_one_cluster_takes_no_index_bits() -> None:
    """A layer of one value is that value alone: log₂ 1 = 0."""
    books = cluster_weights(one_layer([1.0, 2.0, 3.0, 6.0]), None, 1)
    assert books.state()["0.weight"].tolist() == [[3.0, 3.0, 3.0, 3.0]]
    assert books.compression == 4


def test_few_values_stay_what_they_are() -> None:
    """A layer with no more values than clusters keeps them bit for bit, repeated ones too."""
    target = target_of([[0.1, -0.7, 0.1], [0.3, 0.3, 1e-30]])
    books = cluster_weights(target, None, 4)
    assert torch.equal(books.state()["0.weight"], target.weights["0.weight"])
    assert books.distinct == 4


def test_a_layer_that_is_dropped_whole() -> None:
    """Nothing kept, nothing stored but the mask."""
    masks = {"0.weight": torch.zeros(1, 4, dtype=torch.bool)}
    books = cluster_weights(one_layer([1.0, 2.0, 3.0, 4.0]), masks, 2)
    assert not books.state()["0.weight"].any()
    assert (books.keep_count, books.distinct, books.bits_per_weight) == (0, 0, 0)
    assert books.compression == 32


def test_biases_stay_unless_asked() -> None:
    """Without `biases` only weights change; with it a bias shares the codebook of its layer."""
    target = target_from_module(tiny_model(), inputs=InputOptions(shape=(6,)))
    plain = cluster_weights(target, None, 3).model(target)
    shared = cluster_weights(target, None, 3, biases=True)
    model = shared.model(target)
    for name in ("0", "2", "4"):
        weight, bias = f"{name}.weight", f"{name}.bias"
        assert torch.equal(plain.get_parameter(bias), target.model.get_parameter(bias))
        both = torch.cat([model.get_parameter(weight).flatten(), model.get_parameter(bias)])
        assert len(both.unique()) == 3
        assert shared.layers[weight].parts == (weight, bias)
    assert shared.distinct == 9
    masks = {name: torch.ones_like(w, dtype=torch.bool) for name, w in target.weights.items()}
    with_masks = cluster_weights(target, masks, 3, biases=True)
    stored = 224 * 2 + 9 * 32  # 200 weights and 24 biases, 2 bits each
    assert shared.compression == pytest.approx(224 * 32 / stored)
    assert with_masks.compression == pytest.approx(224 * 32 / (stored + 200))  # weights have masks


def test_a_bias_that_is_pruned_is_a_layer_of_its_own() -> None:
    """A bias among the prunable parameters has a codebook; asking for biases changes nothing."""
    options = InputOptions(shape=(6,))
    target = target_from_module(tiny_model(), inputs=options, prune_also=["0.bias"])
    books = cluster_weights(target, None, 3, biases=True)
    assert books.layers["0.weight"].parts == ("0.weight",)
    assert distinct(books, "0.bias") == 3


def test_the_target_stays_and_the_model_is_the_state() -> None:
    """Clustering copies: the dense network is untouched, the copy is frozen and loads the state."""
    target = target_from_module(tiny_model(), inputs=InputOptions(shape=(6,)))
    before = {name: value.clone() for name, value in target.model.state_dict().items()}
    books = cluster_weights(target, None, 2)
    model = books.model(target)
    assert all(torch.equal(before[name], now) for name, now in target.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    other = tiny_model(3)
    assert not other.load_state_dict({**before, **books.state()}).missing_keys
    inputs = torch.rand(5, 6, generator=seeded())
    assert torch.equal(model(inputs), other(inputs))


def test_the_same_weights_give_the_same_bits() -> None:
    """Nothing is drawn at random, and what others draw doesn't matter."""
    target = target_from_module(tiny_model(), inputs=InputOptions(shape=(6,)))
    first = cluster_weights(target, None, 5).state()
    torch.rand(3), np.random.default_rng().random()
    second = cluster_weights(target, None, 5).state()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes(dtype: torch.dtype) -> None:
    """Clustered weights have the dtype of the network, and no more values than asked."""
    target = target_from_module(tiny_model(dtype=dtype), inputs=InputOptions(shape=(6,)))
    books = cluster_weights(target, None, 6)
    assert all(value.dtype == dtype for value in books.state().values())
    assert max(distinct(books, name) for name in books.layers) <= 6
    state = books.state()
    assert all(
        (state[name] - weight).abs().max() < weight.abs().max()
        for name, weight in target.weights.items()
    )


def test_sweep_goes_from_many_to_few_and_tells_each_point() -> None:
    """Points come in falling order, once each, and carry what a direct measurement gives."""
    target = target_from_module(tiny_model(), inputs=InputOptions(shape=(6,)))
    inputs = torch.rand(100, 6, generator=seeded())
    with torch.no_grad():
        labels = target.model(inputs).argmax(1)
        labels[:10] = (labels[:10] + 1) % 4  # the dense network is wrong on a tenth
    told: list[ClusterPoint] = []
    held_out = Samples(inputs, labels, "a test")
    sweep = sweep_clusters(target, [2, 64, 2, 8], held_out, on_point=told.append)
    assert [point.clusters for point in told] == [64, 8, 2]
    assert sweep.points == tuple(told)
    assert sweep.dense_accuracy == 0.9
    assert sweep.dense_distinct == 200
    for row in sweep.rows():
        books = cluster_weights(target, None, int(row["clusters"] or 0))
        with torch.no_grad():
            classes = books.model(target)(inputs).argmax(1)
            dense = target.model(inputs).argmax(1)
        assert row == {
            "clusters": row["clusters"],
            "accuracy": pytest.approx((classes == labels).double().mean().item()),
            "agreement": pytest.approx((classes == dense).double().mean().item()),
            "bits_per_weight": books.bits_per_weight,
            "distinct": books.distinct,
            "compression": books.compression,
        }


def test_sweep_after_pruning_without_labels() -> None:
    """With masks the points are those of the pruned network; without labels agreement decides."""
    target = target_from_module(tiny_model(), inputs=InputOptions(shape=(6,)))
    masks = {name: top_k_mask(weight.abs(), 20) for name, weight in target.weights.items()}
    held_out = Samples(torch.rand(50, 6, generator=seeded()), None, "a test")
    sweep = sweep_clusters(target, [4, 1], held_out, masks, biases=True)
    assert sweep.dense_accuracy is None
    assert sweep.dense_distinct == 60 + 12 + 8 + 4
    assert [row["accuracy"] for row in sweep.rows()] == [None, None]
    assert [point.distinct for point in sweep.points] == [12, 3]
    worst = min(point.agreement for point in sweep.points)
    best = max(point.agreement for point in sweep.points)
    assert sweep.smallest_within(1 - worst) == sweep.points[-1]
    assert sweep.smallest_within(1 - best - 0.001) is None


def test_smallest_within_takes_the_fewest_clusters_that_are_close_enough() -> None:
    """A drop of exactly the limit is allowed; a lucky point below an unlucky one counts."""
    figures = {8: 0.98, 4: 0.96, 3: 0.97, 2: 0.5}
    points = [ClusterPoint(k, value, 1.0, 1.0, k, 1.0) for k, value in figures.items()]
    sweep = ClusterSweep(tuple(points), 0.98, 100)
    expected = {0.0: 8, 0.01: 3, 0.02: 3, 0.48: 2}
    for drop, clusters in expected.items():
        found = sweep.smallest_within(drop)
        assert found is not None
        assert found.clusters == clusters
    assert ClusterSweep((points[-1],), 0.98, 100).smallest_within(0.1) is None


def test_the_four_layer_network_keeps_its_accuracy_with_156_values() -> None:
    """39 values in each of four layers cost at most one point of accuracy."""
    target = load_target("four-layer")
    images, labels = mnist.test_set()
    held_out = Samples(images[:2000], labels[:2000], "MNIST test images")
    sweep = sweep_clusters(target, [39], held_out)
    assert sweep.points[0].distinct == 156
    assert sweep.dense_distinct > 48_000
    assert sweep.smallest_within(0.01) == sweep.points[0]


@pytest.mark.parametrize(
    ("clusters", "message"),
    [
        (0, r"clusters: .*1.*0.*'0\.weight'"),
        (True, "clusters: .*1"),
        ({"0.weight": 2.5}, r"clusters: .*1.*2\.5"),
        ({"0.wieght": 2}, r"clusters: .*'0\.wieght'.*'0\.weight'"),
        ({}, r"clusters: .*0"),
    ],
)
def test_wrong_numbers_of_clusters(clusters: int | dict[str, int], message: str) -> None:
    """A number that makes no sense, or a layer without one, is named."""
    with pytest.raises(InputError, match=message):
        cluster_weights(one_layer([1.0, 2.0]), None, clusters)


def test_wrong_masks_and_empty_sweeps() -> None:
    """Masks must fit the layers, and a sweep needs counts and inputs."""
    target = one_layer([1.0, 2.0])
    with pytest.raises(InputError, match=r"masks: unknown name '1\.weight'"):
        cluster_weights(target, {"1.weight": torch.ones(1, 2, dtype=torch.bool)}, 2)
    with pytest.raises(InputError, match=r"\['0\.weight'\].*\(1, 2\)"):
        cluster_weights(target, {"0.weight": torch.ones(1, 2)}, 2)
    cases: tuple[tuple[list[int], Tensor, str], ...] = (
        ([], torch.rand(3, 2), "counts: "),
        ([2], torch.rand(0, 2), "held_out: "),
    )
    for counts, inputs, argument in cases:
        with pytest.raises(InputError, match=argument):
            sweep_clusters(target, counts, Samples(inputs, None, "a test"))


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing package is named with the extra that brings it."""
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(GapruneError, match=r"'gaprune\[compare\]'"):
        cluster_weights(one_layer([1.0, 2.0, 3.0]), None, 2)
