"""Workers as Ray actors that may fail: tasks of lost actors run again, lost actors are replaced.

After RLlib's fault-tolerant actor manager: one call is in flight per actor, retries are counted per
task, actors that die or hang are replaced. `ray.util.ActorPool` loses the failed item, and Ray's
own restarts and retries let one bad task fail the calls of others: neither is used.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self
from weakref import WeakKeyDictionary

import ray

from gaprune import profiling
from gaprune.errors import GapruneError
from gaprune.io.user_code import PREFIX
from gaprune.models.time_limit import TimeIsUp, active_limit, check_time
from gaprune.profiling import LOST, START, TRANSPORT, WAITING, Timings, profiled
from gaprune.workers import cluster, transport
from gaprune.workers.actor import Actor, ActorSetup, frozen_tensors, weights_digest
from gaprune.workers.base import LOCAL_RAY, FailedTask, Warn, WorkerOptions
from gaprune.workers.task_queue import FailedAttempt, PendingTask, TaskQueue

FETCH_TIMEOUT = 120.0  # seconds after which a genome counts as lost
# Of a task whose parent was lost with the node that held it.
LOST_ARGUMENT = (ray.exceptions.ObjectLostError, ray.exceptions.GetTimeoutError)


class RunningTask(NamedTuple):
    """A task that an actor is running, its queue, and the reference of its future genome."""

    pending: PendingTask
    task_queue: TaskQueue
    genome: Any


@dataclass(eq=False)
class Slot:
    """One of the workers: an actor, or the gap until the next one is started."""

    actor: Any = None
    node: str = ""  # id of the node that the actor is on
    call: RunningTask | None = None  # None while it loads the evaluator or is idle
    since: float = 0.0  # when the call, or loading, began
    failed_starts: int = 0  # in a row
    retry_at: float = 0.0  # no start before this time


class RayWorkers:
    """Several workers, each an actor with its own copy of the evaluator and its own torch threads.

    If Ray is already initialised, it is used and left running. Otherwise a local Ray is started, or
    a cluster joined, and left at the end. `warn` is called with a text when a worker is lost.
    """

    def __init__(
        self,
        evaluator: Any,
        worker_options: WorkerOptions,
        warn: Warn = lambda _: None,
        create_actor: Callable[[], Any] | None = None,
    ) -> None:
        self.count = worker_options.count
        self.lost = 0  # actors lost so far
        self._evaluator, self._options, self._warn = evaluator, worker_options, warn
        self._policy = worker_options.retry_policy
        reserving = Actor.options(  # type: ignore[attr-defined] # ray adds it
            num_cpus=worker_options.threads,
            num_gpus=worker_options.gpus,
            scheduling_strategy="SPREAD",
        )
        self._create_actor = create_actor or reserving.remote
        self._shut_down: Callable[[], None] | None = None
        self._monitor: cluster.ClusterMonitor
        self._slots: list[Slot] = []
        self.idle: list[Slot] = []
        self._busy: dict[Any, Slot] = {}  # reference → slot that loads the evaluator or runs a task
        self._ready_at = 0.0  # when an actor became ready last; 0 before the first
        self._start_error: BaseException = GapruneError("no start was tried")
        self._slowest: dict[str, float] = {}  # kind of task → seconds
        self._stored: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()  # genome → reference
        self._profiler: profiling.Profiler | None = None
        self._timings, self._opened = Timings(), 0.0

    def __enter__(self) -> Self:
        with profiled(START):
            self._shut_down = cluster.connect(self._options)
            try:
                local = self._shut_down is not None and self._options.address == LOCAL_RAY
                self._monitor = cluster.ClusterMonitor(started_here=local)
                self._start()
            except BaseException:
                self._close()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        with profiled(START):
            self._close()

    def run(self, tasks: Sequence[Any]) -> list[Any]:
        """Run the tasks and return their results in order.

        A task that loses its worker (its process or node dies, it hangs, it gets no memory, it
        changes the weights) is tried again; after its retries its result is a `FailedTask`.

        Raises:
            GapruneError: all workers are lost and none can be started.
            TimeIsUp: the active limit is reached; it has the results of the finished tasks.
        """
        task_queue = TaskQueue(tasks, self._policy)
        with profiled(TRANSPORT):
            while not task_queue.is_finished:
                if active_limit().left <= 0:
                    raise TimeIsUp(task_queue.results)
                self._end_overdue()
                self._start_actors()
                self._send_tasks(task_queue)
                for reference in self._wait(task_queue):
                    self._receive(reference, task_queue)
        return task_queue.results

    def fetch(self, results: Sequence[Any]) -> list[Any]:
        """Return the genomes of results; those lost with their node are computed again."""
        genomes = [result.genes for result in results]
        remote = {i: g for i, g in enumerate(genomes) if isinstance(g, transport.RemoteGenome)}
        lost = []
        with profiled(TRANSPORT):
            references = [handle.reference for handle in remote.values()]
            if references:  # all of them travel at the same time
                self._wait_for(references, len(references), FETCH_TIMEOUT)
            for index, handle in remote.items():
                try:
                    packed = ray.get(handle.reference, timeout=FETCH_TIMEOUT)
                except ray.exceptions.RayError:
                    lost.append(index)
                else:
                    genomes[index] = genome = transport.unpack_genome(packed)
                    self._stored[genome] = handle.reference  # for its own children
        if lost:
            again = self.run([remote[index].task for index in lost])
            for result in again:
                if isinstance(result, FailedTask):
                    raise GapruneError(f"workers: a child cannot be computed again: {result.why}")
            for index, genome in zip(lost, self.fetch(again), strict=True):
                genomes[index] = genome
        return genomes

    def _send_tasks(self, task_queue: TaskQueue) -> None:
        """Give every idle actor one task: never more, since a lost actor loses all its calls."""
        now = time.monotonic()
        while self.idle and (pending := task_queue.take(now, self.idle[-1].node)) is not None:
            slot, task = self.idle[-1], pending.task
            message = transport.pack_task(task)
            if hasattr(task, "parents"):
                parents = map(self._store, task.parents)
                reference, genome = slot.actor.breed.remote(message, *parents)
            else:
                reference, genome = slot.actor.run.remote(message), None
            slot.call, slot.since = RunningTask(pending, task_queue, genome), now
            self._busy[reference] = self.idle.pop()

    def _wait(self, task_queue: TaskQueue, part: str = WAITING) -> list[Any]:
        """Wait for results or for the next thing to do; return the references that are ready."""
        times = [*map(self._deadline, self._busy.values())]
        times += [slot.retry_at for slot in self._startable()]
        if self.idle:
            times.append(task_queue.next_task_at())
        left = max(0.0, min(min(times) - time.monotonic(), active_limit().left))
        with profiled(part):
            if not self._busy:
                time.sleep(min(left, cluster.CHECK_EVERY))
                self._monitor.check()
                return []
            ready, others = self._wait_for(list(self._busy), 1, left)
        if ready and others:  # and whatever else has arrived meanwhile
            ready += ray.wait(others, num_returns=len(others), timeout=0)[0]
        return list(ready)

    def _wait_for(self, references: list[Any], count: int, seconds: float) -> tuple[Any, Any]:
        """Call `ray.wait`; GapruneError, within seconds, if Ray itself fails meanwhile."""
        deadline = time.monotonic() + seconds
        while True:
            left = max(0.0, deadline - time.monotonic())
            step = min(left, cluster.CHECK_EVERY)
            ready, others = ray.wait(references, num_returns=count, timeout=step)
            self._monitor.check()
            if len(ready) >= count or left <= step:
                return ready, others

    def _receive(self, reference: Any, task_queue: TaskQueue) -> None:
        slot = self._busy.pop(reference)
        call, slot.call = slot.call, None
        try:
            message = ray.get(reference)
        except ray.exceptions.RayError as error:
            raised = getattr(error, "cause", None)  # by our code in the actor
            cause = raised if isinstance(raised, BaseException) else error
            if call is None:
                # what loading raises at the first start it would raise at every other one
                raised_by_us = not isinstance(cause, ray.exceptions.RayError)
                self._start_failed(slot, cause, hopeless=raised_by_us and not self._ready_at)
            else:
                self._call_failed(slot, call, cause, task_queue)
            return
        if call is None:
            self._add_time(slot, START)
            slot.node, slot.failed_starts = message, 0
            self._ready_at = time.monotonic()
            self.idle.append(slot)
            return
        answer = transport.unpack_result(message, call.genome, call.pending.task)
        if answer.error is not None:
            self._call_failed(slot, call, answer.error, task_queue)
        elif not answer.intact:
            self._replace(slot, call, "its copy of the weights has changed")
        else:
            self._add_time(slot, TRANSPORT, answer.timings)
            self.idle.append(slot)
            kind, seconds = call.pending.kind, time.monotonic() - slot.since
            self._slowest[kind] = max(seconds, self._slowest.get(kind, 0.0))
            call.task_queue.succeed(call.pending, answer.result)

    def _call_failed(
        self, slot: Slot, call: RunningTask, error: BaseException, task_queue: TaskQueue
    ) -> None:
        """Raise what the task raised; try it again if the machine is the cause."""
        if isinstance(error, LOST_ARGUMENT):
            for parent in getattr(call.pending.task, "parents", ()):
                self._stored.pop(parent, None)
        elif transport.ends_worker(error):
            self._replace(slot, call, transport.describe_failure(error))
            return
        self._add_time(slot, LOST)
        self.idle.append(slot)
        if transport.is_machine_failure(error):
            self._retry(slot, call, transport.describe_failure(error))
        elif call.task_queue is task_queue:  # else a task of an earlier run, which has raised
            raise error

    def _retry(self, slot: Slot, call: RunningTask, why: str) -> None:
        # The cluster notices that a node is lost after some 17 s.
        node_works = any(node["NodeID"] == slot.node and node["Alive"] for node in ray.nodes())
        attempt = FailedAttempt(why, slot.node, counts=node_works)
        call.task_queue.fail(call.pending, time.monotonic(), attempt)

    def _store(self, genome: Any) -> Any:
        """Put a parent into the object store, once for all of its children."""
        if genome not in self._stored:
            self._stored[genome] = ray.put(transport.pack_genome(genome))
        return self._stored[genome]

    def _start(self) -> None:
        """Start all actors and wait for the first that is ready; the others join later."""
        cluster.check_resources(self._options)
        for name, module in list(sys.modules.items()):
            if name.startswith(PREFIX):  # other processes cannot import the user's files: send them
                ray.cloudpickle.register_pickle_by_value(module)
        self._profiler = profiling.active_profiler()
        self._timings, self._opened = Timings(), time.monotonic()
        self._packed = ray.put(ray.cloudpickle.dumps(self._evaluator))
        self._setup = ActorSetup(
            weights_digest(frozen_tensors(self._evaluator)),
            self._options.threads,
            self._options.gpus > 0,
            sys.path,
            self._profiler is not None,
            "torchvision" in sys.modules,
        )
        self._slots, self._ready_at = [Slot() for _ in range(self.count)], 0.0
        no_tasks = TaskQueue([], self._policy)
        while not self._ready_at:
            check_time()
            self._end_overdue()
            self._start_actors()
            for reference in self._wait(no_tasks, START):  # not a wait for results
                self._receive(reference, no_tasks)

    def _startable(self) -> list[Slot]:
        """Return the empty slots; those given up only while another worker works."""
        most = self._policy.starts
        return [
            slot
            for slot in self._slots
            if slot.actor is None and (slot.failed_starts < most or self._working)
        ]

    @property
    def _working(self) -> int:
        """Number of actors that have loaded the evaluator."""
        return len(self.idle) + sum(slot.call is not None for slot in self._busy.values())

    def _start_actors(self) -> None:
        """Start an actor in every empty slot whose back-off is over; raise if none can be."""
        startable, now = self._startable(), time.monotonic()
        for slot in startable:
            if now >= slot.retry_at:
                slot.actor, slot.since = self._create_actor(), now
                self._busy[slot.actor.load.remote(self._packed, self._setup)] = slot
        if not startable and all(slot.actor is None for slot in self._slots):
            failed = f"none of {self.count} could start"
            if self._ready_at:
                failed = f"all {self.count} are lost and none could be started again"
            reason = transport.describe_failure(self._start_error)
            raise GapruneError(f"workers: {failed}: {reason}") from self._start_error

    def _start_failed(self, slot: Slot, error: BaseException, *, hopeless: bool) -> None:
        """Schedule the next start of a slot; after a hopeless failure, give the slot up."""
        self._add_time(slot, START)
        self._kill(slot)
        self._start_error = error
        slot.failed_starts = max(slot.failed_starts + 1, self._policy.starts if hopeless else 0)
        slot.retry_at = time.monotonic() + self._policy.wait(slot.failed_starts)
        if self._working and slot.failed_starts == self._policy.starts:
            why = transport.describe_failure(error)
            self._warn(
                f"a worker cannot be started ({why}); {self._working} of {self.count} work, and it "
                "is tried again from time to time"
            )

    def _deadline(self, slot: Slot) -> float:
        """Return the time at which a busy slot has timed out."""
        if slot.call is not None:
            slowest = self._slowest.get(slot.call.pending.kind)
            return slot.since + self._policy.task_timeout(slowest)
        # many actors start slowly: patience begins anew whenever one is ready
        return max(slot.since, self._ready_at) + self._policy.start

    def _end_overdue(self) -> None:
        """Replace actors whose task hangs, and give up on starts that take too long."""
        now = time.monotonic()
        for reference, slot in list(self._busy.items()):
            seconds = self._deadline(slot) - slot.since
            if now < slot.since + seconds:
                continue
            del self._busy[reference]
            call, slot.call = slot.call, None
            if call is not None:
                self._replace(slot, call, f"no answer within {seconds:.3g} s")
                continue
            free = ray.available_resources()
            cpus, gpus = free.get("CPU", 0.0), free.get("GPU", 0.0)
            error = GapruneError(
                f"not ready within {self._policy.start:g} s; the cluster has {cpus:g} CPUs and "
                f"{gpus:g} GPUs free: wait until others need less of it, or use fewer --workers"
            )
            no_room = cpus < self._options.threads or gpus < self._options.gpus
            self._start_failed(slot, error, hopeless=no_room)

    def _replace(self, slot: Slot, call: RunningTask, why: str) -> None:
        """Kill an actor that was running a task; the slot gets another one at once."""
        self._add_time(slot, LOST)
        self._kill(slot)
        slot.retry_at = 0.0
        self.lost += 1
        if self.lost & (self.lost - 1) == 0:  # 1, 2, 4, 8, …: a line for each would be too many
            total = f"; {self.lost} so far" if self.lost > 1 else ""
            self._warn(f"a worker was lost ({why}) and is replaced{total}")
        self._retry(slot, call, why)

    def _kill(self, slot: Slot) -> None:
        if slot.actor is not None and not self._monitor.lost:
            ray.kill(slot.actor, no_restart=True)  # `ray.cancel` cannot stop a running method
        slot.actor = None

    def _close(self) -> None:
        for slot in self._busy.values():
            self._add_time(slot, START if slot.call is None else LOST)
        if self._profiler is not None:
            total = self.count * round(1e9 * (time.monotonic() - self._opened))
            self._timings.add(WAITING, total - self._timings.total.nanoseconds)
            profile = self._profiler.profile
            profile.workers.merge(self._timings)
            profile.worker_count = max(profile.worker_count, self.count)
            self._profiler = None
        for slot in self._slots:
            self._kill(slot)
        self._slots, self.idle = [], []
        self._busy.clear()
        self._stored.clear()
        if self._shut_down is not None:
            self._shut_down()
            self._shut_down = None

    def _add_time(self, slot: Slot, part: str, timings: Timings | None = None) -> None:
        """Add the time since the call of a slot began: what the actor measured, the rest to `part`.

        Only the actor measures its work, so clocks of two machines are never compared.
        """
        nanoseconds = round(1e9 * (time.monotonic() - slot.since))
        if timings is not None:
            self._timings.merge(timings)
            nanoseconds -= timings.total.nanoseconds
        self._timings.add(part, nanoseconds, calls=1)
