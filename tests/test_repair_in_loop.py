"""Repair inside the search: candidates scored, steered and judged as they are after repair."""

from __future__ import annotations

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
    loop_evaluator,
    normed,
    random_masks,
    target_of,
)
from search_cases import seeded
from torch import Tensor, nn
from torch.func import functional_call

from gaprune import InputError, InputOptions, Result, prune, prune_target
from gaprune.callbacks import Observer
from gaprune.cli.console import stdout
from gaprune.cli.result_table import show_result
from gaprune.config import make_settings
from gaprune.evaluation.objectives import OBJECTIVES, WORST
from gaprune.masks.supermask import masked_weights
from gaprune.models.input_spec import InputSpec
from gaprune.models.target import Target
from gaprune.repair import repair, repaired_copy

SMALL: dict[str, Any] = {
    "sparsity": 0.7,
    "calibration_count": 64,
    "validation_count": 64,
    "generations": 2,
    "steps": 4,
    "batch": 16,
    "objective": "relative-error",  # of classes, tiny networks name the same one everywhere
}


@pytest.fixture(params=REPAIRABLE)
def target(request: pytest.FixtureRequest) -> Target:
    """A float64 network with BatchNorm, or with biases alone."""
    return target_of(*REPAIRABLE[request.param])


def flat_masks(target: Target, seed: int = 1) -> Tensor:
    """Return a random flat mask."""
    return target.layout.flatten(random_masks(target, seed=seed)).bool()


def test_fitness_is_that_of_the_repaired_network(target: Target) -> None:
    """On either rung: repaired on exactly these inputs, corrections written in, then scored."""
    evaluator = loop_evaluator(target)
    for rung, count in enumerate(evaluator.rungs):
        inputs, teacher = evaluator.search.inputs[:count], evaluator.search.teacher[:count]
        for seed in (1, 2):
            mask = flat_masks(target, seed)
            masks = target.layout.split(mask)
            model = repaired_copy(target, masks, repair(target, masks, inputs))
            expected = float(evaluator.objective.fitness(model(inputs), teacher, None))
            assert evaluator.fitness(mask, rung) == pytest.approx(expected, rel=1e-9)
            assert evaluator.strict.fitness(mask, rung) != pytest.approx(expected, rel=1e-3)


def test_validation_repairs_on_the_search_inputs_alone(target: Target) -> None:
    """The validation inputs then run with fixed corrections, as in the repaired network."""
    evaluator, mask = loop_evaluator(target), flat_masks(target)
    masks = target.layout.split(mask)
    model = repaired_copy(target, masks, repair(target, masks, evaluator.search.inputs))
    outputs = model(evaluator.validation.inputs)
    assert torch.allclose(
        evaluator.validation_outputs(mask, evaluator.validation.inputs), outputs, rtol=1e-12
    )
    fitness = float(evaluator.objective.fitness(outputs, evaluator.validation.teacher, None))
    assert evaluator.validate(mask).fitness == pytest.approx(fitness, rel=1e-9)
    one_by_one = [
        evaluator.validation_outputs(mask, row[None]) for row in evaluator.validation.inputs
    ]
    assert torch.allclose(torch.cat(one_by_one), outputs, rtol=1e-9)


def test_strict_outputs_stay_strict(target: Target) -> None:
    """`outputs` and the strict evaluator give what the masked network gives as it is."""
    evaluator, mask = loop_evaluator(target), flat_masks(target)
    kept = masked_weights(target.weights, target.layout.split(mask))
    expected = functional_call(target.model, kept, (evaluator.validation.inputs,))
    assert torch.equal(evaluator.outputs(mask, evaluator.validation.inputs), expected)
    assert torch.equal(
        evaluator.strict.validation_outputs(mask, evaluator.validation.inputs), expected
    )
    assert evaluator.strict.validate(mask) != evaluator.validate(mask)


def test_nothing_removed_is_nothing_to_repair(target: Target) -> None:
    """The dense mask has the best fitness and agreement 1."""
    evaluator = loop_evaluator(target)
    full = torch.ones(target.layout.total, dtype=torch.bool)
    assert evaluator.fitness(full) == pytest.approx(0, abs=1e-12)
    assert evaluator.validate(full).agreement == 1


def matched(dense: Tensor, pruned: Tensor) -> Tensor:
    """Give the columns of `pruned` the means and spreads of those of `dense`."""
    centred = pruned - pruned.mean(0)
    return centred * dense.std(0) / pruned.std(0) + dense.mean(0)


def loss_by_hand(network: Perceptron, weights: list[Tensor], inputs: Tensor) -> float:
    """Write the forward of `Perceptron` out, its BatchNorm fed with matched inputs."""
    first, second, third = weights
    dense = inputs @ network.fc1.weight.T + network.fc1.bias
    hidden = matched(dense, inputs @ first.T + network.fc1.bias)
    hidden = torch.tanh(network.norm(hidden))
    hidden = torch.tanh(hidden @ second.T + network.fc2.bias)
    outputs = hidden @ third.T + network.fc3.bias
    loss = OBJECTIVES["kl"].loss
    assert loss is not None
    return float(loss(outputs, network(inputs), None))


def test_gradients_also_pass_through_the_statistics_of_the_batch() -> None:
    """Score gradients are w times finite differences of a loss that is written out by hand."""
    target = target_of(normed, (6,))
    evaluator, mask = loop_evaluator(target), flat_masks(target)
    assert evaluator.gradient_inputs is not None
    network = target.model
    assert isinstance(network, Perceptron)
    found = evaluator.score_gradient(mask, evaluator.gradient_inputs)
    kept = [
        torch.where(m, w, 0)
        for m, w in zip(target.layout.split(mask).values(), target.weights.values(), strict=True)
    ]
    step, expected = 1e-6, []
    for layer, weight in enumerate(target.weights.values()):
        for index in range(weight.numel()):
            ends = []
            for sign in (1, -1):
                moved = [one.clone() for one in kept]
                moved[layer].view(-1)[index] += sign * step
                ends.append(loss_by_hand(network, moved, evaluator.gradient_inputs.inputs))
            expected.append(float(weight.view(-1)[index]) * (ends[0] - ends[1]) / (2 * step))
    assert torch.allclose(found, torch.tensor(expected), rtol=1e-4, atol=1e-6)
    strict = evaluator.strict.score_gradient(mask, evaluator.gradient_inputs)
    assert not torch.allclose(found, strict, rtol=1e-1, atol=1e-3)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("gradient_share", [0.5, 1.0])
def test_held_inputs_are_moved_anew_for_every_batch(gradient_share: float, strict: bool) -> None:
    """The same values in other places, and the dense network's answers to them as they lie now."""
    target = target_of(Convolutional, (2, 6, 6))
    form = InputSpec((2, 6, 6), "image")
    still = loop_evaluator(target, gradient_share=gradient_share)
    evaluator = replace(still.strict if strict else still, augmentation=form)
    assert evaluator.gradient_inputs is not None
    known = {
        tuple(one.flatten(1).sort(-1).values.flatten().tolist())
        for one in evaluator.gradient_inputs.inputs
    }
    batches, draw = [], seeded(1)
    for _ in range(2):
        batch = evaluator.draw_batch(20, draw)
        held = batch.inputs[: round(20 * gradient_share)]
        found = {tuple(one.flatten(1).sort(-1).values.flatten().tolist()) for one in held}
        assert found <= known
        assert not all(
            (one == evaluator.gradient_inputs.inputs).flatten(1).all(1).any() for one in held
        )
        assert torch.allclose(batch.teacher, target.model(batch.inputs), rtol=1e-12)
        assert batch.labels is None
        batches.append(held)
    assert not torch.equal(*batches)


class Steep(nn.Module):
    """A network that overflows where its first weight is missing."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm, self.out = nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        """`[N, 6]` → `[N, 3]`."""
        broken = torch.where(self.fc.weight[0, 0] == 0, torch.inf, 0.0)
        return self.out(self.norm(self.fc(inputs) + broken))  # type: ignore[no-any-return]


def test_a_candidate_that_overflows_loses_and_the_search_goes_on() -> None:
    """It gets the worst fitness from selection and judge; nothing raises."""
    target = target_of(Steep, (6,))
    evaluator, mask = loop_evaluator(target), torch.ones(target.layout.total, dtype=torch.bool)
    mask[0] = False
    assert evaluator.fitness(mask) == evaluator.validate(mask).fitness == WORST
    assert evaluator.validate(~mask | mask).fitness > WORST


@pytest.fixture(scope="module")
def evolved() -> Result:
    """A search on a network with BatchNorm, with repair in the loop."""
    return prune_target(
        conv_target(), make_settings({**SMALL, "repair_in_loop": True}), test=images(50, 3)
    )


def test_weights_keep_their_bits_and_the_budget_is_exact(evolved: Result) -> None:
    """The repaired network differs from the strict one in what repair names, in no weight."""
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


def test_both_rows_are_there_and_the_choice_is_stated(evolved: Result) -> None:
    """Strict figures of the strict network, repaired ones of the repaired one, never worse."""
    assert evolved.repaired is not None
    assert evolved.in_loop
    assert evolved.settings["repair"] is True
    record = evolved.record()
    assert record["repaired"]["in_loop"] is True
    assert (
        record["agreement"]["validation"]
        == evolved.validation_agreement
        != evolved.repaired.validation
    )
    best = max(score.agreement for score in evolved.baselines.values())
    assert evolved.gain == evolved.repaired.validation - best >= 0
    validations = [one.validation for one in evolved.history]
    assert evolved.repaired.validation in validations or evolved.gain == 0
    test = images(50, 3)
    assert test.labels is not None
    strict = (evolved.pruned_model()(test.inputs).argmax(1) == test.labels).double().mean()
    assert evolved.accuracy == pytest.approx(float(strict))


def test_a_one_shot_mask_has_the_strict_figures_of_a_run_without_it() -> None:
    """Only the baselines are judged in another way: after the same repair as the winner."""
    quick = {**SMALL, "method": "magnitude"}
    loop, plain = (
        prune_target(conv_target(), make_settings({**quick, name: True}), test=images(50, 3))
        for name in ("repair_in_loop", "repair")
    )
    assert all(torch.equal(loop.masks[name], plain.masks[name]) for name in plain.masks)
    assert (loop.calibration_agreement, loop.validation_agreement, loop.accuracy) == (
        plain.calibration_agreement,
        plain.validation_agreement,
        plain.accuracy,
    )
    assert loop.repaired is not None
    assert plain.repaired is not None
    assert (loop.repaired.validation, loop.repaired.accuracy) == (
        plain.repaired.validation,
        plain.repaired.accuracy,
    )
    own = loop.baselines["magnitude"]
    assert (own.agreement, own.accuracy) == (loop.repaired.validation, loop.repaired.accuracy)
    assert plain.baselines["magnitude"].agreement == plain.validation_agreement
    assert not plain.in_loop


@pytest.mark.parametrize("preset", ["black-box", "classic", "pareto"])
def test_every_kind_of_search_takes_it(preset: str, tmp_path: Path) -> None:
    """Without gradients, on labels, or for a front."""
    data = images(40, 4)
    assert data.labels is not None
    np.savez(tmp_path / "shown.npz", x=data.inputs.numpy(), y=data.labels.numpy())
    held = f"labelled:{tmp_path / 'shown.npz'}"
    own: dict[str, dict[str, Any]] = {
        "black-box": {"preset": "black-box"},
        "classic": {"preset": "classic", "objective": "accuracy", "calibration": (held,)},
        "pareto": {"pareto": True},
    }
    few = {**SMALL, "population": 4, "offspring": 4, "generations": 1, "repair_in_loop": True}
    result = prune_target(conv_target(), make_settings({**few, **own[preset]}))
    assert result.repaired is not None
    assert result.in_loop
    if preset == "black-box":
        assert result.gain is not None
        assert result.gain >= 0
    if preset == "pareto":
        assert len(result.front) > 1


class Phases(Observer):
    """An observer that keeps the names of what begins."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def phase(self, name: str, detail: str) -> None:
        """Keep it."""
        self.names.append(name)


def test_a_network_that_cannot_be_repaired_is_refused_at_once() -> None:
    """The message names the reason, the option and the way out, before any calibration input is made."""
    net = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False))
    heard = Phases()
    with pytest.raises(InputError, match=r"^repair_in_loop: .*0: has no bias.*--repair-in-loop"):
        prune(net, inputs=InputOptions(range=(0, 1)), observer=heard, **SMALL, repair_in_loop=True)
    assert heard.names == []


@pytest.mark.parametrize("stated", [{}, {"repair": False}, {"repair": True}])
def test_repair_in_the_loop_is_repair_at_the_end_too(stated: dict[str, bool]) -> None:
    """It is implied, whatever is said of the other."""
    assert make_settings({"sparsity": 0.5, "repair_in_loop": True, **stated}).repair
    alone = make_settings({"sparsity": 0.5, **stated})
    assert alone.repair == stated.get("repair", False)
    assert not alone.repair_in_loop


def test_the_command_says_by_what_masks_were_chosen(run: Run, place: Path) -> None:
    """Rows after repair say so, the strict one stays, and the run can be repeated."""
    ran = run("prune", *OWN, "--sparsity", "0.5", *TINY, "--repair-in-loop", "--out", "r")
    assert ran.code == 0
    lines = [line.strip().split("  ")[0] for line in ran.out.splitlines()]
    assert {"evolved", "evolved, repaired", "magnitude, repaired"} <= set(lines)
    assert "magnitude" not in lines
    assert "both repaired, on the validation inputs" in ran.out
    assert "masks were chosen by how they do after repair" in ran.out
    assert (place / "r" / "repaired.safetensors").exists()
    assert run("prune", "--config", "r/config.toml", "--out", "r", "--overwrite").code == 0


def test_a_one_shot_method_has_one_row_of_each_kind(capsys: pytest.CaptureFixture[str]) -> None:
    """Strict and repaired; among the repaired baselines it is not listed twice."""
    settings = make_settings({**SMALL, "method": "lamp", "repair_in_loop": True})
    show_result(prune_target(conv_target(), settings), stdout())
    lines = [line.strip().split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    assert lines.count("lamp") == lines.count("lamp, repaired") == 1
    assert "magnitude, repaired" in lines
