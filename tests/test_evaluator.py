"""The evaluator, compared with networks whose masks are written into the weights."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_cases import seeded, shown, tiny_evaluator
from torch import Tensor, nn

from gaprune.evaluation.evaluator import Evaluator
from gaprune.evaluation.objectives import OBJECTIVES, WORST
from gaprune.models.forward import CHUNK, batched_forward, forward_batch_size
from gaprune.models.macs import suitable_batch

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
    """Return the outputs of passes with a single input each."""
    return torch.cat([model(row[None]) for row in inputs])


def random_mask(evaluator: Evaluator, seed: int) -> Tensor:
    """Return a mask of about half of the weights."""
    return torch.rand(evaluator.layout.total, generator=seeded(seed)) < 0.5


@pytest.mark.parametrize("name", NAMES)
def test_fitness_is_the_objective_of_the_baked_network(name: str) -> None:
    """On the first search inputs, as many as the rung has."""
    evaluator, objective = tiny_evaluator(name, labels=True), OBJECTIVES[name]
    assert evaluator.search.labels is not None
    for rung, count in enumerate(evaluator.rungs):
        mask = random_mask(evaluator, rung)
        outputs = one_by_one(baked(evaluator, mask), evaluator.search.inputs[:count])
        expected = objective.fitness(
            outputs, evaluator.search.teacher[:count], evaluator.search.labels[:count]
        )
        assert evaluator.fitness(mask, rung) == pytest.approx(float(expected), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_validation_uses_the_validation_inputs_or_given_ones(name: str) -> None:
    """Agreement and fitness are those of the baked network."""
    evaluator, objective = tiny_evaluator(name, labels=True), OBJECTIVES[name]
    mask = random_mask(evaluator, 1)
    other = shown(evaluator.network.model, 50, 9, labels=True)
    for batch, score in (
        (evaluator.validation, evaluator.validate(mask)),
        (other, evaluator.validate(mask, other)),
    ):
        outputs = one_by_one(baked(evaluator, mask), batch.inputs)
        agreement = objective.agreement(outputs, batch.teacher, batch.labels)
        fitness = objective.fitness(outputs, batch.teacher, batch.labels)
        assert score.agreement == pytest.approx(float(agreement), rel=1e-4)
        assert score.fitness == pytest.approx(float(fitness), rel=1e-4, abs=1e-6)


def test_without_labels_the_validation_fitness_is_the_agreement() -> None:
    """For an objective that needs labels."""
    evaluator = tiny_evaluator("accuracy")
    score = evaluator.validate(random_mask(evaluator, 1))
    assert score.fitness == score.agreement < 1


@pytest.mark.parametrize("name", NAMES)
def test_the_full_mask_has_the_outputs_of_the_dense_network(name: str) -> None:
    """Bit for bit, with agreement 1 and the best fitness."""
    evaluator = tiny_evaluator(name, labels=True)
    full = torch.ones(evaluator.layout.total, dtype=torch.bool)
    assert torch.equal(evaluator.outputs(full, evaluator.search.inputs), evaluator.search.teacher)
    assert evaluator.validate(full).agreement == 1
    best = evaluator.fitness(full)
    assert best == pytest.approx(1.0 if name in ("accuracy", "agreement") else 0.0, abs=1e-6)
    assert all(evaluator.fitness(random_mask(evaluator, seed)) < best for seed in range(5))


def test_many_inputs_pass_in_chunks() -> None:
    """More inputs than one chunk give the same rows in the same order."""
    evaluator = tiny_evaluator()
    inputs, mask = torch.rand(2 * CHUNK + 3, 6, generator=seeded()), random_mask(evaluator, 2)
    expected = one_by_one(baked(evaluator, mask), inputs)
    assert torch.allclose(evaluator.outputs(mask, inputs), expected, atol=1e-5)


def test_nan_outputs_get_the_worst_fitness() -> None:
    """Nothing is raised."""
    evaluator = tiny_evaluator()
    search = evaluator.search._replace(inputs=evaluator.search.inputs * float("nan"))
    assert replace(evaluator, search=search).fitness(random_mask(evaluator, 1)) == WORST


def test_scoring_leaves_the_network_unchanged() -> None:
    """Weights, gradients and `requires_grad`."""
    evaluator = tiny_evaluator()
    model = evaluator.network.model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluator.fitness(random_mask(evaluator, 1))
    evaluator.validate(random_mask(evaluator, 1))
    evaluator.draw_batch(8, seeded())
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())


@settings(max_examples=25)
@given(st.integers(1, 40), st.sampled_from([None, 0.25, 0.5, 1]), st.integers(0, 999))
def test_a_batch_mixes_stored_and_generated_inputs(
    count: int, share: float | None, seed: int
) -> None:
    """Stored inputs make up their share; the teacher outputs belong to the inputs."""
    evaluator = tiny_evaluator(gradient_share=share)
    batch = evaluator.draw_batch(count, seeded(seed))
    teacher = batched_forward(evaluator.network.model, batch.inputs)
    assert len(batch.inputs) == count
    assert torch.allclose(batch.teacher, teacher, atol=1e-6)
    if evaluator.gradient_inputs is not None:
        equal = (batch.inputs[:, None] == evaluator.gradient_inputs.inputs[None]).all(2)
        assert int(equal.any(1).sum()) == round(count * (share or 0))


def test_only_stored_inputs_have_labels() -> None:
    """A batch with generated inputs has none."""
    evaluator = tiny_evaluator(gradient_share=1, labels=True)
    batch = evaluator.draw_batch(20, seeded())
    assert batch.labels is not None
    assert torch.equal(
        batch.labels, batched_forward(evaluator.network.model, batch.inputs).argmax(1)
    )
    assert tiny_evaluator(gradient_share=0.5, labels=True).draw_batch(20, seeded()).labels is None
    assert tiny_evaluator().draw_batch(20, seeded()).labels is None


def test_generated_inputs_are_new_for_every_batch() -> None:
    """The same generator state repeats them."""
    evaluator, generator = tiny_evaluator(), seeded(3)
    first, second = evaluator.draw_batch(8, generator), evaluator.draw_batch(8, generator)
    assert not torch.equal(first.inputs, second.inputs)
    assert torch.equal(first.inputs, evaluator.draw_batch(8, seeded(3)).inputs)


@given(st.integers(1, 10**9))
def test_the_batch_shrinks_as_the_network_grows(macs: int) -> None:
    """A power of two from 32 to 256, never larger for a network with more MACs."""
    batch = suitable_batch(macs)
    assert batch in (32, 64, 128, 256)
    assert batch >= suitable_batch(2 * macs)
    assert (suitable_batch(1), suitable_batch(10**9)) == (256, 32)


def test_long_texts_pass_in_small_batches() -> None:
    """A forward pass takes 4,096 tokens; other inputs are counted, unless they are large."""
    lengths = (16, 256, 2048, 10_000)
    tokens = [forward_batch_size(torch.zeros(1, n, dtype=torch.int64)) for n in lengths]
    assert tokens == [CHUNK, 16, 2, 1]
    assert forward_batch_size(torch.zeros(1, 10_000)) == CHUNK
