"""2:4: the pattern counted in every group of the network itself, and what it costs by method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.exported.case import Case, Context, Figures
from benchmarks.networks import open_network
from benchmarks.networks.record import data_place
from benchmarks.networks.scoring import accuracy, outputs_of
from benchmarks.real.process import in_own_process
from benchmarks.real.settings import SETTINGS
from gaprune.cli.console import Monitor
from gaprune.config import EVOLVED, make_settings
from gaprune.evaluation.labelled import zoo_test
from gaprune.models.target import Target, load_target
from gaprune.runs.prune import prune_target

PATTERN, KEEP, OF = "2:4", 2, 4
METHODS = (EVOLVED, "magnitude", "wanda-rows", "correlation")
Graded = tuple[Target, Callable[[nn.Module], float]]
"""A network, and what grades one like it on data that pruning never sees."""


def open_mlp(data: Path | None) -> Graded:
    """Return mnist-mlp and its accuracy on the 10,000 test images."""
    target = load_target("mnist-mlp")
    test = zoo_test(target)
    assert test is not None
    assert test.labels is not None
    inputs, labels = test.inputs, test.labels
    return target, lambda model: accuracy(outputs_of(model, inputs), labels)


def open_encoder(data: Path | None) -> Graded:
    """Return MiniLM and its rank correlation on held-out sentence pairs.

    Raises:
        GapruneError: the data or a package is missing; the row says which.
    """
    network = open_network("minilm", data)
    return network.load(), network.score


OPEN: dict[str, Callable[[Path | None], Graded]] = {
    "mnist-mlp": open_mlp,
    "minilm": open_encoder,
}
DATA = {"minilm": ("stsb", "test.csv")}
OWN: dict[str, Mapping[str, Any]] = {"mnist-mlp": {}, "minilm": SETTINGS["minilm"]}


def measured(network: str, settings: Mapping[str, Any], data: Path | None) -> dict[str, float]:
    """Prune under the pattern, count it in the pruned network, and grade it."""
    target, grade = OPEN[network](data)
    with Monitor() as monitor:
        result = prune_target(target, make_settings(settings), observer=monitor)
    model = result.pruned_model()
    counts = groups_of({name: model.get_parameter(name) for name in target.weights})
    return {
        "score": grade(model),
        "dense": grade(target.model),
        **counts,
        "validation": result.validation_agreement,
        "removed": result.actual_sparsity,
        "seconds": result.seconds,
    }


@torch.no_grad()
def groups_of(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Count groups of four neighbours along the inputs, and those with more than two weights.

    Layers whose inputs four does not divide have no groups.
    """
    groups = broken = whole = 0
    for weight in weights.values():
        if weight.ndim < 2 or weight.shape[1] % OF:
            whole += 1
            continue
        counts = weight.movedim(1, -1).reshape(-1, OF).count_nonzero(1)
        groups += len(counts)
        broken += int((counts > KEEP).sum())
    return {"groups": groups, "broken": broken, "whole_layers": whole}


def _in_process(network: str, settings: Mapping[str, Any], context: Context) -> Figures:
    if network in DATA:
        data_place(context.data, *DATA[network])  # before a process is started
    return in_own_process(measured, network, settings, context.data)


def _case(network: str, method: str) -> Case:
    settings = {**OWN[network], "pattern": PATTERN, "method": method, "seed": 0}
    return Case(f"{network}-{PATTERN}", method, partial(_in_process, network, settings), settings)


CASES = tuple(_case(network, method) for network in OPEN for method in METHODS)
