"""Batches of generated inputs that gradient steps reuse."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch
from search_cases import seeded, tiny_evaluator

from gaprune import InputOptions, prune
from gaprune.evaluation.batch_pool import BATCHES, BYTES, MIN_BATCHES, BatchPool, batch_cache_size
from gaprune.evaluation.evaluator import Evaluator
from gaprune.models.forward import batched_forward


def evaluator_of(batches: int) -> Evaluator:
    """Return the tiny evaluator with a batch cache."""
    evaluator = tiny_evaluator()
    assert evaluator.mixture is not None
    return replace(evaluator, batch_cache=BatchPool(evaluator.mixture, batches, seed=5))


def test_every_batch_is_drawn_once() -> None:
    """40 picks of 3 batches run the dense network 3 times; other precisions are separate."""
    evaluator, generator, runs = evaluator_of(3), seeded(), list[int]()
    network = evaluator.network
    hook = network.model.register_forward_hook(lambda *_: runs.append(1))
    picked = [evaluator.draw_batch(7, generator) for _ in range(40)]
    assert len(runs) == 3
    assert evaluator.batch_cache is not None
    evaluator.batch_cache.pick(7, generator, network, "bfloat16")
    hook.remove()
    assert len(runs) == 4
    distinct = {batch.inputs.numpy().tobytes(): batch for batch in picked}
    assert len(distinct) == 3
    for batch in distinct.values():
        assert len(batch.inputs) == 7
        assert torch.equal(batch.teacher, batched_forward(network.model, batch.inputs))


def test_every_worker_has_the_same_batches() -> None:
    """A pickled pool is empty and draws the same batches."""
    evaluator = evaluator_of(6)
    batches = [evaluator.draw_batch(9, seeded(seed)) for seed in range(12)]
    worker = replace(evaluator, batch_cache=pickle.loads(pickle.dumps(evaluator.batch_cache)))
    assert worker.batch_cache is not evaluator.batch_cache
    for seed, batch in enumerate(batches):
        other = worker.draw_batch(9, seeded(seed))
        assert torch.equal(other.inputs, batch.inputs)
        assert torch.equal(other.teacher, batch.teacher)


def test_stored_inputs_are_mixed_with_cached_batches() -> None:
    """They have their share of every batch."""
    evaluator = evaluator_of(3)
    evaluator = replace(evaluator, gradient_inputs=evaluator.search, gradient_share=0.5)
    batch = evaluator.draw_batch(8, seeded())
    teacher = batched_forward(evaluator.network.model, batch.inputs)
    assert torch.allclose(batch.teacher, teacher, atol=1e-6)
    stored = {row.numpy().tobytes() for row in evaluator.search.inputs}
    assert [row.numpy().tobytes() in stored for row in batch.inputs] == [True] * 4 + [False] * 4


@pytest.mark.parametrize(
    ("bytes_per_input", "batch", "expected"),
    [
        (4, 256, BATCHES),
        (BYTES // 100, 1, 100),
        (BYTES // MIN_BATCHES, 1, MIN_BATCHES),
        (BYTES // MIN_BATCHES + 1, 1, 0),
    ],
)
def test_the_cache_fits_into_memory_or_is_off(
    bytes_per_input: int, batch: int, expected: int
) -> None:
    """A search would overfit too few batches."""
    assert batch_cache_size(bytes_per_input, batch) == expected


@pytest.mark.parametrize(("stated", "expected"), [(None, BATCHES), (0, 0), (2, 2)])
def test_a_run_records_the_size_of_its_batch_cache(stated: int | None, expected: int) -> None:
    """The default is a cache; 0 draws new inputs for every step."""
    result = prune(
        tiny_evaluator().network.model,
        sparsity=0.5,
        inputs=InputOptions(shape=(6,), range=(0, 1)),
        batch_cache=stated,
        generations=1,
        steps=2,
        calibration_count=32,
        validation_count=16,
    )
    assert result.settings["batch_cache"] == expected
