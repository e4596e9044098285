"""What kept units cost in multiply-adds, and how many of every layer a budget of them buys.

A weight is multiplied once for every position of its layer's output. Where units are channels, a
layer's work is the product of the channels that it makes and of those that it reads, so what one
channel costs depends on how many of the others stay.

The law of everything here: what stays costs no more than the budget, and one more unit of any layer
would pass it.
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

LARGEST = 1 << 53  # sums of whole numbers up to here are exact in float64, in any order
HALVINGS = 64  # of an interval of shares: beyond the last place of float64
SCARCE = 1e-6  # of the largest share is the least one
_WHOLE: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype(np.int32),
    torch.float64: np.dtype(np.int64),
}

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Factor:
    """What makes one factor of a layer's work.

    Attributes:
        fixed: what stays whatever a mask says.
        units: (layer of the searched layout, how much each of its units that stays adds).
    """

    fixed: int
    units: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class MacTerm:
    """The work of one weight: `each` for every pair of an output and an input that stay."""

    each: int
    outputs: Factor
    inputs: Factor = Factor(1)


@dataclass(frozen=True)
class MacCost:
    """What the units of a layout cost; those of one layer all cost the same.

    Attributes:
        dense: multiply-adds of the dense network for one input.
        fixed: those of them that no mask changes.
        terms: the others.
        sizes: units of every layer.
        limit: the budget, where it does not follow from a sparsity.
        step: of every layer stay so many units, or a multiple, or all.
    """

    dense: int
    fixed: int
    terms: tuple[MacTerm, ...]
    sizes: tuple[int, ...]
    limit: int | None = None
    step: int = 1

    def macs(self, counts: Sequence[int] | Counts) -> int:
        """Return the multiply-adds of a network that keeps so many units of every layer."""
        kept = np.asarray(counts, dtype=np.float64)
        each, outputs, inputs = self._arrays
        return self.fixed + int(each @ ((outputs @ (*kept, 1)) * (inputs @ (*kept, 1))))

    def min_macs(self, counts: Sequence[int]) -> int:
        """Return what a network costs that keeps so many units of every layer, in whole steps."""
        return self._cost(self._steps(counts))

    def is_maximal(self, counts: Sequence[int], keep: int) -> bool:
        """Tell whether counts cost at most `keep`, and one unit more of any layer would pass it."""
        steps = self._steps(counts)
        whole = _plain(self._counts(steps)) == list(counts)
        return whole and self.macs(counts) <= keep and not self._open(steps, keep)

    def global_counts(
        self, scores: Tensor, slices: Sequence[slice], least: Sequence[int], keep: int
    ) -> list[int]:
        """Return how many of each layer stay when the best scores of all layers are bought first.

        Units come in the order of their scores, ties in index order; one that passes the budget is
        left out, with all that its layer has after it, and cheaper ones of other layers still come.

        Args:
            scores: flat.
            slices: where each layer lies in it.
            least: units of each layer that are bought before all others.
            keep: the multiply-adds that the network may cost.

        Raises:
            InputError: the least cost more, or a score is NaN.
        """
        if nan := int(scores.isnan().count_nonzero()):
            raise InputError(
                f"scores: {nan} of {scores.numel()} are NaN, which has no rank; make them finite"
            )
        flat = _ordered(scores)
        keys = [flat[part] for part in slices]
        found = self._checked(least, keep)
        while len(still := self._open(found, keep)):
            found = self._down_to(found, still, keys, keep)
            heads = {
                one: _ranked(keys[one], int(self._counts(found + 1)[one]))
                for one in still
                if found[one] < self._most[one]
            }
            for layer, head in heads.items():
                if head == max(heads.values()):  # these tie for the next place, and not all fit
                    upto = self._whole(layer, int(np.count_nonzero(keys[layer] >= head)))
                    found[layer] += self._fitting(found, layer, max(0, upto - found[layer]), keep)
        return _plain(self._counts(found))

    def _down_to(
        self, steps: Counts, still: Sequence[int], keys: Sequence[NDArray[Any]], keep: int
    ) -> Counts:
        """Buy of some layers all down to the lowest key at which they fit.

        Halves of the interval are looked at as in a quickselect: of what lies outside it, only the
        number counts.
        """
        low = min(int(keys[one].min()) for one in still)
        high = max(int(keys[one].max()) for one in still) + 1
        found, within, above = steps, {one: keys[one] for one in still}, dict.fromkeys(still, 0)
        while low < high:
            middle = (low + high) // 2
            at_least = {one: some >= middle for one, some in within.items()}
            more = {one: above[one] + int(np.count_nonzero(some)) for one, some in at_least.items()}
            wanted = steps.copy()
            wanted[still] = [max(int(steps[one]), self._whole(one, more[one])) for one in still]
            if self._cost(wanted) <= keep:
                high, above, found = middle, more, wanted
                within = {one: some[~at_least[one]] for one, some in within.items()}
            else:
                low = middle + 1
                within = {one: some[at_least[one]] for one, some in within.items()}
        return found

    def apportion(
        self, shares: Sequence[float] | NDArray[Any], least: Sequence[int], keep: int
    ) -> list[int]:
        """Return counts in proportion to shares, as far as the budget goes, none below its least.

        Raises:
            InputError: the least cost more than `keep`; a share is NaN.
        """
        wanted = np.asarray(shares, dtype=np.float64)
        if np.isnan(wanted).any():
            raise InputError(f"shares: must be numbers, got {list(shares)}")
        wanted = np.maximum(wanted, max(float(wanted.max()), 1.0) * SCARCE)  # all may grow
        found = self._checked(least, keep)
        top = 2 * float((self._sizes / wanted).max())
        while len(still := self._open(found, keep)):

            def grown(factor: float, now: Counts = found, still: Sequence[int] = still) -> Counts:
                steps = now.copy()
                scaled = np.minimum(factor * wanted, self._sizes)
                steps[still] = [max(int(now[one]), self._whole(one, scaled[one])) for one in still]
                return steps

            below, above = 0.0, top
            for _ in range(HALVINGS):
                middle = (below + above) / 2
                fits = self._cost(grown(middle)) <= keep
                below, above = (middle, above) if fits else (below, middle)
            found = grown(below)
            rest = [one for one in self._open(found, keep) if one in still]
            if rest:  # the next to come, so that every round ends nearer to the budget
                after = self._counts(found + 1) / wanted
                found[min(rest, key=lambda one: float(after[one]))] += 1
        return _plain(self._counts(found))

    def transfer(
        self,
        counts: Sequence[int],
        move: tuple[int, int, int],
        least: Sequence[int],
        keep: int,
    ) -> list[int]:
        """Return counts after one layer took units and another gave what pays for them.

        The taker takes fewer where it has no room, or where the giver cannot pay. What is left over
        goes to all layers in proportion. Nothing changes where nothing can be paid.

        Args:
            counts: of every layer, within the budget.
            move: the layer that gives, the one that takes, and how many units that wants.
            least: units that a layer keeps at least.
            keep: the multiply-adds that the network may cost.
        """
        giver, taker, wanted = move
        now, lowest = self._steps(counts), self._steps(least)
        most = int(now[giver] - lowest[giver])
        more = min(-(-wanted // self.step), int(self._most[taker] - now[taker]))

        def given(number: int, taken: int) -> Counts:
            found = now.copy()
            found[giver] -= number
            found[taker] += taken
            return found

        taken = self._fitting(given(most, 0), taker, more, keep)
        if not taken:
            return list(counts)
        paid = _least(lambda one: self._cost(given(one, taken)) <= keep, 0, most)
        after = _plain(self._counts(given(paid, taken)))
        return self.apportion(after, after, keep)

    def _checked(self, least: Sequence[int], keep: int) -> Counts:
        found = self._steps(least)
        if (needed := self._cost(found)) > keep:
            raise InputError(
                f"keep: the least of every layer costs {needed:,} multiply-adds, got {keep:,}"
            )
        return found

    # within: steps of every layer, of which the last one may be short

    def _steps(self, counts: Sequence[int]) -> Counts:
        """Return the steps that hold so many units, and at least these."""
        return -(-np.asarray(counts, dtype=np.int64) // self.step)

    def _counts(self, steps: Counts) -> Counts:
        return np.minimum(steps * self.step, self._sizes)

    def _whole(self, layer: int, number: float) -> int:
        """Return how many whole steps so many units are."""
        return int(self._most[layer] if number >= self.sizes[layer] else number // self.step)

    def _cost(self, steps: Counts) -> int:
        return self.macs(self._counts(steps))

    def _open(self, steps: Counts, keep: int) -> list[int]:
        """Return the layers of which one more step would fit."""
        each, outputs, inputs = self._arrays
        now = self._counts(steps).astype(np.float64)
        more = self._counts(steps + 1) - now
        full = (*now, 1.0)
        factors = ((side @ full)[:, None] + side[:, :-1] * more for side in (outputs, inputs))
        costs = self.fixed + each @ prod(factors)
        return [int(one) for one in np.flatnonzero((costs <= keep) & (more > 0))]

    def _fitting(self, steps: Counts, layer: int, most: int, keep: int) -> int:
        """Return how many steps more of a layer fit, `most` at most."""

        def passes(number: int) -> bool:
            more = steps.copy()
            more[layer] += number
            return self._cost(more) > keep

        return max(0, _least(passes, 0, most + 1) - 1)

    @cached_property
    def _most(self) -> Counts:
        return self._steps(self.sizes)

    @cached_property
    def _sizes(self) -> Counts:
        return np.asarray(self.sizes, dtype=np.int64)

    @cached_property
    def _arrays(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """What each pair costs, and both factors as matrices `[terms, layers + 1]`, fixed last."""
        assert self.dense < LARGEST, "more multiply-adds than float64 counts exactly"
        each = np.array([one.each for one in self.terms], dtype=np.float64)
        found = np.zeros((2, len(self.terms), len(self.sizes) + 1))
        for row, term in enumerate(self.terms):
            for matrix, side in zip(found, (term.outputs, term.inputs), strict=True):
                matrix[row, -1] = side.fixed
                for layer, number in side.units:
                    matrix[row, layer] += number
        return each, found[0], found[1]


def _ordered(scores: Tensor) -> NDArray[Any]:
    """Return whole numbers in the order of flat floating scores, so that all between are known."""
    wide = scores.detach().to("cpu")
    wide = wide if wide.dtype in _WHOLE else wide.float()
    bits = (wide.numpy() + 0).view(_WHOLE[wide.dtype])  # −0 becomes 0
    found: NDArray[Any] = np.where(bits < 0, bits ^ np.iinfo(bits.dtype).max, bits)
    return found


def _plain(counts: Counts) -> list[int]:
    return [int(one) for one in counts]


def _least(true: Callable[[int], bool], low: int, high: int) -> int:
    """Return the least number from `low` for which a rising test is true; `high` where none is."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if true(middle) else (middle + 1, high)
    return low


def _ranked(keys: NDArray[Any], rank: int) -> int:
    """Return the key of a rank, 1 for the largest."""
    place = len(keys) - rank
    return int(np.partition(keys, place)[place])
