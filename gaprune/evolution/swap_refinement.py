"""Children refined by reconstruction swaps, so that a search over keep counts compares good masks.

EvoPress (Sieberling et al. 2024) chooses among stored layers of several densities. Here a layer
whose keep count changes begins with its parent's mask, which takes few swaps.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from gaprune.criteria.layer_inputs import InputMoments
from gaprune.criteria.layer_tasks import work_on_layers
from gaprune.criteria.swaps import MOST_INPUTS, RefineLayer, input_groups
from gaprune.evaluation.evaluator import Evaluator
from gaprune.evaluation.forward_modes import RepairedForward
from gaprune.evolution.genome import Genes
from gaprune.masks.supermask import layer_counts
from gaprune.models.network import DenseNetwork

SWAPS, CORRELATED = "swaps", "correlation-swaps"  # what is refined as these criteria do


def refine_by_swaps(
    genes: Genes,
    parent: Genes,
    evaluator: Evaluator,
    generator: torch.Generator,
    correlated: bool,  # noqa: FBT001 - see `refine_mask`
) -> Genes:
    """Return genes whose mask is refined in the layers that keep other numbers than the parent's.

    If the numbers are equal, it is refined in one random layer. Rows keep their numbers of weights,
    see `refine_mask`. The search needs a score for every weight: no units. A network that is
    repaired counts correlations in any case.
    """
    layout, inputs = evaluator.layout, evaluator.statistics_inputs
    moments: dict[str, InputMoments] = evaluator.network.once(
        "moments", inputs, partial(_input_moments, evaluator.network, inputs)
    )
    genes = genes.as_float32().signed()
    mask, before = (each.decode(layout) for each in (genes, parent))
    pairs = zip(layer_counts(mask, layout), layer_counts(before, layout), strict=True)
    changed = [name for name, (a, b) in zip(layout.names, pairs, strict=True) if a != b]
    if not changed and moments:
        index = int(torch.randint(len(moments), (), generator=generator))
        changed = [list(moments)[index]]
    genes = genes.with_scores(genes.scores.clone())
    layers, masks = layout.split(genes.scores), layout.split(mask)
    network = replace(evaluator.network, layout=layout)
    correlated = correlated or isinstance(evaluator.forward_mode, RepairedForward)
    for name in (name for name in changed if name in moments):
        groups = input_groups(network, name)
        task = RefineLayer(name, moments[name], layers[name], masks[name], groups, correlated)
        layers[name].copy_(task.run(network))
    return genes


@dataclass(frozen=True, eq=False)
class _Measured:
    """Returns the moments as they are: layers with the same inputs share them."""

    name: str
    moments: InputMoments

    def run(self, _network: DenseNetwork) -> InputMoments:
        return self.moments


def _input_moments(network: DenseNetwork, inputs: Tensor) -> dict[str, InputMoments]:
    drawn = torch.Generator().manual_seed(0)  # positions of large layers
    return dict(work_on_layers(network, inputs[:MOST_INPUTS], drawn, _Measured))
