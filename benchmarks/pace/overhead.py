"""What one evaluation costs beside the forward pass that it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import cycle
from statistics import median
from typing import Any

import torch
from torch import nn

from benchmarks.networks.resnet20 import ResNet20
from benchmarks.pace.clock import pairs_of, seconds_of
from benchmarks.pace.efficientnet import EfficientNetLite0
from gaprune.criteria import score
from gaprune.evaluation.evaluator import Evaluator
from gaprune.evaluation.forward_modes import TeacherBatch
from gaprune.evaluation.objectives import AUTO, find_objective
from gaprune.evolution.genome import Genes, seed_genes
from gaprune.masks.budget import keep_total
from gaprune.models.forward import batched_forward
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import Target, load_target, target_from_module

CALIBRATION, SPARSITY = 256, 0.9
PAIRS = 30
VARIANTS = 4  # evaluated in turn: what is ranked is never in the cache
CHANGE = 0.01  # of the scores between them, in ranks


def _random(
    network: Callable[[], nn.Module],
    side: int,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Callable[[], Target]:
    """Return what makes a target of an architecture; its weights do not matter for its speed."""

    def make() -> Target:
        model: Any = network().eval()  # torch's annotations lack memory formats
        options = InputOptions(shape=(3, side, side), kind="image", range=(-1.0, 1.0))
        return target_from_module(model.to(memory_format=memory_format), inputs=options)

    return make


TARGETS: dict[str, Callable[[], Target]] = {
    "mnist-mlp": lambda: load_target("mnist-mlp"),
    "mnist-cnn": lambda: load_target("mnist-cnn"),
    "mobile-student": lambda: load_target("mobile-student"),
    "resnet20-sized": _random(ResNet20, 32),
    # channels last, as it is loaded by benchmarks/networks: depthwise kernels are faster so
    "efficientnet-lite0-sized": _random(EfficientNetLite0, 224, torch.channels_last),
}


def measure_overhead(
    names: Iterable[str] = tuple(TARGETS), *, calibration: int = CALIBRATION, pairs: int = PAIRS
) -> dict[str, Any]:
    """Measure (express + mask + forward + objective) ÷ (dense forward on the same calibration inputs).

    Both pass the calibration inputs in chunks of the same size, in turn, on one thread; the ratio is the median
    of the pairs'. Milliseconds stand beside it; `express` is a part of `evaluation`.
    """
    rows = {name: overhead_of(TARGETS[name](), calibration, pairs) for name in names}
    return {
        "overhead": {name: row["ratio"] for name, row in rows.items()},
        "overhead_ms": {
            name: {key: value for key, value in row.items() if key != "ratio"}
            for name, row in rows.items()
        },
    }


def overhead_of(target: Target, calibration: int, pairs: int) -> dict[str, float]:
    """Return the ratio for one network, and the milliseconds that it comes from."""
    evaluator = evaluator_of(target, calibration)
    variants = cycle(_variants(evaluator, target))
    strangers = iter([replace(evaluator) for _ in range(pairs + 1)])  # to each, no mask is known

    def dense() -> None:
        batched_forward(evaluator.network.model, evaluator.search.inputs)

    def evaluate() -> None:
        next(strangers).fitness(next(variants).decode(evaluator.layout))

    found = pairs_of(dense, evaluate, most=pairs)
    express = [
        seconds_of(lambda: next(variants).decode(evaluator.layout)) for _ in range(len(found))
    ]
    return {
        "ratio": median(evaluated / passed for passed, evaluated in found),
        "dense": 1e3 * median(passed for passed, _ in found),
        "evaluation": 1e3 * median(evaluated for _, evaluated in found),
        "express": 1e3 * median(express),
    }


def evaluator_of(target: Target, calibration: int) -> Evaluator:
    """Return an evaluator that shows noise, on one rung; speed does not depend on what is shown."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand((calibration, *target.inputs.shape), generator=generator)
    shown = TeacherBatch(noise, batched_forward(target.model, noise), None)
    return Evaluator(
        network=target.network,
        layout=target.layout,
        objective=find_objective(AUTO, shown.teacher),
        search=shown,
        validation=shown,
        mixture=None,
        gradient_inputs=None,
        gradient_share=0.0,
        rungs=(calibration,),
    )


def _variants(evaluator: Evaluator, target: Target) -> list[Genes]:
    """Return genes around the magnitudes' with counts of their own, as a search has them."""
    generator = torch.Generator().manual_seed(0)
    network = evaluator.network
    keep = keep_total(evaluator.layout, SPARSITY)
    base = seed_genes(
        score("magnitude", network, None, generator), evaluator.layout, keep, "allocated"
    )
    total = evaluator.layout.total
    return [
        base.with_scores(base.scores + CHANGE * torch.randn(total, generator=generator))
        for _ in range(VARIANTS)
    ]
