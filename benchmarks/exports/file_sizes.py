"""Files of one run: size, loss of accuracy, loading time."""

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

from benchmarks.exports.export_case import Case, Context, Figures
from benchmarks.isolated_process import run_isolated
from gaprune import export, load_sparse
from gaprune.errors import GapruneError
from gaprune.evaluation.held_out import HeldOut
from gaprune.evaluation.labelled import zoo_test
from gaprune.evaluation.latency import time_calls
from gaprune.exports.pruned_network import find_target
from gaprune.io.run_files import CONFIG, read_config
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
ROUNDS = 60  # loads of each file, in turn


def dense_network(run: Path) -> Target:
    """Return the dense network of a run."""
    return find_target(read_config(run / CONFIG), run / CONFIG)


def held_out(target: Target) -> HeldOut:
    """Return the test images of a network of the zoo."""
    samples = zoo_test(target)
    if samples is None:
        raise GapruneError(f"run: {target.name} is not a network of the zoo; name such a run")
    return HeldOut(target, samples)


def size_of(options: Mapping[str, Any], context: Context) -> Figures:
    """Export the run, load the file into the network, and measure its accuracy."""
    target = dense_network(context.run)
    test = held_out(target)
    with tempfile.TemporaryDirectory() as folder:
        dense = export(context.run, "dense", Path(folder) / "dense")
        small = export(context.run, "sparse", Path(folder) / "sparse", **options)
        state = load_file(dense.file)
        loaded = load_sparse(small.file)
        same = sha256_of(loaded) == sha256_of(state)
        expected = test.measure(_filled(target, state))
        actual = test.measure(_filled(target, loaded))
    assert expected.accuracy is not None
    assert actual.accuracy is not None
    return {
        "bytes": small.bytes,
        "dense_bytes": dense.bytes,
        "times_smaller": dense.bytes / small.bytes,
        "accuracy": actual.accuracy,
        "points_lost": 100 * (expected.accuracy - actual.accuracy),
        "same_bits": int(same),
    }


def loading_of(options: Mapping[str, Any], context: Context) -> Figures:
    """Load the dense and a sparse file in turn; return medians and the median of ratios."""
    with tempfile.TemporaryDirectory() as folder:
        dense = export(context.run, "dense", Path(folder) / "dense").file
        small = export(context.run, "sparse", Path(folder) / "sparse", **options).file
        # In a new process: threads left by the codebook export would count as processor time.
        dense_ms, sparse_ms = run_isolated(time_loading, context.run, dense, small)
    ratios = [b / a for a, b in zip(dense_ms, sparse_ms, strict=True)]
    return {
        "dense_ms": median(dense_ms),
        "ms": median(sparse_ms),
        "times_as_long": median(ratios),
    }


def time_loading(run: Path, dense: Path, sparse: Path) -> list[list[float]]:
    """Return milliseconds of processor time for loading a dense and a sparse file, in turn."""
    model = dense_network(run).masked_copy({})
    loaders: list[Callable[[], object]] = [
        lambda: model.load_state_dict(load_file(dense)),
        lambda: model.load_state_dict(load_sparse(sparse)),
    ]
    for load in loaders:  # the first load fills the caches
        load()
    # Processor time: other processes do not count, and the files are in the cache of the disk.
    return time_calls(
        loaders, seconds=0, min_rounds=ROUNDS, max_rounds=ROUNDS, clock=time.process_time
    )


def _filled(target: Target, state: Mapping[str, Any]) -> nn.Module:
    model = target.masked_copy({})
    model.load_state_dict(dict(state))
    return model


CASES = tuple(
    Case(part, name, partial(measure, options), options, uses_run=True)
    for part, measure in ((SIZES, size_of), (LOADING, loading_of))
    for name, options in OPTIONS.items()
)
