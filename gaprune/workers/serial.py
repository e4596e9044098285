"""The worker that runs tasks in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch


class SerialWorkers:
    """One worker: this process."""

    count = 1

    def __init__(self, bench: Any, threads: int = 1) -> None:
        self._bench = bench
        self._threads = threads

    def run(self, tasks: Sequence[Any]) -> list[Any]:
        """Run the tasks one after the other."""
        with torch_threads(self._threads):
            return [task.run(self._bench) for task in tasks]

    def fetch(self, results: Sequence[Any]) -> list[Any]:
        """Return the genes of results, which are here already."""
        return [result.genes for result in results]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to stop."""


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Use so many torch threads inside the block; the caller's number comes back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
