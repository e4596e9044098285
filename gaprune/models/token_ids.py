"""What is known about token ids: which are common, what frames a text, which mean alike."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, eq=False)
class Words:
    """The ids of a token network.

    Attributes:
        ranked: ids of ordinary tokens, most frequent first; empty where nobody knows.
        start, end: ids that a text begins and ends with, or None.
        table: the network's own `nn.Embedding` of the ids, or None. It is the module and no copy,
            so that a pickle of network and ids holds it once.
    """

    ranked: tuple[int, ...] = field(default=(), repr=False)
    start: int | None = None
    end: int | None = None
    table: Any = field(default=None, repr=False)

    def facts(self) -> dict[str, Any]:
        """Return as plain data what calibration inputs depend on beside the network; empty: nothing."""
        if not self.ranked:
            return {}
        ids = hashlib.sha256(",".join(map(str, self.ranked)).encode()).hexdigest()
        return {"ranked": ids, "start": self.start, "end": self.end}
