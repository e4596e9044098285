"""Inject faults into real runs: do they survive, what is lost, how long does recovery take?

    python -m benchmarks.faults                       # every fault; about five minutes
    python -m benchmarks.faults --only "a bit"        # faults with this text in their name
    python -m benchmarks.faults --json                # only rows, as JSON

Each run of `gaprune prune` gets one fault, continues by itself or with `gaprune resume`, and must
give the result of an undisturbed run without workers, bit for bit. The columns are described at
`Row` in benchmarks/cluster/fault_case.py.
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
from benchmarks.cluster.fault_case import FaultCase, Row, RunOutput, fault_case, read_output

FAULTS: dict[str, Callable[[FaultCase], Row]] = {
    "os._exit in a worker": worker_faults.leave,
    "SIGSEGV in a worker": worker_faults.crash,
    "exception in the user's code": worker_faults.fail,
    "out of memory in a worker": worker_faults.allocate,
    "candidate that kills its workers": worker_faults.poison,
    "worker that hangs": worker_faults.hang,
    "all workers killed": worker_faults.kill_all,
    "all workers killed for good": worker_faults.kill_all_for_good,
    "workers that cannot start": worker_faults.fail_to_start,
    "node removed from two": worker_faults.lose_node,
    "raylet killed": worker_faults.kill_raylet,
    "GCS killed": worker_faults.kill_gcs,
    "small object store": worker_faults.fill_store,
    "more workers than CPUs": worker_faults.crowd,
    "SIGINT": run_faults.interrupt,
    "SIGTERM": run_faults.terminate,
    "SIGKILL during a checkpoint": run_faults.kill,
    "full disk": run_faults.fill_disk,
    "a bit flipped in a checkpoint": run_faults.flip_bit,
    "resume with another model": run_faults.other_model,
    "two runs in one folder": run_faults.run_twice,
    "unwritable HOME": run_faults.no_home,
}


def undisturbed(folder: Path) -> RunOutput:
    """Return the result of a run without faults.

    Raises:
        EarlyEndError: the run fails.
    """
    with fault_case(folder) as case:
        ended = case.prune().finish()
        if ended.code:
            raise EarlyEndError(ended.err)
        return read_output(case.run)


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
    """Try the selected faults; return 1 if one is not survived or loses a generation."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="faults with this text in their name")
    parser.add_argument("--json", action="store_true", help="print only rows, as JSON")
    options = parser.parse_args(arguments)
    chosen = {name: fault for name, fault in FAULTS.items() if options.only in name}
    if not chosen:
        parser.error(f"no fault matches --only {options.only!r}; valid: {', '.join(FAULTS)}")
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        expected = undisturbed(Path(folder, "undisturbed"))
        for number, (name, fault) in enumerate(chosen.items()):
            with fault_case(Path(folder, str(number)), expected) as case:
                try:
                    rows[name] = fault(case)
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
