"""The demo: prune a bundled network twice and print the table of the README."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gaprune.callbacks import Observer
from gaprune.cli.console import add_row, stdout, table
from gaprune.config import EVOLVED, make_settings
from gaprune.errors import GapruneError
from gaprune.evaluation.labelled import zoo_test
from gaprune.formatting import duration, percent
from gaprune.io.weights import load_state
from gaprune.models.target import load_target
from gaprune.models.zoo import ZOO
from gaprune.runs.prune import prune_target
from gaprune.runs.result import Result

TARGET = "mnist-mlp"
SPARSITIES = (0.95, 0.98)
MOST_BASELINES = 4  # beside magnitude: the table fits on a README page


@dataclass(frozen=True)
class Demo:
    """Results of the demo."""

    results: tuple[Result, ...]  # one per sparsity
    num_compared: int  # values whose bits were compared with the checkpoint

    @property
    def methods(self) -> list[str]:
        """Magnitude, the best other baselines at the highest sparsity, then the evolved masks."""
        scores = self.results[-1].baselines
        others = sorted(
            (name for name in scores if name != "magnitude"),
            key=lambda name: scores[name].accuracy or 0.0,
        )
        return ["magnitude", *others[-MOST_BASELINES:], EVOLVED]

    def rows(self) -> list[dict[str, Any]]:
        """Return every method at every sparsity as plain data."""
        return [
            {
                "target": TARGET,
                "sparsity": result.sparsity,
                "method": method,
                "seed": result.settings["seed"],
                "accuracy": accuracy_of(result, method),
                "agreement": result.validation_agreement
                if method == EVOLVED
                else result.baselines[method].agreement,
            }
            for result in self.results
            for method in (*result.baselines, EVOLVED)
        ]


def accuracy_of(result: Result, method: str) -> float | None:
    """Return the test accuracy of one method."""
    return result.accuracy if method == EVOLVED else result.baselines[method].accuracy


def run_demo(observer: Observer, settings: Mapping[str, Any]) -> Demo:
    """Prune `TARGET` to each of `SPARSITIES` and compare the kept bits with the checkpoint.

    `settings` are fields of `Settings` beside the sparsity.

    Raises:
        KeyboardInterrupt: a search was interrupted; half a table is of no use.
    """
    results, num_compared = [], 0
    for sparsity in SPARSITIES:
        # load the network again: both runs start from the checkpoint
        observer.phase("demo", f"removing {sparsity:.0%} of the weights of {TARGET}")
        target = load_target(TARGET)
        job = make_settings({**settings, "sparsity": sparsity})
        result = prune_target(target, job, test=zoo_test(target), observer=observer)
        if result.stopped == "interrupted":
            raise KeyboardInterrupt
        # the demo claims that kept weights are unchanged, so it checks every bit
        num_compared += compare_bits(result)
        results.append(result)
    return Demo(tuple(results), num_compared)


def compare_bits(result: Result) -> int:
    """Compare a pruned zoo network with its checkpoint and return how many values were compared.

    Every kept weight and every value that is not prunable must be equal bit for bit, and every
    other weight must be 0.

    Raises:
        GapruneError: a value differs, which would be a defect of gaprune.
    """
    dense = load_state(ZOO[result.target.name].checkpoint)
    num_compared = 0
    for name, pruned in result.state_dict().items():
        mask = result.masks.get(name, torch.ones_like(pruned, dtype=torch.bool))
        before, after = dense[name][mask], pruned[mask]
        # compare bytes: NaN differs from itself, and -0.0 equals 0.0
        same = torch.equal(before.view(torch.uint8), after.view(torch.uint8))
        if not same or pruned[~mask].any():
            raise GapruneError(f"{name}: the pruned network differs from the checkpoint")
        num_compared += len(after)
    return num_compared


def show_demo(demo: Demo, report: Path | None) -> None:
    """Print the table, what it means, where its report is, and what to try next."""
    console, results = stdout(), demo.results
    heads = (f"{percent(sparsity)} removed" for sparsity in SPARSITIES)
    rows = table("test accuracy", *heads, title=f"{TARGET} ({ZOO[TARGET].description})")
    add_row(rows, ["dense network", *[percent(results[0].dense_accuracy)] * len(SPARSITIES)])
    for method in demo.methods:
        cells = [percent(accuracy_of(result, method)) for result in results]
        name = "gaprune" if method == EVOLVED else method
        add_row(rows, [name, *cells], strong=method == EVOLVED)
    console.print(rows)
    command = "gaprune"
    if not shutil.which(command):  # after `make`, gaprune's environment is not on the path
        program = Path(sys.argv[0])
        started = program if program.name == command else Path(sys.executable)
        command = os.path.relpath(started) + ("" if started is program else " -m gaprune")
    seconds = duration(sum(result.seconds for result in results))
    lines = (
        "The search used no training image and no label, and changed no weight:",
        f"all {demo.num_compared:,} values that are kept are bit-identical to the checkpoint.",
        f"Calibration inputs: {'; '.join(results[0].provenance.sources)}.",
        f"The 10,000 test images were used for this table only. Time: {seconds}.",
        *([] if report is None else [f"Report: open {report} in a browser."]),
        "",
        "Next:",
        f"  {command} prune {TARGET} --sparsity 0.98   saves the pruned network in runs/",
        f"  {command} zoo                              lists the bundled networks",
        f"  {command} prune --help                     explains how to prune your own network",
    )
    for line in lines:
        console.print(line, markup=False)
