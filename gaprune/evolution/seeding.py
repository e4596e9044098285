"""The initial population: every data-free one-shot mask, or random scores (preset `classic`)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from gaprune.criteria import (
    CRITERIA,
    NUM_INPUTS,
    UNIT_CRITERIA,
    Criterion,
    DenseNetwork,
    find_criterion,
    score_with,
)
from gaprune.errors import GapruneError, InputError
from gaprune.evaluation.evaluator import Evaluator
from gaprune.evolution.genome import Genes, Individual, seed_genes
from gaprune.masks.budget import keep_total, uniform_counts
from gaprune.masks.supermask import Layout, global_mask, layered_mask, pack
from gaprune.masks.units import ChannelUnits, Units
from gaprune.models.time_limit import check_time

LAYERWISE = "-layer"  # suffix of a criterion whose layers all have the same density


def baselines(  # noqa: PLR0913 # everything that a criterion may depend on
    network: DenseNetwork,
    calibration: Tensor,
    sparsity: float,
    scope: str,
    generator: torch.Generator,
    *,
    gradients: bool = True,
    only: Collection[str] | None = None,
    ranked: Evaluator | None = None,
    with_genes: bool = True,
    repairs: bool = False,
    rivals: bool = True,
    warn: Callable[[str], None],
) -> Iterator[Individual]:
    """Yield the one-shot masks at a budget, one at a time; their origin is the criterion.

    Every criterion ranks all layers together, magnitude also every layer by itself at equal
    density. With scope `layer`, all rank layers by themselves. With units, all do both: means over
    large and small units are hardly comparable between layers.

    Args:
        network: the dense network.
        calibration: inputs `[N, …]`; each criterion uses as many of the first as it needs.
        sparsity: fraction of weights to remove.
        scope: `allocated`, `global` or `layer`.
        generator: for the random criterion.
        gradients: False skips the criteria that differentiate the network.
        only: names of criteria, also of plug-ins; None means all built-in ones.
        ranked: an evaluator whose units, if it has any, are ranked by the mean of their weights.
        repairs: whether the network is repaired after pruning.
        rivals: whether to make masks that a search must beat and does not start from.
        with_genes: False saves the memory of the genes, of masks that have no children.
        warn: called with a warning for a criterion that fails on this network.

    Raises:
        InputError: an unknown criterion, or a layer that scope `layer` would empty.
        TimeIsUp: the active limit is reached; the cheapest criteria come first.
    """
    layout = network.layout if ranked is None else ranked.layout
    units = None if ranked is None else ranked.units
    keep = keep_total(layout, sparsity)
    few = calibration[:NUM_INPUTS]  # one tensor: criteria share what they measure on it
    # criteria that depend on the final mask need its rules
    ruled = network if units is not None else with_rules(network, layout, sparsity, scope)
    seed = partial(_seed, layout, keep, scope)
    for name, criterion in _chosen(only, units, rivals=rivals and not repairs):
        if criterion.takes_gradients and not gradients:
            continue
        check_time()
        try:
            most = criterion.most_inputs
            inputs = few if most == NUM_INPUTS else calibration[:most]
            rule = criterion.repairing if repairs else criterion
            if rule.for_units is not None and isinstance(units, ChannelUnits):
                scores = rule.for_units(network, inputs, units)
            else:
                scores = score_with(rule, ruled, inputs, generator, 1 - sparsity)
                scores = scores if units is None else units.unit_mean(scores)
        except (GapruneError, RuntimeError) as error:
            warn(f"baseline {name} is skipped: {error}")
            continue
        genes = with_genes and (criterion.in_population or only is not None)
        if scope != "layer":
            yield seed(scores, name, with_genes=genes)
        if scope == "layer" or name == "magnitude" or units is not None:
            try:
                uniform = uniform_counts(layout, sparsity)
            except InputError:
                if scope == "layer":
                    raise
                continue  # equal density would empty a small layer; the other masks remain
            origin = name if scope == "layer" else name + LAYERWISE
            yield seed(scores, origin, uniform, with_genes=genes)


def with_rules(network: DenseNetwork, layout: Layout, sparsity: float, scope: str) -> DenseNetwork:
    """Return the network with the rules of its masks: `layout`, and equal densities in `layer`."""
    if scope == "layer" and layout.n_of_m is None:
        layout = replace(layout, fixed_counts=tuple(uniform_counts(layout, sparsity)))
    return replace(network, layout=layout)


def _chosen(
    only: Collection[str] | None, units: Units | None, *, rivals: bool
) -> list[tuple[str, Criterion]]:
    # built-in ones in their own order: it decides the random draws
    pattern = units.pattern if isinstance(units, ChannelUnits) else None
    built_in = [*CRITERIA, *(n for n, rule in UNIT_CRITERIA.items() if rule.pattern == pattern)]
    if only is not None:
        chosen = [name for name in built_in if name in only]
        added = sorted(set(only) - set(chosen))
        return [(name, find_criterion(name)) for name in [*chosen, *added]]
    criteria = [(name, find_criterion(name)) for name in built_in]
    if units is not None:
        return [(name, rule) for name, rule in criteria if not rule.single_weights]
    # for a network that is repaired, `correlation-swaps` repeats `swaps`
    return [(name, rule) for name, rule in criteria if rule.in_population or rivals]


def _seed(  # noqa: PLR0913 # scores, the rules of a mask, and what is known of it
    layout: Layout,
    keep: int,
    scope: str,
    scores: Tensor,
    origin: str,
    uniform: Sequence[int] | None = None,
    *,
    with_genes: bool,
) -> Individual:
    if with_genes or layout.mac_cost is not None:
        genes = seed_genes(scores, layout, keep, scope, uniform)
        return Individual.from_genes(genes, layout, origin)
    scores = scores.cpu()
    if layout.n_of_m is not None:
        mask = layout.n_of_m.mask(scores, layout.slices, layout.shapes)
    elif uniform is None:
        mask = global_mask(scores, layout, keep)
    else:
        mask = layered_mask(scores, layout, uniform)
    return Individual(pack(mask), layout.total, keep, origin)


def kaiming_population(
    layout: Layout, sparsity: float, scope: str, count: int, generator: torch.Generator
) -> Iterator[Genes]:
    """Yield genes of random scores, Kaiming-uniform per layer, ranked by absolute value."""
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
