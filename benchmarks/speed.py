"""Measure the cost of an evaluation, and compare searches at equal time.

    python -m benchmarks.speed                      # everything; half an hour or more
    python -m benchmarks.speed --only overhead      # one part
    python -m benchmarks.speed --only equal-time --seconds 20
    python -m benchmarks.speed --json               # only one JSON object

Parts: `overhead` (an evaluation against the dense forward pass), `original` (the original
algorithm: candidates per second, time to 89 %), `equal-time` (EvoTorch and DEAP with the same
scores, inputs and seconds), `density_search` (CMA-ES over the layers' keep counts), `growth` (from
0.2 to 22 million weights). It needs an idle core: ratios are measured in turn, but seconds depend
on the load. EvoTorch and cma come with `pip install 'gaprune[bench]'`; without them, `equal-time`
and `density_search` report what is missing.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from benchmarks.bounds import Bound, bounds_table, missed_bounds
from benchmarks.search_speed.equal_time import measure_density_search, measure_equal_time
from benchmarks.search_speed.growth import LARGEST, measure_growth
from benchmarks.search_speed.original_comparison import measure_original
from benchmarks.search_speed.overhead import measure_overhead
from gaprune.workers.malloc import keep_heap

PARTS: dict[str, Callable[[float], Mapping[str, Any]]] = {
    "overhead": lambda _: measure_overhead(),
    "original": lambda _: measure_original(),
    "equal-time": measure_equal_time,
    "density_search": measure_density_search,
    "growth": lambda _: measure_growth(),
}
ONCE = "an evaluation ÷ the dense forward pass on the same 256 calibration inputs"
BOUNDS = (
    Bound("overhead.mnist-mlp", 1.5, False, ONCE),
    Bound("overhead.mnist-cnn", 1.1, False, "the same"),
    Bound("overhead.resnet20-sized", 1.1, False, "the same"),
    Bound("overhead.efficientnet-lite0-sized", 1.1, False, "the same"),
    Bound("time_to_89.ratio", 1000.0, True, "seconds of the original ÷ of default, until 89 %"),
    Bound("classic_ratio", 1.3, True, "candidates per second ÷ the original's, on the same images"),
    Bound("racing_ratio", 20.0, True, "the same for children that race without gradient steps"),
    Bound("equal_time.gain", 0.05, True, "accuracy minus that of the best of EvoTorch and DEAP"),
    Bound("equal_time.memory", 0.5, False, "peak memory ÷ the smallest of the others"),
    Bound("growth.exponent.evaluation_s", 1.1, False, "growth of an evaluation; 1 is linear"),
    Bound("growth.exponent.generation_s", 1.1, False, "growth of a generation"),
    Bound("growth.exponent.peak_mb", 1.1, False, "growth of memory"),
    Bound(f"peak_mb.{LARGEST}", 2500.0, False, "MB, 22 million weights, population 16"),
)


def merge_figures(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge the figures of parts; mappings of the same name, such as `peak_mb`, are merged."""
    merged: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            both = isinstance(value, Mapping) and isinstance(merged.get(name), Mapping)
            merged[name] = {**merged[name], **value} if both else value
    return merged


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the selected parts; return 1 if a bound is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS, action="append", help="a part; repeatable")
    parser.add_argument(
        "--seconds",
        type=float,
        default=60.0,
        help="time limit of each search in equal-time and density_search",
    )
    parser.add_argument("--json", action="store_true", help="print only one JSON object")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    keep_heap()  # as workers do, so that allocation costs are the same
    parts: list[Mapping[str, Any]] = [{"cores": os.cpu_count(), "torch": torch.__version__}]
    for name in options.only or PARTS:
        print(f"measuring {name}", file=sys.stderr, flush=True)
        parts += [{"load": {name: os.getloadavg()[0]}}, PARTS[name](options.seconds)]
    figures = merge_figures(parts)
    print(
        json.dumps(figures, indent=1) if options.json else "\n".join(bounds_table(BOUNDS, figures))
    )
    return int(bool(missed_bounds(BOUNDS, figures)))


if __name__ == "__main__":
    sys.exit(main())
