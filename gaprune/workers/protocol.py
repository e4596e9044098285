"""What all workers have in common: run tasks, return results in order, fetch what stayed behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from gaprune.config import Settings
from gaprune.workers.retry_policy import RetryPolicy

OWN = "none"  # the address of a Ray on this machine
Warn = Callable[[str], None]


@dataclass(frozen=True)
class WorkerOptions:
    """Who works, and where.

    Attributes:
        count: number of workers.
        threads: torch threads of each, and the CPUs that each reserves of a cluster.
        gpus: GPUs of each: 0, a fraction that several share, or a whole number.
        address: of a Ray cluster: `auto`, `ray://HOST:PORT` or `HOST:PORT`; `none` is a Ray of its
            own on this machine. A Ray that the caller has started goes before all of them.
        retry_policy: what is done about those that are lost.
        device: where candidates are tried, as the user asks for it; see `choose_device`.
    """

    count: int = 1
    threads: int = 1
    gpus: float = 0.0
    address: str = "none"
    retry_policy: RetryPolicy = field(default_factory=RetryPolicy)
    device: str = "auto"

    @property
    def in_process(self) -> bool:
        """Whether this process is the one worker: no actor, so no Ray."""
        return self.count == 1 and not self.gpus and self.address == OWN

    @classmethod
    def from_settings(cls, settings: Settings) -> WorkerOptions:
        """Read it from the settings of a run."""
        return cls(
            settings.workers,
            settings.threads_per_worker,
            settings.gpus_per_worker,
            settings.ray_address,
            RetryPolicy(settings.retries, settings.task_timeout),
            settings.device,
        )


@dataclass(frozen=True)
class FailedTask:
    """The result of a task that took its workers down every time it was tried.

    Attributes:
        attempts: how often it was tried.
        why: what happened, in a few words.
    """

    attempts: int
    why: str


class Workers(Protocol):
    """Runs tasks; every task has `run(evaluator)` and is pure: its result depends on nothing else.

    A task that has `parents`, be it none, breeds: its result has `genes`. They are large and travel
    on their own, so that they are sent once and only where they are needed. A task may have a
    `kind`, a text: tasks of a kind take about as long as each other.
    """

    count: int

    def run(self, tasks: Sequence[Any]) -> list[Any]:
        """Run all tasks and return their results in order.

        The result of a task that cannot be run without losing its worker is a `FailedTask`. What a task
        raises is raised here. `genes` of a result may be a handle: see `fetch`.
        """

    def fetch(self, results: Sequence[Any]) -> list[Any]:
        """Return the `genes` of results, from wherever they are."""

    def __enter__(self) -> Self:
        """Start the workers."""

    def __exit__(self, *_: object) -> None:
        """Stop the workers and free what they hold."""
