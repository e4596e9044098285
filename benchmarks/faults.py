"""What goes wrong, tried for real on whole runs: does it survive, what is lost, how long it takes.

    python -m benchmarks.faults                       # every fault; some five minutes
    python -m benchmarks.faults --only "a bit"        # those whose name holds this
    python -m benchmarks.faults --json                # rows as JSON, and only that

Each run of `gaprune prune` is disturbed once, goes on by itself or with `gaprune resume`, and must
find what an undisturbed run without workers finds, bit for bit. See `benchmarks.cluster.trial.Row`
for what the columns mean.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.cluster import run_faults, worker_faults
from benchmarks.cluster.commands import EarlyEndError
from benchmarks.cluster.trial import Found, Row, Trial, found_in, trial

FAULTS: dict[str, Callable[[Trial], Row]] = {
    "os._exit in a worker": worker_faults.leave,
    "SIGSEGV in a worker": worker_faults.crash,
    "exception in the user's code": worker_faults.fail,
    "out of memory in a worker": worker_faults.allocate,
    "candidate that kills its workers": worker_faults.poison,
    "worker that hangs": worker_faults.hang,
    "all workers killed": worker_faults.kill_all,
    "all workers killed for good": worker_faults.kill_all_for_good,
    "workers that cannot start": worker_faults.start_nobody,
    "node removed from two": worker_faults.lose_node,
    "SIGINT": run_faults.interrupt,
    "SIGTERM": run_faults.terminate,
    "SIGKILL during a checkpoint": run_faults.kill,
    "full disk": run_faults.fill_disk,
    "a bit flipped in a checkpoint": run_faults.flip_bit,
    "resume with another model": run_faults.other_model,
    "two runs in one folder": run_faults.run_twice,
    "unwritable HOME": run_faults.no_home,
}


def undisturbed(place: Path) -> Found:
    """Return what is found when nothing goes wrong.

    Raises:
        EarlyEndError: something does.
    """
    with trial(place) as one:
        ended = one.prune().finish()
        if ended.code:
            raise EarlyEndError(ended.err)
        return found_in(one.run)


def show(rows: dict[str, Row]) -> list[str]:
    """Return the lines of the table."""
    lines = ["| fault | survived | lost | seconds to recover | |", "|---|---|---|---|---|"]
    for fault, row in rows.items():
        survived = {True: "yes", False: "NO", None: "not tried"}[row.survived]
        lost = "" if row.lost is None else str(row.lost)
        seconds = "" if row.recover_s is None else f"{row.recover_s:.1f}"
        lines.append(f"| {fault} | {survived} | {lost} | {seconds} | {row.note} |")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the chosen faults; 1 where one is not survived or loses a generation."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="faults whose name holds this")
    parser.add_argument("--json", action="store_true", help="print rows as JSON, and only that")
    options = parser.parse_args(arguments)
    chosen = {name: fault for name, fault in FAULTS.items() if options.only in name}
    if not chosen:
        parser.error(f"no fault matches --only {options.only!r}; there are: {', '.join(FAULTS)}")
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        expected = undisturbed(Path(folder, "undisturbed"))
        for number, (name, fault) in enumerate(chosen.items()):
            with trial(Path(folder, str(number)), expected) as one:
                try:
                    rows[name] = fault(one)
                except EarlyEndError as error:
                    rows[name] = Row(False, None, None, str(error)[:200])
            print(f"{name}: {rows[name]}", file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps([{"fault": name, **asdict(row)} for name, row in rows.items()], indent=1))
    else:
        print("\n".join(show(rows)))
    return int(any(row.survived is False or row.lost for row in rows.values()))


if __name__ == "__main__":
    sys.exit(main())
