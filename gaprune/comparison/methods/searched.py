"""Methods that search for a mask over frozen weights: evolution, and trained scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from gaprune.callbacks import Part
from gaprune.comparison.context import ComparisonContext, Entrant, part_name
from gaprune.comparison.methods.edge_popup import EdgePopup, edge_popup
from gaprune.config import EVOLVED
from gaprune.models.macs import macs_per_input, suitable_batch
from gaprune.runs.prune import prune_target


def evolved(
    contest: ComparisonContext, sparsities: Sequence[float], seed: int
) -> Iterator[Entrant]:
    """Do what `gaprune prune` does with the same settings."""
    for sparsity in sparsities:
        settings = contest.settings_for(sparsity, seed)
        part = Part(contest.observer, part_name(EVOLVED, seed, sparsity), contest.said)
        result = prune_target(contest.target, settings, observer=part)
        if result.stopped == "interrupted":
            raise KeyboardInterrupt  # half a search is no row
        yield contest.masked(sparsity, result.masks, evaluations=result.evaluations)


def scores_by_gradient(
    contest: ComparisonContext, sparsities: Sequence[float], seed: int
) -> Iterator[Entrant]:
    """Train scores on calibration inputs with straight-through gradients (Ramanujan et al. 2020)."""
    target = contest.target
    how = EdgePopup(batch=suitable_batch(macs_per_input(target.model, target.example())))
    for sparsity in sparsities:
        generator = contest.generator("comparison", "edge-popup", seed, repr(sparsity))
        name = f"{part_name('edge-popup', seed, sparsity)}, step"
        report = partial(contest.observer.progress, name, total=how.steps)
        mask = edge_popup(contest.evaluator(seed), sparsity, how, generator, report)
        masks = contest.evaluator(seed).masks(mask)
        yield contest.masked(sparsity, masks, evaluations=how.steps)
