"""2:4 sparsity: check the pattern in every group, and compare methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.exports.export_case import Case, Context, Figures
from benchmarks.isolated_process import run_isolated
from benchmarks.networks import open_network
from benchmarks.networks.real_network import data_path
from benchmarks.networks.scoring import accuracy, outputs_of
from benchmarks.real.methods import usable_settings
from benchmarks.real.settings import SETTINGS
from gaprune.cli.console import Monitor
from gaprune.config import EVOLVED, make_settings
from gaprune.evaluation.labelled import zoo_test
from gaprune.models.target import Target, load_target
from gaprune.runs.prune import prune_target

PATTERN, KEEP, OF = "2:4", 2, 4
METHODS = (EVOLVED, "magnitude", "wanda-rows", "correlation")
ScoredNetwork = tuple[Target, Callable[[nn.Module], float]]
"""A network, and a function that scores networks on test data."""


def open_mlp(data: Path | None) -> ScoredNetwork:
    """Return mnist-mlp and its accuracy on the 10,000 test images."""
    target = load_target("mnist-mlp")
    test = zoo_test(target)
    assert test is not None
    assert test.labels is not None
    inputs, labels = test.inputs, test.labels
    return target, lambda model: accuracy(outputs_of(model, inputs), labels)


def open_encoder(data: Path | None) -> ScoredNetwork:
    """Return MiniLM and its rank correlation on held-out sentence pairs.

    Raises:
        GapruneError: the data or a package is missing.
    """
    network = open_network("minilm", data)
    return network.load(), network.score


OPEN: dict[str, Callable[[Path | None], ScoredNetwork]] = {
    "mnist-mlp": open_mlp,
    "minilm": open_encoder,
}
DATA = {"minilm": ("stsb", "test.csv")}
SEARCH_SETTINGS: dict[str, Mapping[str, Any]] = {"mnist-mlp": {}, "minilm": SETTINGS["minilm"]}


def measure_pattern(
    network: str, settings: Mapping[str, Any], data: Path | None
) -> dict[str, float]:
    """Prune with the pattern, check the groups of the pruned network, and score it."""
    target, score = OPEN[network](data)
    with Monitor() as monitor:
        result = prune_target(target, make_settings(settings), observer=monitor)
    model = result.pruned_model()
    counts = groups_of({name: model.get_parameter(name) for name in target.weights})
    return {
        "score": score(model),
        "dense": score(target.model),
        **counts,
        "validation": result.validation_agreement,
        "removed": result.actual_sparsity,
        "seconds": result.seconds,
    }


@torch.no_grad()
def groups_of(weights: Mapping[str, Tensor]) -> dict[str, int]:
    """Count groups of four neighbours along the inputs, and groups with more than two weights.

    Layers whose number of inputs is not a multiple of four stay dense and have no groups.
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
        data_path(context.data, *DATA[network])  # fail before a process starts
    return run_isolated(measure_pattern, network, settings, context.data)


def _case(network: str, method: str) -> Case:
    settings = usable_settings(SEARCH_SETTINGS[network], searches=method == EVOLVED)
    settings |= {"pattern": PATTERN, "method": method, "seed": 0}
    return Case(f"{network}-{PATTERN}", method, partial(_in_process, network, settings), settings)


CASES = tuple(_case(network, method) for network in OPEN for method in METHODS)
