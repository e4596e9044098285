"""The worker that runs tasks in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Self

import torch

from gaprune.profiling import OTHER, profiled
from gaprune.workers.device import CPU, move_evaluator, on_device
from gaprune.workers.malloc import keep_heap


class SerialWorkers:
    """One worker: this process.

    Args:
        evaluator: what tasks need; on a GPU they are given a copy.
        threads: of torch, while tasks run.
        device: where they run: `cpu`, `cuda` or `cuda:N`.
    """

    count = 1

    def __init__(self, evaluator: Any, threads: int = 1, device: str = CPU) -> None:
        self._evaluator, self._threads, self._device = evaluator, threads, device

    def run(self, tasks: Sequence[Any]) -> list[Any]:
        """Run the tasks one after the other.

        Raises:
            GapruneError: the memory of the GPU is full.
        """
        keep_heap()
        with (
            torch_threads(self._threads),
            on_device(self._device),
            profiled(OTHER),  # of a task, as on other workers
        ):
            return [task.run(self._settled) for task in tasks]

    def fetch(self, results: Sequence[Any]) -> list[Any]:
        """Return the genes of results, which are here already."""
        return [result.genes for result in results]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to stop; what was put on a GPU is let go of."""
        self.__dict__.pop("_settled", None)

    @cached_property
    def _settled(self) -> Any:
        """The evaluator where tasks run."""
        return move_evaluator(self._evaluator, self._device)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Use so many torch threads inside the block; the caller's number comes back afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
