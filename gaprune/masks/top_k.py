"""Exact top-k: which k of many scores are the largest, in linear time, equal on every device."""

from __future__ import annotations

from math import gcd
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gaprune.errors import InputError

PIECE = 1 << 22  # scores compared at once: whole networks would need a second mask
SAMPLED_ABOVE = 1 << 11  # scores; fewer are partitioned directly
_HALF_TYPES = (torch.float16, torch.bfloat16)


def check_no_nan(scores: Tensor) -> None:
    """Raise `InputError` if a score is NaN."""
    if count := int(scores.isnan().count_nonzero()):
        raise InputError(
            f"scores: {count} of {scores.numel()} are NaN, which has no rank; make them finite"
        )


def write_top_k(scores: Tensor, keep: int, mask: Tensor) -> None:
    """Write into `mask` which `keep` scores are the largest; ties are kept in index order.

    Both are flat and on the same device; scores have any real dtype and no gradients.

    Raises:
        InputError: `keep` is out of range, or a score is NaN.
    """
    total = len(scores)
    if not 0 <= keep <= total:
        raise InputError(f"keep: must be from 0 to the {total} scores, got {keep}")
    # kthvalue does not exist for half precision on every device
    wide = scores.float() if scores.dtype in _HALF_TYPES else scores
    on_cpu = scores.device.type == "cpu"  # where numpy is about ten times faster than torch
    # One pass: the maximum is NaN if any score is.
    if total and np.isnan(wide.numpy().max() if on_cpu else wide.max().item()):
        check_no_nan(scores)
    if keep in (0, total):
        mask.fill_(keep == total)
    elif on_cpu:
        _write_sampled(wide.numpy(), keep, mask.numpy())
    else:
        threshold = wide.kthvalue(total - keep + 1).values
        torch.ge(wide, threshold, out=mask)
        if surplus := int(mask.count_nonzero()) - keep:
            tied = (wide == threshold).nonzero().flatten()
            mask[tied[len(tied) - surplus :]] = False


def sample_stride(total: int) -> int:
    """Return the distance between sampled scores.

    The number of columns of a layer is mostly 2ᵃ·3ᵇ·5ᶜ·7ᵈ, and columns differ (those at an image's
    margin are often all low). A stride without these factors samples all columns equally.
    """
    stride = int(total**0.3)  # sampling and partitioning the bracket then cost about the same
    while gcd(stride, 2 * 3 * 5 * 7) > 1:
        stride += 1
    return stride


def _write_sampled(values: NDArray[Any], keep: int, mask: NDArray[np.bool_]) -> None:
    """Mark the `keep` largest, 1 to all but one; a sample shows which few must be partitioned.

    The k-th largest of a sample is close to the k-th of all (Floyd and Rivest 1975): values above
    a bracket around it stay, values below go, and only those inside it are partitioned.
    """
    if len(values) <= SAMPLED_ABOVE:
        _write_partitioned(values, keep, mask)
        return
    low, high = _bracket(values, keep / len(values))
    inside = np.concatenate(
        [
            start + _between(values[start : start + PIECE], low, high, mask[start : start + PIECE])
            for start in range(0, len(values), PIECE)
        ]
    )
    rank = keep - int(np.count_nonzero(mask))
    if not 0 < rank < len(inside):  # the sample was misleading: periodic values or many ties
        _write_partitioned(values, keep, mask)
        return
    chosen = np.empty(len(inside), dtype=np.bool_)
    _write_partitioned(values[inside], rank, chosen)
    mask[inside] = chosen


def _between(values: NDArray[Any], low: Any, high: Any, mask: NDArray[np.bool_]) -> NDArray[Any]:  # noqa: ANN401 - scalars of the dtype
    """Mark the values above `high`, and return the indices of those from `low` to `high`."""
    np.greater(values, high, out=mask)
    below = np.less(values, low)
    return np.flatnonzero(np.equal(below, mask, out=below))  # neither above nor below


def _bracket(values: NDArray[Any], density: float) -> tuple[Any, Any]:
    """Return bounds that nearly always enclose the threshold, estimated from a sample."""
    sample = values[:: sample_stride(len(values))]
    count = len(sample)
    center = count * (1 - density)
    reach = 3 + 3 * (count * density * (1 - density)) ** 0.5  # standard deviations of the rank
    below, above = int(center - reach), int(center + reach)
    indices = [index for index in (below, above) if 0 <= index < count]
    ordered = np.partition(sample, indices) if indices else sample
    return (ordered[below] if below >= 0 else -np.inf, ordered[above] if above < count else np.inf)


def _write_partitioned(values: NDArray[Any], keep: int, mask: NDArray[np.bool_]) -> None:
    threshold = np.partition(values, len(values) - keep)[len(values) - keep]
    np.greater_equal(values, threshold, out=mask)
    if surplus := int(np.count_nonzero(mask)) - keep:
        tied = np.flatnonzero(values == threshold)
        mask[tied[len(tied) - surplus :]] = False
