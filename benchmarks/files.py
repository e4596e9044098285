"""What files and patterns give: every bound of the README about them, measured on the files.

    python -m benchmarks.files                       # everything; makes the run first
    python -m benchmarks.files --only sizes loading  # some parts
    python -m benchmarks.files --run runs/mine       # files of this run of a zoo network
    python -m benchmarks.files --data DIR            # MiniLM too, on the sentence pairs in DIR

The run is mnist-cnn at sparsity 0.98, pruned by the search (about five minutes on one core). Parts:
sizes (bytes and accuracy of every kind of sparse file), loading (in turn with the dense file), onnx
(against torch on every network of the zoo), standalone (formats in a process that cannot import
gaprune), and 2:4 on mnist-mlp and MiniLM (pip install 'gaprune[bench]'; sentence pairs in
DIR/stsb/test.csv). Rows are written to runs/files as soon as they are known: a stopped benchmark
continues with the same command. A missed bound is marked and makes the exit code 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.bounds import Bound, bounds_table, flatten_figures, missed_bounds
from benchmarks.exports import file_sizes, standalone, two_of_four
from benchmarks.exports.export_case import Case, Context, run_at
from benchmarks.row_store import RowStore, check_names
from gaprune.cli.stop_signals import SignalHandler
from gaprune.errors import GapruneError, InputError
from gaprune.io.serialization import to_json
from gaprune.models.zoo import ZOO

DEFAULT_FOLDER = Path("runs/files")
RUN = {"target": "mnist-cnn", "sparsity": 0.98}
CASES = (*file_sizes.CASES, *standalone.CASES, *two_of_four.CASES)
BOUNDS = (
    Bound("sizes.sparse.times_smaller", 40, at_least=True, meaning="float32, bit for bit"),
    Bound(
        "sizes.sparse.same_bits", 1, at_least=True, meaning="the state dict is restored bit for bit"
    ),
    Bound("sizes.sparse.points_lost", 0, at_least=False, meaning="on 10,000 test images"),
    Bound("sizes.plain.times_smaller", 38, at_least=True, meaning="the same without Zstandard"),
    Bound("sizes.half.times_smaller", 35, at_least=True, meaning="weights in float16"),
    Bound(
        "sizes.codebook-32.times_smaller", 35, at_least=True, meaning="32 shared values per layer"
    ),
    Bound(
        "sizes.codebook-32.points_lost",
        0.5,
        at_least=False,
        meaning="percentage points of accuracy",
    ),
    *(
        Bound(
            f"loading.{name}.times_as_long", 2, at_least=False, meaning="loading time ÷ dense file"
        )
        for name in ("sparse", "plain", "codebook-32")
    ),
    *(
        Bound(f"onnx.{name}.difference", 1e-4, at_least=False, meaning="ONNX Runtime against torch")
        for name in ZOO
    ),
    *(
        Bound(
            f"standalone.{form}.difference", 1e-5, at_least=False, meaning="loaded without gaprune"
        )
        for form in standalone.SCRIPTS
    ),
    *(
        Bound(
            f"{network}-2:4.{method}.broken", 0, at_least=False, meaning="groups with more than 2"
        )
        for network in two_of_four.OPEN
        for method in two_of_four.METHODS
    ),
)


def rows_of(cases: Sequence[Case], store: RowStore, context: Context) -> Iterator[dict[str, Any]]:
    """Yield a row for every case, stored or new: part, name, figures, made_of, note."""
    for case in cases:
        identity = {
            "part": case.part,
            "name": case.name,
            "made_of": case.depends_on(context),
        }
        row = store.find(**identity)
        if row is None:
            started = time.monotonic()
            figures: Mapping[str, float] = {}
            note = ""
            try:
                figures = case.measure(context)
            except GapruneError as error:
                note = str(error)
            row = store.add({**identity, "figures": figures, "note": note})
            text = note or ", ".join(f"{name} {value:.5g}" for name, value in figures.items())
            seconds = time.monotonic() - started
            print(f"{case.part} {case.name}: {text} ({seconds:.0f} s)", file=sys.stderr, flush=True)
        yield row


def figures_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return part → name → figures, as `benchmarks.bounds` takes them."""
    figures: dict[str, Any] = {}
    for row in rows:
        figures.setdefault(row["part"], {})[row["name"]] = row["figures"]
    return figures


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the selected parts; print figures and bounds, or the rows as JSON.

    Returns:
        0 if all measured bounds hold, 1 if a bound is missed or nothing was measured, 2 for wrong
        usage, 130 or 143 after a signal.
    """
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    with SignalHandler("finished rows are saved"):
        try:
            parts = dict.fromkeys(case.part for case in CASES)
            check_names(("only", options.only, parts))
            store = RowStore(options.rows)
            chosen = [case for case in CASES if case.part in (options.only or parts)]
            folder = options.run or options.rows / "mnist-cnn-0.98"
            if any(case.uses_run for case in chosen):
                run_at(folder, RUN)
        except InputError as error:
            print(f"files: error: {error}", file=sys.stderr)
            return 2
        rows = list(rows_of(chosen, store, Context(folder, options.data)))
    figures = figures_of(rows)
    if options.json:
        print(to_json(rows, indent=1))
    else:
        _show(rows, figures)
    return 0 if flatten_figures(figures) and not missed_bounds(BOUNDS, figures) else 1


def _show(rows: Sequence[Mapping[str, Any]], figures: Mapping[str, Any]) -> None:
    print("\n".join(bounds_table(BOUNDS, figures)))
    notes: dict[str, list[str]] = {}
    for row in rows:
        if row["note"]:
            notes.setdefault(row["note"], []).append(f"{row['part']} {row['name']}")
    for note, names in notes.items():
        print(f"not measured ({', '.join(names)}): {note}")
    print(f"\ntorch {torch.__version__}, 1 thread")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ", ".join(dict.fromkeys(case.part for case in CASES))
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help=f"parts: {parts}")
    parser.add_argument("--run", type=Path, metavar="DIR", help="run directory to measure instead")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder with test data")
    parser.add_argument(
        "--rows", type=Path, default=DEFAULT_FOLDER, metavar="DIR", help="folder of the rows"
    )
    parser.add_argument("--json", action="store_true", help="print only rows, as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
