"""What a network takes: the shape, kind and value range of one input."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any

from gaprune.errors import InputError, unknown_name
from gaprune.models.token_ids import Words

KINDS = {
    "image": "float `[channels, height, width]`",
    "signal": "float `[channels, length]` or `[length]`",
    "vector": "float `[features]`, no order between neighbours",
    "tokens": "int64 `[length]`, ids below `vocabulary`",
}


@dataclass(frozen=True)
class InputSpec:
    """One input of the network, without the batch axis.

    Attributes:
        shape: for example (1, 28, 28).
        kind: a key of `KINDS`.
        low, high: the range of raw values, before normalisation.
        mean, std: normalisation of the raw values, one number or one per channel.
        vocabulary: number of token ids (kind `tokens` only).
        assumed: True where nobody stated the range and 0 to 1 was taken.
        words: what is known about the ids (kind `tokens` only), or None.
    """

    shape: tuple[int, ...]
    kind: str
    low: float = 0.0
    high: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    vocabulary: int = 0
    assumed: bool = False
    words: Words | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown_name("input kind", self.kind, KINDS)
        if not self.shape or any(size < 1 for size in self.shape):
            raise InputError(
                "input shape: must be positive sizes without the batch axis, such as 1,28,28; "
                f"got {self.shape}"
            )
        for label, values in (
            ("range", (self.low, self.high)),
            ("mean", self.mean),
            ("std", self.std),
        ):
            if not all(map(math.isfinite, values)):
                raise InputError(f"{label}: must be finite numbers, got {values}")
        if not self.low < self.high:
            raise InputError(
                f"range: the low end must be below the high end, got {self.low} to {self.high}"
            )
        channels = self.shape[0] if self.kind in ("image", "signal") and len(self.shape) > 1 else 1
        for label, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise InputError(
                    f"{label}: must have 1 value or one per channel ({channels}), got {len(values)}"
                )
        if min(self.std) <= 0:
            raise InputError(f"std: must be above 0, got {self.std}")
        if self.kind == "tokens" and self.vocabulary < 2:
            raise InputError(f"vocabulary: token inputs need at least 2 ids, got {self.vocabulary}")

    def facts(self) -> dict[str, Any]:
        """Return as plain data everything that calibration inputs of this form depend on."""
        plain = {one.name: getattr(self, one.name) for one in fields(self) if one.name != "words"}
        known = {} if self.words is None else self.words.facts()
        return {**plain, "words": known} if known else plain
