"""Repair after pruning: corrects a network's statistics, biases and norms on calibration inputs.

Pruning changes the mean and the spread of activations, and the change grows from layer to layer.
Dense and pruned network see the same calibration inputs, so the difference of their statistics is
the effect of pruning alone; whatever is unusual about the inputs cancels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter

import torch
from torch import Tensor, nn

from gaprune.errors import GapruneError, InputError
from gaprune.masks.supermask import check_masks, masked_weights
from gaprune.models.channel_readers import find_readers
from gaprune.models.forward import functional_call
from gaprune.models.layer_kinds import qualified_name
from gaprune.models.patterns import channels_of
from gaprune.models.target import Target
from gaprune.pattern_names import CHANNEL
from gaprune.repair.channel_statistics import ChannelStatistics
from gaprune.repair.compensation import compensated_weights, without_fitted
from gaprune.repair.dense_statistics import (
    DenseStatistics,
    correct_sites,
    measure_dense,
    pool_chunks,
)
from gaprune.repair.repair_sites import RepairRule, find_repair_sites


@dataclass(frozen=True)
class RepairResult:
    """The values that repair writes into a pruned network.

    Attributes:
        state: qualified name → new value, only of buffers and parameters that change; `repair`
            returns CPU tensors. After compensation, those of weights too.
    """

    state: dict[str, Tensor] = field(repr=False)
    changed: tuple[str, ...]  # names of what changes, in order of execution
    skipped: tuple[str, ...]  # "name: reason", for modules that cannot be repaired


def repair(
    target: Target,
    masks: Mapping[str, Tensor],
    calibration: Tensor,
    compensate: str | None = None,
) -> RepairResult:
    """Repair a pruned network on calibration inputs; prunable parameters keep their bits.

    With `compensate`, the pattern of the masks, they do not: before, kept weights make up for
    removed ones (`compensation`).

    Each site is corrected while the data pass it, so later corrections are measured behind earlier
    ones. One pass is exact where all calibration inputs fit into one chunk; otherwise each chunk is
    compared to the dense statistics on the same chunk, and the measurements are pooled.

    `masks` are bool masks of prunable parameters by name, `calibration` inputs `[N, …]` as the
    network takes them.

    Raises:
        InputError: no inputs, a mask of another name, shape or dtype, or no removable channels.
        GapruneError: the network overflows on these inputs.
    """
    if len(calibration) == 0:
        raise InputError("calibration: repair needs inputs [N, …], got none")
    check_masks(masks, target.weights)
    calibration = calibration.to(target.device)
    sites = find_repair_sites(target.model, calibration, target.weights, target.inputs.padding)
    dense = measure_dense(target.model, sites, calibration)
    # Masks come from the CPU, whatever the device of the network.
    moved = {name: mask.to(target.device) for name, mask in masks.items()}
    weights = masked_weights({name: target.weights[name] for name in masks}, moved)
    changed = {}
    if compensate is not None:
        channels = compensate == CHANNEL
        readers = find_readers(target.model, channels_of(target)) if channels else None
        changed = compensated_weights(target.model, weights, readers, dense)
    left = without_fitted(dense, changed)
    result = repair_candidate(target.model, {**weights, **changed}, left)
    state = {name: value.cpu() for name, value in {**changed, **result.state}.items()}
    return replace(result, state=state, changed=tuple(state))


@torch.no_grad()
def repair_candidate(
    model: nn.Module, weights: Mapping[str, Tensor], dense: DenseStatistics
) -> RepairResult:
    """Repair a candidate on the inputs of `dense`; see `repair`.

    `weights` are masked parameters that replace those of the dense network, by qualified name.

    Raises:
        GapruneError: the network overflows on these inputs.
    """
    chunks = []
    for inputs, statistics in dense.by_chunk():
        with correct_sites(model, dense.sites, statistics) as measured:
            functional_call(model, dict(weights), (inputs,))
        chunks.append(measured)
    pruned, state = pool_chunks(chunks), dict[str, Tensor]()
    for name, expected in dense.pooled.items():
        # A site that the pruned network does not reach keeps its values.
        if name in pruned:
            rule = dense.sites.rules[name]
            state |= _changed_leaves(model, name, rule, expected, pruned[name])
    return RepairResult(state, tuple(state), dense.sites.skipped)


def repaired_copy(target: Target, masks: Mapping[str, Tensor], repaired: RepairResult) -> nn.Module:
    """Return a copy of the network with the masks applied and the repair written into it."""
    model = target.masked_copy(masks)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, value in repaired.state.items():
            tensors[name].copy_(value)
    return model


def _changed_leaves(
    model: nn.Module,
    name: str,
    rule: RepairRule,
    dense: ChannelStatistics,
    pruned: ChannelStatistics,
) -> dict[str, Tensor]:
    """Return the new values of one module, by qualified name."""
    module = model.get_submodule(name)
    if not all(x.isfinite().all() for x in (dense.mean, dense.var, pruned.mean, pruned.var)):
        raise GapruneError(
            f"repair: means or variances at {name or 'the network'} are not finite, because the "
            "network overflows on these calibration inputs; use other inputs or float32 weights"
        )
    # float64: the corrections are small differences and quotients of float32 statistics.
    correction = (value.double() for value in rule.correct(module, dense, pruned))
    state: dict[str, Tensor] = {}
    for leaf, value in rule.fold(module, *correction).items():
        old = attrgetter(leaf)(module)
        new = value.to(old.dtype)
        # Only real changes are reported and stored.
        if not torch.equal(new, old):
            state[qualified_name(name, leaf)] = new
    return state
