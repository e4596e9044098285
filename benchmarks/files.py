"""What files and patterns give: every claim of the README about them, measured on the files.

    python -m benchmarks.files                       # everything; makes the run that it measures
    python -m benchmarks.files --only sizes loading  # some parts
    python -m benchmarks.files --run runs/mine       # files of this run (of a network of the zoo)
    python -m benchmarks.files --data DIR            # MiniLM too, on the sentence pairs in DIR

The run is mnist-cnn with 98 % removed by the search (some five minutes of one core). Parts: sizes
(bytes and accuracy of every kind of sparse file), loading (in turns with the dense file), onnx
(against torch on every network of the zoo), alone (formats in a process that cannot import
gaprune), and 2:4 on mnist-mlp and MiniLM (pip install 'gaprune[bench]'; the pairs are
DIR/stsb/test.csv). Rows are kept in runs/files as soon as they are known: stop at any time, the
same command goes on. A claim that does not hold is marked, and makes the exit status 1.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from benchmarks.claims import Claim, flat, missed, table
from benchmarks.exported import alone, files, two_of_four
from benchmarks.exported.case import Case, Context, run_at
from benchmarks.exported.rows import Kept, Row, figures_of
from gaprune.cli.stop_signals import SignalHandler
from gaprune.errors import GapruneError, InputError, unknown_name
from gaprune.io.serialization import to_json
from gaprune.models.zoo import ZOO

PLACE = Path("runs/files")
RUN = {"target": "mnist-cnn", "sparsity": 0.98}
CASES = (*files.CASES, *alone.CASES, *two_of_four.CASES)
CLAIMS = (
    Claim("sizes.sparse.times_smaller", 40, least=True, meaning="float32, bit for bit"),
    Claim("sizes.sparse.same_bits", 1, least=True, meaning="the state dict comes back"),
    Claim("sizes.sparse.points_lost", 0, least=False, meaning="on 10,000 test images"),
    Claim("sizes.plain.times_smaller", 38, least=True, meaning="the same without Zstandard"),
    Claim("sizes.half.times_smaller", 35, least=True, meaning="weights in float16"),
    Claim("sizes.codebook-32.times_smaller", 35, least=True, meaning="32 shared values per layer"),
    Claim("sizes.codebook-32.points_lost", 0.5, least=False, meaning="of accuracy, for sharing"),
    *(
        Claim(f"loading.{name}.times_as_long", 2, least=False, meaning="as the dense file")
        for name in ("sparse", "plain", "codebook-32")
    ),
    *(
        Claim(f"onnx.{name}.difference", 1e-4, least=False, meaning="ONNX Runtime and torch")
        for name in ZOO
    ),
    *(
        Claim(f"alone.{form}.difference", 1e-5, least=False, meaning="without gaprune, loaded")
        for form in alone.SCRIPTS
    ),
    *(
        Claim(f"{network}-2:4.{method}.broken", 0, least=False, meaning="groups with more than 2")
        for network in two_of_four.OPEN
        for method in two_of_four.METHODS
    ),
)


def rows_of(cases: Sequence[Case], kept: Kept, context: Context) -> Iterator[Row]:
    """Yield a row for every case: one that is kept, else one that is measured now."""
    for case in cases:
        made_of = case.depends_on(context)
        found = kept.find(case.part, case.name, made_of)
        if found is None:
            begun = time.monotonic()
            try:
                found = Row(case.part, case.name, case.measure(context), made_of)
            except GapruneError as error:
                found = Row(case.part, case.name, {}, made_of, note=str(error))
            kept.add(found)
            said = found.note or ", ".join(f"{k} {v:.5g}" for k, v in found.figures.items())
            took = time.monotonic() - begun
            print(f"{case.part} {case.name}: {said} ({took:.0f} s)", file=sys.stderr, flush=True)
        yield found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what is asked for; print the table of claims and figures, or the rows as JSON.

    Returns:
        0 where every claim that was measured holds, 1 where one does not or nothing was measured,
        2 for wrong usage, 130 or 143 where a signal stopped it.
    """
    options = _parser().parse_args(arguments)
    torch.set_num_threads(1)
    with SignalHandler("rows that are known are kept"):
        try:
            parts = dict.fromkeys(case.part for case in CASES)
            for part in options.only:
                if part not in parts:
                    raise unknown_name("only", part, parts)
            kept = Kept(options.rows)
            chosen = [case for case in CASES if case.part in (options.only or parts)]
            place = options.run or options.rows / "mnist-cnn-0.98"
            needed = any(case.part in (files.SIZES, files.LOADING, alone.ALONE) for case in chosen)
            if needed:
                run_at(place, RUN)
        except InputError as error:
            print(f"files: error: {error}", file=sys.stderr)
            return 2
        rows = list(rows_of(chosen, kept, Context(place, options.data)))
    if options.json:
        print(to_json([row.record() for row in rows], indent=1))
    else:
        _show(rows)
    figures = figures_of(rows)
    return 0 if flat(figures) and not missed(CLAIMS, figures) else 1


def _show(rows: Sequence[Row]) -> None:
    print("\n".join(table(CLAIMS, figures_of(rows))))
    notes: dict[str, list[str]] = {}
    for row in rows:
        if row.note:
            notes.setdefault(row.note, []).append(f"{row.part} {row.name}")
    for note, names in notes.items():
        print(f"not measured ({', '.join(names)}): {note}")
    print(f"\ntorch {torch.__version__}, 1 thread")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = ", ".join(dict.fromkeys(case.part for case in CASES))
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help=f"of {parts}")
    parser.add_argument("--run", type=Path, metavar="DIR", help="a run, instead of one made here")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder with held-out data")
    parser.add_argument("--rows", type=Path, default=PLACE, metavar="DIR", help="kept there")
    parser.add_argument("--json", action="store_true", help="print rows as JSON, and only that")
    return parser


if __name__ == "__main__":
    sys.exit(main())
