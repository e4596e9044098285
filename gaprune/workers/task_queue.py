"""The tasks of one `run`: which is next, how often each was tried, what became of it. No Ray."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gaprune.workers.failures import tell
from gaprune.workers.protocol import FailedTask
from gaprune.workers.retry_policy import Durations, RetryPolicy


class Failure(NamedTuple):
    """How one call of a task came to nothing.

    Attributes:
        why: in a few words.
        node: where.
        blamed: whether the task may have done it; not where its whole node is gone.
    """

    why: str
    node: str = ""
    blamed: bool = True


@dataclass(eq=False)
class Job:
    """One task on its way to a result.

    Attributes:
        index: of the task among those of the run.
        task: to be run.
        kind: tasks of a kind take about as long as each other.
        due: not to be tried before.
        failures: what it came to so far.
        started: of each call of it that is under way, the time.
        done: whether it has its result.
    """

    index: int
    task: Any
    kind: str
    due: float = 0.0
    failures: list[Failure] = field(default_factory=list)
    started: list[float] = field(default_factory=list)
    done: bool = False


class TaskQueue:
    """Hands out tasks in their order, failed ones again after a while, late ones a second time.

    Times are those of one clock, in seconds.
    """

    def __init__(self, tasks: Sequence[Any], tolerance: RetryPolicy, durations: Durations) -> None:
        self._tolerance, self._durations = tolerance, durations
        jobs = [Job(index, task, kind_of(task)) for index, task in enumerate(tasks)]
        self._new = deque(jobs)
        self._again: list[Job] = []
        self._running: dict[Job, None] = {}
        self._open = len(jobs)
        self.results: list[Any] = [None] * len(jobs)

    @property
    def is_open(self) -> bool:
        """Whether a result is missing."""
        return self._open > 0

    def take(self, now: float, node: str = "") -> Job | None:
        """Return what a free worker on a node should run now, or None.

        First what has waited after a failure, on another node if there is a choice; then what is
        new; at last a second copy of what takes much longer than others of its kind.
        """
        job = self._due(now, node)
        if job is None and self._new:
            job = self._new.popleft()
        if job is None:
            job = next((one for one in self._running if self._late(one) <= now), None)
        if job is not None:
            job.started.append(now)
            self._running[job] = None
        return job

    def succeed(self, job: Job, result: Any) -> None:
        """Note the result of a job; the first one counts."""
        if not job.done:
            self._close(job, result)

    def fail(self, job: Job, started: float, now: float, failure: Failure) -> None:
        """Note that the call of a job that was started then came to nothing."""
        job.started.remove(started)
        if job.done:
            return
        job.failures.append(failure)
        if job.started:  # its other copy may still do it
            return
        del self._running[job]
        blamed = sum(one.blamed for one in job.failures)
        if blamed > self._tolerance.retries:
            self._close(job, FailedTask(len(job.failures), tell(one.why for one in job.failures)))
            return
        job.due = now + self._tolerance.wait(max(1, blamed))
        self._again.append(job)

    def wakes(self) -> float:
        """Return the time at which `take` has more to give to somebody who is free."""
        if self._new:
            return 0.0
        due = [job.due for job in self._again]
        return min([*due, *map(self._late, self._running)], default=float("inf"))

    def _due(self, now: float, node: str) -> Job | None:
        due = [job for job in self._again if job.due <= now]
        if not due:
            return None
        job = next((one for one in due if all(node != f.node for f in one.failures)), due[0])
        self._again.remove(job)
        return job

    def _late(self, job: Job) -> float:
        """Return the time from which a running job is a straggler; one with a copy never is."""
        if len(job.started) > 1:
            return float("inf")
        return job.started[0] + self._durations.late(job.kind)

    def _close(self, job: Job, result: Any) -> None:
        self.results[job.index] = result
        job.done = True
        self._running.pop(job, None)
        self._open -= 1


def kind_of(task: Any) -> str:
    """Return the task's own word for how long it takes, or the name of its class."""
    return str(getattr(task, "kind", type(task).__name__))
