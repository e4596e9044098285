"""Which task is run next, again, or twice; and for how long anybody is waited for."""

from __future__ import annotations

import random
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st
from worker_tasks import Echo

from gaprune.workers import FailedTask, RetryPolicy
from gaprune.workers import retry_policy as tolerance
from gaprune.workers.retry_policy import Durations
from gaprune.workers.task_queue import Failure, Job, TaskQueue

TRIES = RetryPolicy(retries=1, first_wait=2.0, growth=3.0, longest_wait=30.0)


def task_queue_of(
    count: int, durations: Durations | None = None, tries: RetryPolicy = TRIES
) -> TaskQueue:
    """Return an agenda of tasks that return their numbers."""
    return TaskQueue([Echo(index) for index in range(count)], tries, durations or Durations())


def take(task_queue: TaskQueue, now: float, node: str = "") -> Job:
    """Take what must be there."""
    job = task_queue.take(now, node)
    assert job is not None
    return job


def test_tasks_are_handed_out_in_order_and_once() -> None:
    """Nothing is left then, until something comes back."""
    task_queue = task_queue_of(3)
    assert [take(task_queue, 0.0).index for _ in range(3)] == [0, 1, 2]
    assert task_queue.take(1e9) is None
    assert task_queue.wakes() == float("inf")
    assert task_queue.is_open


def test_an_agenda_without_tasks_is_done() -> None:
    """Its results are none."""
    assert not task_queue_of(0).is_open
    assert task_queue_of(0).results == []


def test_a_failed_task_waits_and_is_tried_again() -> None:
    """It goes before new ones then; after its retries it is lost, with every reason once."""
    task_queue = task_queue_of(3)
    first = take(task_queue, 0.0)
    task_queue.fail(first, 0.0, 5.0, Failure("bang"))
    assert take(task_queue, 6.9).index == 1
    assert take(task_queue, 7.0) is first
    task_queue.fail(first, 7.0, 8.0, Failure("bang"))
    assert task_queue.results[0] == FailedTask(2, "bang")
    assert take(task_queue, 1e9).index == 2


def test_a_task_is_not_blamed_for_the_loss_of_its_node() -> None:
    """It is tried again however often that happens."""
    task_queue = task_queue_of(1)
    for round_ in range(20):
        job = take(task_queue, 100.0 * round_)
        task_queue.fail(
            job, 100.0 * round_, 100.0 * round_, Failure("node lost", "n", blamed=False)
        )
        assert task_queue.wakes() == 100.0 * round_ + TRIES.first_wait
    task_queue.succeed(take(task_queue, 1e9), 7)
    assert task_queue.results == [7]


def test_what_failed_on_a_node_is_tried_on_another_if_there_is_a_choice() -> None:
    """Otherwise on the same one."""
    task_queue = task_queue_of(2)
    one, other = take(task_queue, 0.0), take(task_queue, 0.0)
    task_queue.fail(one, 0.0, 0.0, Failure("bang", "here"))
    task_queue.fail(other, 0.0, 0.0, Failure("bang", "there"))
    assert take(task_queue, 50.0, "here") is other
    assert take(task_queue, 50.0, "here") is one


def test_a_straggler_gets_one_copy_and_the_first_answer_counts() -> None:
    """It is one from three times the median of its kind on; its loser changes nothing."""
    durations = Durations()
    task_queue = task_queue_of(2, durations)
    slow, quick = take(task_queue, 0.0), take(task_queue, 0.0)
    assert task_queue.wakes() == float("inf")  # nobody knows how long they take
    durations.add("Echo", 4.0)
    task_queue.succeed(quick, 1)
    assert task_queue.wakes() == 12.0
    assert task_queue.take(11.9) is None
    assert take(task_queue, 12.0) is slow
    assert task_queue.take(1e9) is None
    task_queue.succeed(slow, 0)
    assert task_queue.results == [0, 1]
    task_queue.fail(slow, 0.0, 99.0, Failure("bang"))
    assert task_queue.results == [0, 1]
    assert not task_queue.is_open


def test_a_copy_that_fails_leaves_the_other_one_running() -> None:
    """Only when both have failed it is tried again, and both count."""
    durations = Durations()
    durations.add("Echo", 1.0)
    task_queue = task_queue_of(1, durations)
    job = take(task_queue, 0.0)
    assert take(task_queue, 3.0) is job
    task_queue.fail(job, 3.0, 4.0, Failure("bang"))
    assert task_queue.results == [None]
    task_queue.fail(job, 0.0, 5.0, Failure("crash"))
    assert task_queue.results == [FailedTask(2, "bang; crash")]


@given(st.integers(0, 12), st.integers(0, 3), st.integers(0, 2**32))
def test_whatever_happens_every_task_gets_its_own_result(
    count: int, retries: int, seed: int
) -> None:
    """Calls fail, answer twice and come back in any order: results are in the tasks' order."""
    chance, durations, now = random.Random(seed), Durations(), 0.0
    task_queue = task_queue_of(count, durations, RetryPolicy(retries=retries))
    calls: list[tuple[Job, float]] = []
    while task_queue.is_open:
        now = max(now, task_queue.wakes()) if not calls else now + chance.random()
        job = task_queue.take(now) if chance.random() < 0.5 or not calls else None
        if job is not None:
            calls.append((job, now))
        if not calls or chance.random() < 0.3:
            continue
        job, started = calls.pop(chance.randrange(len(calls)))
        if chance.random() < 0.4:
            task_queue.fail(job, started, now, Failure("bang", blamed=chance.random() < 0.7))
        else:
            durations.add(job.kind, now - started)
            task_queue.succeed(job, job.task.value)
    for index, result in enumerate(task_queue.results):
        assert result == index or (isinstance(result, FailedTask) and result.attempts > retries)


@given(st.integers(1, 60))
def test_waiting_grows_and_is_bounded(failures: int) -> None:
    """By a factor each time, to half a minute at most: the loss of a node is noticed by then."""
    waits = [RetryPolicy().wait(number) for number in range(failures + 1)]
    assert waits[0] == 0
    assert waits == sorted(waits)
    assert max(waits) <= RetryPolicy().longest_wait == 30.0
    assert RetryPolicy().wait(100) == 30.0


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=40))
def test_limits_follow_from_what_was_measured(seconds: list[float]) -> None:
    """Of the same kind alone: twenty times the slowest, three times the median, with bounds."""
    durations = Durations()
    for one in seconds:
        durations.add("Breed", one)
    assert durations.limit("Breed") == pytest.approx(max(60.0, 20 * max(seconds)))
    assert durations.late("Breed") == pytest.approx(max(2.0, 3 * median(seconds)))
    assert durations.limit("Score") == tolerance.UNKNOWN_LIMIT
    assert durations.late("Score") == float("inf")
    assert Durations(5.0).limit("Score") == 5.0
