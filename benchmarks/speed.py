"""What an evaluation costs, and what a search does in the time that others take.

    python -m benchmarks.speed                      # everything; half an hour or more
    python -m benchmarks.speed --only overhead      # one part
    python -m benchmarks.speed --only equal-time --seconds 20
    python -m benchmarks.speed --json               # one object, and only that

Parts: `overhead` (an evaluation beside the dense forward pass on the same calibration inputs), `original` (the
original idea, plainly written: candidates per second, time to 89 %), `equal-time` (EvoTorch and
DEAP with the same scores, calibration inputs and seconds), `density_search` (CMA-ES over the layers' keep counts),
`growth` (from 0.2 to 22 million weights). It needs a core that nothing else runs on: ratios are of
things done in turn, seconds are what they are. EvoTorch and cma come with `pip install
'gaprune[bench]'`; where they are missing, `equal-time` and `allocation` say so and go on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from benchmarks.claims import Claim, missed, table
from benchmarks.pace.equal_time import measure_density_search, measure_equal_time
from benchmarks.pace.growth import LARGEST, measure_growth
from benchmarks.pace.overhead import measure_overhead
from benchmarks.pace.versus_original import measure_original
from gaprune.workers.malloc import keep_heap

PARTS: dict[str, Callable[[float], Mapping[str, Any]]] = {
    "overhead": lambda _: measure_overhead(),
    "original": lambda _: measure_original(),
    "equal-time": measure_equal_time,
    "density_search": measure_density_search,
    "growth": lambda _: measure_growth(),
}
ONCE = "an evaluation ÷ the dense forward pass on the same 256 calibration inputs"
CLAIMS = (
    Claim("overhead.mnist-mlp", 1.5, False, ONCE),
    Claim("overhead.mnist-cnn", 1.1, False, "the same"),
    Claim("overhead.resnet20-sized", 1.1, False, "the same"),
    Claim("overhead.efficientnet-lite0-sized", 1.1, False, "the same"),
    Claim("time_to_89.ratio", 1000.0, True, "seconds of the original ÷ of default, until 89 %"),
    Claim("classic_ratio", 1.3, True, "candidates per second ÷ the original's, the same images"),
    Claim("racing_ratio", 20.0, True, "the same for children that race, without gradient steps"),
    Claim("equal_time.gain", 0.05, True, "accuracy less that of the best of EvoTorch and DEAP"),
    Claim("equal_time.memory", 0.5, False, "peak memory ÷ the smallest of theirs"),
    Claim("growth.exponent.evaluation_s", 1.1, False, "growth of an evaluation; 1 is linear"),
    Claim("growth.exponent.generation_s", 1.1, False, "growth of a generation"),
    Claim("growth.exponent.peak_mb", 1.1, False, "growth of memory"),
    Claim(f"peak_mb.{LARGEST}", 2500.0, False, "MB, 22 million weights, population 16"),
)


def merged(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join the figures of parts; what several of them give as a mapping (`peak_mb`) is joined."""
    found: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            both = isinstance(value, Mapping) and isinstance(found.get(name), Mapping)
            found[name] = {**found[name], **value} if both else value
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the chosen parts; 1 where a bound is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS, action="append", help="this part, or several")
    parser.add_argument(
        "--seconds", type=float, default=60.0, help="of each search in equal-time and allocation"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, and only that")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    keep_heap()  # as workers do: what is compared here has the same memory
    parts: list[Mapping[str, Any]] = [{"cores": os.cpu_count(), "torch": torch.__version__}]
    for name in options.only or PARTS:
        print(f"measuring {name}", file=sys.stderr, flush=True)
        parts += [{"load": {name: os.getloadavg()[0]}}, PARTS[name](options.seconds)]
    figures = merged(parts)
    print(json.dumps(figures, indent=1) if options.json else "\n".join(table(CLAIMS, figures)))
    return int(bool(missed(CLAIMS, figures)))


if __name__ == "__main__":
    sys.exit(main())
