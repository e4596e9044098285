"""Pruning patterns as users write them (unstructured, channel, 2:4, 4x1), and units of budgets."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from gaprune.errors import InputError

UNSTRUCTURED, CHANNEL, EXPERT = "unstructured", "channel", "expert"
_UNITS = {UNSTRUCTURED: "weights", CHANNEL: "channels", EXPERT: "experts"}
WEIGHTS, MACS, LATENCY = "weights", "macs", "latency"
BUDGETS = {
    WEIGHTS: "single weights, blocks, channels or experts, depending on the pattern",
    MACS: "multiply-adds for one input",
    LATENCY: "measured median time of one forward pass of the compact network",
}
"""What a sparsity is a fraction of."""
_BUDGET_UNITS = {MACS: "multiply-adds for one input", LATENCY: "time of one pass"}
FORMS = "unstructured, N:M such as 2:4, a block of ROWSxCOLUMNS such as 4x1, channel, or expert"
TOLERANCE = 1e-3  # allowed difference between a given sparsity and that of an N:M pattern
_N_OF_M, _BLOCK = re.compile(r"(\d+):(\d+)"), re.compile(r"(\d+)x(\d+)")


@dataclass(frozen=True)
class NMPattern:
    """N:M sparsity: `keep` of every `of` neighbouring weights stay."""

    keep: int
    of: int

    @property
    def sparsity(self) -> float:
        """The fraction of weights that it removes."""
        return 1 - self.keep / self.of


@dataclass(frozen=True)
class BlockPattern:
    """Blocks of `rows` outputs by `columns` inputs stay or go as a whole."""

    rows: int
    columns: int


@cache
def parse_pattern(text: str) -> str | NMPattern | BlockPattern:
    """Return `unstructured`, `channel`, `expert`, an N:M pattern or a block pattern.

    Raises:
        InputError: `text` is no pattern, or a pattern that removes nothing or everything.
    """
    if text in _UNITS:
        return text
    n_of_m, block = (form.fullmatch(text) for form in (_N_OF_M, _BLOCK))
    if n_of_m is not None:
        keep, of = map(int, n_of_m.groups())
        if not 0 < keep < of:
            raise InputError(
                f"pattern: N:M keeps N of every M weights, so 0 < N < M, got {text!r}; such as 2:4"
            )
        return NMPattern(keep, of)
    if block is not None:
        rows, columns = map(int, block.groups())
        if rows * columns < 2:
            raise InputError(
                f"pattern: a block has two or more weights, got {text!r}; use a block such as 4x1, "
                "or unstructured for single weights"
            )
        return BlockPattern(rows, columns)
    raise InputError(f"pattern: must be {FORMS}, got {text!r}")


def unit_name(pattern: str) -> str:
    """Return what a sparsity counts under a pattern: weights, 4x1 blocks, channels, experts."""
    parsed = parse_pattern(pattern)
    if isinstance(parsed, str):
        return _UNITS[parsed]
    return f"weights under {pattern}" if isinstance(parsed, NMPattern) else f"{pattern} blocks"


def sparsity_unit(pattern: str, budget: str) -> str | None:
    """Return what the sparsity of a run is a fraction of, in words; None for single weights.

    Examples:
        >>> sparsity_unit("channel", "weights"), sparsity_unit("channel", "macs")
        ('channels', 'multiply-adds for one input')
    """
    if budget in _BUDGET_UNITS:
        return _BUDGET_UNITS[budget]
    counts_weights = pattern == UNSTRUCTURED or isinstance(parse_pattern(pattern), NMPattern)
    return None if counts_weights else unit_name(pattern)


def pattern_sparsity(text: object) -> float | None:
    """Return the sparsity that a pattern implies, or None where any is possible.

    Raises:
        InputError: `text` is no pattern.
    """
    parsed = parse_pattern(str(text))  # a configuration file may hold anything
    return parsed.sparsity if isinstance(parsed, NMPattern) else None
