"""Workers as Ray actors: the bench is sent once, then only tasks and small results travel."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Self
from weakref import WeakKeyDictionary

import ray
import torch

from gaprune.errors import GapruneError
from gaprune.userfile import PREFIX


@ray.remote
class _Actor:
    """Holds a private copy of the bench (Ray's arrays are shared, read-only memory)."""

    def __init__(self, packed: bytes, threads: int, folders: list[str]) -> None:
        torch.set_num_threads(threads)
        # last, so they shadow nothing: what a user's file imports from beside it
        sys.path.extend(folder for folder in folders if folder not in sys.path)
        self._bench = ray.cloudpickle.loads(packed)

    def run(self, task: Any, *parents: Any) -> Any:
        """Run one task; parents that travelled as references are put back into it."""
        return (replace(task, parents=parents) if parents else task).run(self._bench)


class RayWorkers:
    """Several workers, each an actor with its own copy of the bench and its share of threads.

    A Ray that the caller has started is used and left running; otherwise one is started here and
    shut down at the end. One call is in flight per actor.
    """

    def __init__(self, bench: Any, count: int, threads: int = 1) -> None:
        self.count = count
        self._bench = bench
        self._threads = threads
        self._actors: list[Any] = []
        self._references: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
        self._started_ray = False

    def __enter__(self) -> Self:
        if not ray.is_initialized():
            _start_ray(self.count)
            self._started_ray = True
        try:
            self._check_resources()
            _send_user_code_by_value()
            packed = ray.put(ray.cloudpickle.dumps(self._bench))
            start = _Actor.remote  # type: ignore[attr-defined] # ray adds it
            self._actors = [start(packed, self._threads, sys.path) for _ in range(self.count)]
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []
        self._references.clear()
        if self._started_ray:
            ray.shutdown()
            self._started_ray = False

    def run(self, tasks: Sequence[Any]) -> list[Any]:
        """Run the tasks, one in flight per actor, and return their results in order."""
        results: list[Any] = [None] * len(tasks)
        waiting = list(range(len(tasks)))[::-1]
        free = list(self._actors)
        running: dict[Any, tuple[int, Any]] = {}
        while waiting or running:
            while waiting and free:
                index, actor = waiting.pop(), free.pop()
                running[self._submit(actor, tasks[index])] = (index, actor)
            done, _ = ray.wait(list(running), num_returns=1)
            for reference in done:
                index, actor = running.pop(reference)
                results[index] = _fetch(reference)
                free.append(actor)
        return results

    def _submit(self, actor: Any, task: Any) -> Any:
        parents = getattr(task, "parents", ())
        if not parents:
            return actor.run.remote(task)
        return actor.run.remote(replace(task, parents=()), *map(self._reference, parents))

    def _reference(self, genes: Any) -> Any:
        """Put genes into the object store once, however many children they have."""
        if genes not in self._references:
            self._references[genes] = ray.put(genes)
        return self._references[genes]

    def _check_resources(self) -> None:
        cores = int(ray.cluster_resources().get("CPU", 0))
        if cores < self.count:
            raise GapruneError(
                f"workers: {self.count} asked, but the Ray cluster has {cores} CPUs; "
                f"use --workers {max(cores, 1)}"
            )


def _fetch(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.RayError as error:
        raise GapruneError(
            f"workers: a Ray actor was lost ({type(error).__name__}: {error})"
        ) from error


def _start_ray(count: int) -> None:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # silences a notice on CPUs
    with _own_sigterm():
        ray.init(
            num_cpus=max(count, os.cpu_count() or 1),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}},
        )


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Put the caller's SIGTERM handler back: `ray.init` sets one that ends the process at once."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _send_user_code_by_value() -> None:
    """Classes from a user's factory file have no module to import elsewhere: send their code."""
    for name, module in list(sys.modules.items()):
        if name.startswith(PREFIX):
            ray.cloudpickle.register_pickle_by_value(module)
