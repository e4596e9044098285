"""The tasks of one `run`: which is next, how often each was tried, and its result. No Ray."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from gaprune.workers.base import FailedTask, RetryPolicy


class FailedAttempt(NamedTuple):
    """One failed call of a task."""

    why: str
    node: str = ""
    counts: bool = True  # as a try; the loss of a whole node is not the task's fault


@dataclass(eq=False)
class PendingTask:
    """One task on its way to a result."""

    index: int  # in the run
    task: Any
    kind: str  # tasks of one kind take about the same time
    retry_at: float = 0.0  # not before this time
    failures: list[FailedAttempt] = field(default_factory=list)


class TaskQueue:
    """Hands out tasks in order, and failed ones again after a back-off; times are in seconds."""

    def __init__(self, tasks: Sequence[Any], retry_policy: RetryPolicy) -> None:
        self._policy = retry_policy
        self._new = deque(
            PendingTask(index, task, str(getattr(task, "kind", type(task).__name__)))
            for index, task in enumerate(tasks)
        )
        self._retries: list[PendingTask] = []
        self._unfinished = len(tasks)
        self.results: list[Any] = [None] * len(tasks)

    @property
    def is_finished(self) -> bool:
        """Whether every task has its result."""
        return self._unfinished == 0

    def take(self, now: float, node: str = "") -> PendingTask | None:
        """Return the task that an idle worker on `node` runs next, or None.

        Retries come first, preferably on another node than where they failed.
        """
        due = [pending for pending in self._retries if pending.retry_at <= now]
        if not due:
            return self._new.popleft() if self._new else None
        elsewhere = (p for p in due if all(node != failure.node for failure in p.failures))
        pending = next(elsewhere, due[0])
        self._retries.remove(pending)
        return pending

    def succeed(self, pending: PendingTask, result: Any) -> None:
        """Record the result of a task."""
        self.results[pending.index] = result
        self._unfinished -= 1

    def fail(self, pending: PendingTask, now: float, failure: FailedAttempt) -> None:
        """Record a failed call: try the task again later, or quarantine it."""
        pending.failures.append(failure)
        tries = sum(attempt.counts for attempt in pending.failures)
        if tries > self._policy.retries:
            reasons = dict.fromkeys(attempt.why for attempt in pending.failures)  # each once
            self.succeed(pending, FailedTask(len(pending.failures), "; ".join(reasons)))
            return
        pending.retry_at = now + self._policy.wait(max(1, tries))
        self._retries.append(pending)

    def next_task_at(self) -> float:
        """Return the time at which `take` has a task for an idle worker."""
        if self._new:
            return 0.0
        return min((pending.retry_at for pending in self._retries), default=float("inf"))
