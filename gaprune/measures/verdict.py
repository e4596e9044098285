"""What latencies mean, said plainly: sparsity alone seldom makes a network faster."""

from __future__ import annotations

from collections.abc import Iterator

from gaprune.measures.latency import Latencies, Timed
from gaprune.measures.reading import PROGRAM, Held

WORTH_SAYING = 1.1  # times faster; less is the noise of a machine


def verdict(held: Held, timed: Timed, *, known: bool) -> Iterator[str]:
    """Say whether a file is faster than the dense network, each in its fastest runtime.

    Args:
        held: the file.
        timed: its latencies.
        known: whether the network is.
    """
    if not known:
        yield (
            "which network this is nobody says, so nothing was run: name it with --target, or "
            "measure the file in the folder of its run or export"
        )
        return
    gains = dict(gains_of(timed))
    if not gains:
        return
    best = max(gains, key=lambda batch: gains[batch])
    at = ", ".join(f"{gain:.2f} times at batch {batch}" for batch, gain in gains.items())
    if gains[best] >= WORTH_SAYING:
        yield f"fastest runtime against the dense network's fastest: {at} as fast"
    else:
        yield (
            f"no speed-up: the fastest runtime is {at} as fast as the dense network's fastest; "
            "dense runtimes multiply by zeros as by any other number, and what torch's CSR saves "
            "its bookkeeping costs here: this sparsity saves bytes, not time"
        )
    if held.nonzeros == held.parameters and held.kind != PROGRAM:
        yield "the file holds no zeros: nothing is pruned here"


def gains_of(timed: Timed) -> Iterator[tuple[int, float]]:
    """Yield batch → how many times as fast the file is, each in its fastest runtime."""
    for batch in {batch: None for one in timed.own.values() for batch in one}:
        own, dense = _fastest(timed.own, batch), _fastest(timed.dense, batch)
        if own is not None and dense is not None:
            yield batch, dense / own


def _fastest(latencies: Latencies, batch: int) -> float | None:
    return min((one[batch] for one in latencies.values() if batch in one), default=None)
