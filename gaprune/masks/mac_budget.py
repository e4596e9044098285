"""Budgets in multiply-adds (MACs): the cost of kept units, and how many units a budget allows.

Where units are channels, the MACs of a layer are proportional to the product of its output and
input channels, so the cost of one channel depends on how many of the others stay. Every count
vector returned here is maximal: within the budget, which one more unit of any layer would exceed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from gaprune.errors import InputError
from gaprune.masks.top_k import check_no_nan

EXACT_LIMIT = 1 << 53  # sums of integers up to here are exact in float64, in any order
BISECTIONS = 64  # of an interval of shares: more than the bits of a float64 fraction
MIN_SHARE = 1e-6  # of the largest share; no layer's share is 0, so that all may grow
_INTEGERS: dict[torch.dtype, Any] = {torch.float32: np.int32, torch.float64: np.int64}

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Factor:
    """One factor of a layer's MACs: a fixed part, and (layer, what each of its kept units adds)."""

    fixed: int
    units: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class MacTerm:
    """The MACs of one weight: `each` for every pair of a kept output and a kept input."""

    each: int
    outputs: Factor
    inputs: Factor = Factor(1)


@dataclass(frozen=True)
class MacCost:
    """The cost of the units of a layout; units of the same layer cost the same.

    Attributes:
        dense: MACs of the dense network for one input.
        fixed, terms: the part of them that no mask changes, and the rest.
        sizes: units of every layer.
        limit: the budget, where it does not follow from a sparsity.
        step: every layer keeps a multiple of `step` units, or all of them.
    """

    dense: int
    fixed: int
    terms: tuple[MacTerm, ...]
    sizes: tuple[int, ...]
    limit: int | None = None
    step: int = 1

    def macs(self, counts: Sequence[int] | Counts) -> int:
        """Return the MACs of a network that keeps `counts[i]` units of layer i."""
        units = np.asarray(counts, dtype=np.float64)
        # float64 is exact here, since all sums stay below `EXACT_LIMIT`.
        each, outputs, inputs = self._arrays
        return self.fixed + int(each @ ((outputs @ (*units, 1)) * (inputs @ (*units, 1))))

    def min_macs(self, counts: Sequence[int]) -> int:
        """Return the MACs with `counts` rounded up to whole steps."""
        return self._step_macs(self._steps(counts))

    def is_maximal(self, counts: Sequence[int], keep: int) -> bool:
        """Return whether counts cost at most `keep`, and no layer could keep one step more."""
        steps = self._steps(counts)
        whole = self._units(steps).tolist() == list(counts)
        return whole and self.macs(counts) <= keep and not self._affordable(steps, keep)

    def global_counts(
        self, scores: Tensor, slices: Sequence[slice], min_counts: Sequence[int], keep: int
    ) -> list[int]:
        """Return how many units of each layer stay when units are bought by rank over all layers.

        After `min_counts`, units are bought in the order of their flat scores, ties in index order.
        A unit that exceeds the budget `keep` is skipped, together with all lower ones of its layer;
        cheaper units of other layers may follow.

        Raises:
            InputError: the minimum costs more than the budget, or a score is NaN.
        """
        check_no_nan(scores)
        # Integer keys: bisection over them ends after as many rounds as a score has bits.
        flat = _sortable_integers(scores)
        keys = [flat[part] for part in slices]
        steps = self._checked_minimum(min_counts, keep)
        while len(layers := self._affordable(steps, keep)):
            steps = self._buy_down_to_threshold(steps, layers, keys, keep)
            next_keys = {
                layer: _kth_largest(keys[layer], int(self._units(steps + 1)[layer]))
                for layer in layers
                if steps[layer] < self._max_steps[layer]
            }
            for layer, key in next_keys.items():
                if key == max(next_keys.values()):  # these tie for the next unit; not all may fit
                    wanted = self._whole_steps(layer, int(np.count_nonzero(keys[layer] >= key)))
                    more = max(0, wanted - steps[layer])
                    steps[layer] += self._fitting_steps(steps, layer, more, keep)
        return list(map(int, self._units(steps)))

    def _buy_down_to_threshold(
        self, steps: Counts, layers: Sequence[int], keys: Sequence[NDArray[Any]], keep: int
    ) -> Counts:
        """Buy all units of `layers` above the lowest threshold that the budget allows.

        By bisection, as in quickselect: of the keys outside the interval only the number matters.
        """
        low = min(int(keys[layer].min()) for layer in layers)
        high = max(int(keys[layer].max()) for layer in layers) + 1
        best, num_above = steps, dict.fromkeys(layers, 0)
        inside = {layer: keys[layer] for layer in layers}
        while low < high:
            middle = (low + high) // 2
            reached = {layer: layer_keys >= middle for layer, layer_keys in inside.items()}
            num_reached = {
                layer: num_above[layer] + int(np.count_nonzero(mask))
                for layer, mask in reached.items()
            }
            wanted = steps.copy()
            for layer in layers:
                wanted[layer] = max(steps[layer], self._whole_steps(layer, num_reached[layer]))
            if fits := self._step_macs(wanted) <= keep:
                high, num_above, best = middle, num_reached, wanted
            else:
                low = middle + 1
            inside = {
                layer: layer_keys[~reached[layer] if fits else reached[layer]]
                for layer, layer_keys in inside.items()
            }
        return best

    def apportion(
        self, shares: Sequence[float] | NDArray[Any], min_counts: Sequence[int], keep: int
    ) -> list[int]:
        """Return maximal counts in proportion to `shares`, none below its minimum.

        Raises:
            InputError: the minimum costs more than `keep`, or a share is NaN.
        """
        wanted = np.asarray(shares, dtype=np.float64)
        if np.isnan(wanted).any():
            raise InputError(f"shares: must be numbers, got {list(shares)}")
        wanted = np.maximum(wanted, max(float(wanted.max()), 1.0) * MIN_SHARE)
        steps = self._checked_minimum(min_counts, keep)
        # At this factor every layer is full, so the solution lies below it.
        upper = 2 * float((self._sizes / wanted).max())
        while len(layers := self._affordable(steps, keep)):

            def scaled(
                factor: float, now: Counts = steps, layers: Sequence[int] = layers
            ) -> Counts:
                result = now.copy()
                units = np.minimum(factor * wanted, self._sizes)
                for layer in layers:
                    result[layer] = max(now[layer], self._whole_steps(layer, units[layer]))
                return result

            # The MACs grow with the factor, so bisection finds the largest that fits.
            low, high = 0.0, upper
            for _ in range(BISECTIONS):
                middle = (low + high) / 2
                fits = self._step_macs(scaled(middle)) <= keep
                low, high = (middle, high) if fits else (low, middle)
            steps = scaled(low)
            left = [layer for layer in self._affordable(steps, keep) if layer in layers]
            if left:  # add the next unit of the scaled shares, so that every round gets closer
                factors = self._units(steps + 1) / wanted
                steps[min(left, key=factors.__getitem__)] += 1
        return list(map(int, self._units(steps)))

    def transfer(
        self,
        counts: Sequence[int],
        move: tuple[int, int, int],
        min_counts: Sequence[int],
        keep: int,
    ) -> list[int]:
        """Return counts after one layer gained units and another lost what pays for them.

        The gaining layer gets fewer units where it is full, or where the other cannot pay. The
        remaining budget goes to all layers in proportion. `move` is (layer that loses, layer that
        gains, units to gain).
        """
        loser, gainer, wanted = move
        now, lowest = self._steps(counts), self._steps(min_counts)
        most = int(now[loser] - lowest[loser])
        more = min(-(-wanted // self.step), int(self._max_steps[gainer] - now[gainer]))

        def moved(lost: int, gained: int) -> Counts:
            steps = now.copy()
            steps[loser] -= lost
            steps[gainer] += gained
            return steps

        # Gain as much as the loser could pay at most, then take only what is needed.
        gained = self._fitting_steps(moved(most, 0), gainer, more, keep)
        if not gained:
            return list(counts)
        lost = _first_true(lambda lost: self._step_macs(moved(lost, gained)) <= keep, 0, most)
        after = list(map(int, self._units(moved(lost, gained))))
        return self.apportion(after, after, keep)

    def _checked_minimum(self, min_counts: Sequence[int], keep: int) -> Counts:
        steps = self._steps(min_counts)
        if (needed := self._step_macs(steps)) > keep:
            raise InputError(
                f"keep: the minimum of every layer costs {needed:,} multiply-adds, got {keep:,}"
            )
        return steps

    # Inside, counts are in steps of every layer; the last step of a layer may be shorter.

    def _steps(self, counts: Sequence[int]) -> Counts:
        return -(-np.asarray(counts, dtype=np.int64) // self.step)

    def _units(self, steps: Counts) -> Counts:
        return np.minimum(steps * self.step, self._sizes)

    def _whole_steps(self, layer: int, units: float) -> int:
        return int(self._max_steps[layer] if units >= self.sizes[layer] else units // self.step)

    def _step_macs(self, steps: Counts) -> int:
        return self.macs(self._units(steps))

    def _affordable(self, steps: Counts, keep: int) -> list[int]:
        """Return the layers that could keep one step more within the budget."""
        each, outputs, inputs = self._arrays
        now = self._units(steps).astype(np.float64)
        more = self._units(steps + 1) - now
        padded = (*now, 1.0)
        factors = ((side @ padded)[:, None] + side[:, :-1] * more for side in (outputs, inputs))
        costs = self.fixed + each @ prod(factors)
        layers: list[int] = np.flatnonzero((costs <= keep) & (more > 0)).tolist()
        return layers

    def _fitting_steps(self, steps: Counts, layer: int, most: int, keep: int) -> int:
        def exceeds(number: int) -> bool:
            more = steps.copy()
            more[layer] += number
            return self._step_macs(more) > keep

        return max(0, _first_true(exceeds, 0, most + 1) - 1)

    @cached_property
    def _max_steps(self) -> Counts:
        return self._steps(self.sizes)

    @cached_property
    def _sizes(self) -> Counts:
        return np.asarray(self.sizes, dtype=np.int64)

    @cached_property
    def _arrays(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Cost per pair, and both factors as matrices `[terms, layers + 1]`; fixed part last."""
        assert self.dense < EXACT_LIMIT, "more multiply-adds than float64 counts exactly"
        each = np.array([term.each for term in self.terms], dtype=np.float64)
        factors = np.zeros((2, len(self.terms), len(self.sizes) + 1))
        for row, term in enumerate(self.terms):
            for matrix, factor in zip(factors, (term.outputs, term.inputs), strict=True):
                matrix[row, -1] = factor.fixed
                for layer, amount in factor.units:
                    matrix[row, layer] += amount
        return each, factors[0], factors[1]


def _sortable_integers(scores: Tensor) -> NDArray[Any]:
    """Return integers in the same order as flat float scores, so that bisection ends."""
    wide = scores.detach().to("cpu")
    wide = wide if wide.dtype in _INTEGERS else wide.float()
    bits = (wide.numpy() + 0).view(_INTEGERS[wide.dtype])  # + 0 turns −0 into 0
    # The bits of negative floats grow with their magnitude: invert all but the sign.
    keys: NDArray[Any] = np.where(bits < 0, bits ^ np.iinfo(bits.dtype).max, bits)
    return keys


def _first_true(test: Callable[[int], bool], low: int, high: int) -> int:
    """Return the lowest number for which a monotone test is true, or `high` if there is none."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if test(middle) else (middle + 1, high)
    return low


def _kth_largest(keys: NDArray[Any], rank: int) -> int:
    index = len(keys) - rank
    return int(np.partition(keys, index)[index])
