"""Workers as Ray actors that may be lost: the evaluator is sent once, then only small messages travel.

After RLlib's fault-tolerant actor manager: one call is in flight per actor, failures are counted
per task, actors that die or hang are replaced.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Self
from weakref import WeakKeyDictionary

import ray

from gaprune.errors import GapruneError
from gaprune.profiling import START, TRANSPORT, WAITING, profiled
from gaprune.workers.actor import Actor, ActorSetup
from gaprune.workers.actor_pool import ActorPool, Worker
from gaprune.workers.checksum import digest, frozen
from gaprune.workers.cluster import check_resources, connect, is_gone, send_user_code_by_value
from gaprune.workers.failures import cause_of, describe, ends_worker, is_arguments, is_machines
from gaprune.workers.protocol import FailedTask, Warn, WorkerOptions
from gaprune.workers.retry_policy import Durations
from gaprune.workers.task_queue import Failure, Job, TaskQueue
from gaprune.workers.time_accounting import TimeAccounting
from gaprune.workers.transport import (
    Remote,
    Traffic,
    pack,
    pack_task,
    unpack,
    unpack_answer,
)

FETCH = 120.0  # seconds after which genes are taken to be lost


@dataclass(eq=False)
class _Call:
    worker: Worker
    task_queue: TaskQueue
    job: Job
    genes: Any
    started: float
    ends: float


class RayWorkers:
    """Several workers, each an actor with its own copy of the evaluator and its share of threads.

    A Ray that the caller has started is used and left running; otherwise one is started, or a
    cluster is joined, and left at the end.

    Args:
        evaluator: whatever tasks need; pickled once.
        worker_options: how many workers, what each gets, where they are.
        warn: told of workers that are lost.
        hire: makes an actor; by default one that reserves what `worker_options` says.
    """

    def __init__(
        self,
        evaluator: Any,
        worker_options: WorkerOptions,
        warn: Warn = lambda _: None,
        hire: Callable[[], Any] | None = None,
    ) -> None:
        self.count = worker_options.count
        self.traffic = Traffic()
        self._evaluator, self._worker_options, self._warn = evaluator, worker_options, warn
        self._hire = hire or partial(_hire, worker_options)
        self._durations = Durations(worker_options.retry_policy.timeout)
        self._references: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
        self._calls: dict[Any, _Call] = {}
        self._check_at = float("inf")  # when a call may have become a hang
        self._joined_ray = False
        self._hired: ActorPool | None = None
        self._hours = TimeAccounting(self.count)

    def __enter__(self) -> Self:
        with profiled(START):
            return self._open()

    def _open(self) -> Self:
        self._joined_ray = connect(self._worker_options)
        try:
            check_resources(self._worker_options)
            send_user_code_by_value()
            packed = ray.cloudpickle.dumps(self._evaluator)
            self.traffic.evaluator += len(packed)
            self._hours = TimeAccounting(self.count)
            shipment = ActorSetup(
                digest(frozen(self._evaluator)),
                self._worker_options.threads,
                self._worker_options.gpus > 0,
                sys.path,
                self._hours.wanted,
            )
            self._hired = ActorPool(
                self._hire, ray.put(packed), shipment, self._worker_options, self._warn
            )
            self._hired.start()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with profiled(START):
            self._close()

    def _close(self) -> None:
        if self._hired is not None:
            for call in self._calls.values():
                self._hours.lost(call.started)
            self._hours.close(*self._hired.starts())
            self._hired.stop()
            self._hired = None
        self._calls.clear()
        self._references.clear()
        self._check_at = float("inf")
        if self._joined_ray:
            ray.shutdown()
            self._joined_ray = False

    @property
    def lost(self) -> int:
        """Workers that were lost so far."""
        return self._actor_pool.lost

    @property
    def idle(self) -> int:
        """Workers that are ready and have nothing to do."""
        return len(self._actor_pool.idle)

    @property
    def _actor_pool(self) -> ActorPool:
        assert self._hired is not None, "workers run tasks inside their with block"
        return self._hired

    def run(self, tasks: Sequence[Any]) -> list[Any]:
        """Run the tasks, one in flight per actor, and return their results in order.

        A task that loses its worker (its process or node dies, it hangs, it finds no memory, it
        changes the weights) is tried again elsewhere; `FailedTask` is the result of one that always does.

        Raises:
            GapruneError: all workers are lost and none can be started.
        """
        task_queue = TaskQueue(tasks, self._worker_options.retry_policy, self._durations)
        with profiled(TRANSPORT):
            while task_queue.is_open:
                now = time.monotonic()
                if now >= self._check_at:
                    self._end_hangs(now)
                self._actor_pool.tend()
                self._hand_out(task_queue, now)
                self._wait(task_queue)
        return task_queue.results

    def fetch(self, results: Sequence[Any]) -> list[Any]:
        """Return the genes of results; those that were lost with a node are made again."""
        found: list[Any] = [result.genes for result in results]
        handles = {index: one for index, one in enumerate(found) if isinstance(one, Remote)}
        with profiled(TRANSPORT):
            fetched = self._get(list(handles.values()))
        for index, genes in zip(handles, fetched, strict=True):
            found[index] = genes
        missing = [index for index, genes in enumerate(found) if genes is None]
        if missing:
            again = self.run([handles[index].task for index in missing])
            for one in again:
                if isinstance(one, FailedTask):
                    raise GapruneError(f"workers: a child cannot be made again: {one.why}")
            for index, genes in zip(missing, self.fetch(again), strict=True):
                found[index] = genes
        return found

    def _hand_out(self, task_queue: TaskQueue, now: float) -> None:
        """Give tasks to those who are idle; what is lost meanwhile comes back by `ray.wait`."""
        idle = self._actor_pool.idle
        while idle and (job := task_queue.take(now, idle[-1].node)) is not None:
            worker = idle.pop()
            reference, genes = self._send(worker.actor, job.task)
            ends = now + self._durations.limit(job.kind)
            self._check_at = min(self._check_at, ends)
            self._calls[reference] = _Call(worker, task_queue, job, genes, now, ends)

    def _send(self, actor: Any, task: Any) -> tuple[Any, Any]:
        """Return references to the answer and, of a task that breeds, to the genes."""
        message = pack_task(task)
        self.traffic.sent += len(message)
        parents = getattr(task, "parents", None)
        if parents is None:
            return actor.run.remote(message), None
        answer, genes = actor.breed.remote(message, *map(self._reference, parents))
        return answer, genes

    def _wait(self, task_queue: TaskQueue) -> None:
        """Wait for answers, or until there is something else to do."""
        wakes = min(self._check_at, self._actor_pool.wakes())
        if self._actor_pool.idle:
            wakes = min(wakes, task_queue.wakes())
        left = max(0.0, wakes - time.monotonic())
        references = [*self._calls, *self._actor_pool.starting]
        with profiled(WAITING):
            if not references:
                time.sleep(left)
                return
            ready, rest = ray.wait(references, timeout=min(left, FETCH))
        if ready and rest:  # and whatever else has come meanwhile
            ready += ray.wait(rest, num_returns=len(rest), timeout=0)[0]
        for reference in ready:
            if reference in self._actor_pool.starting:
                self._actor_pool.handle_started(reference)
            else:
                self._receive(reference, self._calls.pop(reference), task_queue)

    def _receive(self, reference: Any, call: _Call, task_queue: TaskQueue) -> None:
        try:
            message = ray.get(reference)
        except ray.exceptions.RayError as error:
            self._take_error(call, cause_of(error), task_queue)
            return
        answer = unpack_answer(message, call.genes, call.job.task)
        self.traffic.answers += 1
        self.traffic.returned += len(message)
        if answer.error is not None:
            self._take_error(call, answer.error, task_queue)
            return
        if not answer.sound:
            self._lose(call, "the weights that it held have changed")
            return
        self._hours.answered(call.started, answer.work)
        self._actor_pool.idle.append(call.worker)
        kind, limit = call.job.kind, self._durations.limit(call.job.kind)
        self._durations.add(kind, time.monotonic() - call.started)
        if self._durations.limit(kind) < limit:
            self._check_at = 0.0  # others of the kind are waited for too long
        call.task_queue.succeed(call.job, answer.result)

    def _take_error(self, call: _Call, error: BaseException, task_queue: TaskQueue) -> None:
        """Raise what the task raised; try again what its machine is to blame for."""
        if is_arguments(error):
            for parent in getattr(call.job.task, "parents", ()):
                self._references.pop(parent, None)
        elif ends_worker(error):
            self._lose(call, describe(error))
            return
        self._hours.lost(call.started)
        self._actor_pool.idle.append(call.worker)
        if is_machines(error):
            self._fail(call, describe(error))
        elif call.task_queue is task_queue and not call.job.done:
            raise error

    def _end_hangs(self, now: float) -> None:
        for reference, call in list(self._calls.items()):
            call.ends = call.started + self._durations.limit(call.job.kind)
            if now >= call.ends:
                del self._calls[reference]
                self._lose(call, f"no answer within {call.ends - call.started:.3g} s")
        self._check_at = min((call.ends for call in self._calls.values()), default=float("inf"))

    def _lose(self, call: _Call, why: str) -> None:
        self._hours.lost(call.started)
        self._actor_pool.lose(call.worker, why)
        self._fail(call, why)

    def _fail(self, call: _Call, why: str) -> None:
        node = call.worker.node
        failure = Failure(why, node, blamed=not is_gone(node))
        call.task_queue.fail(call.job, call.started, time.monotonic(), failure)

    def _reference(self, genes: Any) -> Any:
        """Put genes into the object store once, however many children they have."""
        if genes not in self._references:
            packed = pack(genes)
            self.traffic.stored += packed.size
            self._references[genes] = ray.put(packed)
        return self._references[genes]

    def _get(self, handles: Sequence[Remote]) -> list[Any]:
        """Return the genes behind handles; None where they are gone."""
        references = [handle.reference for handle in handles]
        if references:  # all on their way at once
            ray.wait(references, num_returns=len(references), timeout=FETCH)
        found: list[Any] = []
        for handle in handles:
            try:
                genes = unpack(ray.get(handle.reference, timeout=FETCH))
            except ray.exceptions.RayError:
                found.append(None)
                continue
            self.traffic.fetched += handle.size
            self._references[genes] = handle.reference  # where its own children find it
            found.append(genes)
        return found


def _hire(worker_options: WorkerOptions) -> Any:
    return Actor.options(  # type: ignore[attr-defined] # ray adds it
        num_cpus=worker_options.threads, num_gpus=worker_options.gpus, scheduling_strategy="SPREAD"
    ).remote()
