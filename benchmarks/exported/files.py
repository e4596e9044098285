"""Files of one run: how large they are, what they lose, how long loading them takes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from safetensors.torch import load_file
from torch import nn

from benchmarks.exported.case import Case, Context, Figures
from benchmarks.real.process import in_own_process
from gaprune import export, load_sparse
from gaprune.config import read_config
from gaprune.evaluation.held_out import HeldOut
from gaprune.evaluation.labelled import zoo_test
from gaprune.export.pruned_network import find_target
from gaprune.io.run_files import CONFIG
from gaprune.io.weights import sha256_of
from gaprune.models.target import Target

SIZES, LOADING = "sizes", "loading"
OPTIONS: dict[str, dict[str, Any]] = {
    "sparse": {},
    "plain": {"compress": False},
    "half": {"half": True},
    "codebook-64": {"codebook": 64},
    "codebook-32": {"codebook": 32},
    "codebook-16": {"codebook": 16},
}
ROUNDS = 60  # of loading each file, in turns
LABELS = 10_000


def dense_network(run: Path) -> Target:
    """Return the network that a run pruned."""
    return find_target(read_config(run / CONFIG), str(run))


def held_out(target: Target) -> HeldOut:
    """Return the test images of a network of the zoo."""
    samples = zoo_test(target)
    assert samples is not None, "the run is of a network of the zoo"
    return HeldOut(target, samples)


def size_of(options: Mapping[str, Any], context: Context) -> Figures:
    """Export the run once more, load the file into the network, and count what it gets right."""
    target = dense_network(context.run)
    judge = held_out(target)
    with tempfile.TemporaryDirectory() as folder:
        dense = export(context.run, "dense", Path(folder) / "dense")
        small = export(context.run, "sparse", Path(folder) / "sparse", **options)
        state = load_file(dense.file)
        back = load_sparse(small.file)
        same = sha256_of(back) == sha256_of(state)
        expected = judge.measure(_filled(target, state))
        found = judge.measure(_filled(target, back))
    assert expected.accuracy is not None
    assert found.accuracy is not None
    return {
        "bytes": small.bytes,
        "dense_bytes": dense.bytes,
        "times_smaller": dense.bytes / small.bytes,
        "accuracy": found.accuracy,
        "points_lost": 100 * (expected.accuracy - found.accuracy),
        "same_bits": int(same),
    }


def loading_of(options: Mapping[str, Any], context: Context) -> Figures:
    """Load the dense file and another one into a network in turns; medians, and that of ratios."""
    with tempfile.TemporaryDirectory() as folder:
        dense = export(context.run, "dense", Path(folder) / "dense").file
        small = export(context.run, "sparse", Path(folder) / "sparse", **options).file
        # elsewhere: threads that clustering has left behind would count
        taken = in_own_process(in_turns, context.run, dense, small)
    ratios = [own / dense for own, dense in zip(taken["own"], taken["dense"], strict=True)]
    return {
        "dense_ms": median(taken["dense"]),
        "ms": median(taken["own"]),
        "times_as_long": median(ratios),
    }


def in_turns(run: Path, dense: Path, small: Path) -> dict[str, list[float]]:
    """Return the milliseconds of loading a dense and a sparse file into a network, in turns.

    They are those of the processor, whose other work would count else: files are in its caches.
    """
    model = dense_network(run).masked_copy({})
    loaders: dict[str, Callable[[], object]] = {
        "dense": lambda: model.load_state_dict(load_file(dense)),
        "own": lambda: model.load_state_dict(load_sparse(small)),
    }
    taken: dict[str, list[float]] = {name: [] for name in loaders}
    for number in range(ROUNDS + 1):
        for name, load in loaders.items():
            begun = time.process_time()
            load()
            if number:  # the first round finds nothing in caches
                taken[name].append(1e3 * (time.process_time() - begun))
    return taken


def _filled(target: Target, state: Mapping[str, Any]) -> nn.Module:
    model = target.masked_copy({})
    model.load_state_dict(dict(state))
    return model


CASES = tuple(
    Case(part, name, partial(measure, options), options, uses_run=True)
    for part, measure in ((SIZES, size_of), (LOADING, loading_of))
    for name, options in OPTIONS.items()
)
