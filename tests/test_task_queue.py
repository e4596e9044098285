"""Which task runs next and how often it is tried; how long it may run."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worker_tasks import Echo

from gaprune.workers import FailedTask, RetryPolicy
from gaprune.workers.base import FIRST_TIMEOUT
from gaprune.workers.task_queue import FailedAttempt, PendingTask, TaskQueue

POLICY = RetryPolicy(retries=1, first_wait=2.0, longest_wait=30.0)


def make_queue(count: int, policy: RetryPolicy = POLICY) -> TaskQueue:
    """Return a queue of tasks that return their numbers."""
    return TaskQueue([Echo(index) for index in range(count)], policy)


def take(queue: TaskQueue, now: float, node: str = "") -> PendingTask:
    """Take a task that must be available."""
    pending = queue.take(now, node)
    assert pending is not None
    return pending


def test_a_failed_task_waits_and_is_tried_again_before_new_ones() -> None:
    """After its retries it is a `FailedTask` that lists every reason once."""
    queue = make_queue(3)
    first = take(queue, 0.0)
    queue.fail(first, 5.0, FailedAttempt("bang"))
    assert take(queue, 6.9).index == 1
    assert take(queue, 7.0) is first
    queue.fail(first, 8.0, FailedAttempt("bang"))
    assert queue.results[0] == FailedTask(2, "bang")
    assert take(queue, 1e9).index == 2


def test_a_lost_node_does_not_count_as_a_try() -> None:
    """The task is tried again however often that happens."""
    queue = make_queue(1)
    for turn in range(20):
        pending = take(queue, 100.0 * turn)
        queue.fail(pending, 100.0 * turn, FailedAttempt("node lost", "n", counts=False))
        assert queue.next_task_at() == 100.0 * turn + POLICY.first_wait
    queue.succeed(take(queue, 1e9), 7)
    assert queue.results == [7]


def test_a_task_is_retried_on_another_node_if_there_is_a_choice() -> None:
    """Otherwise on the same one."""
    queue = make_queue(2)
    first, second = take(queue, 0.0), take(queue, 0.0)
    queue.fail(first, 0.0, FailedAttempt("bang", "here"))
    queue.fail(second, 0.0, FailedAttempt("bang", "there"))
    assert take(queue, 50.0, "here") is second
    assert take(queue, 50.0, "here") is first


@given(st.integers(0, 12), st.integers(0, 3), st.integers(0, 2**32))
def test_every_task_gets_its_own_result(count: int, retries: int, seed: int) -> None:
    """Calls fail and return in any order; results are in the order of the tasks."""
    chance, now = random.Random(seed), 0.0
    queue = make_queue(count, RetryPolicy(retries=retries))
    calls: list[PendingTask] = []
    while not queue.is_finished:
        now = now + chance.random() if calls else max(now, queue.next_task_at())
        pending = queue.take(now) if chance.random() < 0.5 or not calls else None
        if pending is not None:
            calls.append(pending)
        if not calls or chance.random() < 0.3:
            continue
        pending = calls.pop(chance.randrange(len(calls)))
        if chance.random() < 0.4:
            queue.fail(pending, now, FailedAttempt("bang", counts=chance.random() < 0.7))
        else:
            queue.succeed(pending, pending.task.value)
    for index, result in enumerate(queue.results):
        assert result == index or (isinstance(result, FailedTask) and result.attempts > retries)


def test_waits_grow_up_to_a_bound() -> None:
    """The default bound is longer than the 17 s in which Ray notices the loss of a node."""
    waits = [RetryPolicy().wait(failures) for failures in range(1, 5)]
    assert waits == [1.0, 5.0, 25.0, 30.0]
    assert RetryPolicy().wait(10**6) == 30.0


@pytest.mark.parametrize(
    ("policy", "slowest", "seconds"),
    [
        (RetryPolicy(), None, FIRST_TIMEOUT),
        (RetryPolicy(), 1.0, 60.0),
        (RetryPolicy(), 7.0, 140.0),
        (RetryPolicy(timeout=5.0), 7.0, 5.0),
    ],
)
def test_a_task_hangs_after_a_multiple_of_the_slowest_of_its_kind(
    policy: RetryPolicy, slowest: float | None, seconds: float
) -> None:
    """With a lower bound; the user's timeout takes precedence."""
    assert policy.task_timeout(slowest) == seconds
