"""Running a network on inputs of every generator, in order to choose among them.

It takes seconds to minutes, deep inside the resolution of settings. So the caller states outside,
with `weighing`, who hears of the progress and whether an estimate from a few inputs is enough.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

import torch
from torch import Tensor

from gaprune.calibration.generators.random_draws import InputGenerator, to_network
from gaprune.callbacks import Observer
from gaprune.models.network import DenseNetwork

WEIGHING = "weighing the generators"
LARGE_MACS = 1 << 28  # multiply-adds per input of a large network
# Inputs per forward pass of a large network: the activations fit into blocks that the heap keeps
# (`keep_heap`). With 64, EfficientNet-Lite0 spent most of the time in the kernel.
LARGE_BATCH = 4
QUICK_INPUTS = 6  # per generator, for an estimate


class _Weighing(NamedTuple):
    observer: Observer
    quick: bool


_SILENT = _Weighing(Observer(), quick=False)
_active = ContextVar("_active", default=_SILENT)


@contextmanager
def weighing(observer: Observer | None = None, *, quick: bool = False) -> Iterator[None]:
    """Report progress to an observer; None is the current one. `quick` makes estimates."""
    token = _active.set(_Weighing(observer or _active.get().observer, quick))
    try:
        yield
    finally:
        _active.reset(token)


def is_quick() -> bool:
    """Return whether an estimate is enough."""
    return _active.get().quick


def inputs_of_each(
    network: DenseNetwork,
    generators: Mapping[str, InputGenerator],
    generator: torch.Generator,
    count: int,
    batch: int,
) -> Iterator[tuple[str, Tensor]]:
    """Draw `count` inputs from each of the generators, in order, and yield name and batch.

    Batches are `[≤ batch, *shape]` as the network takes them, on its device. Progress is reported
    where batches are small: it takes long then.
    """
    spec, done, report = network.inputs, 0, _active.get().observer.progress
    for name, draw in generators.items():
        inputs = to_network(spec, draw(spec, count, generator), network.dtype).to(network.device)
        for chunk in inputs.split(batch):
            yield name, chunk
            done += len(chunk)
            if batch <= LARGE_BATCH:
                report(WEIGHING, done, count * len(generators))
