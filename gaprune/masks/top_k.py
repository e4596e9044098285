"""Which k of many scores are the largest: exactly k, in linear time, the same everywhere."""

from __future__ import annotations

from math import gcd
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gaprune.errors import InputError

SHORT = 1 << 11  # so few scores are partitioned as they are
_HALVES = (torch.float16, torch.bfloat16)


def mark(flat: Tensor, keep: int, mask: Tensor) -> None:
    """Write into `mask` which `keep` scores are the largest; ties are kept in index order.

    Args:
        flat: `[n]`, any real dtype, without gradients.
        keep: 0 to n.
        mask: bool `[n]` on the same device.

    Raises:
        InputError: `keep` is out of range, or a score is NaN.
    """
    total = len(flat)
    if not 0 <= keep <= total:
        raise InputError(f"keep: must be from 0 to the {total} scores, got {keep}")
    wide = flat.float() if flat.dtype in _HALVES else flat  # half kthvalue is not everywhere
    here = flat.device.type == "cpu"  # there numpy is some ten times faster than torch
    # the maximum of anything and NaN is NaN
    if total and np.isnan(wide.numpy().max() if here else wide.max().item()):
        nan = int(flat.isnan().count_nonzero())
        raise InputError(f"scores: {nan} of {total} are NaN, which has no rank; make them finite")
    if keep in (0, total):
        mask.fill_(keep == total)
    elif here:
        _mark_long(wide.numpy(), keep, mask.numpy())
    else:
        threshold = wide.kthvalue(total - keep + 1).values
        torch.ge(wide, threshold, out=mask)
        if surplus := int(mask.count_nonzero()) - keep:
            tied = (wide == threshold).nonzero().flatten()
            mask[tied[len(tied) - surplus :]] = False


def _mark_long(values: NDArray[Any], keep: int, mask: NDArray[np.bool_]) -> None:
    """Mark the `keep` largest, 1 to all but one: a sample tells which few need a closer look.

    The k-th of a random sample lies near the k-th of all (Floyd and Rivest 1975); what is above a
    bracket around it stays, what is below goes, and only the bracket is partitioned.
    """
    if len(values) <= SHORT:
        _mark_exactly(values, keep, mask)
        return
    low, high = _bracket(values, keep / len(values))
    np.greater(values, high, out=mask)
    rest = np.less(values, low)
    near = np.flatnonzero(np.equal(rest, mask, out=rest))  # neither
    rank = keep - int(np.count_nonzero(mask))
    if not 0 < rank < len(near):  # the sample misled: a periodic pattern, or many ties
        _mark_exactly(values, keep, mask)
        return
    chosen = np.empty(len(near), dtype=np.bool_)
    _mark_exactly(values[near], rank, chosen)
    mask[near] = chosen


def stride(total: int) -> int:
    """Return how far apart samples of so many scores are.

    Columns of a layer differ (those of its margin are often all bad), and layers mostly have
    2ᵃ·3ᵇ·5ᶜ·7ᵈ of them. A stride without these factors meets all columns alike.
    """
    found = int(total**0.3)  # to find the bracket and to partition it cost about the same
    while gcd(found, 2 * 3 * 5 * 7) > 1:
        found += 1
    return found


def _bracket(values: NDArray[Any], density: float) -> tuple[Any, Any]:
    """Return bounds between which the threshold lies, by a sample and nearly always."""
    sample = values[:: stride(len(values))]
    count = len(sample)
    centre = count * (1 - density)
    reach = 3 + 3 * (count * density * (1 - density)) ** 0.5  # standard deviations of the rank
    below, above = int(centre - reach), int(centre + reach)
    ends = [place for place in (below, above) if 0 <= place < count]
    ordered = np.partition(sample, ends) if ends else sample
    return (
        ordered[below] if below >= 0 else -np.inf,
        ordered[above] if above < count else np.inf,
    )


def _mark_exactly(values: NDArray[Any], keep: int, mask: NDArray[np.bool_]) -> None:
    """Mark the `keep` largest, 1 to all but one, by a partition of all."""
    threshold = np.partition(values, len(values) - keep)[len(values) - keep]
    np.greater_equal(values, threshold, out=mask)
    if surplus := int(np.count_nonzero(mask)) - keep:
        tied = np.flatnonzero(values == threshold)
        mask[tied[len(tied) - surplus :]] = False
