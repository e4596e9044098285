"""Exact keep counts from a sparsity and a scope."""

from __future__ import annotations

import bisect
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np

from gaprune.errors import InputError
from gaprune.masks.mac_budget import MacCost
from gaprune.masks.supermask import MIN_KEEP, Layout


def check_sparsity(sparsity: object) -> float:
    """Return `sparsity` as a float; raise `InputError` unless it is strictly between 0 and 1."""
    if isinstance(sparsity, bool) or not isinstance(sparsity, (int, float)):
        raise InputError(f"sparsity: must be a number between 0 and 1, got {sparsity!r}")
    if not 0 < sparsity < 1:  # also rejects NaN
        raise InputError(
            "sparsity: must lie strictly between 0 and 1 (the fraction of weights removed, "
            f"0.9 removes 90 %), got {sparsity!r}"
        )
    return float(sparsity)


def keep_total(layout: Layout, sparsity: float) -> int:
    """Return how many weights of the network stay: (1 − sparsity) · total, rounded half up.

    An N:M pattern determines the number by itself. If the layout has a `mac_cost`, the budget is in
    multiply-adds and rounded down.

    Raises:
        InputError: fewer than the layers' minimum, or more than fixed layers leave (the message
            names what is possible).
    """
    if layout.n_of_m is not None:
        return sum(layout.n_of_m.counts(layout.sizes))
    if layout.mac_cost is not None:
        return _mac_total(layout, layout.mac_cost, sparsity)
    # Fractions: 0.9 of 15 weights is exactly 13.5, which floats miss.
    keep = math.floor(layout.total * _density(sparsity) + Fraction(1, 2))
    least, most = sum(layout.min_counts), sum(layout.max_counts)
    if least <= keep <= most:
        return keep
    if not layout.fixed_counts:
        raise _too_few(layout, sparsity, keep)
    lowest, highest = (1 - count / layout.total for count in (most, least))
    raise InputError(
        f"layer_sparsity: with the stated fractions {least} to {most} of {layout.total} weights "
        f"can stay, and sparsity {sparsity} keeps {keep}; use a sparsity from {lowest:.9g} to "
        f"{highest:.9g}, or other fractions"
    )


def _mac_total(layout: Layout, cost: MacCost, sparsity: float) -> int:
    keep = math.floor(cost.dense * _density(sparsity)) if cost.limit is None else cost.limit
    if keep >= layout.min_cost:
        return keep
    if cost.limit is not None:
        budget, remedy = f"budget_macs: {keep:,} multiply-adds", "allow more"
    else:
        highest = math.floor(1e6 * (1 - layout.min_cost / cost.dense)) / 1e6
        budget = f"sparsity: {sparsity} leaves {keep:,} of {cost.dense:,} multiply-adds"
        remedy = f"use at most {highest:g}"
    minimum = "the minimum" if layout.floor == 0 else f"the floor {layout.floor}"
    raise InputError(f"{budget}, but {minimum} of every layer needs {layout.min_cost:,}; {remedy}")


def _too_few(layout: Layout, sparsity: float, keep: int) -> InputError:
    minimum = MIN_KEEP * len(layout.names)
    if keep < minimum:
        return InputError(
            f"sparsity: {sparsity} keeps {keep} of {layout.total} weights, fewer than one for each "
            f"of the {len(layout.names)} layers; use at most {1 - minimum / layout.total:.9g}"
        )
    # The highest floor, in thousandths, that this budget allows.
    needed = bisect.bisect(
        range(1000), keep, key=lambda n: sum(layout.with_floor(n / 1000).min_counts)
    )
    return InputError(
        f"floor: {layout.floor} of every layer is {sum(layout.min_counts)} weights, more than the "
        f"{keep} of {layout.total} that sparsity {sparsity} keeps; use "
        f"--floor={(needed - 1) / 1000} at most, or a lower sparsity"
    )


def uniform_counts(layout: Layout, sparsity: float) -> list[int]:
    """Return keep counts at the same density that add up to `keep_total`, or raise `InputError`."""
    if layout.n_of_m is not None:
        return list(layout.n_of_m.counts(layout.sizes))
    if layout.mac_cost is not None:
        keep = keep_total(layout, sparsity)
        return layout.mac_cost.apportion(layout.sizes, layout.min_counts, keep)
    keep = keep_total(layout, sparsity)
    density, fixed = _density(sparsity), layout.fixed_counts or (None,) * len(layout.names)
    if layout.fixed_counts:  # the other layers share what is left
        others = sum(n for n, count in zip(layout.sizes, fixed, strict=True) if count is None)
        density = Fraction(keep - sum(count or 0 for count in fixed), max(1, others))
    for name, size, count in zip(layout.names, layout.sizes, fixed, strict=True):
        # Half a weight is rounded up, so only less than that leaves a layer empty.
        if count is None and size * density < Fraction(1, 2):
            raise InputError(
                f"sparsity: {sparsity} keeps nothing of layer {name!r} ({size} weights) when every "
                "layer keeps the same density; use a lower sparsity or --scope=allocated"
            )
    # Equal densities rarely give whole counts; the remainders are apportioned.
    exact = [float(size * density) for size in layout.sizes]
    return apportion(exact, keep, layout.max_counts, layout.min_counts)


def with_layer_sparsity(layout: Layout, fractions: Mapping[str, float]) -> Layout:
    """Return the layout with fixed counts for some layers: name → the fraction to remove.

    Counts are rounded half up, as `keep_total` rounds.

    Raises:
        InputError: a layer would keep nothing, or less than the layout's floor.
    """
    counts: list[int | None] = []
    for name, size, least in zip(layout.names, layout.sizes, layout.min_counts, strict=True):
        if name not in fractions:
            counts.append(None)
            continue
        count = math.floor(size * _density(fractions[name]) + Fraction(1, 2))
        if count < least:
            raise InputError(
                f"layer_sparsity: {fractions[name]} of {name!r} keeps {count} of its {size} "
                f"weights, fewer than its minimum {least}; use at most {1 - least / size:.9g}"
            )
        counts.append(count)
    return replace(layout, fixed_counts=tuple(counts) if fractions else ())


def _density(sparsity: float) -> Fraction:
    # Exactly the decimal that the user wrote: 1 − 0.9 is a tenth, not 0.0999…98.
    return 1 - Fraction(str(float(sparsity)))


def apportion(
    shares: Sequence[float] | np.ndarray,
    total: int,
    sizes: Sequence[int],
    min_counts: Sequence[int] | None = None,
) -> list[int]:
    """Round `shares` to whole counts that add up to `total`, each from its minimum to its size.

    Largest remainders first, the lower index on ties (Hamilton's method). What a full layer cannot
    keep goes to the others in proportion. `min_counts` None is `MIN_KEEP`.

    Raises:
        InputError: `total` is outside the sum of minimums and the sum of sizes; a share is NaN.
    """
    low = np.full(len(sizes), MIN_KEEP) if min_counts is None else np.asarray(min_counts)
    high = np.asarray(sizes)
    if not low.sum() <= total <= high.sum():
        raise InputError(
            f"total: {len(sizes)} layers can keep {low.sum()} to {high.sum()} weights, got {total}"
        )
    if np.isnan(np.asarray(shares, dtype=np.float64)).any():
        raise InputError(f"shares: must be numbers, got {list(shares)}")
    wanted = np.clip(np.asarray(shares, dtype=np.float64), low, high)
    # Scale the layers that are not at a bound until the clipped shares add up to the total.
    for _ in range(64):
        gap = total - wanted.sum()
        free = (wanted < high) if gap > 0 else (wanted > low)
        if abs(gap) < 0.5 / max(len(sizes), 1) or not free.any():
            break
        weight = np.where(free, wanted, 0.0)
        wanted = np.clip(wanted + gap * weight / weight.sum(), low, high)
    # Hamilton's method: floors first, then one more for the largest remainders.
    counts = np.floor(wanted).astype(np.int64)
    remainders = wanted - counts
    while (gap := int(total - counts.sum())) != 0:
        step = 1 if gap > 0 else -1
        free = (counts < high) if gap > 0 else (counts > low)
        order = np.lexsort((np.arange(len(counts)), -step * remainders))
        chosen = [index for index in order if free[index]][: abs(gap)]
        counts[chosen] += step
        remainders[chosen] -= step
    return [int(count) for count in counts]
