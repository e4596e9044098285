"""Model folding: clusters of similar channels become one channel (Wang et al., ICLR 2025)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from gaprune.comparison.methods.coupled_weights import (
    ChannelPosition,
    channel_tensors,
    input_columns,
    output_rows,
    positions,
)
from gaprune.exports.clustering import fitted_k_means
from gaprune.models.channel_groups import ChannelGroup
from gaprune.models.target import Target
from gaprune.repair.repair_sites import norms_behind

STARTS = 10  # of k-means; the best one is taken


@torch.no_grad()
def folded(
    target: Target, groups: Sequence[ChannelGroup], counts: Sequence[int], seed: int
) -> tuple[nn.Module, Tensor]:
    """Fold `counts[i]` clusters of channels out of every group.

    Channels are clustered by k-means on the weights that compute and read them. The first one of a
    cluster becomes their mean, in every layer that computes it, and is read by the sum of what read
    them. Running variances are those of the mean (`_variances`); nothing else is corrected.

    Returns:
        A network of full size, and the channels that stand for a cluster, bool `[units]`; what the
        others hold is not defined.
    """
    model, norms = copy.deepcopy(target.model), norms_behind(target.model, target.example())
    masks, parts = [], []
    for group, count in zip(groups, counts, strict=True):
        outputs, inputs = positions(group, target.device)
        clusters = _clusters(_features(target.model, outputs, inputs), count, seed)
        membership = functional.one_hot(clusters, count).T.to(target.device)
        first = membership.argmax(1)
        for layer, channels in inputs:
            columns = input_columns(model.get_submodule(layer))
            sums = _mixed(membership, columns[channels])
            columns[channels] = 0
            columns[channels[first]] = sums
        masks.append(torch.zeros(len(group.channels), dtype=torch.bool))
        masks[-1][first.cpu()] = True
        parts.append((outputs, membership / membership.sum(1, keepdim=True), first))
    for outputs, means, first in parts:  # filters read what is left now
        variances = _variances(model, outputs, norms, means)
        for layer, channels in outputs:
            for rows in channel_tensors(model.get_submodule(layer)):
                rows[channels[first]] = _mixed(means, rows[channels])
        for layer, (channels, values) in variances.items():
            variance = model.get_submodule(layer).get_buffer("running_var")
            variance[channels[first]] = values.to(variance)
    return model, torch.cat(masks)


def _features(
    model: nn.Module, outputs: Sequence[ChannelPosition], inputs: Sequence[ChannelPosition]
) -> Tensor:
    """Return the weights and biases that compute and read every channel, `[channels, values]`."""
    parts = [
        rows[channels].reshape(len(channels), -1)
        for layer, channels in outputs
        for name in ("weight", "bias")
        if not isinstance(module := model.get_submodule(layer), _BatchNorm)
        and (rows := output_rows(module, name)) is not None
    ]
    for layer, channels in inputs:
        parts.append(input_columns(model.get_submodule(layer))[channels].flatten(1))
    return torch.cat(parts, 1)


def _clusters(features: Tensor, count: int, seed: int) -> Tensor:
    """Return the cluster of every channel, int64, none empty."""
    points = features.double().cpu().numpy()
    labels = fitted_k_means(points, count, n_init=STARTS, random_state=seed).labels_
    for empty in set(range(count)) - set(labels.tolist()):  # there are fewer different channels
        labels[np.flatnonzero(labels == np.bincount(labels).argmax())[-1]] = empty
    return torch.from_numpy(labels.astype(np.int64))


def _variances(
    model: nn.Module,
    outputs: Sequence[ChannelPosition],
    norms: Mapping[str, str],
    means: Tensor,
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return BatchNorm → its channels, and the variance of what each cluster's mean computes.

    The variance of a mean is below the mean variance unless channels are the same. For inputs
    without correlation ("Fold-AR"), channels correlate as much as the cosine of their filters.
    """
    channels_of = dict(outputs)
    variances = {}
    for layer, channels in outputs:
        norm = model.get_submodule(norms.get(layer, ""))
        if norms.get(layer) not in channels_of or getattr(norm, "running_var", None) is None:
            continue
        filters = output_rows(model.get_submodule(layer), "weight")
        assert filters is not None
        cosines = functional.normalize(filters[channels].flatten(1).double(), dim=1)
        normed = channels_of[norms[layer]]
        spreads = norm.get_buffer("running_var")[normed].double().sqrt()
        covariance = cosines @ cosines.T * spreads * spreads[:, None]
        values = ((means.double() @ covariance) * means).sum(1)
        variances[norms[layer]] = normed, values
    return variances


def _mixed(factors: Tensor, values: Tensor) -> Tensor:
    """Return `[clusters, …]` combinations of `[channels, …]`, in the dtype of the values."""
    mixed = factors.double() @ values.double().reshape(len(values), -1)
    return mixed.view(-1, *values.shape[1:]).to(values)
