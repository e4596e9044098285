"""Repair in a run: at the end only, or in the loop, where candidates are scored after repair."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import OWN, TINY, Run
from comparison_cases import conv_target, images
from repair_networks import (
    REPAIRABLE,
    Convolutional,
    Perceptron,
    flat_mask,
    loop_evaluator,
    masked,
    normed,
    target_of,
)
from safetensors.torch import load_file
from search_cases import seeded
from torch import Tensor, nn
from torch.func import functional_call

from gaprune import InputError, InputOptions, Result, prune, prune_target
from gaprune.calibration.inversion.augment import Augmentation
from gaprune.callbacks import Callbacks
from gaprune.cli.console import stdout
from gaprune.cli.result_table import show_result
from gaprune.config import make_settings
from gaprune.evaluation.objectives import OBJECTIVES, WORST
from gaprune.models.input_spec import InputSpec
from gaprune.models.target import Target
from gaprune.repair import repair, repaired_copy

SMALL: dict[str, Any] = {
    "sparsity": 0.7,
    "calibration_count": 64,
    "validation_count": 64,
    "generations": 1,
    "steps": 4,
    "batch": 16,
    "objective": "relative-error",  # tiny networks agree on one class for all inputs
}


@pytest.fixture(params=REPAIRABLE)
def target(request: pytest.FixtureRequest) -> Target:
    """A float64 network with BatchNorm, or with biases alone."""
    return target_of(*REPAIRABLE[request.param])


def test_fitness_is_that_of_the_repaired_network(target: Target) -> None:
    """On every rung: repaired on exactly its inputs, then scored on them."""
    evaluator, mask = loop_evaluator(target), flat_mask(target)
    masks = target.layout.split(mask)
    for rung, count in enumerate(evaluator.rungs):
        inputs, teacher = evaluator.search.inputs[:count], evaluator.search.teacher[:count]
        model = repaired_copy(target, masks, repair(target, masks, inputs))
        expected = float(evaluator.objective.fitness(model(inputs), teacher, None))
        assert evaluator.fitness(mask, rung) == pytest.approx(expected, rel=1e-9)
        assert evaluator.strict.fitness(mask, rung) != pytest.approx(expected, rel=1e-3)
    full = torch.ones_like(mask)
    assert evaluator.fitness(full) == pytest.approx(0, abs=1e-12)
    assert evaluator.validate(full).agreement == 1


def test_validation_repairs_on_the_search_inputs_alone(target: Target) -> None:
    """Validation inputs run with these fixed corrections, as in the repaired network."""
    evaluator, mask = loop_evaluator(target), flat_mask(target)
    masks, inputs = target.layout.split(mask), evaluator.validation.inputs
    model = repaired_copy(target, masks, repair(target, masks, evaluator.search.inputs))
    outputs = model(inputs)
    assert torch.allclose(evaluator.validation_outputs(mask, inputs), outputs, rtol=1e-12)
    fitness = float(evaluator.objective.fitness(outputs, evaluator.validation.teacher, None))
    assert evaluator.validate(mask).fitness == pytest.approx(fitness, rel=1e-9)
    single = evaluator.validation_outputs(mask, inputs[:1])
    assert torch.allclose(single, outputs[:1], rtol=1e-9)


def test_strict_outputs_are_those_of_the_masked_network(target: Target) -> None:
    """`outputs` and the strict evaluator repair nothing."""
    evaluator, mask = loop_evaluator(target), flat_mask(target)
    inputs = evaluator.validation.inputs
    expected = functional_call(target.model, masked(target, mask), (inputs,))
    assert torch.equal(evaluator.outputs(mask, inputs), expected)
    assert torch.equal(evaluator.strict.validation_outputs(mask, inputs), expected)
    assert evaluator.strict.validate(mask) != evaluator.validate(mask)


def loss_by_hand(network: Perceptron, weights: list[Tensor], inputs: Tensor) -> float:
    """Return the loss of `Perceptron` whose BatchNorm inputs have the dense statistics."""
    first, second, third = weights
    dense = inputs @ network.fc1.weight.T + network.fc1.bias
    pruned = inputs @ first.T + network.fc1.bias
    matched = (pruned - pruned.mean(0)) * dense.std(0) / pruned.std(0) + dense.mean(0)
    hidden = torch.tanh(network.norm(matched))
    hidden = torch.tanh(hidden @ second.T + network.fc2.bias)
    loss = OBJECTIVES["kl"].loss
    assert loss is not None
    return float(loss(hidden @ third.T + network.fc3.bias, network(inputs), None))


def test_gradients_pass_through_the_statistics_of_the_batch() -> None:
    """Score gradients are w times finite differences of a loss written out by hand."""
    target = target_of(normed, (6,))
    evaluator, mask = loop_evaluator(target), flat_mask(target)
    assert evaluator.gradient_inputs is not None
    network, inputs = target.model, evaluator.gradient_inputs.inputs
    assert isinstance(network, Perceptron)
    gradient = evaluator.score_gradient(mask, evaluator.gradient_inputs)
    step, expected = 1e-6, []
    for layer, weight in enumerate(target.weights.values()):
        for index in range(weight.numel()):
            losses = []
            for sign in (1, -1):
                moved = [w.clone() for w in masked(target, mask).values()]
                moved[layer].view(-1)[index] += sign * step
                losses.append(loss_by_hand(network, moved, inputs))
            expected.append(float(weight.view(-1)[index]) * (losses[0] - losses[1]) / (2 * step))
    assert torch.allclose(gradient, torch.tensor(expected), rtol=1e-4, atol=1e-6)
    strict = evaluator.strict.score_gradient(mask, evaluator.gradient_inputs)
    assert not torch.allclose(gradient, strict, rtol=1e-1, atol=1e-3)


def sorted_pixels(inputs: Tensor) -> set[tuple[float, ...]]:
    """Return the sorted values of every channel of every input."""
    return {tuple(row.flatten(1).sort(-1).values.flatten().tolist()) for row in inputs}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_stored_inputs_are_augmented_for_every_batch(share: float, strict: bool) -> None:
    """The same values at other positions, with the teacher outputs on them."""
    target = target_of(Convolutional, (2, 6, 6))
    evaluator = loop_evaluator(target, gradient_share=share)
    evaluator = evaluator.strict if strict else evaluator
    network = replace(evaluator.network, inputs=InputSpec((2, 6, 6), "image"))
    moves = Augmentation(moves=True, mixes=False)
    evaluator = replace(evaluator, network=network, augmentation=moves)
    assert evaluator.gradient_inputs is not None
    stored, batches, generator = evaluator.gradient_inputs.inputs, [], seeded(1)
    for _ in range(2):
        batch = evaluator.draw_batch(20, generator)
        part = batch.inputs[: round(20 * share)]
        assert sorted_pixels(part) <= sorted_pixels(stored)
        assert not all((row == stored).flatten(1).all(1).any() for row in part)
        assert torch.allclose(batch.teacher, target.model(batch.inputs), rtol=1e-12)
        assert batch.labels is None
        batches.append(part)
    assert not torch.equal(*batches)


class Steep(nn.Module):
    """A network that overflows where its first weight is pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.out = nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        """`[N, 6]` → `[N, 3]`."""
        overflow = torch.where(self.fc.weight[0, 0] == 0, torch.inf, 0.0)
        return self.out(self.norm(self.fc(inputs) + overflow))  # type: ignore[no-any-return]


def test_a_candidate_that_overflows_has_the_worst_fitness() -> None:
    """In the search and in validation; nothing is raised."""
    target = target_of(Steep, (6,))
    evaluator, mask = loop_evaluator(target), torch.ones(target.layout.total, dtype=torch.bool)
    assert evaluator.validate(mask).fitness > WORST
    mask[0] = False
    assert evaluator.fitness(mask) == evaluator.validate(mask).fitness == WORST


@pytest.fixture(scope="module")
def evolved() -> Result:
    """A search on a network with BatchNorm, with repair in the loop."""
    settings = make_settings({**SMALL, "generations": 2, "repair_in_loop": True})
    return prune_target(conv_target(), settings, test=images(50, 3))


@pytest.fixture(scope="module")
def one_shot() -> dict[str, Result]:
    """Magnitude pruning with each option for repair."""
    options: dict[str, dict[str, bool]] = {
        "strict": {},
        "repair": {"repair": True},
        "in loop": {"repair_in_loop": True},
    }
    quick = {**SMALL, "method": "magnitude"}
    return {
        name: prune_target(conv_target(), make_settings({**quick, **option}), test=images(50, 3))
        for name, option in options.items()
    }


def test_weights_are_frozen_and_the_budget_is_exact(evolved: Result) -> None:
    """Only what repair reports differs from the checkpoint."""
    dense, repaired = conv_target().model.state_dict(), evolved.repaired_model()
    assert repaired is not None
    assert evolved.repaired is not None
    for name, value in repaired.state_dict().items():
        mask = evolved.masks.get(name)
        if mask is not None:
            assert torch.equal(value, torch.where(mask, dense[name], 0))
        elif name not in evolved.repaired.repair.changed:
            assert torch.equal(value, dense[name])
    assert evolved.kept == round(0.3 * evolved.target.layout.total)


def test_a_run_reports_strict_and_repaired_figures(evolved: Result) -> None:
    """The repaired network is never worse than the best repaired baseline."""
    assert evolved.repaired is not None
    assert evolved.in_loop
    assert evolved.settings["repair"] is True
    record, validation = evolved.record(), evolved.repaired.validation
    assert record["repaired"]["in_loop"] is True
    assert record["agreement"]["validation"] == evolved.validation_agreement != validation
    best = max(score.agreement for score in evolved.baselines.values())
    assert evolved.gain == validation - best >= 0
    assert validation in [r.validation for r in evolved.history] or evolved.gain == 0
    test = images(50, 3)
    assert test.labels is not None
    accuracy = (evolved.pruned_model()(test.inputs).argmax(1) == test.labels).double().mean()
    assert evolved.accuracy == pytest.approx(float(accuracy))


def test_repair_changes_neither_masks_nor_strict_figures(one_shot: dict[str, Result]) -> None:
    """Of a one-shot method; repair in the loop only repairs the baselines as well."""
    strict, repaired, in_loop = one_shot.values()
    assert strict.repaired is None
    assert strict.repaired_model() is None
    for result in (repaired, in_loop):
        assert all(torch.equal(strict.masks[name], mask) for name, mask in result.masks.items())
        assert result.calibration_agreement == strict.calibration_agreement
        assert result.validation_agreement == strict.validation_agreement
        assert result.accuracy == strict.accuracy
    assert repaired.repaired is not None
    assert in_loop.repaired is not None
    figures = (in_loop.repaired.validation, in_loop.repaired.accuracy)
    assert figures == (repaired.repaired.validation, repaired.repaired.accuracy)
    baseline = in_loop.baselines["magnitude"]
    assert (baseline.agreement, baseline.accuracy) == figures
    assert repaired.baselines["magnitude"].agreement == repaired.validation_agreement
    assert (repaired.in_loop, in_loop.in_loop) == (False, True)


def test_repaired_figures_are_those_of_the_repaired_model(one_shot: dict[str, Result]) -> None:
    """It differs from the strict one in what repair reports, and in no weight."""
    result, test = one_shot["repair"], images(50, 3)
    model = result.repaired_model()
    assert model is not None
    assert result.repaired is not None
    assert test.labels is not None
    accuracy = (model(test.inputs).argmax(1) == test.labels).double().mean()
    assert result.repaired.accuracy == pytest.approx(float(accuracy))
    record = result.record()["repaired"]
    assert record["accuracy"] == result.repaired.accuracy
    assert record["changed"] == list(result.repaired.repair.changed)
    before, after = result.state_dict(), model.state_dict()
    differing = {name for name in before if not torch.equal(before[name], after[name])}
    assert "norm1.running_mean" in differing <= set(result.repaired.repair.changed)
    assert differing.isdisjoint(result.masks)


@pytest.mark.parametrize(
    "options",
    [
        {"preset": "black-box"},
        {"preset": "classic", "objective": "accuracy", "calibration": ("labelled:data.npz",)},
        {"pareto": True},
    ],
)
def test_every_search_can_repair_in_the_loop(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without gradients, with labels, and for a Pareto front."""
    data = images(40, 4)
    assert data.labels is not None
    monkeypatch.chdir(tmp_path)
    np.savez("data.npz", x=data.inputs.numpy(), y=data.labels.numpy())
    few = {**SMALL, "population": 4, "offspring": 4, "repair_in_loop": True}
    result = prune_target(conv_target(), make_settings({**few, **options}))
    assert result.repaired is not None
    assert result.in_loop
    assert result.gain is None or result.gain >= 0
    assert len(result.front) > 1 or "pareto" not in options


def test_a_network_without_repairable_modules_is_refused() -> None:
    """Before any calibration input is made."""
    net = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False))
    phases: list[str] = []
    observer = Callbacks(on_phase=lambda name, _: phases.append(name))
    inputs = InputOptions(range=(0, 1))
    with pytest.raises(InputError, match=r"^repair_in_loop: .*0: .*repair_in_loop=True"):
        prune(net, inputs=inputs, observer=observer, **SMALL, repair_in_loop=True)
    assert phases == []


def first_cells(text: str) -> list[str]:
    """Return the first cell of every line of a table."""
    return [line.strip().split("  ")[0] for line in text.splitlines()]


@pytest.mark.parametrize("option", ["--repair", "--repair-in-loop"])
def test_the_command_prints_and_writes_the_repaired_network(
    run: Run, place: Path, option: str
) -> None:
    """A network without BatchNorm has its biases corrected; the run can be repeated."""
    ran = run("prune", *OWN, "--sparsity", "0.5", *TINY, option, "--out", "r", "--verbose")
    assert ran.code == 0
    rows = first_cells(ran.out)
    assert {"evolved", "evolved, repaired"} <= set(rows)
    assert ("magnitude, repaired" in rows) == (option == "--repair-in-loop")
    assert ("magnitude" in rows) == (option == "--repair")
    strict, repaired = (load_file(place / "r" / f"{n}.safetensors") for n in ("pruned", "repaired"))
    assert all(torch.equal(strict[n], repaired[n]) for n in strict if n.endswith("weight"))
    assert not torch.equal(strict["fc1.bias"], repaired["fc1.bias"])
    assert json.loads((place / "r" / "result.json").read_text())["repaired"]["changed"]
    assert run("prune", "--config", "r/config.toml", "--out", "r", "--overwrite").code == 0


def test_a_one_shot_method_has_a_strict_and_a_repaired_row(
    capsys: pytest.CaptureFixture[str], one_shot: dict[str, Result]
) -> None:
    """It is not repeated among the repaired baselines."""
    show_result(one_shot["in loop"], stdout(), verbose=True)
    rows = first_cells(capsys.readouterr().out)
    assert rows.count("magnitude") == rows.count("magnitude, repaired") == 1
