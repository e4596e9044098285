"""Weight clustering: k-means codebooks per layer, what they cost, and how few values do."""

from __future__ import annotations

import sys
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_cases import seeded, tiny_model
from torch import Tensor, nn

from gaprune.calibration.samples import Samples
from gaprune.errors import GapruneError, InputError
from gaprune.exports.clustering import (
    BINS,
    ClusterPoint,
    ClusterSweep,
    Codebooks,
    cluster_weights,
    sweep_clusters,
)
from gaprune.masks.supermask import top_k_mask
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import Target, target_from_module


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
    """Return a strategy for lists of distinct float32 values."""
    numbers = st.integers(-1000, 1000).map(lambda number: number / 100)
    return st.lists(numbers, min_size=smallest, max_size=largest, unique=True)


@pytest.mark.slow
@settings(max_examples=15)
@given(st.lists(st.integers(-2, 2), min_size=1, max_size=4), st.integers(1, 2))
def test_separated_groups_reach_the_optimum(shifts: list[int], spread: int) -> None:
    """For well separated groups the loss equals that of brute force."""
    centres = [10 * index + shift for index, shift in enumerate(shifts)]
    values = [centre + offset / 100 for centre in centres for offset in range(-spread, spread)]
    target = one_layer(values)
    clustered = cluster_weights(target, None, len(centres)).state()["0.weight"]
    assert squares(target, clustered) == pytest.approx(optimum(values, len(centres)), rel=1e-3)


@settings(max_examples=25)
@given(distinct_lists(1, 30), st.integers(1, 8))
def test_clusters_are_a_fixed_point_of_lloyds_algorithm(values: list[float], clusters: int) -> None:
    """Weights take the nearest centroid, centroids are means, and no cluster is empty."""
    target = one_layer(values)
    book = cluster_weights(target, None, clusters).layers["0.weight"]
    weights = target.weights["0.weight"].flatten()
    assert len(book.centroids) == min(clusters, len(values))
    assert torch.equal(book.centroids, book.centroids.unique())
    for index, centroid in enumerate(book.centroids):
        members = weights[book.assignment == index]
        assert float(members.mean()) == pytest.approx(float(centroid), abs=1e-5)
    nearest = (weights[:, None] - book.centroids).abs().min(1).values
    distance = (weights - book.centroids[book.assignment]).abs()
    assert torch.allclose(distance, nearest, atol=1e-5)


def test_an_outlier_leaves_centroids_for_other_weights() -> None:
    """One weight of 1e6 takes one centroid; the histogram still resolves the others."""
    values = torch.cat([torch.randn(3 * BINS, generator=seeded()), torch.tensor([1e6])])
    target = one_layer(values.tolist())
    rest = cluster_weights(target, None, 9).state()["0.weight"][0, :-1]
    assert len(rest.unique()) == 8
    assert (rest - values[:-1]).square().mean() < 0.1  # one centroid for all would leave 1


def test_the_example_of_deep_compression() -> None:
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
    """An index per kept weight, a mask bit per weight, 32 bits per centroid."""
    target = target_from_module(tiny_model(), inputs=InputOptions(shape=(6,)))
    keep = {"0.weight": 40, "2.weight": 30, "4.weight": 3}
    masks = {name: top_k_mask(weight.abs(), keep[name]) for name, weight in target.weights.items()}
    books = cluster_weights(target, masks, {"0.weight": 5, "2.weight": 16, "4.weight": 16})
    stored = (40 * 3 + 5 * 32) + (30 * 4 + 16 * 32) + 3 * 32  # three weights need no indices
    assert books.keep_count == 73
    assert books.bits_per_weight == pytest.approx(stored / 73)
    assert books.compression == pytest.approx(200 * 32 / (stored + 200))
    assert [distinct(books, name) for name in books.layers] == [5, 16, 3]


def test_few_values_stay_unchanged() -> None:
    """A layer with at most `clusters` distinct values keeps them bit for bit."""
    target = target_of([[0.1, -0.7, 0.1], [0.3, 0.3, 1e-30]])
    books = cluster_weights(target, None, 4)
    assert torch.equal(books.state()["0.weight"], target.weights["0.weight"])
    assert books.distinct == 4


def test_biases_are_clustered_on_request() -> None:
    """With `biases` a bias shares the codebook of its layer; without, it stays."""
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


def test_clustering_copies_the_model() -> None:
    """The dense network stays; the copy is frozen and equals the state."""
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


def test_a_sweep_measures_each_count_once() -> None:
    """From many clusters to few; each point equals a direct measurement."""
    target = target_from_module(tiny_model(), inputs=InputOptions(shape=(6,)))
    inputs = torch.rand(100, 6, generator=seeded())
    with torch.no_grad():
        labels = target.model(inputs).argmax(1)
        labels[:10] = (labels[:10] + 1) % 4  # the dense network is wrong on a tenth
    points: list[ClusterPoint] = []
    held_out = Samples(inputs, labels, "a test")
    sweep = sweep_clusters(target, [2, 64, 2, 8], held_out, on_point=points.append)
    assert [point.clusters for point in points] == [64, 8, 2]
    assert sweep.points == tuple(points)
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


def test_smallest_within_takes_the_fewest_clusters_within_the_drop() -> None:
    """A drop of exactly the limit is allowed."""
    figures = {8: 0.98, 4: 0.96, 3: 0.97, 2: 0.5}
    points = [ClusterPoint(k, value, 1.0, 1.0, k, 1.0) for k, value in figures.items()]
    sweep = ClusterSweep(tuple(points), 0.98, 100)
    expected = {0.0: 8, 0.01: 3, 0.02: 3, 0.48: 2}
    for drop, clusters in expected.items():
        point = sweep.smallest_within(drop)
        assert point is not None
        assert point.clusters == clusters
    assert ClusterSweep((points[-1],), 0.98, 100).smallest_within(0.1) is None


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
    """The error names the layer and the number."""
    with pytest.raises(InputError, match=message):
        cluster_weights(one_layer([1.0, 2.0]), None, clusters)


def test_wrong_masks_and_empty_sweeps() -> None:
    """Masks must fit the layers; a sweep needs counts and inputs."""
    target = one_layer([1.0, 2.0])
    with pytest.raises(InputError, match=r"masks: .*'1\.weight'"):
        cluster_weights(target, {"1.weight": torch.ones(1, 2, dtype=torch.bool)}, 2)
    with pytest.raises(InputError, match=r"\['0\.weight'\].*\(1, 2\)"):
        cluster_weights(target, {"0.weight": torch.ones(1, 2)}, 2)
    with pytest.raises(InputError, match="counts: "):
        sweep_clusters(target, [], Samples(torch.rand(3, 2), None, "a test"))
    with pytest.raises(InputError, match="held_out: "):
        sweep_clusters(target, [2], Samples(torch.rand(0, 2), None, "a test"))


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the extra that installs it."""
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(GapruneError, match=r"'gaprune\[compare\]'"):
        cluster_weights(one_layer([1.0, 2.0, 3.0]), None, 2)
