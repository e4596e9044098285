"""Measure workers: speed-up, the driver's cost, utilisation, memory.

    python -m benchmarks.scaling                      # everything; about eleven minutes
    python -m benchmarks.scaling --only utilisation   # one part
    python -m benchmarks.scaling --json               # only one JSON object

It needs two free cores, since other load lowers the figures. `hardware_2` is the speed-up of two
independent processes, the upper limit of `speedup_2`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from benchmarks.bounds import NO_LIMIT, Bound, bounds_table, missed_bounds
from benchmarks.cluster.actor_speed import measure_black_box, measure_speed
from benchmarks.cluster.layer_speed import measure_layers
from benchmarks.cluster.memory import measure_memory
from benchmarks.cluster.utilisation import measure_utilisation

PARTS: dict[str, Callable[[], Mapping[str, Any]]] = {
    "speed": measure_speed,
    "black-box": measure_black_box,
    "layers": measure_layers,
    "utilisation": measure_utilisation,
    "memory": measure_memory,
}


BOUNDS = (
    Bound("speedup_2", 1.85, True, "evaluations per second of two actors over one"),
    Bound("driver_ms", 2.0, False, "ms of the driver per evaluation, default search, mnist-cnn"),
    Bound(
        "black_box_driver_ms",
        NO_LIMIT,
        False,
        "the same, preset black-box, one task per evaluation",
    ),
    Bound("layers_speedup_2", 1.8, True, "the same for layers that swaps refine block by block"),
    Bound("utilisation_64", 0.9, True, "fraction of time that 64 actors sleep, 50 ms per task"),
    Bound("memory_growth_mb", 16.0, False, "MB, growth from 20 to 200 generations"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the selected parts; return 1 if a bound is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS, action="append", help="a part; repeatable")
    parser.add_argument("--json", action="store_true", help="print only one JSON object")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    figures: dict[str, Any] = {"cores": os.cpu_count()}
    for name in options.only or PARTS:
        print(f"measuring {name}", file=sys.stderr, flush=True)
        figures["load"] = os.getloadavg()[0]
        figures |= PARTS[name]()
    print(
        json.dumps(figures, indent=1) if options.json else "\n".join(bounds_table(BOUNDS, figures))
    )
    return int(bool(missed_bounds(BOUNDS, figures)))


if __name__ == "__main__":
    sys.exit(main())
