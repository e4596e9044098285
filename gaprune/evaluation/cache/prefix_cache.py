"""Values behind the first layers, for masks that have these in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from gaprune.evaluation.cache.lru import LRUCache
from gaprune.evaluation.cache.staged_forward import Cut, Held, Leg, Stages
from gaprune.evaluation.cache.trace import cut_up

ROOM = 256 << 20  # bytes
RELATIVES = 8  # masks whose values at one cut must find room together, or it is left out
SEEN = 1 << 15  # first layers that are recognised

Key = tuple[bytes, int, int, int]


class Prefixes:
    """What first layers gave, from the second mask on that has them.

    Children whose every layer differs from all others' are told by `shared` alone: they cost no
    memory, and pass through the network as if this were not there.
    """

    def __init__(self) -> None:
        self._held: LRUCache[Key, Held] = LRUCache(ROOM)
        self._seen: LRUCache[bytes, bytes] = LRUCache(SEEN)
        self._stages: Stages | None = None
        self._is_new = True

    @property
    def size(self) -> int:
        """Bytes that are held."""
        return self._held.size

    def shared(self, marks: Sequence[bytes]) -> int:
        """Return how many first layers another mask had too, and remember these."""
        depth = 0
        for index, mark in enumerate(marks[:-1], 1):
            first = self._seen.get(mark)
            if first is None:
                self._seen.put(mark, marks[-1])
            elif first != marks[-1]:
                depth = index
        return depth

    def stages(
        self,
        model: nn.Module,
        weights: Mapping[str, Tensor],
        kept: Mapping[str, Tensor],
        batch: Tensor,
        count: int,
    ) -> Stages | None:
        """Return the network cut up for passes of `count` inputs, or None where that cannot be.

        It is tried once, when first layers are shared for the first time; see `cut_up`.
        """
        if self._is_new:
            self._is_new = False
            self._stages = cut_up(model, weights, kept, batch, ROOM / RELATIVES / count)
        return self._stages

    def answers(
        self,
        stages: Stages,
        kept: Mapping[str, Tensor],
        batches: Mapping[int, Tensor],
        marks: Sequence[bytes],
        depth: int,
    ) -> Tensor:
        """Pass batches, beginning where others with the same first layers have been.

        Args:
            stages: the network.
            kept: the mask's weights, by name.
            batches: row of the first input among all → `[N, …]`.
            marks: of the mask.
            depth: how many layers are shared, and worth holding what they give.
        """

        def keep(leg: Leg, cut: Cut, held: Held) -> None:
            self._held.put(_key(marks, cut, leg.row, leg.inputs), held, held.size)

        cuts = [cut for cut in stages.cuts if cut.depth <= depth]
        legs = [self._leg(cuts, inputs, row, marks) for row, inputs in batches.items()]
        return stages.run(kept, legs, keep)

    def _leg(self, cuts: Sequence[Cut], inputs: Tensor, row: int, marks: Sequence[bytes]) -> Leg:
        begin, hold = None, list[Cut]()
        for cut in cuts:
            held = self._held.get(_key(marks, cut, row, inputs))
            if held is not None and held.is_intact:
                begin, hold = (cut, held), []
            else:
                hold.append(cut)
        return Leg(inputs, row, begin, tuple(hold))


def _key(marks: Sequence[bytes], cut: Cut, row: int, inputs: Tensor) -> Key:
    return marks[cut.depth - 1], cut.depth, row, len(inputs)
