"""What workers cost and gain: speed, the driver's own work, traffic, waiting, memory.

    python -m benchmarks.scaling                      # everything; some five minutes
    python -m benchmarks.scaling --only utilisation   # one part
    python -m benchmarks.scaling --json               # one object, and only that

It needs two free cores: what else runs on the machine is measured as well. `hardware_2` says what
two processes that share nothing gain there, and `speedup_2` cannot be more.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from benchmarks.claims import NO_BOUND, Claim, missed, table
from benchmarks.cluster.crowd import measure_utilisation
from benchmarks.cluster.memory import measure_memory
from benchmarks.cluster.speed import measure_black_box, measure_speed

PARTS: dict[str, Callable[[], Mapping[str, Any]]] = {
    "speed": measure_speed,
    "black-box": measure_black_box,
    "utilisation": measure_utilisation,
    "memory": measure_memory,
}


CLAIMS = (
    Claim("speedup_2", 1.85, True, "evaluations per second of two actors over one"),
    Claim("driver_ms", 2.0, False, "ms of the driver per evaluation, default search, mnist-cnn"),
    Claim("black_box_driver_ms", NO_BOUND, False, "the same where it is a whole answer"),
    Claim("utilisation_64", 0.9, True, "part of the time that 64 actors sleep 50 ms at a time"),
    Claim("memory_growth_mb", 16.0, False, "MB more after 200 generations than after 20"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the chosen parts; 1 where a bound is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS, action="append", help="this part, or several")
    parser.add_argument("--json", action="store_true", help="print one JSON object, and only that")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    figures: dict[str, Any] = {"cores": os.cpu_count()}
    for name in options.only or PARTS:
        print(f"measuring {name}", file=sys.stderr, flush=True)
        figures["load"] = os.getloadavg()[0]
        figures |= PARTS[name]()
    print(json.dumps(figures, indent=1) if options.json else "\n".join(table(CLAIMS, figures)))
    return int(bool(missed(CLAIMS, figures)))


if __name__ == "__main__":
    sys.exit(main())
