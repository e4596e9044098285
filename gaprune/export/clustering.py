"""Weight clustering: each layer's weights become a few shared values (Han et al. 2015, sec. 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gaprune.calibration.samples import Samples
from gaprune.errors import GapruneError, InputError, unknown_name
from gaprune.evaluation.held_out import HeldOut, HeldOutScore
from gaprune.export.codebooks import Codebook, Codebooks
from gaprune.masks.supermask import check_masks
from gaprune.models.target import Target

__all__ = [
    "ClusterPoint",
    "ClusterSweep",
    "Codebook",
    "Codebooks",
    "cluster_weights",
    "shared_values",
    "sweep_clusters",
]

SUMMARY = 1 << 13  # bins of equal width, and as many of equal count, that k-means sees at most
MAX_STEPS = 300  # of Lloyd's algorithm

Values = NDArray[np.float64]


def cluster_weights(
    target: Target,
    masks: Mapping[str, Tensor] | None,
    clusters: int | Mapping[str, int],
    *,
    biases: bool = False,
) -> Codebooks:
    """Replace the kept weights of each layer by the centroids of a k-means of their values.

    Centroids start evenly spaced from the smallest to the largest kept weight of the layer (Han et
    al. 2015, section 3.2, linear initialisation); nothing is drawn at random, and they are not
    trained afterwards (section 3.3), which would take data. A layer with no more different values
    than clusters keeps its own. What the masks drop becomes 0 and takes no place in a codebook; a
    network that is pruned already needs its masks (`weight != 0`) to stay so.

    Args:
        target: the dense network; stays as it is.
        masks: parameter name → bool, True where kept; a layer without one is kept whole.
        clusters: centroids per layer, at least 1; for all layers, or by the name of its weight.
        biases: let the bias of a layer share the layer's codebook; else biases stay as they are.

    Raises:
        InputError: a name or a mask that does not fit, a number below 1, a layer left out.
        GapruneError: scikit-learn is not installed.
    """
    wanted = _cluster_counts(target, clusters)
    layers, shapes = {}, {}
    for layer in _values_by_layer(target, masks or {}, biases=biases):
        centroids, assignment = shared_values(layer.values[layer.kept], wanted[layer.name])
        size = len(layer.values)
        book = Codebook(layer.name, layer.parts, size, centroids, assignment, layer.kept)
        layers[layer.name] = book
        shapes.update({part: target.model.get_parameter(part).shape for part in layer.parts})
    return Codebooks(layers, shapes, masked=bool(masks))


@dataclass(frozen=True)
class ClusterPoint:
    """What a number of clusters per layer costs and keeps.

    Attributes:
        clusters: asked per layer.
        accuracy: on the held-out labels, or None without labels.
        agreement: with the dense network on the same inputs (see `Objective.judge`).
        bits_per_weight: see `Codebooks`.
        distinct: values other than 0 in the network.
        compression: see `Codebooks`.
    """

    clusters: int
    accuracy: float | None
    agreement: float
    bits_per_weight: float
    distinct: int
    compression: float


@dataclass(frozen=True)
class ClusterSweep:
    """Clustering from many to few clusters per layer.

    Attributes:
        points: from many clusters to few.
        dense_accuracy: of the whole network on the same inputs; None without labels.
        dense_distinct: different values other than 0 before clustering, of those that are kept.
    """

    points: tuple[ClusterPoint, ...]
    dense_accuracy: float | None
    dense_distinct: int

    def smallest_within(self, max_drop: float) -> ClusterPoint | None:
        """Return the point of fewest clusters that loses at most `max_drop`, or None.

        The loss is dense accuracy − accuracy; without labels it is 1 − agreement.
        """
        dense = HeldOutScore(self.dense_accuracy, 1.0)
        close = [
            point
            for point in self.points
            if HeldOutScore(point.accuracy, point.agreement).within(dense, max_drop)
        ]
        return min(close, key=lambda point: point.clusters, default=None)

    def rows(self) -> list[dict[str, float | None]]:
        """Return the points as plain data."""
        return [dict(vars(point)) for point in self.points]


def sweep_clusters(
    target: Target,
    counts: Sequence[int],
    held_out: Samples,
    masks: Mapping[str, Tensor] | None = None,
    on_point: Callable[[ClusterPoint], None] | None = None,
    *,
    biases: bool = False,
) -> ClusterSweep:
    """Cluster the same weights with different numbers of clusters per layer.

    Args:
        target: the dense network; stays as it is.
        counts: clusters per layer, in any order; repeated ones are tried once.
        held_out: what accuracy and agreement are measured on.
        masks: see `cluster_weights`.
        on_point: is told each point as soon as it is there.
        biases: see `cluster_weights`.

    Raises:
        InputError: nothing to try or to measure on, or `cluster_weights` objects.
        GapruneError: scikit-learn is not installed.
    """
    if not counts:
        raise InputError("counts: name at least one number of clusters, such as 16")
    judge = HeldOut(target, held_out)
    points = []
    for count in sorted(set(counts), reverse=True):
        books = cluster_weights(target, masks, count, biases=biases)
        score = judge.measure(books.model(target))
        point = ClusterPoint(
            clusters=count,
            accuracy=score.accuracy,
            agreement=score.agreement,
            bits_per_weight=books.bits_per_weight,
            distinct=books.distinct,
            compression=books.compression,
        )
        points.append(point)
        if on_point is not None:
            on_point(point)
    layers = _values_by_layer(target, masks or {}, biases=biases)
    distinct = torch.cat([layer.values[layer.kept] for layer in layers]).unique()
    return ClusterSweep(tuple(points), judge.dense.accuracy, int(distinct.count_nonzero()))


class _Layer(NamedTuple):
    name: str
    parts: tuple[str, ...]
    values: Tensor
    kept: Tensor


def _values_by_layer(
    target: Target, masks: Mapping[str, Tensor], *, biases: bool
) -> Iterator[_Layer]:
    """Yield the values that share a codebook, flat, and which of them are kept."""
    check_masks(masks, target.weights)
    parameters = dict(target.model.named_parameters())
    for name in target.layout.names:
        bias = f"{name.removesuffix('weight')}bias"
        joins = biases and name.endswith("weight") and bias in parameters
        parts = (name, bias) if joins and bias not in target.weights else (name,)
        values = torch.cat([parameters[part].detach().reshape(-1) for part in parts])
        kept = torch.ones_like(values, dtype=torch.bool)
        if name in masks:
            kept[: masks[name].numel()] = masks[name].reshape(-1)
        yield _Layer(name, parts, values, kept)


def _cluster_counts(target: Target, clusters: int | Mapping[str, int]) -> Mapping[str, int]:
    names = target.layout.names
    wanted = dict.fromkeys(names, clusters) if isinstance(clusters, int) else dict(clusters)
    for name, count in wanted.items():
        if name not in names:
            raise unknown_name("clusters", name, names)
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError(f"clusters: must be whole numbers from 1, got {count!r} for {name!r}")
    if missing := [name for name in names if name not in wanted]:
        raise InputError(
            f"clusters: every layer needs a number, and {', '.join(missing)} has none; "
            "give one number for all, or one for each"
        )
    return wanted


def shared_values(kept: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Return the centroids `[k]` of values `[n]`, ascending, and each value's centroid `[n]`.

    Raises:
        GapruneError: scikit-learn is not installed.
    """
    own = kept.unique()
    if len(own) <= clusters:
        return own, torch.searchsorted(own, kept)
    values = kept.double().cpu().numpy()
    centroids = _k_means(values, clusters)
    nearest = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, values)
    counts = np.bincount(nearest, minlength=clusters)
    sums = np.bincount(nearest, values, minlength=clusters)
    means = torch.from_numpy((sums / np.maximum(counts, 1))[counts > 0]).to(kept)
    shared, place = means.unique(return_inverse=True)  # halves may round two means to one
    used = torch.from_numpy(np.cumsum(counts > 0) - 1)[torch.from_numpy(nearest)]
    return shared, place[used.to(kept.device)]


def _k_means(values: Values, clusters: int) -> Values:
    """Return k ascending centroids: Lloyd's algorithm from evenly spaced ones, on a summary."""
    try:
        from sklearn.cluster import KMeans  # noqa: PLC0415 - an optional extra
        from threadpoolctl import (  # type: ignore[import-untyped]  # noqa: PLC0415
            threadpool_limits,
        )
    except ImportError as error:
        raise GapruneError(
            "clustering: needs scikit-learn; pip install 'gaprune[compare]'"
        ) from error
    points, weights = _summary(np.sort(values))
    start = np.linspace(values.min(), values.max(), clusters)[:, None]
    fit = KMeans(clusters, init=start, n_init=1, max_iter=MAX_STEPS, tol=0, random_state=0)
    with threadpool_limits(limits=1):  # threads add up in any order, and sums round differently
        fit.fit(points[:, None], sample_weight=weights)
    found: Values = np.sort(fit.cluster_centers_.astype(np.float64).ravel())
    return found


def _summary(ordered: Values) -> tuple[Values, Values]:
    """Return points that stand for ascending values, and how many each stands for.

    Few values stand for themselves. Of many, neighbours share a bin that stands for them by their
    mean: bins of equal width resolve the tails, bins of equal count what outliers crowd together.
    """
    if len(ordered) <= SUMMARY:
        return ordered, np.ones(len(ordered))
    edges = np.linspace(ordered[0], ordered[-1], SUMMARY)[1:-1]
    even = np.linspace(0, len(ordered), SUMMARY, endpoint=False).astype(np.int64)
    starts = np.union1d(np.searchsorted(ordered, edges), even)
    starts = starts[starts < len(ordered)]
    counts = np.diff(np.append(starts, len(ordered))).astype(np.float64)
    return np.add.reduceat(ordered, starts) / counts, counts
