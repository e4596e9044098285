"""How near generated inputs come to those that a classifier was trained on, as it shows itself.

A network separates inputs like those it was trained on: it is confident about each, and its
predictions differ between them. The mutual information of input and class, H(mean p) − mean H(p) in
nats (the logarithm of the inception score, Salimans et al. 2016, section 4), measures both. Divided
by ln(classes) it is the *domain fit*, from 0 to 1. Networks had 0.82 to 0.97 on inputs of their own
domain; 0.72 to 0.82 on the best generator if they read characters, and 0.16 to 0.66 otherwise,
where masks that were searched on generated inputs are weak on real ones (benchmarks/README.md).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from gaprune.calibration.generators.random_draws import InputGenerator
from gaprune.calibration.weighing import LARGE_BATCH, QUICK_INPUTS, inputs_of_each, is_quick
from gaprune.models.mac_cost import MacCounts
from gaprune.models.network import DenseNetwork
from gaprune.models.target import Target

SAMPLE_INPUTS, FEWEST = 1024, 64  # per generator
MEASURED_MACS = 1.5e11  # multiply-adds for all generators of a large network: seconds on one core
BATCH = 256  # inputs per forward pass


def information_of(outputs: Tensor) -> float | None:
    """Return the mutual information of input and class in nats; None unless logits `[N, classes]`.

    Outputs that are not finite have none, 0.
    """
    if outputs.ndim != 2 or outputs.shape[1] < 2:
        return None
    p = outputs.double().softmax(1)
    return float((_entropy(p.mean(0)) - _entropy(p).mean()).nan_to_num())


def domain_fit(information: float, classes: int, count: int) -> float:
    """Return the mutual information in nats as a fraction of its largest value, from 0 to 1.

    This is ln(classes), or ln(count) if it is measured on fewer inputs than there are classes.
    """
    return max(0.0, information / math.log(max(2, min(classes, count))))


def sample_count(target: Target, generators: Collection[str]) -> int:
    """Return how many inputs of each generator are measured: fewer for large networks."""
    macs = len(generators) * MacCounts.of(target).total
    fewest = QUICK_INPUTS if is_quick() else FEWEST
    measured = MEASURED_MACS * fewest / FEWEST
    return min(SAMPLE_INPUTS, max(fewest, int(measured // max(1, macs))))


@torch.no_grad()
def mutual_information(
    network: DenseNetwork,
    generators: Mapping[str, InputGenerator],
    generator: torch.Generator,
    count: int,
) -> dict[str, float]:
    """Return the mutual information of input and class for every generator in nats, best first.

    Args:
        network: if its outputs are not logits `[N, classes]`, all get 0, in the given order.
        generators: name → generator.
        generator: draws the inputs.
        count: inputs of each; see `sample_count`.
    """
    size = BATCH if count > FEWEST else LARGE_BATCH
    outputs: dict[str, list[Tensor]] = {name: [] for name in generators}
    for name, batch in inputs_of_each(network, generators, generator, count, size):
        outputs[name].append(network.model(batch))
    values = {name: information_of(torch.cat(parts)) or 0.0 for name, parts in outputs.items()}
    return dict(sorted(values.items(), key=lambda item: -item[1]))


def _entropy(probabilities: Tensor) -> Tensor:
    return -torch.xlogy(probabilities, probabilities).sum(-1)
