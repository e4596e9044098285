"""The evaluator against networks with baked weights and naive loops."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_cases import seeded, shown, tiny_evaluator, tiny_model
from torch import Tensor, nn

from gaprune.evaluation.evaluator import Evaluator
from gaprune.evaluation.forward_modes import TeacherBatch
from gaprune.evaluation.objectives import OBJECTIVES, WORST
from gaprune.models.forward import CHUNK, batched_forward
from gaprune.models.macs import macs_per_input, suitable_batch
from gaprune.models.zoo.networks import LeNet

NAMES = sorted(OBJECTIVES)


def baked(evaluator: Evaluator, mask: Tensor) -> nn.Module:
    """Return a copy of the network with zeros written where the mask drops."""
    model = copy.deepcopy(evaluator.network.model)
    layers = evaluator.layout.split(mask)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in layers:
                parameter[~layers[name]] = 0
    return model


def one_by_one(model: nn.Module, inputs: Tensor) -> Tensor:
    """Return the outputs, one input at a time."""
    return torch.cat([model(row[None]) for row in inputs])


def random_mask(evaluator: Evaluator, seed: int) -> Tensor:
    """Return a mask of about half of the weights."""
    return torch.rand(evaluator.layout.total, generator=seeded(seed)) < 0.5


@pytest.mark.parametrize("rung", [0, 1, -1])
@pytest.mark.parametrize("name", NAMES)
def test_fitness_is_the_objective_of_the_baked_network(name: str, rung: int) -> None:
    """On the first inputs of the search set, as many as the rung says."""
    evaluator, objective = tiny_evaluator(name, labels=True), OBJECTIVES[name]
    count = evaluator.rungs[rung]
    for seed in range(3):
        mask = random_mask(evaluator, seed)
        outputs = one_by_one(baked(evaluator, mask), evaluator.search.inputs[:count])
        assert evaluator.search.labels is not None
        expected = objective.fitness(
            outputs, evaluator.search.teacher[:count], evaluator.search.labels[:count]
        )
        assert evaluator.fitness(mask, rung) == pytest.approx(float(expected), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_the_judge_looks_at_the_validation_or_at_given_inputs(name: str) -> None:
    """Agreement and fitness of the baked network there."""
    evaluator, objective = tiny_evaluator(name, labels=True), OBJECTIVES[name]
    mask = random_mask(evaluator, 1)
    other = shown(evaluator.network.model, 50, 9, labels=True)
    for where, validation_score in (
        (evaluator.validation, evaluator.validate(mask)),
        (other, evaluator.validate(mask, other)),
    ):
        outputs = one_by_one(baked(evaluator, mask), where.inputs)
        agreement = objective.agreement(outputs, where.teacher, where.labels)
        fitness = objective.fitness(outputs, where.teacher, where.labels)
        assert validation_score.agreement == pytest.approx(float(agreement), rel=1e-4)
        assert validation_score.fitness == pytest.approx(float(fitness), rel=1e-4, abs=1e-6)


def test_without_labels_the_judge_goes_by_agreement() -> None:
    """An objective that needs labels judges an unlabelled validation by the teacher's classes."""
    evaluator = tiny_evaluator("accuracy")
    validation_score = evaluator.validate(random_mask(evaluator, 1))
    assert validation_score.fitness == validation_score.agreement < 1


@pytest.mark.parametrize("name", NAMES)
def test_the_dense_mask_agrees_with_the_dense_network(name: str) -> None:
    """Nothing removed: agreement 1 and the best fitness there is, bit for bit."""
    evaluator = tiny_evaluator(name, labels=True)
    full = torch.ones(evaluator.layout.total, dtype=torch.bool)
    assert torch.equal(evaluator.outputs(full, evaluator.search.inputs), evaluator.search.teacher)
    assert evaluator.validate(full).agreement == 1
    best = evaluator.fitness(full)
    assert best == pytest.approx(1.0 if name in ("accuracy", "agreement") else 0.0, abs=1e-6)
    assert all(evaluator.fitness(random_mask(evaluator, seed)) < best for seed in range(5))


def test_large_sets_pass_in_chunks() -> None:
    """More inputs than one chunk give the same rows in the same order."""
    evaluator, count = tiny_evaluator(), 2 * CHUNK + 3
    inputs = torch.rand(count, 6, generator=seeded())
    mask = random_mask(evaluator, 2)
    expected = one_by_one(baked(evaluator, mask), inputs)
    assert torch.allclose(evaluator.outputs(mask, inputs), expected, atol=1e-5)
    assert torch.allclose(
        batched_forward(evaluator.network.model, inputs),
        one_by_one(evaluator.network.model, inputs),
        atol=1e-5,
    )


def test_a_network_that_overflows_gets_the_worst_fitness() -> None:
    """NaN outputs rank below every finite candidate, and nothing raises."""
    evaluator = tiny_evaluator()
    evaluator = replace(
        evaluator, search=evaluator.search._replace(inputs=evaluator.search.inputs * float("nan"))
    )
    assert evaluator.fitness(random_mask(evaluator, 1)) == WORST


def test_trying_a_mask_leaves_the_network_as_it_is() -> None:
    """Weights, mode and gradient switches stay."""
    evaluator = tiny_evaluator()
    before = {name: tensor.clone() for name, tensor in evaluator.network.model.state_dict().items()}
    evaluator.fitness(random_mask(evaluator, 1))
    evaluator.validate(random_mask(evaluator, 1))
    evaluator.draw_batch(8, seeded())
    assert all(
        torch.equal(before[name], now) for name, now in evaluator.network.model.state_dict().items()
    )
    assert all(p.grad is None and not p.requires_grad for p in evaluator.network.model.parameters())


def rows_of(pool: TeacherBatch, batch: Tensor) -> list[int]:
    """Return for each input of a batch its row in the pool, or −1."""
    equal = (batch[:, None] == pool.inputs[None]).all(2)
    return [int(row.nonzero()[0]) if row.any() else -1 for row in equal]


@settings(max_examples=25)
@given(st.integers(1, 40), st.sampled_from([None, 0.25, 0.5, 1]), st.integers(0, 999))
def test_a_batch_mixes_held_and_fresh_inputs(count: int, share: float | None, seed: int) -> None:
    """The pool gives its share, the generators the rest, and the teacher's answers fit."""
    evaluator = tiny_evaluator(gradient_share=share)
    batch = evaluator.draw_batch(count, seeded(seed))
    assert len(batch.inputs) == count
    assert torch.allclose(
        batch.teacher, batched_forward(evaluator.network.model, batch.inputs), atol=1e-6
    )
    held = 0 if share is None else round(count * share)
    rows = (
        [-1] * count
        if evaluator.gradient_inputs is None
        else rows_of(evaluator.gradient_inputs, batch.inputs)
    )
    assert sum(row >= 0 for row in rows) == held


def test_labels_stay_with_held_inputs_only() -> None:
    """A batch from a labelled pool carries the right labels; fresh inputs have none."""
    evaluator = tiny_evaluator(gradient_share=1, labels=True)
    batch = evaluator.draw_batch(20, seeded())
    assert batch.labels is not None
    assert torch.equal(
        batch.labels, batched_forward(evaluator.network.model, batch.inputs).argmax(1)
    )
    assert tiny_evaluator(gradient_share=0.5, labels=True).draw_batch(20, seeded()).labels is None
    assert tiny_evaluator().draw_batch(20, seeded()).labels is None


def test_fresh_means_new_at_every_draw() -> None:
    """Two draws differ, the same generator state repeats them."""
    evaluator, generator = tiny_evaluator(), seeded(3)
    first, second = evaluator.draw_batch(8, generator), evaluator.draw_batch(8, generator)
    assert not torch.equal(first.inputs, second.inputs)
    assert torch.equal(first.inputs, evaluator.draw_batch(8, seeded(3)).inputs)


def test_a_rung_is_the_beginning_of_the_set() -> None:
    """The first inputs with their answers and labels."""
    whole = shown(tiny_model(), 10, 1, labels=True)
    part = whole.select(slice(4))
    assert torch.equal(part.inputs, whole.inputs[:4])
    assert torch.equal(part.teacher, whole.teacher[:4])
    assert part.labels is not None
    assert len(part.labels) == 4
    assert shown(tiny_model(), 10, 1).select(slice(4)).labels is None


def test_the_cost_of_a_forward_pass_is_counted_layer_by_layer() -> None:
    """Multiply-adds of LeNet by hand: each weight once for every place it is used at."""
    by_hand = 28 * 28 * 6 * 25 + 10 * 10 * 16 * 6 * 25 + 400 * 120 + 120 * 84 + 84 * 10
    assert macs_per_input(LeNet().eval(), torch.zeros(1, 1, 28, 28)) == by_hand


@given(st.integers(1, 10**9))
def test_the_batch_shrinks_as_the_network_grows(macs: int) -> None:
    """A power of two from 32 to 256, never larger for a network that costs more."""
    batch = suitable_batch(macs)
    assert batch in (32, 64, 128, 256)
    assert batch >= suitable_batch(2 * macs)
    assert suitable_batch(1) == 256
    assert suitable_batch(10**9) == 32
