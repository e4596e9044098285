"""Methods that search for a mask over frozen weights: evolution, and trained scores."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from gaprune.callbacks import SubrunObserver
from gaprune.comparison.context import ComparisonContext, MethodResult, part_name
from gaprune.comparison.methods.edge_popup import EdgePopupOptions, edge_popup
from gaprune.config import EVOLVED
from gaprune.models.macs import macs_per_input, suitable_batch
from gaprune.runs.prune import prune_target


def evolved(
    context: ComparisonContext, sparsities: Sequence[float], seed: int
) -> Iterator[MethodResult]:
    """Do what `gaprune prune` does with the same settings."""
    for sparsity in sparsities:
        settings = context.settings_for(sparsity, seed)
        part = SubrunObserver(context.observer, part_name(EVOLVED, seed, sparsity), context.said)
        result = prune_target(context.target, settings, observer=part)
        if result.stopped == "interrupted":
            raise KeyboardInterrupt  # half a search is no row
        yield context.masked(sparsity, result.masks, evaluations=result.evaluations)


def scores_by_gradient(
    context: ComparisonContext, sparsities: Sequence[float], seed: int
) -> Iterator[MethodResult]:
    """Train scores on calibration inputs with straight-through gradients (Ramanujan et al. 2020)."""
    target = context.target
    how = EdgePopupOptions(batch=suitable_batch(macs_per_input(target.model, target.example())))
    for sparsity in sparsities:
        generator = context.generator("comparison", "edge-popup", seed, repr(sparsity))
        name = f"{part_name('edge-popup', seed, sparsity)}, step"
        report = partial(context.observer.progress, name, total=how.steps)
        mask = edge_popup(context.evaluator(seed), sparsity, how, generator, report)
        masks = context.evaluator(seed).masks(mask)
        yield context.masked(sparsity, masks, evaluations=how.steps)
