"""Latency: the median time of many passes, of several networks in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from gaprune.evaluation.runtimes import CSR, EAGER, Run, RuntimeSubject, UnavailableError, ready
from gaprune.models.input_spec import sample_inputs

BATCHES = (1, 64)
SECONDS = 0.3  # of timing per network
MIN_PASSES, MAX_PASSES = 9, 200

Latencies = dict[str, dict[int, float]]


class LatencyTable(NamedTuple):
    """Milliseconds of one pass, by runtime and batch size; runtime → why it is missing."""

    pruned: Latencies
    dense: Latencies
    missing: dict[str, str]


def time_runtimes(
    pruned: RuntimeSubject,
    dense: RuntimeSubject | None,
    names: Sequence[str],
    batches: Sequence[int] = BATCHES,
) -> LatencyTable:
    """Time a network in several `RUNTIMES`, in turn with the dense one if there is one."""
    table = LatencyTable({}, {}, {})
    for name in names:
        # CSR stores sparse weights; the dense network runs without it.
        subjects = [(name, pruned)]
        if dense is not None:
            subjects.append((EAGER if name == CSR else name, dense))
        for batch in batches:
            inputs = sample_inputs(pruned.target.inputs, batch, pruned.target.dtype)
            try:
                times = time_in_turn(subjects, inputs)
            # A runtime that fails for one batch size is reported once, without figures.
            except UnavailableError as error:
                table.missing[name] = str(error)
                break
            for column, passes in zip((table.pruned, table.dense), times, strict=False):
                column.setdefault(name, {})[batch] = median(passes)
    return table


@torch.no_grad()
def time_in_turn(
    subjects: Sequence[tuple[str, RuntimeSubject]],
    inputs: Tensor,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Return for every network the milliseconds of its passes on `inputs`; see `time_calls`.

    Raises:
        UnavailableError: a runtime cannot run its network.
    """
    with ExitStack() as stack:
        runs: list[Run] = [
            stack.enter_context(ready(name, subject, inputs)) for name, subject in subjects
        ]
        calls = [partial(run, inputs) for run in runs]
        return time_calls(calls, seconds=SECONDS * len(runs), clock=clock)


def time_calls(
    calls: Sequence[Callable[[], object]],
    *,
    seconds: float,
    min_rounds: int = MIN_PASSES,
    max_rounds: int = MAX_PASSES,
    clock: Callable[[], float] = time.perf_counter,
) -> list[list[float]]:
    """Return for every function the milliseconds of its calls; each is called once per round.

    After `seconds` no further round starts, once `min_rounds` are done. The clock
    `time.process_time` ignores other processes.
    """
    # Each round makes every call once. A slow phase of the machine then slows all of them, and
    # the ratio of paired calls stays meaningful.
    times: list[list[float]] = [[] for _ in calls]
    # perf_counter: wall time with the finest resolution, which never goes backwards.
    end = time.perf_counter() + seconds
    while len(times[0]) < min_rounds or (len(times[0]) < max_rounds and time.perf_counter() < end):
        for call, passes in zip(calls, times, strict=True):
            start = clock()
            call()
            passes.append(1e3 * (clock() - start))
    return times
