"""Cost of one evaluation, compared with the dense forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import cycle
from statistics import median
from typing import Any

import torch
from torch import nn

from benchmarks.networks.resnet20 import ResNet20
from benchmarks.search_speed.random_efficientnet import EfficientNetLite0
from gaprune.criteria import score
from gaprune.evaluation.evaluator import Evaluator
from gaprune.evaluation.forward_modes import TeacherBatch
from gaprune.evaluation.latency import time_calls
from gaprune.evaluation.objectives import AUTO, find_objective
from gaprune.evolution.genome import Genes, seed_genes
from gaprune.masks.budget import keep_total
from gaprune.models.forward import batched_forward
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import Target, load_target, target_from_module

CALIBRATION, SPARSITY = 256, 0.9
PAIRS, MIN_PAIRS = 30, 5
SECONDS = 60.0  # per network, after which no pair beyond MIN_PAIRS starts
VARIANTS = 4  # genes decoded in turn, so that no scores stay in the processor's cache
CHANGE = 0.01  # standard deviation between their scores, in ranks


def _random(
    network: Callable[[], nn.Module],
    side: int,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Callable[[], Target]:
    """Return a factory of a target with random weights, which do not change the speed."""

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
    # Channels last, as in benchmarks/networks: depthwise convolutions are faster.
    "efficientnet-lite0-sized": _random(EfficientNetLite0, 224, torch.channels_last),
}


def measure_overhead(
    names: Iterable[str] = tuple(TARGETS), *, calibration: int = CALIBRATION, pairs: int = PAIRS
) -> dict[str, Any]:
    """Measure (decode + mask + forward + objective) ÷ (dense forward) on the same inputs.

    Both run in turn on one thread, in chunks of the same size; the ratio is the median over pairs.
    `overhead_ms` holds milliseconds; `decode` is part of `evaluation`.
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
    """Return the ratio of one network and the milliseconds behind it."""
    evaluator = evaluator_of(target, calibration)
    variants = cycle(_variants(evaluator, target))
    # A mask is scored once per evaluator and then cached: every evaluation needs a fresh one.
    fresh_evaluators = iter([replace(evaluator) for _ in range(pairs + 1)])

    def dense() -> None:
        batched_forward(evaluator.network.model, evaluator.search.inputs)

    def evaluate() -> None:
        next(fresh_evaluators).fitness(next(variants).decode(evaluator.layout))

    dense()  # warm up
    evaluate()
    dense_ms, evaluation_ms = time_calls(
        [dense, evaluate], seconds=SECONDS, min_rounds=min(pairs, MIN_PAIRS), max_rounds=pairs
    )
    decode = [lambda: next(variants).decode(evaluator.layout)]
    (decode_ms,) = time_calls(decode, seconds=0, min_rounds=len(dense_ms))
    return {
        "ratio": median(b / a for a, b in zip(dense_ms, evaluation_ms, strict=True)),
        "dense": median(dense_ms),
        "evaluation": median(evaluation_ms),
        "decode": median(decode_ms),
    }


def evaluator_of(target: Target, calibration: int) -> Evaluator:
    """Return an evaluator on noise without racing; the speed does not depend on the inputs."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand((calibration, *target.inputs.shape), generator=generator)
    batch = TeacherBatch(noise, batched_forward(target.model, noise), None)
    return Evaluator(
        network=target,
        layout=target.layout,
        objective=find_objective(AUTO, batch.teacher),
        search=batch,
        validation=batch,
        mixture=None,
        gradient_inputs=None,
        gradient_share=0.0,
        rungs=(calibration,),
    )


def _variants(evaluator: Evaluator, target: Target) -> list[Genes]:
    """Return genes around magnitude pruning, as a search holds them."""
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
