"""A dictionary of bounded size that forgets what was used least recently."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LRUCache(Generic[K, V]):
    """Holds values by key, each of a size.

    Args:
        room: how much it holds, in the unit of the sizes.

    Attributes:
        size: how much it holds now, at most `room`.
    """

    def __init__(self, room: int) -> None:
        self._room, self.size = room, 0
        self._found: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def get(self, key: K) -> V | None:
        """Return what is held for a key, or None."""
        if key not in self._found:
            return None
        self._found.move_to_end(key)
        return self._found[key][0]

    def put(self, key: K, value: V, size: int = 1) -> None:
        """Hold a value; one that has no room is forgotten at once, and no other for it."""
        self.size -= self._found.pop(key, (None, 0))[1]
        if size > self._room:
            return
        self._found[key] = value, size
        self.size += size
        while self.size > self._room:
            self.size -= self._found.popitem(last=False)[1][1]

    def __len__(self) -> int:
        return len(self._found)
