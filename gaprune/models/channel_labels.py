"""Labels of channels: disjoint sets of channels that can only be removed together."""

from __future__ import annotations

import torch
from torch import Tensor

CONSTANT = 0  # the label of elements that no channel computes: padding, parameters, positions


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
