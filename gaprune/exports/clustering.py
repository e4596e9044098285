"""Weight clustering: each layer's weights become a few shared values (Han et al. 2015, sec. 3)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from gaprune.calibration.samples import Samples
from gaprune.errors import GapruneError, InputError, unknown_name
from gaprune.evaluation.held_out import HeldOut, HeldOutScore
from gaprune.masks.supermask import check_masks
from gaprune.models.target import Target

FLOAT_BITS = 32  # of a weight in the dense network, and of a centroid
BINS = 1 << 13  # of equal width, and as many of equal count: what k-means gets at most
MAX_STEPS = 300  # of Lloyd's algorithm

Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Codebook:
    """The shared values of one layer, and which weight takes which."""

    name: str  # of the layer's weight parameter
    parts: tuple[str, ...]  # the parameters that share it: the weight, and its bias if requested
    size: int  # number of values in all of them, kept or not
    centroids: Tensor = field(repr=False)  # `[k]` in the weights' dtype, ascending, all different
    assignment: Tensor = field(repr=False)  # int64 `[n]`: centroid of each kept value, in order
    # bool `[size]`: all other values are exactly 0 and take no part in clustering
    keep_mask: Tensor = field(repr=False)

    @property
    def bits(self) -> int:
        """Bits of indices and codebook, n · ⌈log₂ k⌉ + 32 · k; without the mask.

        A layer whose kept values all differ stores them unchanged, 32 bits each.
        """
        count, shared = len(self.assignment), len(self.centroids)
        if count == shared:
            return count * FLOAT_BITS
        index_bits = max(0, shared - 1).bit_length()  # ⌈log₂ k⌉
        return count * index_bits + shared * FLOAT_BITS

    def values(self) -> Tensor:
        """Return all values of the layer, `[size]`: centroids where kept, else 0."""
        flat = self.centroids.new_zeros(self.size)
        flat[self.keep_mask] = self.centroids[self.assignment]
        return flat


@dataclass(frozen=True, eq=False)
class Codebooks:
    """A network whose weights are shared values, layer by layer."""

    layers: Mapping[str, Codebook]  # one codebook per layer, by the name of its weight
    shapes: Mapping[str, torch.Size]  # of every clustered parameter
    masked: bool  # whether masks were given, which must then be stored, too

    def state(self) -> dict[str, Tensor]:
        """Return the clustered parameters by name; pruned weights are exactly 0."""
        state = {}
        for book in self.layers.values():
            sizes = [self.shapes[name].numel() for name in book.parts]
            for name, values in zip(book.parts, book.values().split(sizes), strict=True):
                state[name] = values.view(self.shapes[name])
        return state

    def model(self, target: Target) -> nn.Module:
        """Return a frozen copy of the target's network with the clustered parameters."""
        model = copy.deepcopy(target.model)
        for name, values in self.state().items():
            model.get_parameter(name).copy_(values)  # in place, so that tied parameters follow
        return model

    @property
    def distinct(self) -> int:
        """Number of different values other than 0 among the clustered parameters."""
        shared = [book.centroids for book in self.layers.values()]
        return int(torch.cat(shared).unique().count_nonzero())

    @property
    def keep_count(self) -> int:
        """Number of clustered values that the masks keep."""
        return sum(len(book.assignment) for book in self.layers.values())

    @property
    def bits_per_weight(self) -> float:
        """Bits of indices and codebooks per kept weight, without the mask."""
        return sum(book.bits for book in self.layers.values()) / max(1, self.keep_count)

    @property
    def compression(self) -> float:
        """Bits of the dense clustered layers at 32 each, over what is stored now.

        Without masks it is n · b / (n · ⌈log₂ k⌉ + k · b), summed over layers in numerator and
        denominator (Han et al. 2015, eq. 1). With masks, only kept weights have indices, and the
        mask itself counts 1 bit per weight.
        """
        size = sum(book.size for book in self.layers.values())
        stored = sum(book.bits for book in self.layers.values())
        if self.masked:
            stored += sum(self.shapes[name].numel() for name in self.layers)  # 1 bit per weight
        return size * FLOAT_BITS / stored


def cluster_weights(
    target: Target,
    masks: Mapping[str, Tensor] | None,
    clusters: int | Mapping[str, int],
    *,
    biases: bool = False,
) -> Codebooks:
    """Replace the kept weights of each layer by the centroids of a k-means of their values.

    Centroids start evenly spaced from the smallest to the largest kept weight of the layer (Han et
    al. 2015, section 3.2, linear initialisation), so nothing is random. They are not trained
    afterwards (section 3.3), which would need data. A layer with no more different values than
    clusters keeps its own. Pruned weights become 0 and take no part.

    Args:
        target: the dense network; stays unchanged.
        masks: parameter name → bool, True where kept; a layer without one is kept whole.
        clusters: centroids per layer, at least 1; for all layers, or by the name of its weight.
        biases: whether the bias of a layer shares the layer's codebook.

    Raises:
        InputError: a name or a mask that does not fit, a number below 1, a layer left out.
        GapruneError: scikit-learn is not installed.
    """
    counts = _cluster_counts(target, clusters)
    layers, shapes = {}, {}
    for layer in _layer_values(target, masks or {}, biases=biases):
        centroids, assignment = shared_values(layer.values[layer.keep_mask], counts[layer.name])
        size = len(layer.values)
        book = Codebook(layer.name, layer.parts, size, centroids, assignment, layer.keep_mask)
        layers[layer.name] = book
        shapes.update({part: target.model.get_parameter(part).shape for part in layer.parts})
    return Codebooks(layers, shapes, masked=bool(masks))


@dataclass(frozen=True)
class ClusterPoint:
    """Cost and quality of a number of clusters per layer; costs are those of `Codebooks`."""

    clusters: int  # requested per layer
    accuracy: float | None  # on the held-out labels, or None without labels
    agreement: float  # with the dense network on the same inputs
    bits_per_weight: float
    distinct: int
    compression: float


@dataclass(frozen=True)
class ClusterSweep:
    """Points from many to few clusters per layer."""

    points: tuple[ClusterPoint, ...]  # by falling number of clusters
    dense_accuracy: float | None  # of the dense network on the same inputs; None without labels
    dense_distinct: int  # different kept values other than 0 before clustering

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
    """Cluster the same weights with different numbers of clusters per layer, each tried once.

    Accuracy and agreement are measured on `held_out`; `on_point` receives each point as soon as it
    is measured. The other arguments and the errors are those of `cluster_weights`.
    """
    if not counts:
        raise InputError("counts: name at least one number of clusters, such as 16")
    test = HeldOut(target, held_out)
    points = []
    for count in sorted(set(counts), reverse=True):
        books = cluster_weights(target, masks, count, biases=biases)
        score = test.measure(books.model(target))
        costs = books.bits_per_weight, books.distinct, books.compression
        points.append(ClusterPoint(count, score.accuracy, score.agreement, *costs))
        if on_point is not None:
            on_point(points[-1])
    layers = _layer_values(target, masks or {}, biases=biases)
    distinct = torch.cat([layer.values[layer.keep_mask] for layer in layers]).unique()
    return ClusterSweep(tuple(points), test.dense.accuracy, int(distinct.count_nonzero()))


class _LayerValues(NamedTuple):
    name: str
    parts: tuple[str, ...]
    values: Tensor
    keep_mask: Tensor


def _layer_values(
    target: Target, masks: Mapping[str, Tensor], *, biases: bool
) -> Iterator[_LayerValues]:
    """Yield the values that share a codebook, flat, and which of them are kept."""
    check_masks(masks, target.weights)
    parameters = dict(target.model.named_parameters())
    for name in target.layout.names:
        bias = f"{name.removesuffix('weight')}bias"
        shares = biases and name.endswith("weight") and bias in parameters
        # a bias that is prunable itself has a codebook of its own
        parts = (name, bias) if shares and bias not in target.weights else (name,)
        values = torch.cat([parameters[part].detach().reshape(-1) for part in parts])
        keep_mask = torch.ones_like(values, dtype=torch.bool)
        if name in masks:
            keep_mask[: masks[name].numel()] = masks[name].reshape(-1)
        yield _LayerValues(name, parts, values, keep_mask)


def _cluster_counts(target: Target, clusters: int | Mapping[str, int]) -> Mapping[str, int]:
    names = target.layout.names
    counts = dict.fromkeys(names, clusters) if isinstance(clusters, int) else dict(clusters)
    for name, count in counts.items():
        if name not in names:
            raise unknown_name("clusters", name, names)
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise InputError(f"clusters: must be whole numbers from 1, got {count!r} for {name!r}")
    if missing := [name for name in names if name not in counts]:
        raise InputError(
            f"clusters: every layer needs a number, and {', '.join(missing)} has none; "
            "give one number for all, or one for each"
        )
    return counts


def shared_values(values: Tensor, clusters: int) -> tuple[Tensor, Tensor]:
    """Return the centroids `[k]` of values `[n]`, ascending, and each value's centroid `[n]`."""
    distinct = values.unique()  # ascending
    if len(distinct) <= clusters:
        return distinct, torch.searchsorted(distinct, values)
    points = values.double().cpu().numpy()
    centroids = _k_means(points, clusters)
    # k-means saw a summary: assign every value, and take the mean of its actual members
    # borders lie halfway between centroids
    nearest = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, points)
    counts = np.bincount(nearest, minlength=clusters)
    sums = np.bincount(nearest, points, minlength=clusters)
    means = torch.from_numpy((sums / np.maximum(counts, 1))[counts > 0]).to(values)
    shared, position = means.unique(return_inverse=True)  # float16 may round two means to one
    used = torch.from_numpy(np.cumsum(counts > 0) - 1)[torch.from_numpy(nearest)]
    return shared, position[used.to(values.device)]


def _k_means(values: Values, clusters: int) -> Values:
    """Return k ascending centroids: Lloyd's algorithm from evenly spaced ones, on a summary."""
    points, weights = _summary(np.sort(values))
    # linear initialisation, section 3.2
    start = np.linspace(values.min(), values.max(), clusters)[:, None]
    options = {"init": start, "n_init": 1, "max_iter": MAX_STEPS, "tol": 0, "random_state": 0}
    fit = fitted_k_means(points[:, None], clusters, weights, **options)
    centroids: Values = np.sort(fit.cluster_centers_.astype(np.float64).ravel())
    return centroids


def fitted_k_means(
    points: Values, clusters: int, weights: Values | None = None, **options: Any
) -> Any:  # noqa: ANN401 - the class of an optional extra
    """Return scikit-learn's `KMeans(clusters, **options)` of points `[N, features]`.

    Raises:
        GapruneError: scikit-learn is not installed.
    """
    try:
        from sklearn.cluster import KMeans  # noqa: PLC0415 - an optional extra
        from threadpoolctl import (  # type: ignore[import-untyped]  # noqa: PLC0415
            threadpool_limits,
        )
    except ImportError as error:
        text = "clustering: needs scikit-learn; pip install 'gaprune[compare]'"
        raise GapruneError(text) from error
    with threadpool_limits(limits=1):  # with more threads the order of additions is not fixed
        return KMeans(clusters, **options).fit(points, sample_weight=weights)


def _summary(ordered: Values) -> tuple[Values, Values]:
    """Return points that stand for ascending values, and how many values each stands for.

    Up to `BINS` values are returned unchanged. Of more, neighbours share a bin with their mean:
    bins of equal width resolve the tails, bins of equal count resolve dense regions.
    """
    if len(ordered) <= BINS:
        return ordered, np.ones(len(ordered))
    edges = np.linspace(ordered[0], ordered[-1], BINS)[1:-1]  # equal width
    even = np.linspace(0, len(ordered), BINS, endpoint=False).astype(np.int64)  # equal count
    starts = np.union1d(np.searchsorted(ordered, edges), even)
    starts = starts[starts < len(ordered)]
    counts = np.diff(np.append(starts, len(ordered))).astype(np.float64)
    return np.add.reduceat(ordered, starts) / counts, counts
