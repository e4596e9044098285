"""N:M sparsity: N weights stay in every group of M neighbours along a layer's inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import inf

import torch
from torch import Tensor

from gaprune.masks.top_k import check_no_nan

COMPARED_UP_TO = 32  # larger groups are sorted


@dataclass(frozen=True)
class NOfM:
    """How many weights (`keep`) stay in every group of `of`.

    `axes` holds the input axis of each layer; None where a layer has no groups and stays dense.
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
        """Yield every layer as a view `[groups before, M, positions behind]`, or `[n]` if dense."""
        for part, shape, axis in zip(slices, shapes, self.axes, strict=True):
            if axis is None:
                yield flat[part]
            else:
                behind = torch.Size(shape[axis + 1 :]).numel()
                yield flat[part].view(-1, self.of, behind)

    def mask(
        self, scores: Tensor, slices: Sequence[slice], shapes: Sequence[tuple[int, ...]]
    ) -> Tensor:
        """Mark the N largest of every group; ties are kept in index order. NaN: `InputError`."""
        check_no_nan(scores)
        mask = torch.ones(scores.shape, dtype=torch.bool, device=scores.device)
        # Views of the flat mask: writing into a group writes into the result.
        views = (self.groups(flat, slices, shapes) for flat in (scores.detach(), mask))
        for score_groups, mask_groups in zip(*views, strict=True):
            if mask_groups.ndim > 1:
                _write_top_n(score_groups, self.keep, mask_groups)
        return mask

    def holds(
        self, mask: Tensor, slices: Sequence[slice], shapes: Sequence[tuple[int, ...]]
    ) -> bool:
        """Return whether a flat mask keeps exactly N of every group, and whole dense layers."""
        return all(
            bool(((group.sum(1) == self.keep) if group.ndim > 1 else group).all())
            for group in self.groups(mask, slices, shapes)
        )

    def cuts(
        self,
        scores: Tensor,
        mask: Tensor,
        slices: Sequence[slice],
        shapes: Sequence[tuple[int, ...]],
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield each layer's scores in groups, and the threshold of every group.

        It lies midway between the lowest kept and the highest dropped score; in a layer without
        groups it is the lowest score.
        """
        views = (self.groups(flat, slices, shapes) for flat in (scores, mask))
        for score_groups, keep_mask in zip(*views, strict=True):
            if score_groups.ndim == 1:
                yield score_groups, score_groups.min()
                continue
            low = score_groups.masked_fill(~keep_mask, inf).amin(1, keepdim=True)
            high = score_groups.masked_fill(keep_mask, -inf).amax(1, keepdim=True)
            yield score_groups, (low + high) / 2


def _write_top_n(scores: Tensor, keep: int, mask: Tensor) -> None:
    """Write the `keep` largest of every group `[n, M, k]`; ties are kept in index order."""
    if scores.shape[1] > COMPARED_UP_TO:
        order = scores.argsort(dim=1, descending=True, stable=True)
        mask.fill_(False).scatter_(1, order[:, :keep], True)
        return
    # Counting how many neighbours are larger is about five times faster than sorting.
    columns = scores.unbind(1)
    num_larger = [torch.zeros_like(column, dtype=torch.int8) for column in columns]
    for (i, first), (j, second) in combinations(enumerate(columns), 2):
        first_wins = first >= second
        num_larger[j] += first_wins
        num_larger[i] += ~first_wins
    for index, count in enumerate(num_larger):
        torch.lt(count, keep, out=mask[:, index])
