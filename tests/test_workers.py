"""One contract for all workers: in this process and on real Ray actors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import ray
import torch
from search_cases import random_genes, run_to_bits, seeds_of, shown, tiny_evaluator
from worker_tasks import FAILURES, Echo, Fail, Threads, unreserved

from gaprune.errors import InputError
from gaprune.evaluation.evaluator import Evaluator
from gaprune.evaluation.objectives import find_objective
from gaprune.evolution.engine import Evolution
from gaprune.evolution.gradient import Refinement
from gaprune.evolution.operators import CROSSOVERS, MUTATIONS
from gaprune.evolution.presets import find_preset
from gaprune.evolution.search_plan import SearchLimits, SearchPlan
from gaprune.evolution.tasks import BreedTask, ScoreTask, Task, ValidateTask
from gaprune.evolution.variation import Variation
from gaprune.masks.supermask import pack
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import load_target
from gaprune.workers import SerialWorkers, WorkerOptions, Workers, open_workers
from gaprune.workers.ray_pool import RayWorkers

EVALUATOR = tiny_evaluator(gradient_share=0.5)


@pytest.fixture(scope="module", params=["serial", "ray"])
def workers(request: pytest.FixtureRequest) -> Iterator[Workers]:
    """Workers that hold `EVALUATOR`: one here, or two actors."""
    if request.param == "serial":
        with SerialWorkers(EVALUATOR) as serial:
            yield serial
        return
    request.getfixturevalue("ray_session")
    with RayWorkers(EVALUATOR, WorkerOptions(2)) as actors:
        yield actors


def every_task() -> list[Task]:
    """Return tasks of all kinds: each operator, with and without gradient steps, both rungs."""
    parents = tuple(random_genes(EVALUATOR.layout, 60, seed) for seed in (1, 2))
    steps = Refinement(steps=3, learning_rate=0.5, batch=16)
    recipes = [
        Variation(),
        Variation(refinement=steps),
        Variation("averaging", "gaussian", (), steps),
    ]
    recipes += [Variation(crossover=name) for name in CROSSOVERS]
    recipes += [Variation(mutation=name) for name in MUTATIONS]
    recipes += [Variation(mutation="gaussian", options=(("sigma", 2.0),)), Variation(keep=90)]
    tasks: list[Task] = [
        BreedTask(parents if recipe.crossover else parents[:1], recipe, seed, seed % 2)
        for seed, recipe in enumerate(recipes)
    ]
    masks = [parent.decode(EVALUATOR.layout) for parent in parents]
    return [
        *tasks,
        *(ScoreTask(pack(m), rung) for m in masks for rung in (0, -1)),
        *(ValidateTask(pack(mask)) for mask in masks),
    ]


def test_results_are_those_of_a_plain_loop_bit_for_bit(workers: Workers) -> None:
    """Breeding with and without gradient, scoring, judging: what `task.run(evaluator)` gives."""
    tasks = every_task()
    expected = run_to_bits(SerialWorkers(EVALUATOR), tasks)
    assert run_to_bits(workers, tasks) == expected
    assert run_to_bits(workers, tasks[::-1]) == expected[::-1]


def test_results_come_in_the_order_of_the_tasks(workers: Workers) -> None:
    """Also where later tasks are done sooner."""
    tasks = [Echo(index, 0.2 if index == 0 else 0.0) for index in range(8)]
    assert workers.run(tasks) == list(range(8))
    assert workers.run([]) == []


@pytest.mark.parametrize(("kind", "message"), FAILURES)
def test_an_exception_comes_out_as_it_is(
    workers: Workers, kind: type[Exception], message: str
) -> None:
    """Its own type and message, not one of the machinery's; afterwards the workers still work."""
    with pytest.raises(kind) as caught:
        workers.run([Echo(1), Fail(kind, message), Echo(2)])
    assert type(caught.value) is kind
    assert str(caught.value) == message
    assert workers.run([Echo(3), Echo(4), Echo(5)]) == [3, 4, 5]


def test_tasks_have_their_share_of_threads_and_the_caller_keeps_its_own(workers: Workers) -> None:
    """One thread for each task; here as many as before, also after a failure."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert workers.run([Threads(), Threads(), Threads()]) == [1, 1, 1]
        with pytest.raises(ValueError, match="plain"):
            workers.run([Fail(ValueError, "plain")])
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_callers_evaluator_and_genes_stay_as_they_are(workers: Workers) -> None:
    """No kind of task changes a bit of the network, the calibration inputs or the parents."""
    tasks = every_task()
    held = [
        *EVALUATOR.network.model.state_dict().values(),
        *(tensor for shown in (EVALUATOR.search, EVALUATOR.validation) for tensor in shown[:2]),
        *(
            parent.scores
            for task in tasks
            if isinstance(task, BreedTask)
            for parent in task.parents
        ),
    ]
    before = [tensor.clone() for tensor in held]
    workers.run(tasks)
    assert all(torch.equal(old, now) for old, now in zip(before, held, strict=True))


@pytest.mark.parametrize("preset", ["default", "black-box"])
def test_a_search_finds_the_same_masks_on_any_workers(workers: Workers, preset: str) -> None:
    """Every generation's best, mean and validation, and the last population, bit for bit."""

    def search(on: Workers) -> tuple[object, ...]:
        plan = SearchPlan(
            preset=find_preset(preset),
            layout=EVALUATOR.layout,
            seed=3,
            population=4,
            offspring=6,
            refinement=Refinement(3, 0.5, 16) if preset == "default" else None,
            limits=SearchLimits(generations=4),
            keep=60,
            density_search=1,
        )
        outcome = Evolution(plan, on).run(seeds_of(EVALUATOR, 60))
        found = [(one.key, one.genes.scores.numpy().tobytes()) for one in outcome.population]
        told = [replace(one, seconds=0.0) for one in outcome.history]
        return found, told, outcome.best.key, list(outcome.validation_scores), outcome.evaluations

    assert search(workers) == search(SerialWorkers(EVALUATOR))


@pytest.mark.parametrize(
    "worker_options",
    [WorkerOptions(3), WorkerOptions(1, gpus=0.5), WorkerOptions(1, address="127.0.0.1:6379")],
    ids=str,
)
def test_one_worker_is_this_process_and_others_are_actors(worker_options: WorkerOptions) -> None:
    """Also a single one with a GPU, or on a cluster; nothing starts before they are entered."""
    assert isinstance(open_workers(EVALUATOR, WorkerOptions(1, device="cpu")), SerialWorkers)
    several = open_workers(EVALUATOR, worker_options)
    assert isinstance(several, RayWorkers)
    assert several.count == worker_options.count


FACTORY = """
import torch
from torch import nn
from beside_own import squash

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.out = nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.out(squash(self.hidden(x)))

def make():
    torch.manual_seed(0)
    return Own()

def closeness(outputs, teacher, labels):
    if torch.equal(outputs, teacher):
        raise ArithmeticError("too good")
    return -float((outputs - teacher).abs().mean())
"""


@pytest.fixture(scope="module")
def user_evaluator(tmp_path_factory: pytest.TempPathFactory) -> Evaluator:
    """Return an evaluator whose network, objective and helper module are a user's files."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "beside_own.py").write_text("def squash(x):\n    return x.tanh()\n")
    (folder / "own.py").write_text(FACTORY)
    with torch.random.fork_rng():
        target = load_target(f"{folder}/own.py:make", inputs=InputOptions(range=(0, 1)))
    calibration = shown(target.model, 32, 1)
    return replace(
        tiny_evaluator(),
        network=target,
        layout=target.layout,
        objective=find_objective(f"{folder}/own.py:closeness", calibration.teacher),
        search=calibration,
        validation=calibration,
        rungs=(32,),
    )


@pytest.fixture(scope="module")
def actor(ray_session: None, user_evaluator: Evaluator) -> Iterator[Workers]:
    """One actor that holds `user_evaluator`; Ray ran before anybody had seen the user's files."""
    with RayWorkers(user_evaluator, WorkerOptions(1), create_actor=unreserved) as workers:
        yield workers
    assert ray.is_initialized()  # it ran before, so it still runs


@pytest.mark.slow
def test_the_users_own_code_works_in_actors(actor: Workers, user_evaluator: Evaluator) -> None:
    """A network and an objective from a file, with a module beside it, score as they do here."""
    genes = [random_genes(user_evaluator.layout, 20, seed) for seed in (1, 2)]
    tasks = [ScoreTask(pack(one.decode(user_evaluator.layout)), -1) for one in genes]
    expected = [task.run(user_evaluator) for task in tasks]
    assert actor.run(tasks) == expected
    assert len(set(expected)) == 2


def test_an_error_in_the_users_code_comes_out_of_an_actor(
    actor: Workers, user_evaluator: Evaluator
) -> None:
    """The message names file, function and error, as without Ray."""
    dense = ScoreTask(pack(torch.ones(user_evaluator.layout.total, dtype=torch.bool)), -1)
    with pytest.raises(InputError, match=r"own\.py:closeness raised ArithmeticError: too good"):
        actor.run([dense])
