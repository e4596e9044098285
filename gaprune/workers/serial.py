"""The worker that runs tasks in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Self

import torch

from gaprune.models.subnormal_numbers import subnormals_as_zero
from gaprune.models.time_limit import TimeIsUp, check_time
from gaprune.profiling import OTHER, profiled
from gaprune.workers.device import CPU, move_evaluator, on_device
from gaprune.workers.malloc import keep_heap


class SerialWorkers:
    """One worker: this process, with a copy of the evaluator where `device` is a GPU."""

    count = 1

    def __init__(self, evaluator: Any, threads: int = 1, device: str = CPU) -> None:
        self._evaluator, self._threads, self._device = evaluator, threads, device

    def run(self, tasks: Sequence[Any]) -> list[Any]:
        """Run the tasks one after the other.

        Raises:
            GapruneError: the memory of the GPU is full.
            TimeIsUp: the active limit is reached; it has the results of the finished tasks.
        """
        keep_heap()
        results = []
        # OTHER: time of a task outside all named parts counts as on Ray workers
        with (
            subnormals_as_zero(),
            torch_threads(self._threads),
            on_device(self._device),
            profiled(OTHER),
        ):
            try:
                for task in tasks:
                    check_time()
                    results.append(task.run(self._on_device))
            except TimeIsUp:
                raise TimeIsUp(results) from None
        return results

    def fetch(self, results: Sequence[Any]) -> list[Any]:
        """Return the genomes of results, which are in this process already."""
        return [result.genes for result in results]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Free the copy on the GPU."""
        self.__dict__.pop("_on_device", None)

    @cached_property
    def _on_device(self) -> Any:
        return move_evaluator(self._evaluator, self._device)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Use `count` torch threads inside the block and restore the caller's number afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
