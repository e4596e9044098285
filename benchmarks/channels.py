"""Do whole channels make networks faster, and at what price? One table of equal multiply-adds.

    python -m benchmarks.channels                         # everything; an hour on two cores
    python -m benchmarks.channels --only mnist-cnn --json # one network, as JSON

Every method leaves the same part of the dense network's multiply-adds (`--sparsity` is what goes);
the compact network is timed in turn with the dense one. Slimming trains on labelled images, all
others are made without data; accuracy is that of 10,000 test images that nothing else sees. Rows
are kept in runs/channels as soon as they are known: the same command goes on where it was stopped,
and makes a row anew where its settings have changed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from torch import nn

from benchmarks.channel_methods import METHODS, Case
from gaprune.calibration.samples import Samples
from gaprune.cli.console import add_row, stdout, table
from gaprune.cli.stop_signals import SignalHandler
from gaprune.errors import GapruneError, InputError, unknown_name
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

PLACE = Path("runs/channels")
RUNTIMES = (EAGER, ONNX)
FULL_WIDTH = 140  # of a table that goes into a file

CASES: dict[str, Case] = {
    "mnist-cnn": Case(0.72, 16, {"calibration": ("procedural",), "generations": 4, "steps": 50}),
    "mobile-student": Case(
        0.55, 16, {"calibration": ("procedural",), "generations": 4, "steps": 50}
    ),
}


def make_row(target: Target, row: Mapping[str, Any], case: Case, test: Samples) -> dict[str, Any]:
    """Return a row with its figures; where there can be none, with a note that says why."""
    begun = time.perf_counter()
    try:
        made = METHODS[row["method"]](target, case, row["seed"])
    except (GapruneError, InputError) as error:
        return {**row, "note": str(error)}
    seconds = time.perf_counter() - begun
    dense_macs = macs_per_input(target.model, target.example())
    latency: dict[str, Any] = {}
    missing = {}
    for runtime in row["runtimes"]:
        try:
            latency[runtime] = {
                str(batch): _speed(target, made.compact, runtime, batch) for batch in BATCHES
            }
        except GapruneError as error:
            missing[runtime] = str(error)
    judge = HeldOut(target, test)
    return {
        **row,
        "macs": {
            "dense": dense_macs,
            "kept": macs_per_input(made.compact, target.example()),
        },
        "latency": latency,
        "unavailable": missing,
        "accuracy": {
            "dense": judge.measure(target.model).accuracy,
            "pruned": judge.measure(made.compact).accuracy,
        },
        "seconds": round(seconds, 1),
        "rung": made.rung,
        "needs": made.needs,
        "note": made.note,
    }


def _speed(target: Target, compact: nn.Module, runtime: str, batch: int) -> dict[str, float]:
    """Return medians of one pass on one thread, and of paired ratios."""
    taken = time_models(target, [target.model, compact], runtime, batch)
    return {
        "dense_ms": round(median(taken[0]), 4),
        "compact_ms": round(median(taken[1]), 4),
        "speed_up": round(1 / paired_ratio(taken, 1), 3),
    }


def asked(name: str, case: Case, method: str, seed: int, runtimes: Sequence[str]) -> dict[str, Any]:
    """Return what a row is about."""
    return {
        "target": name,
        "method": method,
        "sparsity": case.sparsity,
        "seed": seed,
        "width_multiple": case.width_multiple,
        "runtimes": list(runtimes),
        "settings": {**case.search, "rounds": case.rounds, "epochs": case.epochs},
    }


class KeptRows:
    """Rows on the disk, one a line, written as they come.

    Raises:
        InputError: the folder cannot be made, or its file is not ours.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / "rows.jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lines = (
                self._file.read_text(encoding="utf-8").splitlines() if self._file.exists() else []
            )
        except OSError as error:
            raise InputError(f"rows: cannot use {folder} ({error.strerror})") from error
        self._rows: list[dict[str, Any]] = []
        for line in lines:
            try:
                self._rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue  # the last one, of a run that was cut off

    def find(self, wanted: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the newest row with these values, or None."""
        found = (
            row
            for row in reversed(self._rows)
            if all(row.get(key) == value for key, value in wanted.items())
        )
        return next(found, None)

    def add(self, row: dict[str, Any]) -> None:
        """Write a row."""
        self._rows.append(row)
        with self._file.open("a", encoding="utf-8") as file:
            file.write(to_json(row) + "\n")


def rows_of(
    cases: Mapping[str, Case],
    methods: Sequence[str],
    seeds: Sequence[int],
    runtimes: Sequence[str],
    kept: KeptRows,
) -> Iterator[dict[str, Any]]:
    """Yield a row for every target, method and seed: one that is kept, or a new one."""
    for name, case in cases.items():
        job = make_job({"target": name, "sparsity": case.sparsity})
        target, own = job.load("cpu")
        test = own or zoo_test(target)
        assert test is not None, "a network of the zoo has test images"
        for method in methods:
            for seed in seeds:
                wanted = json.loads(to_json(asked(name, case, method, seed, runtimes)))
                row = kept.find(wanted)
                if row is None:
                    row = json.loads(to_json(make_row(target, wanted, case, test)))
                    kept.add(row)
                    print(line(row), file=sys.stderr, flush=True)
                yield row


def line(row: Mapping[str, Any]) -> str:
    """Return a row in a line of words."""
    return ", ".join(str(one) for one in cells(row))


def cells(row: Mapping[str, Any]) -> list[str]:
    """Return what a table shows of a row."""
    start = [row["target"], row["method"]]
    if row.get("macs") is None:
        return [*start, *["-"] * 6]
    macs = row["macs"]
    fast = [
        " / ".join(f"{row['latency'][one][str(batch)]['speed_up']:.2f}x" for batch in BATCHES)
        if one in row["latency"]
        else "not there"
        for one in RUNTIMES
    ]
    accuracy = row["accuracy"]
    return [
        *start,
        f"{macs['kept'] / macs['dense']:.3f}",
        *fast,
        f"{percent(accuracy['pruned'])} of {percent(accuracy['dense'])}",
        row["needs"],
        f"{row['seconds']:.0f} s",
    ]


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print the table."""
    batches = " / ".join(map(str, BATCHES))
    shown = table(
        *("target", "method", "macs", *(f"{one}, batch {batches}" for one in RUNTIMES)),
        *("accuracy", "needs", "time"),
        title="Whole channels at equal multiply-adds; speed-ups on one thread",
    )
    for row in rows:
        add_row(shown, cells(row))
    console = stdout()
    if not console.is_terminal:
        console.width = FULL_WIDTH
    console.print(shown)
    for row in rows:
        if row.get("note"):
            console.print(f"{row['target']}, {row['method']}: {row['note']}", markup=False)


def main(arguments: Sequence[str] | None = None, cases: Mapping[str, Case] = CASES) -> int:
    """Make the rows that are asked for; print them.

    Returns:
        0 where a network was made, 1 where none was, 2 for wrong usage.
    """
    options = _parser(cases).parse_args(arguments)
    try:
        for argument, names, known in (
            ("only", options.only, cases),
            ("method", options.method, METHODS),
            ("runtime", options.runtime, RUNTIMES),
        ):
            for name in names:
                if name not in known:
                    raise unknown_name(argument, name, known)
        kept = KeptRows(options.rows)
    except InputError as error:
        print(f"channels: error: {error}", file=sys.stderr)
        return 2
    chosen = {name: case for name, case in cases.items() if name in (options.only or cases)}
    with SignalHandler("rows that are known are kept"):
        methods, runtimes = options.method or list(METHODS), options.runtime
        rows = list(rows_of(chosen, methods, options.seeds, runtimes, kept))
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
    parser.add_argument("--rows", type=Path, default=PLACE, metavar="DIR", help="kept rows")
    parser.add_argument("--json", action="store_true", help="print rows as JSON, and only that")
    return parser


if __name__ == "__main__":
    sys.exit(main())
