"""The first population: every data-free baseline at the same budget, or the original's noise."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from gaprune.criteria import CRITERIA, DenseNetwork, find_criterion, score
from gaprune.errors import GapruneError, InputError
from gaprune.evolution.genome import Genes, seed_genes
from gaprune.masks.budget import keep_total, uniform_counts
from gaprune.masks.supermask import Layout
from gaprune.masks.units import Units

LAYERWISE = "-layer"  # marks a criterion ranked inside layers of equal density


@dataclass(frozen=True)
class Baseline:
    """A one-shot mask at the budget: its name and its genes."""

    name: str
    genes: Genes


class Ranked(Protocol):
    """What is ranked: weights, or the units of a pattern."""

    @property
    def layout(self) -> Layout:
        """Of what has scores."""

    @property
    def units(self) -> Units | None:
        """None where every weight has a score of its own."""


def baselines(  # noqa: PLR0913 # what a criterion may depend on, each by its own name
    network: DenseNetwork,
    calibration: Tensor,
    sparsity: float,
    scope: str,
    generator: torch.Generator,
    *,
    gradients: bool = True,
    only: Collection[str] | None = None,
    ranked: Ranked | None = None,
    warn: Callable[[str], None],
) -> Iterator[Baseline]:
    """Yield every data-free baseline at a budget, one at a time.

    Each criterion is ranked over all layers; magnitude also inside layers of equal density. Where
    scope is `layer`, all of them are. The units of a pattern are ranked in both ways by all: means
    over units of many weights and of few are hardly comparable.

    Args:
        network: the dense network.
        calibration inputs: for the criteria that look at inputs, `[N, …]`.
        sparsity: fraction of weights to remove.
        scope: `allocated`, `global` or `layer`.
        generator: for the random criterion.
        gradients: False leaves out the criteria that differentiate the network.
        only: the criteria that are wanted, also those of plug-ins; None is all of our own.
        ranked: units that are ranked by the mean over their weights; None ranks weights.
        warn: told of a criterion that cannot be computed on this network.
    """
    layout = network.layout if ranked is None else ranked.layout
    units = None if ranked is None else ranked.units
    keep = keep_total(layout, sparsity)
    chosen = CRITERIA if only is None else {name: find_criterion(name) for name in _ordered(only)}
    for name, criterion in chosen.items():
        if criterion.takes_gradients and not gradients:
            continue
        try:
            scores = score(name, network, calibration, generator, density=1 - sparsity)
        except (GapruneError, RuntimeError) as error:
            warn(f"baseline {name} is left out: {error}")
            continue
        scores = scores if units is None else units.unit_mean(scores)
        if scope != "layer":
            yield Baseline(name, seed_genes(scores, layout, keep, scope))
        if scope == "layer" or name == "magnitude" or units is not None:
            try:
                uniform = uniform_counts(layout, sparsity)
            except InputError:
                if scope == "layer":
                    raise
                continue  # a tiny layer would be emptied; the other baselines remain
            genes = seed_genes(scores, layout, keep, scope, uniform)
            yield Baseline(name if scope == "layer" else name + LAYERWISE, genes)


def _ordered(names: Collection[str]) -> list[str]:
    """Return our own criteria in their order, then those of plug-ins."""
    own = [name for name in CRITERIA if name in names]
    return [*own, *sorted(set(names) - set(own))]


def kaiming_population(
    layout: Layout, sparsity: float, scope: str, count: int, generator: torch.Generator
) -> Iterator[Genes]:
    """Yield genes of random scores, ranked by size: Kaiming-uniform per layer, as first written."""
    counts = tuple(uniform_counts(layout, sparsity)) if scope == "layer" else None
    keep = keep_total(layout, sparsity)
    for _ in range(count):
        layers = [
            nn.init.kaiming_uniform_(
                torch.empty(shape if len(shape) > 1 else (1, *shape)), a=5**0.5, generator=generator
            )
            for shape in layout.shapes
        ]
        scores = torch.cat([layer.reshape(-1) for layer in layers])
        yield Genes(scores, counts, keep, fixed=scope == "layer", absolute=True)
