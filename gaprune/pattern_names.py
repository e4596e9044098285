"""What is removed together, as users write it: unstructured, channel, 2:4, 4x1; and what counts."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gaprune.errors import InputError

UNSTRUCTURED, CHANNEL = "unstructured", "channel"
WEIGHTS, MACS, LATENCY = "weights", "macs", "latency"
BUDGETS = {
    WEIGHTS: "single weights, blocks or channels are counted, as the pattern has them",
    MACS: "multiply-adds for one input",
    LATENCY: "the measured median time of one pass of the compact network",
}
"""What a sparsity is a part of."""
_BUDGET_WORDS = {MACS: "multiply-adds for one input", LATENCY: "time of one pass"}
FORMS = "unstructured, N:M such as 2:4, a block of ROWSxCOLUMNS such as 4x1, or channel"
TOLERANCE = 1e-3  # how far a stated sparsity may be from what a quota removes
_QUOTA, _BLOCK = re.compile(r"(\d+):(\d+)"), re.compile(r"(\d+)x(\d+)")


@dataclass(frozen=True)
class NMPattern:
    """`keep` weights stay of `of` neighbours."""

    keep: int
    of: int

    @property
    def sparsity(self) -> float:
        """The part of the weights that it removes."""
        return 1 - self.keep / self.of


@dataclass(frozen=True)
class BlockPattern:
    """Blocks of `rows` outputs by `columns` inputs stay or go."""

    rows: int
    columns: int


def parse_pattern(text: object) -> str | NMPattern | BlockPattern:
    """Return `unstructured`, `channel`, a quota or a block.

    Raises:
        InputError: it is neither, or removes nothing or everything.
    """
    if text in (UNSTRUCTURED, CHANNEL):
        return str(text)
    quota, block = (form.fullmatch(str(text)) for form in (_QUOTA, _BLOCK))
    if quota is not None:
        keep, of = map(int, quota.groups())
        if not 0 < keep < of:
            raise InputError(
                f"pattern: N:M keeps N of every M weights, so 0 < N < M, got {text!r}; such as 2:4"
            )
        return NMPattern(keep, of)
    if block is not None:
        rows, columns = map(int, block.groups())
        if rows * columns < 2:
            raise InputError(
                f"pattern: a block has two or more weights, got {text!r}; such as 4x1, or "
                "unstructured for single weights"
            )
        return BlockPattern(rows, columns)
    raise InputError(f"pattern: must be {FORMS}, got {text!r}")


def unit_name(pattern: str) -> str:
    """Return what a sparsity is a part of under a pattern: weights, 4x1 blocks, channels."""
    found = parse_pattern(pattern)
    if isinstance(found, str):
        return {UNSTRUCTURED: "weights", CHANNEL: "channels"}[found]
    return f"weights under {pattern}" if isinstance(found, NMPattern) else f"{pattern} blocks"


def sparsity_unit(pattern: str, budget: str) -> str | None:
    """Return what the asked sparsity of a run is a part of, in words; None: of single weights.

    Examples:
        >>> asked_of("channel", "weights"), asked_of("channel", "macs"), asked_of("2:4", "weights")
        ('channels', 'multiply-adds for one input', None)
    """
    if budget in _BUDGET_WORDS:
        return _BUDGET_WORDS[budget]
    single = isinstance(parse_pattern(pattern), NMPattern) or pattern == UNSTRUCTURED
    return None if single else unit_name(pattern)


def pattern_sparsity(text: object) -> float | None:
    """Return the sparsity that a pattern implies, or None where any is possible.

    Raises:
        InputError: there is no such pattern.
    """
    found = parse_pattern(text)
    return found.sparsity if isinstance(found, NMPattern) else None
