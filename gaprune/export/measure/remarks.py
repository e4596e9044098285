"""What latencies mean, said plainly: sparsity alone seldom makes a network faster."""

from __future__ import annotations

from collections.abc import Iterator

from gaprune.evaluation.latency import Latencies, LatencyTable
from gaprune.evaluation.runtimes import CSR
from gaprune.export.measure.nonzero_macs import NonzeroMacs
from gaprune.export.measure.read_file import FileContents

WORTH_SAYING = 1.1  # times faster; less is the noise of a machine

Gains = dict[int, tuple[float, str]]
"""Batch → how many times as fast as the dense network in its fastest runtime, and in which."""


def latency_remarks(
    held: FileContents, timed: LatencyTable, work: NonzeroMacs | None, dense_macs: int | None
) -> Iterator[str]:
    """Say whether a file is faster than the dense network, each in its fastest runtime.

    A network of the same shapes does the same work in every runtime that multiplies by zeros, so
    that only one which skips them can gain; what others seem to gain there is noise.

    Args:
        held: the file.
        timed: its latencies.
        work: its multiply-adds; None where nobody knows the network.
        dense_macs: multiply-adds of the dense network; None as above.
    """
    if work is None or dense_macs is None:
        yield (
            "which network this is nobody says, so nothing was run: name it with --target, or "
            "measure the file in the folder of its run or export"
        )
        return
    smaller = work.all < dense_macs
    gains = gains_of(timed, None if smaller else (CSR,))
    found = {batch: one for batch, one in gains.items() if one[0] >= WORTH_SAYING}
    if found:
        yield f"speed-up over the dense network in its fastest runtime: {_listed(found)}"
    if slow := {batch: one for batch, one in gains.items() if batch not in found}:
        yield f"no speed-up: {_listed(slow)} as the dense network in its fastest runtime"
    if not smaller and not found and timed.pruned:
        yield (
            f"it does all {work.all:,} multiply-adds of the dense network, those by zero too, in "
            "every runtime but torch-csr: this sparsity saves bytes, not time"
        )
    if held.nonzeros == held.parameters and not smaller:
        yield "the file holds no zeros: nothing is pruned here"


def gains_of(timed: LatencyTable, runtimes: tuple[str, ...] | None = None) -> Gains:
    """Return how many times as fast the file is, each in its fastest runtime.

    Args:
        timed: what was measured.
        runtimes: those that count for the file; None are all of them.
    """
    own = {
        name: by_batch
        for name, by_batch in timed.pruned.items()
        if runtimes is None or name in runtimes
    }
    found: Gains = {}
    for batch in {batch: None for one in own.values() for batch in one}:
        mine, theirs = _fastest(own, batch), _fastest(timed.dense, batch)
        if mine is not None and theirs is not None:
            found[batch] = theirs[0] / mine[0], mine[1]
    return found


def _listed(gains: Gains) -> str:
    return ", ".join(
        f"{gain:.2f} times as fast at batch {batch} ({runtime})"
        for batch, (gain, runtime) in gains.items()
    )


def _fastest(latencies: Latencies, batch: int) -> tuple[float, str] | None:
    times = ((one[batch], name) for name, one in latencies.items() if batch in one)
    return min(times, default=None)
