"""The caches of outputs and scores: cached values have the bits of computed ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ray import cloudpickle
from repair_networks import Convolutional, Encoder, guided_evaluator, loop_evaluator, target_of
from search_cases import run_to_bits, seeded, tiny_evaluator
from torch import Tensor, nn

from gaprune.evaluation.evaluator import Evaluator, LRUCache
from gaprune.evaluation.forward_modes import STRICT_FORWARD
from gaprune.evaluation.objectives import OBJECTIVES, agreement
from gaprune.evolution.tasks import ScoreTask
from gaprune.masks.supermask import Layout, pack
from gaprune.models.forward import CHUNK
from gaprune.workers import SerialWorkers, WorkerOptions
from gaprune.workers.ray_pool import RayWorkers


def strict(build: Callable[[], nn.Module], shape: tuple[int, ...], count: int = 150) -> Evaluator:
    """Return an evaluator in float32 without repair."""
    evaluator = loop_evaluator(target_of(build, shape, double=False), count=count)
    return replace(evaluator, forward_mode=STRICT_FORWARD)


EVALUATORS: dict[str, Callable[[], Evaluator]] = {
    "linear": tiny_evaluator,
    "convolutions": lambda: strict(Convolutional, (2, 6, 6)),
    "attention": lambda: strict(Encoder, (5, 8)),
    "repaired": lambda: loop_evaluator(target_of(Convolutional, (2, 6, 6))),
    "bfloat16": lambda: replace(strict(Convolutional, (2, 6, 6)), precision="bfloat16"),
}


def masks_of(layout: Layout, count: int) -> list[Tensor]:
    """Return random masks, each of them twice."""
    masks = [torch.rand(layout.total, generator=seeded(seed)) < 0.6 for seed in range(count)]
    return [*masks, *masks]


def uncached(evaluator: Evaluator, mask: Tensor, rung: int) -> float:
    """Return the fitness of a mask from an evaluator with an empty cache."""
    return replace(evaluator).fitness(mask, rung)


@pytest.mark.parametrize("name", EVALUATORS)
def test_cached_scores_have_the_bits_of_computed_ones(name: str) -> None:
    """Masks that repeat, on both rungs in any order."""
    evaluator, generator = EVALUATORS[name](), seeded(5)
    for mask in masks_of(evaluator.layout, 6):
        for rung in [(0, -1), (-1, 0), (0,), (-1,)][int(torch.randint(4, (), generator=generator))]:
            assert evaluator.fitness(mask, rung) == uncached(evaluator, mask, rung)


@contextmanager
def input_counts(module: nn.Module) -> Iterator[list[int]]:
    """Record the number of inputs of every pass through a module."""
    counts: list[int] = []
    hook = module.register_forward_hook(lambda _, inputs, __: counts.append(len(inputs[0])))
    try:
        yield counts
    finally:
        hook.remove()


def test_a_mask_runs_once_per_rung() -> None:
    """A rung smaller than a chunk is computed again in the next one."""
    evaluator = tiny_evaluator()
    mask = masks_of(evaluator.layout, 1)[0]
    with input_counts(evaluator.network.model[0]) as counts:  # type: ignore[index]
        scores = [evaluator.fitness(mask, rung) for rung in (0, 0, -1, 1, 0)]
    assert sum(counts[:2]) == 16 + 64
    assert scores[0] == scores[1]
    assert scores[2] == scores[3]


def test_the_second_rung_only_runs_the_remaining_inputs() -> None:
    """Whole chunks of the first rung are reused."""
    evaluator = replace(strict(Convolutional, (2, 6, 6), count=200), rungs=(CHUNK + 3, 200))
    mask = masks_of(evaluator.layout, 1)[0]
    with input_counts(evaluator.network.model) as counts:
        scores = evaluator.fitness(mask, 0), evaluator.fitness(mask, 1)
    assert counts == [CHUNK, 3, CHUNK, CHUNK, 200 - 3 * CHUNK]
    assert scores == (uncached(evaluator, mask, 0), uncached(evaluator, mask, 1))


def test_cached_outputs_are_not_pickled() -> None:
    """A used evaluator pickles to the size of a new one."""
    evaluator = tiny_evaluator()
    for mask in masks_of(evaluator.layout, 20):
        evaluator.fitness(mask)
    assert len(evaluator._outputs) > 1
    pickled = cloudpickle.dumps(evaluator)
    assert len(pickled) == len(cloudpickle.dumps(replace(evaluator)))
    assert len(cloudpickle.loads(pickled)._outputs) == 0


def test_forward_modes_do_not_share_a_cache() -> None:
    """A mask is scored repaired and strict in turn."""
    guided = guided_evaluator(target_of(Convolutional, (2, 6, 6)))
    mask = masks_of(guided.layout, 1)[0]
    expected = [uncached(guided.repaired, mask, 0), uncached(guided.strict, mask, 0)]
    assert expected[0] != expected[1]
    for _ in range(2):
        assert [guided.repaired.fitness(mask, 0), guided.fitness(mask, 0)] == expected


def test_objectives_may_overwrite_outputs() -> None:
    """The cache stores a copy."""

    def careless(outputs: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Tensor:
        value = agreement(outputs, teacher, labels)
        outputs.zero_()
        return value

    evaluator = replace(strict(Convolutional, (2, 6, 6), count=2 * CHUNK), rungs=(CHUNK, 2 * CHUNK))
    evaluator = replace(evaluator, objective=replace(OBJECTIVES["agreement"], fitness=careless))
    mask = masks_of(evaluator.layout, 1)[0]
    evaluator.fitness(mask, 0)
    assert evaluator.fitness(mask, 1) == uncached(evaluator, mask, 1)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 12)), max_size=40))
def test_the_least_recently_used_entry_is_dropped(calls: list[tuple[bool, int, int]]) -> None:
    """Equals a list in order of use; a value larger than the cache is not stored."""
    cache, order, limit = LRUCache(10), dict[int, int](), 10
    for writes, key, size in calls:
        stored = order.pop(key, None)
        if writes:
            cache.put(bytes([key]), torch.zeros(size, dtype=torch.uint8))
            if size <= limit:
                order[key] = size
            while sum(order.values()) > limit:
                del order[next(iter(order))]
        else:
            value = cache.get(bytes([key]))
            assert (None if value is None else value.nbytes) == stored
            if stored is not None:
                order[key] = stored
    assert cache.size == sum(order.values()) <= limit
    assert len(cache) == len(order)


@pytest.mark.slow
def test_ray_workers_and_this_process_give_the_same_bits(ray_session: None) -> None:
    """Whatever their caches contain."""
    evaluator = EVALUATORS["convolutions"]()
    calls = [(mask, rung) for mask in masks_of(evaluator.layout, 4) for rung in (0, -1, 0)]
    tasks = [ScoreTask(pack(mask), rung) for mask, rung in calls]
    serial = run_to_bits(SerialWorkers(evaluator), tasks)
    assert serial == [uncached(evaluator, mask, rung) for mask, rung in calls]
    with RayWorkers(evaluator, WorkerOptions(2)) as workers:
        assert run_to_bits(workers, tasks) == serial
