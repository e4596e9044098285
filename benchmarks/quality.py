"""Accuracy of masks on MNIST, in one table.

    python -m benchmarks.quality                        # everything, three seeds; about 2 hours
    python -m benchmarks.quality --only mnist-mlp       # one network, about 20 minutes
    python -m benchmarks.quality --seeds 0 --json       # one seed, rows as JSON

Each case is one `gaprune prune`; test labels are used only after the masks are fixed. A median
below the lower limit of its case is marked and makes the exit code 1. Rows are written to
runs/quality as soon as they are known: a stopped benchmark continues with the same command.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.row_store import VERSION, RowStore
from gaprune.config import make_settings
from gaprune.errors import InputError
from gaprune.evaluation.labelled import zoo_test
from gaprune.models.target import load_target
from gaprune.runs.prune import prune_target

DEFAULT_FOLDER = Path("runs/quality")
NO_DATA, UNLABELLED = "no data", "unlabelled images"


@dataclass(frozen=True)
class Case:
    """One row of the table.

    Attributes:
        target: zoo name.
        sparsity: fraction of weights removed.
        method: name of the row.
        limit: lower limit of the median accuracy.
        settings: settings besides target and sparsity.
        seeds: maximum number of seeds.
    """

    target: str
    sparsity: float
    method: str
    limit: float
    settings: dict[str, Any] = field(default_factory=dict)
    seeds: int = 3


IMAGES = {"calibration": ["mnist-train"]}
BLACK_BOX = {"preset": "black-box"}
CLASSIC = {"preset": "classic", "calibration": ["labelled:mnist-test"], "calibration_count": 1000}
CASES = (
    Case("mnist-mlp", 0.95, NO_DATA, 0.960),
    Case("mnist-mlp", 0.98, NO_DATA, 0.910),
    Case("mnist-cnn", 0.98, NO_DATA, 0.978),
    Case("mnist-cnn", 0.99, NO_DATA, 0.970),
    Case("mnist-mlp", 0.95, UNLABELLED, 0.974, IMAGES),
    Case("mnist-mlp", 0.98, UNLABELLED, 0.968, IMAGES),
    Case("mnist-cnn", 0.98, UNLABELLED, 0.985, IMAGES),
    Case("mnist-mlp", 0.95, "black box, no data", 0.905, BLACK_BOX),
    Case("lenet", 0.95, NO_DATA, 0.0),
    Case("mobile-student", 0.7, NO_DATA, 0.0),
    Case("mnist-cnn", 0.7, "classic on 1,000 labelled test images", 0.72, CLASSIC, seeds=1),
)


@dataclass(frozen=True)
class Row:
    """One measurement; `accuracy` is measured on the 10,000 test images."""

    target: str
    sparsity: float
    method: str
    seed: int
    accuracy: float | None
    agreement_search: float | None
    agreement_validation: float
    evaluations: int
    seconds: float
    version: str = VERSION


def rows_of(case: Case, seed: int, workers: int, store: RowStore) -> list[Row]:
    """Return the row of the search for one seed, then those of its one-shot masks.

    They are measured unless this version has stored them.
    """
    identity = {"target": case.target, "sparsity": case.sparsity, "seed": seed, "version": VERSION}
    if store.find(**identity, method=case.method) is None:
        # the search last: it says that all rows are there
        for row in reversed(list(measure(case, seed, workers))):
            store.add(asdict(row))
    stored = {record["method"]: Row(**record) for record in store.find_all(**identity)}
    prefix = f"{case.method}: "
    return [
        stored[case.method],
        *(row for method, row in stored.items() if method.startswith(prefix)),
    ]


def measure(case: Case, seed: int, workers: int) -> Iterator[Row]:
    """Yield the row of the search for one seed, then the rows of its one-shot baselines."""
    settings = {"sparsity": case.sparsity, "seed": seed, "workers": workers, **case.settings}
    target = load_target(case.target)
    result = prune_target(target, make_settings(settings), test=zoo_test(target))
    name = (case.target, case.sparsity)
    yield Row(
        *name,
        case.method,
        seed,
        result.accuracy,
        result.calibration_agreement,
        result.validation_agreement,
        result.evaluations,
        round(result.seconds, 1),
    )
    for baseline, score in result.baselines.items():
        validation = score.agreement
        yield Row(
            *name, f"{case.method}: {baseline}", seed, score.accuracy, None, validation, 0, 0.0
        )


def best_one_shot(case: Case, rows: Sequence[Row]) -> tuple[str, float]:
    """Return the one-shot mask with the highest median accuracy, and this accuracy."""
    accuracies: dict[str, list[float]] = {}
    for row in rows:
        label, _, name = row.method.partition(": ")
        if (row.target, row.sparsity, label) == (case.target, case.sparsity, case.method) and name:
            accuracies.setdefault(name, []).append(row.accuracy or 0.0)
    best = max(accuracies, key=lambda name: median(accuracies[name]))
    return best, median(accuracies[best])


def median_accuracy(case: Case, rows: Sequence[Row]) -> float | None:
    """Return the median over the seeds of a search, None if no seed was measured."""
    accuracies = [row.accuracy or 0.0 for row in searches(case, rows)]
    return median(accuracies) if accuracies else None


def searches(case: Case, rows: Sequence[Row]) -> list[Row]:
    """Return the rows of the search, one for each seed."""
    identity = (case.target, case.sparsity, case.method)
    return [row for row in rows if (row.target, row.sparsity, row.method) == identity]


def table(cases: Sequence[Case], rows: Sequence[Row]) -> tuple[list[str], bool]:
    """Return the table in Markdown, and whether every median reaches its limit."""
    lines = [
        "| network | sparsity | method | accuracy | of seeds | limit | best one-shot | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    reached = True
    for case in cases:
        evolved = searches(case, rows)
        if not evolved:
            continue
        accuracies = [row.accuracy or 0.0 for row in evolved]
        name, best = best_one_shot(case, rows)
        short = "" if median(accuracies) >= case.limit else " **below**"
        reached = reached and not short
        listing = " ".join(f"{100 * value:.2f}" for value in accuracies)
        lines.append(
            f"| {case.target} | {case.sparsity} | {case.method} | {median(accuracies):.2%}{short} "
            f"| {listing} | {case.limit:.1%} | {name} {best:.2%} "
            f"| {median(row.seconds for row in evolved):.0f} |"
        )
    return lines, reached


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the selected cases and print the table, or rows as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="cases whose network or method contains this")
    parser.add_argument("--sparsity", type=float, help="cases of this sparsity")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rows", type=Path, default=DEFAULT_FOLDER, help="folder of the rows")
    parser.add_argument("--json", action="store_true", help="print only rows, as JSON")
    options = parser.parse_args(arguments)
    cases = [
        case
        for case in CASES
        if options.only in f"{case.target} {case.method}"
        and options.sparsity in (None, case.sparsity)
    ]
    if not cases:
        parser.error(f"no case matches --only {options.only!r} --sparsity {options.sparsity}")
    try:
        store = RowStore(options.rows)
    except InputError as error:
        parser.error(str(error))
    rows: list[Row] = []
    for case in cases:
        for seed in options.seeds[: case.seeds]:
            new = rows_of(case, seed, options.workers, store)
            rows += new
            print(
                f"{case.target} {case.sparsity} {case.method}, seed {seed}: "
                f"{new[0].accuracy:.2%} in {new[0].seconds:.0f} s",
                file=sys.stderr,
                flush=True,
            )
    lines, reached = table(cases, rows)
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        print("\n".join([*lines, "", f"torch {torch.__version__}, {options.workers} worker(s)"]))
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
