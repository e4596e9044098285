"""N of every M: so many weights stay in each group of neighbours along a layer's inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import inf

import torch
from torch import Tensor

from gaprune.errors import InputError

COMPARED = 32  # groups of so many are compared, larger ones sorted


@dataclass(frozen=True)
class NOfM:
    """How many weights stay in every group, and along which axis the groups lie.

    Attributes:
        keep: N, those that stay.
        of: M, those of a group.
        axes: of each layer the axis of its inputs, of which M is a divisor; None where there are
            no groups, and the whole layer stays.
    """

    keep: int
    of: int
    axes: tuple[int | None, ...]

    def counts(self, sizes: Sequence[int]) -> tuple[int, ...]:
        """Return how many weights of each layer stay."""
        return tuple(
            size if axis is None else size // self.of * self.keep
            for size, axis in zip(sizes, self.axes, strict=True)
        )

    def groups(
        self, flat: Tensor, slices: Sequence[slice], shapes: Sequence[tuple[int, ...]]
    ) -> Iterator[Tensor]:
        """Yield every layer as a view `[groups before, M, positions behind]`; whole ones `[n]`.

        Neighbours in a group follow one another along the axis of the inputs.
        """
        for part, shape, axis in zip(slices, shapes, self.axes, strict=True):
            if axis is None:
                yield flat[part]
            else:
                behind = torch.Size(shape[axis + 1 :]).numel()
                yield flat[part].view(-1, self.of, behind)

    def mask(
        self, scores: Tensor, slices: Sequence[slice], shapes: Sequence[tuple[int, ...]]
    ) -> Tensor:
        """Mark the N largest of every group of flat scores; ties are kept in index order.

        Raises:
            InputError: a score is NaN.
        """
        if nan := int(scores.isnan().count_nonzero()):
            raise InputError(
                f"scores: {nan} of {scores.numel()} are NaN, which has no rank; make them finite"
            )
        mask = torch.ones(scores.shape, dtype=torch.bool, device=scores.device)
        parts = (self.groups(one, slices, shapes) for one in (scores.detach(), mask))
        for found, out in zip(*parts, strict=True):
            if out.ndim > 1:
                _mark(found, self.keep, out)
        return mask

    def holds(
        self, mask: Tensor, slices: Sequence[slice], shapes: Sequence[tuple[int, ...]]
    ) -> bool:
        """Tell whether a flat mask keeps exactly N of every group, and whole layers whole."""
        return all(
            bool(((one.sum(1) == self.keep) if one.ndim > 1 else one).all())
            for one in self.groups(mask, slices, shapes)
        )

    def cuts(
        self,
        scores: Tensor,
        mask: Tensor,
        slices: Sequence[slice],
        shapes: Sequence[tuple[int, ...]],
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield, layer by layer, scores in groups and the cut of each: midway between both sides.

        Where all of a layer stays, its cut is its least score.
        """
        parts = (self.groups(one, slices, shapes) for one in (scores, mask))
        for found, stays in zip(*parts, strict=True):
            if found.ndim == 1:
                yield found, found.min()
                continue
            low = found.masked_fill(~stays, inf).amin(1, keepdim=True)
            high = found.masked_fill(stays, -inf).amax(1, keepdim=True)
            yield found, (low + high) / 2


def _mark(scores: Tensor, keep: int, out: Tensor) -> None:
    """Write which `keep` of every group `[n, M, k]` are the largest; ties in index order.

    Few are compared each with each, which is some five times faster than sorting.
    """
    if scores.shape[1] > COMPARED:
        order = scores.argsort(dim=1, descending=True, stable=True)
        out.fill_(False).scatter_(1, order[:, :keep], True)
        return
    columns = scores.unbind(1)
    better = [torch.zeros_like(one, dtype=torch.int8) for one in columns]
    for (i, first), (j, second) in combinations(enumerate(columns), 2):
        leads = first >= second
        better[j] += leads
        better[i] += ~leads
    for place, count in enumerate(better):
        torch.lt(count, keep, out=out[:, place])
