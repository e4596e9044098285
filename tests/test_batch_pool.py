"""Batches of generated inputs that gradient steps reuse."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest
import torch
from search_cases import seeded, tiny_evaluator

from gaprune import InputOptions, prune
from gaprune.evaluation.batch_pool import BATCHES, BYTES, MIN_BATCHES, BatchPool, batch_cache_size
from gaprune.evaluation.evaluator import Evaluator
from gaprune.models.forward import batched_forward


def evaluator_of(batches: int) -> Evaluator:
    """Return the tiny evaluator with a stock of its fresh inputs."""
    evaluator = tiny_evaluator()
    assert evaluator.mixture is not None
    return replace(evaluator, batch_cache=BatchPool(evaluator.mixture, batches, seed=5))


def test_a_step_gets_one_of_the_batches() -> None:
    """Forty draws of three batches: three different ones, each with the dense answers."""
    evaluator, generator = evaluator_of(3), seeded()
    drawn = [evaluator.draw_batch(7, generator) for _ in range(40)]
    different = {batch.inputs.numpy().tobytes(): batch for batch in drawn}
    assert len(different) == 3
    for batch in different.values():
        assert len(batch.inputs) == 7
        assert torch.equal(batch.teacher, batched_forward(evaluator.network.model, batch.inputs))


def test_the_dense_network_runs_once_per_batch() -> None:
    """However often a batch is picked; batches of another precision are separate."""
    evaluator, generator, runs = evaluator_of(4), seeded(), list[int]()
    assert evaluator.batch_cache is not None
    network = evaluator.network
    hook = network.model.register_forward_hook(lambda *_: runs.append(1))
    for _ in range(50):
        evaluator.batch_cache.pick(5, generator, network, "float32")
    assert len(runs) == 4
    evaluator.batch_cache.pick(5, generator, network, "bfloat16")
    hook.remove()
    assert len(runs) == 5


def test_every_worker_has_the_same_batches() -> None:
    """A pickled pool is empty and draws the same batches."""
    here = evaluator_of(6)
    first = [here.draw_batch(9, seeded(seed)) for seed in range(20)]
    there = replace(here, batch_cache=pickle.loads(pickle.dumps(here.batch_cache)))
    assert there.batch_cache is not here.batch_cache
    for seed, batch in enumerate(first):
        other = there.draw_batch(9, seeded(seed))
        assert torch.equal(other.inputs, batch.inputs)
        assert torch.equal(other.teacher, batch.teacher)


def test_held_inputs_stand_beside_those_of_the_stock() -> None:
    """A pool has its share of every batch, with its own answers."""
    evaluator = evaluator_of(3)
    evaluator = replace(evaluator, gradient_inputs=evaluator.search, gradient_share=0.5)
    batch = evaluator.draw_batch(8, seeded())
    assert len(batch.inputs) == 8
    assert torch.allclose(
        batch.teacher, batched_forward(evaluator.network.model, batch.inputs), atol=1e-6
    )
    own = {one.numpy().tobytes() for one in evaluator.search.inputs}
    assert [one.numpy().tobytes() in own for one in batch.inputs] == [True] * 4 + [False] * 4


@pytest.mark.parametrize(
    ("each", "batch", "expected"),
    [
        (4, 256, BATCHES),
        (BYTES // 100, 1, 100),
        (BYTES // MIN_BATCHES, 1, MIN_BATCHES),
        (BYTES // MIN_BATCHES + 1, 1, 0),
        (BYTES, 64, 0),
    ],
)
def test_it_fits_into_memory_or_is_not_held(each: int, batch: int, expected: int) -> None:
    """Few batches would be overfitted."""
    assert batch_cache_size(each, batch) == expected


def test_a_run_records_the_size_of_its_batch_cache() -> None:
    """By default there is one; 0 draws new inputs for every step."""
    net, shown = tiny_evaluator().network.model, InputOptions(shape=(6,), range=(0, 1))
    small: dict[str, Any] = {
        "generations": 1,
        "steps": 5,
        "calibration_count": 32,
        "validation_count": 16,
    }
    found = [
        prune(net, sparsity=0.5, inputs=shown, batch_cache=batch_cache, **small).settings[
            "batch_cache"
        ]
        for batch_cache in (None, 0, 2)
    ]
    assert found == [BATCHES, 0, 2]
