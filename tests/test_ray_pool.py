"""Real Ray actors that die, hang, run out of memory or hold spoilt weights: nothing is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from fault_tasks import FAULTS, Faulty, Grow, Locked
from search_cases import random_genes, run_to_bits, tiny_evaluator
from worker_tasks import Echo, unreserved

from gaprune.errors import GapruneError, InputError
from gaprune.evolution.gradient import Refinement
from gaprune.evolution.tasks import BreedTask, ScoreTask, Task, ValidateTask
from gaprune.evolution.variation import Variation
from gaprune.masks.supermask import pack
from gaprune.models.time_limit import TimeIsUp, TimeLimit
from gaprune.workers import FailedTask, RetryPolicy, SerialWorkers, WorkerOptions
from gaprune.workers.ray_pool import RayWorkers
from gaprune.workers.transport import RemoteGenome

EVALUATOR = tiny_evaluator(gradient_share=0.5)
QUICK = RetryPolicy(retries=2, timeout=3.0, first_wait=0.05, longest_wait=0.2)

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def warnings() -> list[str]:
    """Return what the workers of this module warned of."""
    return []


@pytest.fixture(scope="module")
def pool(ray_session: None, warnings: list[str]) -> Iterator[RayWorkers]:
    """Two actors that hold `EVALUATOR`, shared by tests that take them down."""
    with RayWorkers(EVALUATOR, WorkerOptions(2, retry_policy=QUICK), warnings.append) as workers:
        yield workers


def tasks() -> list[Task]:
    """Return one task of each kind."""
    parent = random_genes(EVALUATOR.layout, 60, 1)
    mask = parent.decode(EVALUATOR.layout)
    recipe = Variation(
        mutation="gaussian", refinement=Refinement(steps=3, learning_rate=0.5, batch=16)
    )
    return [BreedTask((parent,), recipe, 5, 0), ScoreTask(pack(mask), -1), ValidateTask(pack(mask))]


def wait_for_both(pool: RayWorkers) -> None:
    """Let whoever starts or is busy come back."""
    while len(pool.idle) < 2:
        pool.run([Echo(0, 0.05)])


@pytest.mark.slow
def test_a_limit_of_time_ends_the_wait_for_workers(pool: RayWorkers) -> None:
    """Finished tasks keep their results, and the workers serve again afterwards."""
    wait_for_both(pool)
    model = EVALUATOR.network.model
    with pytest.raises(TimeIsUp) as caught, TimeLimit(1.0).active(model):
        pool.run([Echo(1), Echo(2, 2.5), Echo(3, 2.5)])
    assert list(caught.value.results) == [1, None, None]
    assert pool.run([Echo(4)]) == [4]


@pytest.mark.parametrize(
    "fault",
    [pytest.param(fault, marks=[] if fault == "exit" else pytest.mark.slow) for fault in FAULTS],
)
def test_a_worker_that_is_lost_changes_no_result(
    fault: str, pool: RayWorkers, tmp_path: Path
) -> None:
    """The task runs again elsewhere: results are those of an undisturbed run, bit for bit."""
    breed, *others = tasks()
    with SerialWorkers(EVALUATOR) as serial:
        expected = run_to_bits(serial, [breed, *others])
    assert run_to_bits(pool, [Faulty(fault, str(tmp_path), 1, breed), *others]) == expected
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.slow
def test_a_task_that_always_takes_its_worker_down_is_given_up(
    pool: RayWorkers, warnings: list[str], tmp_path: Path
) -> None:
    """After so many retries it is `FailedTask`; the others have their results, in order."""
    poison = Faulty("exit", str(tmp_path), 99, Echo(0))
    lost = pool.lost
    first, *rest = pool.run([poison, *(Echo(value) for value in range(1, 7))])
    assert rest == [1, 2, 3, 4, 5, 6]
    assert isinstance(first, FailedTask)
    assert first.attempts == QUICK.retries + 1 == len(list(tmp_path.iterdir()))
    assert "process died" in first.why
    assert pool.lost == lost + 3
    assert any("process died" in text for text in warnings)


def test_what_a_task_raises_is_not_tried_again(pool: RayWorkers, tmp_path: Path) -> None:
    """It is the task's own, and no worker is lost for it."""
    lost = pool.lost
    with pytest.raises(ZeroDivisionError):
        pool.run([Faulty("raise", str(tmp_path), 99, Echo(0)), Echo(1)])
    assert len(list(tmp_path.iterdir())) == 1
    assert pool.run([Echo(2), Echo(3)]) == [2, 3]
    assert pool.lost == lost


def test_genomes_stay_in_the_store_until_they_are_fetched(pool: RayWorkers) -> None:
    """Results hold handles; fetched genomes are equal, and their children are bred there."""
    results = pool.run([Grow(seed) for seed in range(6)])
    assert all(isinstance(result.genes, RemoteGenome) for result in results)
    first, second = pool.fetch([results[4], results[1]])
    assert [float(genome.numbers.sum()) for genome in (first, second)] == [
        results[4].sum,
        results[1].sum,
    ]
    assert pool._stored[first] == results[4].genes.reference  # not sent again
    children = pool.run([Grow(seed, parents=(first,)) for seed in range(9, 13)])
    expected = [Grow(seed, parents=(first,)).run(None) for seed in range(9, 13)]
    assert [child.sum for child in children] == [child.sum for child in expected]


@pytest.mark.slow
def test_genes_that_are_lost_are_made_again(pool: RayWorkers) -> None:
    """Bit for bit, whether they were to be fetched or to have children."""
    (result,) = pool.run([Grow(3)])
    gone = replace(result, genes=replace(result.genes, reference=lost_object()))
    (genes,) = pool.fetch([gone])
    assert torch.equal(genes.numbers, Grow(3).run(None).genes.numbers)
    pool._stored[genes] = gone.genes.reference
    (child,) = pool.run([Grow(4, parents=(genes,))])
    assert child.sum == Grow(4, parents=(genes,)).run(None).sum


@ray.remote(num_cpus=0)
class Owner:
    """Owns what it puts into the store, until it ends."""

    def put(self) -> list[Any]:
        """Return a reference."""
        return [ray.put(torch.zeros(100_000).numpy())]


def lost_object() -> Any:  # noqa: ANN401 - Ray's
    """Return a reference to what is lost because its owner has ended."""
    owner = Owner.remote()  # type: ignore[attr-defined]
    (reference,) = ray.get(owner.put.remote())
    ray.kill(owner)
    while not is_lost(reference):
        time.sleep(0.05)
    return reference


def is_lost(reference: Any) -> bool:  # noqa: ANN401 - Ray's
    """Tell whether Ray has noticed that an object is lost."""
    try:
        ray.get(reference)
    except ray.exceptions.ObjectLostError:
        return True
    return False


def test_workers_that_find_no_room_are_not_waited_for(pool: RayWorkers) -> None:
    """The cluster has enough CPUs, but others have them: the message says so."""
    impatient = RetryPolicy(start=0.5)
    with (
        pytest.raises(GapruneError, match=r"none of 1 .* 0 CPUs"),
        RayWorkers(EVALUATOR, WorkerOptions(1, retry_policy=impatient)),
    ):
        pytest.fail("it started")
    assert pool.run([Echo(1)]) == [1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "why"), [(False, "OSError: lock"), (True, "process died")], ids=["raises", "ends"]
)
def test_an_evaluator_that_cannot_be_loaded_fails_the_start(
    tmp_path: Path, ending: bool, why: str
) -> None:
    """The message says why; the Ray that ran before stays up."""
    (tmp_path / "lock").touch()
    options = WorkerOptions(2, retry_policy=RetryPolicy(starts=1, first_wait=0.01))
    evaluator = Locked(tmp_path / "lock", ending=ending)
    with (
        pytest.raises(GapruneError, match=f"none of 2 .*{why}"),
        RayWorkers(evaluator, options, create_actor=unreserved),
    ):
        pytest.fail("they started")
    assert ray.is_initialized()


@pytest.mark.slow
def test_when_all_workers_are_lost_for_good_the_run_fails(tmp_path: Path) -> None:
    """It does not wait for ever, and says why nobody could be started again."""
    tries = tmp_path / "tries"
    tries.mkdir()
    impatient = RetryPolicy(retries=9, starts=1, first_wait=0.01)
    worker_options = WorkerOptions(2, retry_policy=impatient)
    with RayWorkers(Locked(tmp_path / "lock"), worker_options, create_actor=unreserved) as workers:
        workers.run([Echo(0, 0.5), Echo(1, 0.5)])  # both are there
        (tmp_path / "lock").touch()
        poison = Faulty("exit", str(tries), 99, Echo(0))
        with pytest.raises(GapruneError, match=r"all 2 .*lock"):
            workers.run([poison, poison])


@pytest.mark.parametrize(
    ("worker_options", "message"),
    [
        (WorkerOptions(5), r"workers: 5 .*2 CPUs.*workers=2"),
        (WorkerOptions(2, threads=2), r"workers: 2 .*workers=1"),
        (WorkerOptions(1, threads=3), r"threads_per_worker: .*3 CPU.*threads_per_worker="),
        (WorkerOptions(2, gpus=0.25), r"gpus_per_worker: .*0.25 GPU.*gpus_per_w"),
    ],
)
def test_what_the_cluster_lacks_is_refused_at_once(
    worker_options: WorkerOptions, message: str
) -> None:
    """The message says what there is and the way out, and the running Ray stays up."""
    started = time.monotonic()
    with pytest.raises(InputError, match=message):
        RayWorkers(EVALUATOR, worker_options).__enter__()
    assert time.monotonic() - started < 2
    assert ray.is_initialized()
