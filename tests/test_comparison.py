"""Comparisons: what each row states, and what it must not depend on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from comparison_cases import (
    EPOCHS,
    SPARSITIES,
    ConvNet,
    RecordingObserver,
    compare_tiny,
    images,
    labelled,
    spec,
    timeless,
    tiny_data,
    tiny_target,
)
from search_cases import tiny_model
from torch import nn
from torch.nn.utils import prune as torch_prune

import gaprune
from gaprune import InputOptions, prune_target
from gaprune.comparison import Comparison, ComparisonData, compare_target, find_methods
from gaprune.comparison.context import ComparisonContext, ComparisonObserver
from gaprune.comparison.methods.iterative import SCHEDULES
from gaprune.config import make_settings
from gaprune.models.target import target_from_module

MASK_METHODS = (  # these hit the budget exactly
    *("random", "magnitude", "lamp", "erk", "synflow", "snip", "grasp", "taylor", "wanda"),
    *("wanda-rows", "correlation", "magnitude-layer", "clustered", "evolved", "threshold"),
    *(f"imp:{schedule}" for schedule in SCHEDULES),
)
METHODS = (*MASK_METHODS, "structured-l1", "structured-l2")


def is_seeded(name: str) -> bool:
    """Tell whether a method's result depends on the seed."""
    return find_methods((name,))[0].seeded


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    """All methods except those that use thousands of inputs, two sparsities, two seeds."""
    return compare_tiny(METHODS, seeds=(0, 1))


def test_there_is_one_row_for_each_method_sparsity_and_seed(comparison: Comparison) -> None:
    """Methods without randomness have rows of the first seed only; none failed."""
    expected = {
        (name, sparsity, seed)
        for name in METHODS
        for sparsity in SPARSITIES
        for seed in ((0, 1) if is_seeded(name) else (0,))
    }
    assert {row.key for row in comparison.rows} == expected
    assert len(comparison.rows) == len(expected)
    assert {(row.target, row.error) for row in comparison.rows} == {("Sequential", None)}


def test_rows_meet_the_budget(comparison: Comparison) -> None:
    """Masks of single weights exactly; whole channels remove at least the sparsity."""
    for row in comparison.rows:
        assert row.actual is not None
        assert row.actual >= row.sparsity
        assert row.actual == row.sparsity or row.method.startswith("structured")


def test_accuracy_and_agreement_are_those_of_the_masked_network(comparison: Comparison) -> None:
    """A copy pruned by `torch.nn.utils.prune.global_unstructured` gives the same figures."""
    test = tiny_data().test
    assert test is not None
    for sparsity in SPARSITIES:
        dense, model = tiny_model(), tiny_model()
        parameters = [
            (layer, "weight") for layer in model.modules() if isinstance(layer, nn.Linear)
        ]
        torch_prune.global_unstructured(
            parameters, torch_prune.L1Unstructured, amount=round(sparsity * 200)
        )
        classes = model(test.inputs).argmax(1)
        (row,) = (r for r in comparison.rows if r.key == ("magnitude", sparsity, 0))
        assert row.accuracy == float((classes == test.labels).double().mean())
        assert row.agreement == float((classes == dense(test.inputs).argmax(1)).double().mean())
        assert row.dense_accuracy == comparison.dense_accuracy
    assert comparison.dense_accuracy == float(
        (tiny_model()(test.inputs).argmax(1) == test.labels).double().mean()
    )
    assert comparison.measured_on == test.source


def test_a_row_depends_on_no_other_row(comparison: Comparison) -> None:
    """A method alone, or methods, sparsities and seeds in another order, give the same rows."""
    for name in ("snip", "grasp", "imp:linear"):
        alone = compare_tiny((name,), seeds=(0, 1))
        assert timeless(alone.rows) == timeless(r for r in comparison.rows if r.method == name)
    names = ("evolved", "imp:cubic", "random", "imp:direct")
    reordered = compare_tiny(names, sparsities=SPARSITIES[::-1], seeds=(1, 0))
    expected = {row.key: row for row in timeless(comparison.rows) if row.method in names}
    assert {row.key: row for row in timeless(reordered.rows)} == expected


def test_effort_adds_up(comparison: Comparison) -> None:
    """Epochs follow the schedules; seconds grow along a path; a search counts evaluations."""
    rows = {row.key: row for row in comparison.rows}
    assert rows["magnitude", 0.5, 0].epochs == rows["magnitude", 0.5, 0].evaluations == 0
    assert rows["imp:direct", 0.5, 0].epochs == pytest.approx(EPOCHS)
    assert rows["imp:direct", 0.75, 0].epochs == pytest.approx(2 * EPOCHS)
    assert rows["imp:linear", 0.75, 0].epochs == pytest.approx(8 * EPOCHS)  # .1 to .7, and .75
    assert rows["imp:long", 0.75, 0].epochs == pytest.approx(16 * EPOCHS)
    assert rows["imp:cubic", 0.5, 0].epochs == pytest.approx(10 * EPOCHS)
    assert rows["evolved", 0.5, 0].evaluations > 0
    for row in comparison.rows:
        if row.path:
            assert row.path == SPARSITIES
            assert row.seconds >= rows[row.method, 0.5, row.seed].seconds


def test_trained_methods_record_every_step(comparison: Comparison) -> None:
    """Linear steps of 10 % lead to the row; the last step has the row's accuracy."""
    for row in comparison.rows:
        if row.method == "imp:linear":
            tenths = [tenth / 10 for tenth in range(1, 10) if tenth / 10 < row.sparsity]
            expected = sorted({*tenths, *(s for s in SPARSITIES if s <= row.sparsity)})
            assert [step["sparsity"] for step in row.steps] == expected
            assert row.steps[-1]["accuracy"] == row.accuracy
        elif not row.needs.training:
            assert row.steps == ()


@pytest.mark.parametrize("preset", ["default", "classic"])
def test_evolved_is_what_prune_returns(preset: str, tmp_path: Path) -> None:
    """The same settings give the same weights, bit for bit."""
    samples = labelled(60, 3)
    assert samples.labels is not None
    np.savez(tmp_path / "samples.npz", x=samples.inputs.numpy(), y=samples.labels.numpy())
    calibration = (f"labelled:{tmp_path / 'samples.npz'}",)
    settings = {"preset": preset, "calibration": calibration, "generations": 2}
    comparison_spec = spec(("evolved",), settings=settings)
    context = ComparisonContext(tiny_target(), comparison_spec, None, ComparisonObserver())
    (entrant,) = find_methods(("evolved",))[0].run(context, (0.75,), 3)
    stated = comparison_spec.settings.model_dump(exclude_unset=True)
    pruned = prune_target(tiny_target(), make_settings({**stated, "sparsity": 0.75, "seed": 3}))
    assert entrant.evaluations == pruned.evaluations
    state = pruned.pruned_model().state_dict()
    assert all(value.equal(state[name]) for name, value in entrant.model.state_dict().items())


def test_distillation_needs_no_data() -> None:
    """Rows meet the budget, and are the same without another method beside it."""
    data = ComparisonData(None, tiny_data().test)
    rows = compare_tiny(("lamp", "distilled"), seeds=(0, 1), data=data, epochs=0.005).rows
    distilled = [row for row in rows if row.method == "distilled"]
    assert [row.actual for row in distilled] == [*SPARSITIES, *SPARSITIES]
    assert {row.needs.data for row in distilled} == {"inversion"}  # auto adds impressions
    alone = compare_tiny(("distilled",), seeds=(1,), data=data, epochs=0.005).rows
    assert timeless(alone) == timeless(distilled[2:])


def test_without_test_labels_rows_have_agreement_only() -> None:
    """It is measured on the validation inputs, and is the score."""
    comparison = compare_tiny(("magnitude", "random"), data=ComparisonData())
    assert comparison.dense_accuracy is None
    assert "impressions" in comparison.measured_on
    for row in comparison.rows:
        assert row.accuracy is None
        assert row.agreement is not None
        assert row.score == row.agreement
        assert 0 <= row.agreement <= 1


def test_compare_does_not_change_the_network() -> None:
    """Parameters, buffers, mode and gradients of the module stay."""
    network = ConvNet().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    train, test = images(32, 1), images(32, 2)
    assert train.labels is not None
    assert test.labels is not None
    gaprune.compare(
        network,
        sparsity=0.5,
        methods=("magnitude", "imp:direct", "slimming", "clustered"),
        inputs=InputOptions(shape=(1, 8, 8), range=(0, 1)),
        train=(train.inputs, train.labels),
        test=(test.inputs, test.labels),
        epochs=0.5,
    )
    assert network.training
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_compare_takes_single_values() -> None:
    """One sparsity, method and seed need no tuple; `prune_also` and other dtypes work."""
    test = tiny_data().test
    assert test is not None
    assert test.labels is not None
    comparison = gaprune.compare(
        tiny_model(dtype=torch.float64),
        sparsity=0.5,
        methods="random",
        seeds=7,
        inputs=InputOptions(range=(0, 1)),
        test=(test.inputs, test.labels.to(torch.uint8)),
        prune_also=("0.bias",),
    )
    assert [(row.key, row.actual) for row in comparison.rows] == [(("random", 0.5, 7), 0.5)]
    classes = tiny_model(dtype=torch.float64)(test.inputs.double()).argmax(1)
    assert comparison.dense_accuracy == float((classes == test.labels).double().mean())


def test_progress_never_goes_back() -> None:
    """Every part starts and moves forward; rows are counted to the end."""
    observer = RecordingObserver()
    names = ("magnitude", "evolved", "imp:linear")
    comparison = compare_tiny(names, observer=observer, seeds=(0, 1), epochs=1)
    assert tuple(observer.rows) == comparison.rows
    assert observer.counts == [(number, 10) for number in range(1, 11)]
    last: dict[str, float] = {}
    for what, done, total in observer.updates:
        assert done >= last.get(what, 0.0)
        assert total is None or done <= total
        last[what] = done
    assert last["imp:linear, epoch"] == last["imp:linear, seed 1, epoch"] == 8
    assert last["evolved 0.5, generation"] == last["evolved 0.75, seed 1, generation"] == 1
    assert last["magnitude 0.5"] == 0


def test_a_warning_of_every_search_is_reported_once() -> None:
    """Four searches assume the same input range."""
    observer = RecordingObserver()
    target = target_from_module(tiny_model(), inputs=InputOptions())
    rows = compare_target(target, spec(("evolved",), seeds=(0, 1)), observer=observer).rows
    assert [row.error for row in rows] == [None] * 4
    assert sum("0 to 1" in text for text in observer.warnings) == 1
