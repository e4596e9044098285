"""Repair after pruning: statistics, biases and norms corrected on calibration inputs, weights as they were.

A pruned network's activations have other means and spreads than the dense network's, layer upon
layer. Shown the same calibration inputs, the difference of the two is what pruning did; what is odd about the
calibration inputs themselves cancels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gaprune.errors import GapruneError, InputError
from gaprune.masks.supermask import check_masks, masked_weights
from gaprune.models.target import Target
from gaprune.repair.anchors import Anchors, aligned, anchor, chunks_of, join
from gaprune.repair.moments import Moments
from gaprune.repair.sites import survey


@dataclass(frozen=True)
class Repaired:
    """What repair writes into a pruned network.

    Attributes:
        state: qualified name → new value, of changed buffers and parameters only; `repair` puts
            it on the CPU.
        changed: their names, in order of execution.
        skipped: "name: why not", for modules that could not be repaired.
    """

    state: dict[str, Tensor] = field(repr=False)
    changed: tuple[str, ...]
    skipped: tuple[str, ...]


def repair(
    target: Target,
    masks: Mapping[str, Tensor],
    calibration: Tensor,
    *,
    parts: Sequence[str] | None = None,
    chunk: int | None = None,
) -> Repaired:
    """Repair a pruned network on calibration inputs; prunable parameters keep their bits.

    Every site is matched to the dense network when the data reach it, so that each correction is
    measured behind those before it: one pass of all calibration inputs where they fit into one chunk, which is
    exact. Chunks are matched to the dense network's own statistics on them, and what was measured
    is pooled.

    Args:
        target: the dense network.
        masks: bool masks of prunable parameters, by name.
        calibration inputs: `[N, …]` as the network takes them.
        parts: what may be written, keys of `PARTS`; None takes `default_parts`.
        chunk: calibration inputs per forward, at most (see `anchor`).

    Raises:
        InputError: no calibration inputs, an unknown part, or a mask of another name, shape or dtype.
        GapruneError: the network overflows on these calibration inputs.
    """
    if len(calibration) == 0:
        raise InputError(
            "calibration inputs: repair shows inputs to the network and got none; pass [N, …]"
        )
    check_masks(masks, target.weights)
    calibration = calibration.to(target.device)
    sites = survey(target.model, calibration, frozen=target.weights, parts=parts)
    anchors = anchor(target.model, sites, calibration, chunk)
    there = {name: mask.to(target.device) for name, mask in masks.items()}
    kept = masked_weights({name: target.weights[name] for name in masks}, there)
    found = repair_anchored(target.model, kept, anchors)
    return replace(found, state={name: value.cpu() for name, value in found.state.items()})


@torch.no_grad()
def repair_anchored(model: nn.Module, kept: Mapping[str, Tensor], anchors: Anchors) -> Repaired:
    """Repair a candidate on inputs that the dense network has seen; see `repair`.

    Args:
        model: the dense network; it stays as it is.
        kept: parameters that replace its own, by qualified name (`masked_weights`).
        anchors: from `anchor` on the same network.

    Raises:
        GapruneError: the network overflows on these inputs.
    """
    found: list[dict[str, Moments]] = []
    for inputs, moments in chunks_of(anchors):
        found.append({})
        with aligned(model, anchors.sites, moments, found[-1]):
            functional_call(model, dict(kept), (inputs,))
    pruned, state = join(found), dict[str, Tensor]()
    for name, dense in anchors.moments.items():
        if name in pruned:
            state |= _folded(model, name, anchors, dense, pruned[name])
    return Repaired(state, tuple(state), anchors.sites.skipped)


def repaired_copy(target: Target, masks: Mapping[str, Tensor], repaired: Repaired) -> nn.Module:
    """Return a copy of the network with the masks baked in and the repair written into it."""
    model = target.masked_copy(masks)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for name, value in repaired.state.items():
            tensors[name].copy_(value)
    return model


def _folded(
    model: nn.Module, name: str, anchors: Anchors, dense: Moments, pruned: Moments
) -> dict[str, Tensor]:
    """Return the changed leaves of one module, by qualified name."""
    module, kind = model.get_submodule(name), anchors.sites.kinds[name]
    for values in (dense.mean, dense.var, pruned.mean, pruned.var):
        if not values.isfinite().all():
            raise GapruneError(
                f"repair: means or variances at {name or 'the network'} are not finite: it "
                "overflows on these calibration inputs; use other calibration inputs, or float32 weights"
            )
    correction = (value.double() for value in kind.correct(module, dense, pruned))
    state: dict[str, Tensor] = {}
    for leaf, value in kind.fold(module, *correction).items():
        old = attrgetter(leaf)(module)
        new = value.to(old.dtype)
        if not torch.equal(new, old):
            state[f"{name}.{leaf}" if name else leaf] = new
    return state
