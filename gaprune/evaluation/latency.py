"""Latency: the median of many passes, of the network and of the dense one in turn."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from gaprune.evaluation.runtimes import CSR, EAGER, Run, Subject, UnavailableError, ready
from gaprune.models.input_spec import sample_inputs

BATCHES = (1, 64)
SECONDS = 0.5  # that a runtime is timed for, dense network and file together
LEAST, MOST = 7, 200  # passes

Latencies = dict[str, dict[int, float]]


class Timed(NamedTuple):
    """Milliseconds of one pass, by runtime and batch.

    Attributes:
        own: of the file.
        dense: of the dense network in the same runtime, timed in turn with it; empty for a runtime
            in which dense weights make no sense, or without the dense network.
        missing: runtime → why it is not there.
    """

    own: Latencies
    dense: Latencies
    missing: dict[str, str]


def time_all(
    own: Subject, dense: Subject | None, names: Sequence[str], batches: Sequence[int] = BATCHES
) -> Timed:
    """Time a network in runtimes, beside the dense one: A, B, A, B, … so that both share the noise.

    Args:
        own: the network.
        dense: the dense network, or None.
        names: keys of `RUNTIMES`.
        batches: inputs of one pass.
    """
    timed = Timed({}, {}, {})
    for name in names:
        for batch in batches:
            inputs = sample_inputs(own.target.inputs, batch, own.target.dtype)
            try:
                with ExitStack() as stack:
                    runs = {"own": stack.enter_context(ready(name, own, inputs))}
                    if dense is not None:
                        # CSR is for sparse weights: there the dense network runs as it is
                        beside = EAGER if name == CSR else name
                        runs["dense"] = stack.enter_context(ready(beside, dense, inputs))
                    found = _alternate(runs, inputs)
            except UnavailableError as error:
                timed.missing[name] = str(error)
                break
            timed.own.setdefault(name, {})[batch] = found["own"]
            if "dense" in found:
                timed.dense.setdefault(name, {})[batch] = found["dense"]
    return timed


@torch.no_grad()
def _alternate(runs: Mapping[str, Run], inputs: Tensor) -> dict[str, float]:
    """Return the median milliseconds of each; they take turns."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + SECONDS
    passes = 0
    while passes < LEAST or (passes < MOST and time.perf_counter() < end):
        for name, run in runs.items():
            begun = time.perf_counter()
            run(inputs)
            taken[name].append(1e3 * (time.perf_counter() - begun))
        passes += 1
    return {name: median(times) for name, times in taken.items()}
