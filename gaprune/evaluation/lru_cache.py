"""A cache of bounded size that drops the least recently used entries."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LRUCache(Generic[K, V]):
    """Maps keys to values, each with a size.

    Args:
        capacity: the largest sum of sizes, in the unit of `put`.

    Attributes:
        size: the sum of the sizes of all entries, at most `capacity`.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity, self.size = capacity, 0
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def get(self, key: K) -> V | None:
        """Return the value of a key, or None."""
        if key not in self._entries:
            return None
        self._entries.move_to_end(key)
        return self._entries[key][0]

    def put(self, key: K, value: V, size: int = 1) -> None:
        """Store a value; one that is larger than the cache is not stored and displaces nothing."""
        # Remove an older value of the same key first: its size may differ.
        self.size -= self._entries.pop(key, (None, 0))[1]
        if size > self._capacity:
            return
        self._entries[key] = value, size
        self.size += size
        # popitem(last=False) removes the least recently used entry.
        while self.size > self._capacity:
            self.size -= self._entries.popitem(last=False)[1][1]

    def __len__(self) -> int:
        return len(self._entries)
