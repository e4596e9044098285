"""What all workers share: their options, the retry policy, and the contract `Workers`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from gaprune.config import Settings

LOCAL_RAY = "none"  # the `--ray-address` that starts a Ray on this machine
BACKOFF = 5.0  # each wait before a retry is so many times as long as the one before
SHORTEST_TIMEOUT = 60.0  # seconds that every task may take
SLOWER = 20.0  # a task hangs at so many times the slowest finished one of its kind
FIRST_TIMEOUT = 3600.0  # seconds, until one of the kind has finished
Warn = Callable[[str], None]


@dataclass(frozen=True)
class RetryPolicy:
    """What happens after failures of tasks and workers; all times in seconds."""

    retries: int = 2  # of a task that has lost its worker
    timeout: float | None = None  # of a task; None derives it from finished tasks
    first_wait: float = 1.0  # before the first retry of a task, or of starting a worker
    # Ray notices the loss of a node after some 17 s: with short waits all retries would be spent
    longest_wait: float = 30.0
    start: float = 120.0  # until a worker must be ready
    starts: int = 3  # failed ones in a row, until a worker is given up if no other one works

    def task_timeout(self, slowest: float | None) -> float:
        """Return the seconds before a task hangs; `slowest` of its kind took so many, if known."""
        if self.timeout is not None:
            return self.timeout
        return FIRST_TIMEOUT if slowest is None else max(SHORTEST_TIMEOUT, SLOWER * slowest)

    def wait(self, failures: int) -> float:
        """Return the seconds to wait after so many failures in a row, at least one."""
        # a float cannot hold much more than the 100th power
        return min(self.first_wait * BACKOFF ** min(failures - 1, 100), self.longest_wait)


@dataclass(frozen=True)
class WorkerOptions:
    """How many workers there are, and what each of them reserves."""

    count: int = 1
    threads: int = 1  # torch threads of each, and the CPUs that each reserves in a Ray cluster
    gpus: float = 0.0  # of each: 0, a fraction that several workers share, or a whole number
    # `auto`, `ray://HOST:PORT` or `HOST:PORT`; an initialised Ray is used whatever this says
    address: str = LOCAL_RAY
    retry_policy: RetryPolicy = RetryPolicy()
    device: str = "auto"  # where candidates are evaluated, as requested; see `choose_device`

    @property
    def in_process(self) -> bool:
        """Whether tasks run in this process, without Ray."""
        return self.count == 1 and not self.gpus and self.address == LOCAL_RAY

    @classmethod
    def from_settings(cls, settings: Settings) -> WorkerOptions:
        """Return the options that the settings of a run ask for."""
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
    """The result of a quarantined task: every worker that tried it was lost."""

    attempts: int
    why: str  # the reasons, each once


class Workers(Protocol):
    """Runs tasks. A task has `run(evaluator)`, which is pure: same task, same result, bit for bit.

    A task with an attribute `parents` (possibly empty) breeds: its result has `genes`, which are
    large and sent separately, once. Tasks of one `kind` (optional) take about the same time.
    """

    count: int

    def run(self, tasks: Sequence[Any]) -> list[Any]:
        """Run all tasks and return their results in order; exceptions of tasks are raised.

        The result of a task whose workers were lost on every try is a `FailedTask`. The `genes` of
        a result may be a handle; see `fetch`. Reaching the active `TimeLimit` raises `TimeIsUp`.
        """

    def fetch(self, results: Sequence[Any]) -> list[Any]:
        """Return the genomes of results, from wherever they are."""

    def __enter__(self) -> Self:
        """Start the workers."""

    def __exit__(self, *_: object) -> None:
        """Stop the workers and free what they hold."""
