"""One threshold for all weights, against numpy and networks zeroed by hand."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from search_cases import seeded, tiny_model
from torch import Tensor, nn

from gaprune.calibration.samples import Samples
from gaprune.comparison.methods.threshold import (
    ThresholdPoint,
    ThresholdSweep,
    percentile_mask,
    sweep_thresholds,
)
from gaprune.errors import InputError
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import Target, target_from_module

WEIGHTS = ("0.weight", "2.weight", "4.weight")
BIASES = ("0.bias", "2.bias", "4.bias")


def target_of(model: nn.Module) -> Target:
    """Return a target that takes vectors of six."""
    return target_from_module(model, inputs=InputOptions(shape=(6,)))


TARGET = target_of(tiny_model())
INPUTS = torch.rand(150, 6, generator=seeded(1))
LABELS = TARGET.model(INPUTS).argmax(1)
LABELS[:30] = (LABELS[:30] + 1) % 4  # the dense network has an accuracy of 0.8
HELD_OUT = Samples(INPUTS, LABELS, "test")
UNLABELLED = Samples(INPUTS, None, "test")


def linear_of(values: Sequence[float]) -> Target:
    """Return a target with one layer of these weights."""
    model = nn.Linear(len(values), 1, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([values]))
    return target_from_module(model, inputs=InputOptions(shape=(len(values),)))


@given(
    st.lists(st.integers(-20, 20).map(float), min_size=1, max_size=40)
    | st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40),
    st.sampled_from([0.1, 0.25, 0.5, 0.9, 0.95, 0.98, 0.99, 1 / 3]),
)
def test_weights_above_the_percentile_are_kept(values: list[float], sparsity: float) -> None:
    """The percentile is numpy's, with interpolation and ties."""
    mask = percentile_mask(linear_of(values), sparsity)
    magnitudes = np.abs(np.array(values, dtype=np.float32)).astype(np.float64)
    threshold = np.percentile(magnitudes, 100 * sparsity)
    near = np.isclose(magnitudes, threshold, rtol=1e-12, atol=0)  # numpy's position is rounded
    assert np.array_equal(mask.numpy()[~near], (magnitudes > threshold)[~near])


def test_ties_at_the_percentile_are_removed_together() -> None:
    """Fewer weights stay than the budget allows: here three, and none."""
    mask = percentile_mask(linear_of([1, -2, 2, 2, 2, 2, 2, 5, 6, -7]), 0.5)
    assert mask.nonzero().flatten().tolist() == [7, 8, 9]
    assert not percentile_mask(linear_of([3, -3, 3]), 0.5).any()


def zeroed(threshold: float, names: Sequence[str]) -> nn.Module:
    """Return the network with weights below the threshold set to zero, one by one."""
    model = copy.deepcopy(TARGET.model)
    for name in names:
        values = model.get_parameter(name).view(-1)
        for i, value in enumerate(values.tolist()):
            if abs(value) < threshold:
                values[i] = 0
    return model


@pytest.mark.parametrize("biases", [False, True])
def test_every_point_is_the_network_zeroed_by_hand(biases: bool) -> None:
    """Fractions by layer, accuracy on the labels, agreement with the dense network."""
    thresholds = [1.0, 0.0, 0.4, 9.0, 0.4]
    reported: list[ThresholdPoint] = []
    sweep = sweep_thresholds(TARGET, thresholds, HELD_OUT, biases=biases, on_point=reported.append)
    assert tuple(reported) == sweep.points
    assert [point.threshold for point in sweep.points] == [0.0, 0.4, 1.0, 9.0]
    assert sweep.dense_accuracy == pytest.approx(0.8)
    names = WEIGHTS + BIASES if biases else WEIGHTS
    dense = TARGET.model(INPUTS).argmax(1)
    for point in sweep.points:
        model = zeroed(point.threshold, names)
        classes = model(INPUTS).argmax(1)
        assert point.agreement == pytest.approx(float((classes == dense).float().mean()))
        assert point.accuracy == pytest.approx(float((classes == LABELS).float().mean()))
        zeros = {n: float((model.get_parameter(n) == 0).float().mean()) for n in names}
        assert point.row()["zeroed"] == pytest.approx(zeros)
    rows = sweep.rows()
    assert rows[0]["sparsity"] == 0
    assert (rows[0]["agreement"], rows[0]["accuracy"]) == (1.0, pytest.approx(0.8))
    assert rows[-1]["sparsity"] == 1  # layers may go as a whole


def test_the_default_range_ends_at_99_5_percent() -> None:
    """25 even steps, of which the first zeroes nothing."""
    sweep = sweep_thresholds(TARGET, None, UNLABELLED)
    steps = [point.threshold for point in sweep.points]
    assert len(steps) == 25
    assert steps[0] == 0
    assert np.diff(steps) == pytest.approx(np.full(24, steps[-1] / 24))
    assert sweep.points[-1].sparsity == pytest.approx(0.995, abs=1 / 200)
    assert all(point.accuracy is None for point in sweep.points)
    assert sweep.dense_accuracy is None


def sweep_of(figures: Sequence[float], dense: float | None) -> ThresholdSweep:
    """Return a sweep with these accuracies, or agreements where there is no dense accuracy."""
    points = [
        ThresholdPoint(i / 10, (), figure, None if dense is None else figure)
        for i, figure in enumerate(figures)
    ]
    return ThresholdSweep(tuple(points), dense)


@given(
    st.lists(st.integers(0, 100).map(lambda n: n / 100), min_size=1, max_size=8),
    st.none() | st.just(0.9),
    st.integers(0, 50).map(lambda n: n / 100),
)
def test_largest_within_stops_at_the_first_larger_drop(
    figures: list[float], dense: float | None, drop: float
) -> None:
    """Later points that recover do not count; without labels, agreement is compared."""
    point = sweep_of(figures, dense).largest_within(drop)
    reference = 100 if dense is None else 90
    good = [reference - round(100 * f) <= round(100 * drop) for f in figures]
    count = good.index(False) if False in good else len(good)
    assert (None if point is None else round(10 * point.threshold) + 1) == (count or None)


class Dividing(nn.Module):
    """Divides by the sum of its outputs, which gives NaN if all weights are 0."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 4, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.fc(inputs)
        logits: Tensor = hidden / hidden.abs().sum(1, keepdim=True)
        return logits


def test_outputs_that_are_not_finite_count_as_wrong() -> None:
    """An empty network that divides by zero agrees on no input."""
    model = Dividing()
    with torch.no_grad():
        model.fc.weight.copy_(torch.rand(4, 6, generator=seeded()) + 0.1)
    sweep = sweep_thresholds(target_of(model), [0, 99], Samples(INPUTS, LABELS % 4, ""))
    assert sweep.points[0].agreement == 1
    assert (sweep.points[1].agreement, sweep.points[1].accuracy) == (0, 0)


def test_agreement_of_a_regression_is_explained_variance() -> None:
    """1 − relative error, at least 0; class labels are refused."""
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 1))
    target = target_of(model)
    sweep = sweep_thresholds(target, [0, 0.2, 99], UNLABELLED)
    assert sweep.points[0].agreement == 1
    expected = []
    for threshold in (0.2, 99):
        masks = {name: w.abs() >= threshold for name, w in target.weights.items()}
        dense, pruned = target.model(INPUTS), target.masked_copy(masks)(INPUTS)
        error = (pruned - dense).square().sum() / (dense - dense.mean(0)).square().sum()
        expected.append(max(0.0, 1 - float(error)))
    assert [p.agreement for p in sweep.points[1:]] == pytest.approx(expected, abs=1e-5)
    with pytest.raises(InputError, match=r"held_out: .*\[N, 1\]"):
        sweep_thresholds(target, [0], HELD_OUT)


@pytest.mark.parametrize("thresholds", [[], [-0.1], [0.1, math.nan], [math.inf]])
def test_thresholds_are_finite_magnitudes(thresholds: list[float]) -> None:
    """At least one is needed."""
    with pytest.raises(InputError, match=r"thresholds: "):
        sweep_thresholds(TARGET, thresholds, UNLABELLED)


def test_held_out_inputs_must_fit() -> None:
    """The error gives the shape of both."""
    with pytest.raises(InputError, match=r"held_out: .*6.*\(3, 5\)"):
        sweep_thresholds(TARGET, [0], Samples(torch.rand(3, 5), None, ""))
