"""Accuracy of masks on MNIST: every figure of the README about accuracy, in one table.

    python -m benchmarks.quality                        # everything, three seeds; about 2 hours
    python -m benchmarks.quality --only mnist-mlp       # one network, about 20 minutes
    python -m benchmarks.quality --seeds 0 --json       # one seed, rows as JSON

Each case is one `gaprune prune`; test labels are used only after the masks are fixed. A median
below the lower limit of its case is marked and makes the exit code 1.
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

from gaprune.config import make_settings
from gaprune.evaluation.labelled import zoo_test
from gaprune.models.target import load_target
from gaprune.runs.prune import prune_target

NO_DATA = "no data"


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


UNLABELLED = {"calibration": ["mnist-train"]}
BLACK_BOX = {"preset": "black-box"}
CLASSIC = {"preset": "classic", "calibration": ["labelled:mnist-test"], "calibration_count": 1000}
CASES = (
    Case("mnist-mlp", 0.95, NO_DATA, 0.960),
    Case("mnist-mlp", 0.98, NO_DATA, 0.910),
    Case("mnist-cnn", 0.98, NO_DATA, 0.978),
    Case("mnist-cnn", 0.99, NO_DATA, 0.970),
    Case("mnist-mlp", 0.95, "unlabelled images", 0.974, UNLABELLED),
    Case("mnist-mlp", 0.98, "unlabelled images", 0.968, UNLABELLED),
    Case("mnist-cnn", 0.98, "unlabelled images", 0.985, UNLABELLED),
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


def table(cases: Sequence[Case], rows: Sequence[Row]) -> tuple[list[str], bool]:
    """Return the table in Markdown, and whether every median reaches its limit."""
    lines = [
        "| network | sparsity | method | accuracy | of seeds | limit | best one-shot | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    reached = True
    for case in cases:
        case_rows = [
            row for row in rows if (row.target, row.sparsity) == (case.target, case.sparsity)
        ]
        evolved = [row for row in case_rows if row.method == case.method]
        if not evolved:
            continue
        accuracies = [row.accuracy or 0.0 for row in evolved]
        baselines = [row for row in case_rows if row.method.startswith(f"{case.method}: ")]
        best = max(baselines, key=lambda row: row.accuracy or 0.0)
        short = "" if median(accuracies) >= case.limit else " **below**"
        reached = reached and not short
        listing = " ".join(f"{100 * value:.2f}" for value in accuracies)
        lines.append(
            f"| {case.target} | {case.sparsity} | {case.method} | {median(accuracies):.2%}{short} "
            f"| {listing} | {case.limit:.1%} | {best.method.rpartition(' ')[2]} "
            f"{best.accuracy:.2%} | {median(row.seconds for row in evolved):.0f} |"
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
    parser.add_argument(
        "--rows",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="print rows of earlier --json; run nothing",
    )
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
    rows = [Row(**row) for file in options.rows or [] for row in json.loads(file.read_text())]
    for case in [] if rows else cases:
        for seed in options.seeds[: case.seeds]:
            new = list(measure(case, seed, options.workers))
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
