"""What does the missing data cost? Evolved masks beside every method with and without fine-tuning.

    python -m benchmarks.price_of_no_data                       # everything; hours on two cores
    python -m benchmarks.price_of_no_data --only mnist-mlp      # one network, all methods
    python -m benchmarks.price_of_no_data --part slimming       # or: table, clustering
    python -m benchmarks.price_of_no_data --seeds 0 --json      # one seed, rows as JSON

Rows are kept in runs/price-of-no-data as soon as they are known: stop at any time, the same command
goes on. All accuracies are on the 10,000 MNIST test images, which nothing else ever sees.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gaprune.baselines.clustering import ClusterPoint, sweep_clusters
from gaprune.baselines.slimming import Round, slim
from gaprune.baselines.training import Training, from_labels
from gaprune.bench import answers
from gaprune.comparison import Comparison, Data, Question, Row, compare_target
from gaprune.comparison.contest import Unheard
from gaprune.comparison.tables import markdown
from gaprune.formats import to_json
from gaprune.labelled import zoo_test, zoo_train
from gaprune.objectives import accuracy
from gaprune.target import Target, load_target

PLACE = Path("runs/price-of-no-data")
SPARSITIES = (0.5, 0.7, 0.9, 0.95, 0.98, 0.99)


@dataclass(frozen=True)
class Case:
    """One table: a network, its methods, and how long a step of training is."""

    target: str
    methods: tuple[str, ...] = ("all",)
    epochs: float = 1.0


CASES = (
    Case("mnist-mlp"),
    Case("lenet"),
    Case("mnist-cnn"),
)


class Progress(Unheard):
    """A line on stderr for every row that is new."""

    def row(self, row: Row, done: int, total: int) -> None:
        """Say what has come out."""
        score = row.error if row.score is None else f"{row.score:.2%} in {row.seconds:.0f} s"
        name = f"{row.target} {row.method} {row.sparsity} seed {row.seed}"
        print(f"{done}/{total} {name}: {score}", file=sys.stderr, flush=True)


def compared(case: Case, seeds: Sequence[int]) -> Comparison:
    """Run, or go on with, one table."""
    target = load_target(case.target)
    question = Question(SPARSITIES, case.methods, seeds, epochs=case.epochs)
    return compare_target(
        target,
        question,
        data=Data(zoo_train(target), zoo_test(target)),
        out=PLACE / case.target,
        observer=Progress(),
    )


def show_table(found: Comparison) -> str:
    """Return one comparison as Markdown."""
    return markdown(found.lines, found.dense_accuracy, found.caption)


def slimming_rows(seed: int) -> list[dict[str, Any]]:
    """Slim mobile-student in five rounds at width 0.95, with test accuracy around fine-tuning."""
    target = load_target("mobile-student")
    train, test = zoo_train(target), zoo_test(target)
    assert train is not None
    assert test is not None
    lessons, kept_back = hold_back(train)
    generator = torch.Generator().manual_seed(seed)
    rows = []
    rounds = slim(
        target, from_labels(lessons), SLIMMING, generator, width=0.95, held_out=kept_back
    )
    for one in rounds:
        scores = {
            "accuracy_before": score(one.compact, test),
            "accuracy": score(one.model, test),
        }
        rows.append({"target": target.name, "seed": seed, **one.row(), **scores})
        print(f"slimming, round {one.number}: {scores['accuracy']:.2%}", file=sys.stderr)
    return rows
