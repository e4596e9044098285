"""Compare channel pruning methods at equal MACs: speed-up and accuracy.

    python -m benchmarks.channels                         # everything; about an hour on two cores
    python -m benchmarks.channels --only mnist-cnn --json # one network, as JSON

Every method keeps the same fraction of the dense network's MACs; the compact network is timed in
turn with the dense one. Slimming trains on labelled images, the other methods use no data; accuracy
is measured on 10,000 test images that no method uses. Rows are written to runs/channels as soon as
they are known: a stopped benchmark continues with the same command, and repeats rows whose settings
have changed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from torch import nn

from benchmarks.channel_methods import METHODS, Case
from benchmarks.row_store import RowStore, check_names
from gaprune.calibration.samples import Samples
from gaprune.cli.console import add_row, stdout, table
from gaprune.cli.stop_signals import SignalHandler
from gaprune.errors import GapruneError, InputError
from gaprune.evaluation.held_out import HeldOut
from gaprune.evaluation.labelled import zoo_test
from gaprune.evaluation.latency import BATCHES
from gaprune.evaluation.runtimes import EAGER, ONNX
from gaprune.formatting import percent
from gaprune.io.serialization import to_json
from gaprune.models.macs import macs_per_input
from gaprune.models.target import Target
from gaprune.runs.job import make_job
from gaprune.runs.latency_budget import paired_ratio, time_models

DEFAULT_FOLDER = Path("runs/channels")
RUNTIMES = (EAGER, ONNX)
FULL_WIDTH = 140  # columns of a table written to a file or a pipe

CASES: dict[str, Case] = {
    "mnist-cnn": Case(0.72, 16, {"calibration": ("procedural",), "generations": 4, "steps": 50}),
    "mobile-student": Case(
        0.55, 16, {"calibration": ("procedural",), "generations": 4, "steps": 50}
    ),
}


def make_row(target: Target, row: Mapping[str, Any], case: Case, test: Samples) -> dict[str, Any]:
    """Return a row with its figures, or with a note that says why there are none."""
    started = time.perf_counter()
    try:
        pruned = METHODS[row["method"]](target, case, row["seed"])
    except (GapruneError, InputError) as error:
        return {**row, "note": str(error)}
    seconds = time.perf_counter() - started
    dense_macs = macs_per_input(target.model, target.example())
    latency: dict[str, Any] = {}
    missing = {}
    for runtime in row["runtimes"]:
        try:
            latency[runtime] = {
                str(batch): _speed(target, pruned.model, runtime, batch) for batch in BATCHES
            }
        except GapruneError as error:
            missing[runtime] = str(error)
    test_set = HeldOut(target, test)
    return {
        **row,
        "macs": {
            "dense": dense_macs,
            "kept": macs_per_input(pruned.model, target.example()),
        },
        "latency": latency,
        "unavailable": missing,
        "accuracy": {
            "dense": test_set.measure(target.model).accuracy,
            "pruned": test_set.measure(pruned.model).accuracy,
        },
        "seconds": round(seconds, 1),
        "level": pruned.level,
        "training": pruned.training,
        "note": None,
    }


def _speed(target: Target, compact: nn.Module, runtime: str, batch: int) -> dict[str, float]:
    """Return median milliseconds of one pass on one thread, and the median speed-up."""
    times = time_models(target, [target.model, compact], runtime, batch)
    return {
        "dense_ms": round(median(times[0]), 4),
        "compact_ms": round(median(times[1]), 4),
        "speed_up": round(1 / paired_ratio(times, 1), 3),
    }


def identity_of(
    name: str, case: Case, method: str, seed: int, runtimes: Sequence[str]
) -> dict[str, Any]:
    """Return the identity of a row and the settings that it depends on."""
    return {
        "target": name,
        "method": method,
        "sparsity": case.sparsity,
        "seed": seed,
        "width_multiple": case.width_multiple,
        "runtimes": list(runtimes),
        "settings": {**case.search, "rounds": case.rounds, "epochs": case.epochs},
    }


def rows_of(
    cases: Mapping[str, Case],
    methods: Sequence[str],
    seeds: Sequence[int],
    runtimes: Sequence[str],
    store: RowStore,
) -> Iterator[dict[str, Any]]:
    """Yield a stored or new row for every target, method and seed."""
    for name, case in cases.items():
        job = make_job({"target": name, "sparsity": case.sparsity})
        target, _ = job.load("cpu")
        test = zoo_test(target)
        assert test is not None  # zoo networks have test images
        for method in methods:
            for seed in seeds:
                identity = identity_of(name, case, method, seed, runtimes)
                row = store.find(**identity)
                if row is None:
                    row = store.add(make_row(target, identity, case, test))
                    print(line(row), file=sys.stderr, flush=True)
                yield row


def line(row: Mapping[str, Any]) -> str:
    """Return a row as a line of progress."""
    return ", ".join(cells(row))


def cells(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of a row in the table."""
    names = [row["target"], row["method"]]
    if row.get("macs") is None:
        return [*names, *["-"] * 6]
    macs = row["macs"]
    speed_ups = [
        " / ".join(f"{row['latency'][runtime][str(batch)]['speed_up']:.2f}x" for batch in BATCHES)
        if runtime in row["latency"]
        else "missing"
        for runtime in RUNTIMES
    ]
    accuracy = row["accuracy"]
    return [
        *names,
        f"{macs['kept'] / macs['dense']:.3f}",
        *speed_ups,
        f"{percent(accuracy['pruned'])} of {percent(accuracy['dense'])}",
        row["training"],
        f"{row['seconds']:.0f} s",
    ]


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the table."""
    batches = " / ".join(map(str, BATCHES))
    printed = table(
        *("target", "method", "macs", *(f"{runtime}, batch {batches}" for runtime in RUNTIMES)),
        *("accuracy", "training", "time"),
        title="Channel pruning at equal MACs; speed-ups on one thread",
    )
    for row in rows:
        add_row(printed, cells(row))
    console = stdout()
    if not console.is_terminal:
        console.width = FULL_WIDTH
    console.print(printed)
    for row in rows:
        if row.get("note"):
            console.print(f"{row['target']}, {row['method']}: {row['note']}", markup=False)


def main(arguments: Sequence[str] | None = None, cases: Mapping[str, Case] = CASES) -> int:
    """Measure and print the selected rows.

    Returns:
        0 if any network was pruned, 1 if none was, 2 for wrong usage.
    """
    options = _parser(cases).parse_args(arguments)
    try:
        check_names(
            ("only", options.only, cases),
            ("method", options.method, METHODS),
            ("runtime", options.runtime, RUNTIMES),
        )
        store = RowStore(options.rows)
    except InputError as error:
        print(f"channels: error: {error}", file=sys.stderr)
        return 2
    chosen = {name: case for name, case in cases.items() if name in (options.only or cases)}
    with SignalHandler("finished rows are saved"):
        methods, runtimes = options.method or list(METHODS), options.runtime
        rows = list(rows_of(chosen, methods, options.seeds, runtimes, store))
    if options.json:
        print(to_json(rows, indent=1))
    else:
        show(rows)
    return 0 if any(row.get("macs") for row in rows) else 1


def _parser(cases: Mapping[str, Case]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="TARGET", help=", ".join(cases))
    parser.add_argument(
        "--method", nargs="+", default=[], metavar="METHOD", help=", ".join(METHODS)
    )
    parser.add_argument(
        "--runtime", nargs="+", default=RUNTIMES, metavar="NAME", help=", ".join(RUNTIMES)
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N")
    parser.add_argument(
        "--rows", type=Path, default=DEFAULT_FOLDER, metavar="DIR", help="folder of the rows"
    )
    parser.add_argument("--json", action="store_true", help="print only rows, as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
