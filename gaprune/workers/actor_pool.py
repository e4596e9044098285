"""The actors: who is idle, who starts, who was lost and when another one takes the place."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ray

from gaprune.errors import GapruneError
from gaprune.workers.actor import ActorSetup
from gaprune.workers.cluster import free, has_room
from gaprune.workers.failures import cause_of, describe
from gaprune.workers.protocol import Warn, WorkerOptions


@dataclass(eq=False)
class Worker:
    """One place in the crew.

    Attributes:
        actor: who has it now; None between two.
        node: where that one is.
        failed: starts in a row that failed.
        due: when the next one is tried.
        since: when this one was started.
    """

    actor: Any = None
    node: str = ""
    failed: int = 0
    due: float = 0.0
    since: float = 0.0


class ActorPool:
    """Keeps every place filled as long as that can be done.

    Args:
        hire: makes an actor.
        evaluator: reference to the packed evaluator.
        shipment: what goes with it.
        worker_options: how many, and how often and how long a start is tried.
        warn: told when a worker is lost.
    """

    def __init__(
        self,
        hire: Callable[[], Any],
        evaluator: Any,
        shipment: ActorSetup,
        worker_options: WorkerOptions,
        warn: Warn,
    ) -> None:
        self._hire, self._evaluator, self._shipment = hire, evaluator, shipment
        self._worker_options, self._tolerance, self._warn = (
            worker_options,
            worker_options.retry_policy,
            warn,
        )
        self._workers = [Worker() for _ in range(worker_options.count)]
        self._progress = time.monotonic()  # when a worker became ready last
        self._error: BaseException | None = None
        self.idle: list[Worker] = []
        self.starting: dict[Any, Worker] = {}
        self.ready = 0
        self.lost = 0
        self._started, self._starts = 0.0, 0

    def start(self) -> None:
        """Start everybody and wait for the first who is ready; the others join later.

        Raises:
            GapruneError: nobody can start.
        """
        while not self.ready:
            self.tend()
            left = max(0.0, self.wakes() - time.monotonic())
            if self.starting:
                for reference in ray.wait(list(self.starting), timeout=left)[0]:
                    self.handle_started(reference)
            else:
                time.sleep(left)

    def stop(self) -> None:
        """End all of them."""
        for worker in self._workers:
            self._dismiss(worker)
        self._workers, self.idle, self.starting = [], [], {}

    def tend(self) -> None:
        """Give up on who does not become ready, start who is due.

        Raises:
            GapruneError: nobody works and nobody can be started.
        """
        now = time.monotonic()
        for reference, worker in list(self.starting.items()):
            if now >= self._overdue(worker):
                del self.starting[reference]
                self._note_start(worker)
                self._time_out(worker)
        self._check()
        for worker in self._waiting():
            if now >= worker.due:
                worker.actor, worker.since = self._hire(), now
                reference = worker.actor.load.remote(self._evaluator, self._shipment)
                self.starting[reference] = worker

    def handle_started(self, reference: Any) -> None:
        """Take in a worker that has become ready, or has failed to."""
        worker = self.starting.pop(reference)
        self._note_start(worker)
        try:
            worker.node = ray.get(reference)
        except ray.exceptions.RayError as error:
            cause = cause_of(error)
            own = not isinstance(cause, ray.exceptions.RayError)
            # what the evaluator itself raises on the first try it will raise on every other one
            self._failed(worker, cause, hopeless=own and not self.ready)
            return
        worker.failed = 0
        self._progress = time.monotonic()
        self.ready += 1
        self.idle.append(worker)

    def lose(self, worker: Worker, why: str) -> None:
        """Replace a worker that was busy; its process is ended, whatever it does."""
        self._dismiss(worker)
        worker.due = 0.0
        self.lost += 1
        if self.lost & (self.lost - 1) == 0:  # 1, 2, 4, 8, …: a line for each would be too many
            total = f"; {self.lost} so far" if self.lost > 1 else ""
            self._warn(f"a worker was lost ({why}) and is replaced{total}")

    def wakes(self) -> float:
        """Return the time at which `tend` has something to do."""
        due = [worker.due for worker in self._waiting()]
        return min([*due, *map(self._overdue, self.starting.values())], default=float("inf"))

    def starts(self) -> tuple[float, int]:
        """Return seconds that starts have taken so far, all together, and how many there were."""
        now = time.monotonic()
        under_way = [now - worker.since for worker in self.starting.values()]
        return self._started + sum(under_way), self._starts + len(under_way)

    def _note_start(self, worker: Worker) -> None:
        self._started += time.monotonic() - worker.since
        self._starts += 1

    def _waiting(self) -> list[Worker]:
        """Return who is to be started; who failed too often only as long as somebody works."""
        most = self._tolerance.starts
        return [
            one
            for one in self._workers
            if one.actor is None and (one.failed < most or self._working)
        ]

    @property
    def _working(self) -> int:
        return sum(one.actor is not None for one in self._workers) - len(self.starting)

    def _overdue(self, worker: Worker) -> float:
        return max(worker.since, self._progress) + self._tolerance.start

    def _dismiss(self, worker: Worker) -> None:
        if worker.actor is not None:
            ray.kill(worker.actor, no_restart=True)
            worker.actor = None

    def _failed(self, worker: Worker, error: BaseException, *, hopeless: bool) -> None:
        self._dismiss(worker)
        self._error = error
        worker.failed = max(worker.failed + 1, self._tolerance.starts if hopeless else 0)
        worker.due = time.monotonic() + self._tolerance.wait(worker.failed)
        if self._working and worker.failed == self._tolerance.starts:
            self._warn(
                f"a worker cannot be started ({_why(error)}); {self._working} of "
                f"{len(self._workers)} work, and it is tried again from time to time"
            )

    def _time_out(self, worker: Worker) -> None:
        what = (
            f"not ready within {self._tolerance.start:g} s; the cluster has {free()} free: wait "
            "until others need less of it, or use fewer --workers"
        )
        # where there is no room, another try would only be more waiting
        self._failed(worker, GapruneError(what), hopeless=not has_room(self._worker_options))

    def _check(self) -> None:
        starts = self._tolerance.starts
        if any(one.actor is not None or one.failed < starts for one in self._workers):
            return
        assert self._error is not None  # or nobody would have failed
        why = _why(self._error)
        if not self.ready:
            raise GapruneError(f"workers: none of {len(self._workers)} could start: {why}") from (
                self._error
            )
        raise GapruneError(
            f"workers: all {len(self._workers)} are lost and none could be started again: {why}"
        ) from self._error


def _why(error: BaseException) -> str:
    return str(error) if isinstance(error, GapruneError) else describe(error)
