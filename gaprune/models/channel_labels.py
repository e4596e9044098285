"""Labels of channels: disjoint sets of channels that can only be removed together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

CONSTANT = 0  # the label of elements that no channel computes: padding, parameters, positions

# The reason of channels that one head of an attention compares; whole heads may be removable.
HEAD_WIDTH = "they are parts of attention heads"

_HALF = 32  # bits of a label in a pair


class ChannelLabels:
    """Disjoint sets of labels; a set may be fixed for a reason."""

    def __init__(self) -> None:
        self._parents = [CONSTANT]
        self._reasons: dict[int, str] = {}
        self._joined: dict[int, str] = {}

    def new(self, count: int) -> Tensor:
        """Return `count` new labels, int64."""
        start = len(self._parents)
        self._parents.extend(range(start, start + count))
        return torch.arange(start, start + count)

    def fixed(self, reason: str) -> int:
        """Return a new label that is fixed."""
        label = int(self.new(1))
        self._reasons[label] = reason
        return label

    def root(self, label: int) -> int:
        """Return the label that stands for the set of `label`."""
        parents = self._parents
        while parents[label] != label:
            parents[label] = parents[parents[label]]
            label = parents[label]
        return label

    def roots(self, labels: Tensor) -> Tensor:
        """Return labels in which each stands for its set."""
        values, index = labels.unique(return_inverse=True)
        return torch.tensor([self.root(label) for label in values.tolist()])[index]

    def join(self, label: int, other: int, why: str, *, in_layer: bool = False) -> None:
        """Join two sets; `why` says which operation does. A constant fixes the other set.

        With `in_layer` they are channels of the same layer, and the reason is remembered.
        """
        if CONSTANT in (label, other):
            self.fix(label or other, f"they are combined with padding or constants by {why}")
            return
        low, high = sorted((self.root(label), self.root(other)))
        if low == high:
            return
        self._parents[high] = low
        for reason in (self._joined.pop(high, None), why if in_layer else None):
            if reason is not None:
                self._joined.setdefault(low, reason)
        reason = self._reasons.pop(high, None)
        if reason is not None:
            self._reasons.setdefault(low, reason)

    def fix(self, label: int, reason: str) -> None:
        """Fix a set, unless it is constant; the first reason counts."""
        if label != CONSTANT:
            self._reasons.setdefault(self.root(label), reason)

    def join_all(
        self, labels: Tensor, others: Tensor, what: str, *, in_layer: bool = False
    ) -> None:
        """Join labels at the same position."""
        first, second = torch.broadcast_tensors(stripped(labels), stripped(others))
        differ = first != second
        # one number per pair: torch finds unique numbers much faster than unique rows
        pairs = (first[differ] << _HALF | second[differ]).unique()
        for pair in pairs.tolist():
            self.join(pair >> _HALF, pair & ((1 << _HALF) - 1), what, in_layer=in_layer)

    def join_along(self, labels: Tensor, dim: int, what: str) -> None:
        """Join labels along a dimension."""
        self.join_all(labels, labels.narrow(dim, 0, 1).expand(labels.shape), what, in_layer=True)

    def fix_all(self, labels: Tensor | None, reason: str) -> None:
        """Fix the sets of labels, if there are any."""
        if labels is not None:
            for label in torch.unique(stripped(labels)).tolist():
                self.fix(label, reason)

    def vary(self, labels: Tensor, dim: int) -> bool:
        """Return whether sets of labels differ along a dimension."""
        if not varies(labels, dim):
            return False
        dim %= labels.ndim
        return varies(self.roots(stripped(labels, but=dim)), dim)

    def multiply(self, left: Tensor, right: Tensor, what: str) -> Tensor:
        """Return the labels of a product of matrices `[…, n, k]` and `[…, k, m]`, as in attention.

        A head can be removed as a whole: then its queries, keys and values go together.
        """
        size = (*left.shape[:-1], right.shape[-1])
        for labels, inner, outer in ((left, -1, -2), (right, -2, -1)):
            if self.vary(labels, inner):
                self.fix_all(left, HEAD_WIDTH)
                self.fix_all(right, HEAD_WIDTH)
            if labels is left and int(right.max()) and self.vary(labels, outer):
                self.fix_all(left, f"they are rows of a product in {what}")
        rows = left.narrow(-1, 0, 1).expand(size)
        columns = right.narrow(-2, 0, 1).expand(size)
        if not int(rows.max()) or not int(columns.max()):  # one of them is a constant
            return torch.maximum(rows, columns)
        self.join_all(rows, columns, what)
        return columns

    def pad(self, labels: Tensor, sizes: Sequence[int]) -> Tensor:
        """Return the labels of a padded tensor; `sizes` are those of `torch.nn.functional.pad`.

        Padding beside the values of a channel belongs to the channel, and goes with it. Padding
        with more channels is constant.
        """
        sizes, shape = list(sizes), list(labels.shape)
        for index, (before, after) in enumerate(zip(sizes[::2], sizes[1::2], strict=True)):
            dim = -1 - index
            shape[dim] += before + after
            if not self.vary(labels, dim):
                labels = labels.narrow(dim, 0, 1)
                sizes[2 * index : 2 * index + 2] = 0, 0
        return functional.pad(labels, sizes, value=CONSTANT).expand(shape)

    def like(self, labels: Tensor, shape: Sequence[int]) -> Tensor | None:
        """Return the labels of a new tensor that is made in the likeness of a labelled one.

        It has as many channels. Otherwise it holds constants: None.
        """
        if len(shape) != labels.ndim:
            return None
        for dim, size in enumerate(shape):
            if labels.shape[dim] != size:
                if self.vary(labels, dim):
                    return None
                labels = labels.narrow(dim, 0, 1)
        return labels.expand(shape)

    def reason(self, label: int) -> str | None:
        """Return why a set is fixed, or None."""
        return self._reasons.get(self.root(label))

    def joined_by(self, label: int) -> str:
        """Return the operation that first joined channels of the same layer in a set."""
        return self._joined.get(self.root(label), "several operations")


def varies(labels: Tensor, dim: int) -> bool:
    """Return whether labels differ along a dimension."""
    if labels.shape[dim] < 2 or labels.stride(dim) == 0:
        return False
    values = stripped(labels, but=dim % labels.ndim)
    return bool((values != values.narrow(dim, 0, 1)).any())


def stripped(labels: Tensor, but: int | None = None) -> Tensor:
    """Return labels with size 1 where they are expanded, except along the dimension `but`."""
    for dim in range(labels.ndim):
        if labels.stride(dim) == 0 and labels.shape[dim] > 1 and dim != but:
            labels = labels.narrow(dim, 0, 1)
    return labels
