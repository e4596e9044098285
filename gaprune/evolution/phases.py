"""The parts of a search, one after the other: in each, children are made in another way."""

from __future__ import annotations

from dataclasses import dataclass

from gaprune.evolution.gradient import Refinement
from gaprune.evolution.presets import Preset

WARMUP, DENSITY_SEARCH, SEARCH = "warmup", "density_search", "search"


@dataclass(frozen=True)
class SearchPhase:
    """Some generations of a search and how their children are made.

    Attributes:
        name: `warmup` (gradient steps that begin after repair and end without it),
            `density_search` (keep counts of the layers alone) or `search` (everything).
        preset: its operators and their options.
        offspring: children per generation.
        refinement: gradient steps of every child, or None.
        start: generations before it.
        length: its generations, or None: until a limit of the search is met.
    """

    name: str
    preset: Preset
    offspring: int
    refinement: Refinement | None
    start: int
    length: int | None

    def holds(self, generation: int) -> bool:
        """Tell whether a generation is over before the phase is; the seeded one is 0."""
        return self.length is None or generation <= self.start + self.length

    def progress(self, generation: int) -> float:
        """Return how far the phase is after a generation, up to 1; 0 where none is last."""
        if not self.length:
            return 0.0
        return min(1.0, (generation - self.start) / self.length)
