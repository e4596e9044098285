"""Every method on the same network, budgets and held-out labels: what a row depends on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from comparison_cases import (
    EPOCHS,
    SPARSITIES,
    ConvNet,
    Heard,
    ask,
    conv_target,
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
from gaprune.comparison import (
    Comparison,
    ComparisonData,
    compare,
    compare_target,
    find_methods,
)
from gaprune.comparison.context import ComparisonContext, ComparisonObserver
from gaprune.comparison.methods.iterative import SCHEDULES
from gaprune.config import make_settings
from gaprune.models.target import target_from_module

IMP = tuple(f"imp:{schedule}" for schedule in SCHEDULES)
MASKS = (  # methods that hit the budget exactly
    *("random", "magnitude", "lamp", "erk", "synflow", "snip", "grasp", "taylor", "wanda"),
    *("wanda-rows", "correlation"),
    *("magnitude-layer", "clustered", "evolved", *IMP, "threshold"),
)
TOTAL = 200  # prunable weights of the tiny network


def seeded(name: str) -> bool:
    """Tell whether a method's result depends on the seed."""
    return find_methods((name,))[0].seeded


@pytest.fixture(scope="module")
def together() -> Comparison:
    """All methods except those that use thousands of inputs, two sparsities, two seeds."""
    return ask((*MASKS, "structured-l1", "structured-l2"), seeds=(0, 1))


def test_there_is_one_row_for_each_method_sparsity_and_seed(together: Comparison) -> None:
    """A method without chance has rows of the first seed only; none failed."""
    expected = {
        (name, sparsity, seed)
        for name in (*MASKS, "structured-l1", "structured-l2")
        for sparsity in SPARSITIES
        for seed in ((0, 1) if seeded(name) else (0,))
    }
    assert {row.key for row in together.rows} == expected
    assert len(together.rows) == len(expected)
    assert [row.error for row in together.rows] == [None] * len(expected)
    assert {row.target for row in together.rows} == {"model"}


def test_mask_methods_meet_the_budget_exactly(together: Comparison) -> None:
    """Half and three quarters of 200 weights are whole numbers."""
    for row in together.rows:
        if row.method in MASKS:
            assert row.actual == row.sparsity, row


def test_whole_channels_stay_within_the_budget(together: Comparison) -> None:
    """They remove at least what was asked, and the table says how much where it is more."""
    rows = [row for row in together.rows if row.method == "structured-l1"]
    assert all(row.actual is not None and row.actual >= row.sparsity for row in rows)


def test_accuracy_and_agreement_are_those_of_the_masked_network(together: Comparison) -> None:
    """Global magnitude: a copy pruned by torch.nn.utils.prune gives the same two numbers."""
    test = tiny_data().test
    assert test is not None
    for sparsity in SPARSITIES:
        dense, model = tiny_model(), tiny_model()
        parts = [(layer, "weight") for layer in layers_of(model)]
        torch_prune.global_unstructured(
            parts, torch_prune.L1Unstructured, amount=round(sparsity * TOTAL)
        )
        chosen = model(test.inputs).argmax(1)
        (row,) = (r for r in together.rows if r.key == ("magnitude", sparsity, 0))
        assert row.accuracy == float((chosen == test.labels).double().mean())
        assert row.agreement == float((chosen == dense(test.inputs).argmax(1)).double().mean())
        assert row.dense_accuracy == together.dense_accuracy
    assert together.dense_accuracy == float(
        (tiny_model()(test.inputs).argmax(1) == test.labels).double().mean()
    )
    assert together.measured_on == test.source


def test_a_row_does_not_depend_on_the_methods_beside_it(together: Comparison) -> None:
    """Each method alone gives what it gives among the others, but for the seconds."""
    for name in ("random", "snip", "grasp", "evolved", "imp:linear", "imp:cubic"):
        alone = ask((name,), seeds=(0, 1))
        assert timeless(alone.rows) == timeless(r for r in together.rows if r.method == name)


def test_a_row_does_not_depend_on_the_order(together: Comparison) -> None:
    """Methods, sparsities and seeds in another order give the same rows."""
    names = tuple(reversed((*MASKS, "structured-l1", "structured-l2")))
    turned = ask(names, sparsities=SPARSITIES[::-1], seeds=(1, 0))
    chance = {name for name in names if seeded(name)}
    first = {r.key: r for r in timeless(together.rows) if r.method in chance}
    assert {r.key: r for r in timeless(turned.rows) if r.method in chance} == first


def test_a_row_does_not_depend_on_other_sparsities_where_none_is_on_its_way() -> None:
    """Gradual pruning makes a run of its own for each, so one alone is the same."""
    names = ("evolved", "imp:cubic", "random", "synflow")
    several = [row for row in ask(names).rows if row.sparsity == 0.75]
    assert timeless(ask(names, sparsities=(0.75,)).rows) == timeless(several)


def test_seeds_matter_where_there_is_chance(together: Comparison) -> None:
    """Two seeds of a method with chance are not the same row twice."""
    for name in ("random", "imp:direct", "imp:linear"):
        by_seed = {
            seed: [r.accuracy for r in together.rows if r.method == name and r.seed == seed]
            for seed in (0, 1)
        }
        assert by_seed[0] != by_seed[1]


def test_effort_adds_up(together: Comparison) -> None:
    """Epochs as the schedules say, evaluations of a search, seconds that grow along a path."""
    rows = {row.key: row for row in together.rows}
    assert rows["magnitude", 0.5, 0].epochs == rows["magnitude", 0.5, 0].evaluations == 0
    assert rows["imp:direct", 0.5, 0].epochs == pytest.approx(EPOCHS)
    assert rows["imp:direct", 0.75, 0].epochs == pytest.approx(2 * EPOCHS)
    assert rows["imp:linear", 0.75, 0].epochs == pytest.approx(8 * EPOCHS)  # .1 to .7, and .75
    assert rows["imp:long", 0.75, 0].epochs == pytest.approx(16 * EPOCHS)
    assert rows["imp:cubic", 0.5, 0].epochs == pytest.approx(10 * EPOCHS)
    assert rows["evolved", 0.5, 0].evaluations > 0
    for row in together.rows:
        if row.path:
            assert row.path == SPARSITIES
            assert row.seconds >= rows[row.method, 0.5, row.seed].seconds


@pytest.mark.parametrize("preset", ["default", "black-box", "classic"])
def test_evolved_is_what_a_pruning_run_finds(preset: str, tmp_path: Path) -> None:
    """With the same settings, a preset's own scope and objective among them."""
    shown = labelled(60, 3)
    assert shown.labels is not None
    np.savez(tmp_path / "shown.npz", x=shown.inputs.numpy(), y=shown.labels.numpy())
    stated = {
        "preset": preset,
        "calibration": (f"labelled:{tmp_path / 'shown.npz'}",),
        "generations": 2,
    }
    asked = spec(("evolved",), settings=stated)
    context = ComparisonContext(tiny_target(), asked, None, ComparisonObserver())
    (found,) = find_methods(("evolved",))[0].run(context, (0.75,), 3)
    limits = asked.settings.model_dump(exclude_unset=True)
    pruned = prune_target(tiny_target(), make_settings({**limits, "sparsity": 0.75, "seed": 3}))
    assert found.evaluations == pruned.evaluations
    state = pruned.pruned_model().state_dict()
    assert all(value.equal(state[name]) for name, value in found.model.state_dict().items())


def test_edge_popup_meets_the_budget() -> None:
    """And counts a step as an evaluation."""
    (row,) = ask(("edge-popup",), sparsities=(0.75,)).rows
    assert (row.actual, row.evaluations, row.error) == (0.75, 1200, None)


def test_distilling_needs_no_data_and_meets_the_budget() -> None:
    """The same alone as beside others; calibration inputs of another seed teach something else."""
    data = ComparisonData(None, tiny_data().test)
    found = ask(("lamp", "distilled"), seeds=(0, 1), data=data, epochs=0.005)
    rows = [row for row in found.rows if row.method == "distilled"]
    assert [row.actual for row in rows] == [*SPARSITIES, *SPARSITIES]
    assert {row.needs.data for row in rows} == {"procedural"}
    assert timeless(ask(("distilled",), seeds=(1,), data=data, epochs=0.005).rows) == timeless(
        rows[2:]
    )


def test_without_test_labels_agreement_is_measured_on_the_validation() -> None:
    """There is no accuracy; a network that loses nothing agrees with itself."""
    found = ask(("magnitude", "random"), data=ComparisonData())
    assert found.dense_accuracy is None
    assert "generated" in found.measured_on
    for row in found.rows:
        assert row.accuracy is None
        assert row.agreement is not None
        assert 0 <= row.agreement <= 1
        assert row.score == row.agreement


def test_weights_that_do_nothing_can_go_for_free() -> None:
    """Where half of the weights are zero, magnitude loses nothing at half the weights."""
    model = tiny_model()
    with torch.no_grad():
        weights = [layer.weight for layer in layers_of(model)]
        middle = torch.cat([weight.abs().flatten() for weight in weights]).median()
        for weight in weights:
            weight.masked_fill_(weight.abs() <= middle, 0)
    found = compare(
        model, sparsity=0.5, methods=("magnitude", "threshold"), inputs=InputOptions(range=(0, 1))
    )
    assert [row.agreement for row in found.rows] == [1.0, 1.0]


def layers_of(model: nn.Module) -> list[nn.Linear]:
    """Return the linear layers."""
    return [layer for layer in model.modules() if isinstance(layer, nn.Linear)]


def test_slimming_removes_channels_of_a_network_with_batchnorm() -> None:
    """At least as many weights as asked; without BatchNorm the row says so."""
    data = ComparisonData(images(48, 1), images(40, 2))
    (row,) = compare_target(conv_target(), spec(("slimming",), (0.5,)), data=data).rows
    assert row.error is None
    assert row.actual is not None
    assert 0.5 <= row.actual < 0.9
    assert row.epochs == pytest.approx(5 * EPOCHS)
    (row,) = ask(("slimming",), sparsities=(0.5,)).rows
    assert "BatchNorm" in str(row.error)


def test_the_network_stays_as_it_is() -> None:
    """Parameters, buffers, mode and gradients of a live module."""
    network = ConvNet().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    train, test = images(32, 1), images(32, 2)
    assert train.labels is not None
    assert test.labels is not None
    compare(
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


def test_compare_takes_one_of_each() -> None:
    """One sparsity, one method, one seed need no tuple; the dtype of the data does not matter."""
    test = tiny_data().test
    assert test is not None
    assert test.labels is not None
    found = gaprune.compare(
        tiny_model(dtype=torch.float64),
        sparsity=0.5,
        methods="random",
        seeds=7,
        inputs=InputOptions(range=(0, 1)),
        test=(test.inputs, test.labels.to(torch.uint8)),
    )
    assert [row.key for row in found.rows] == [("random", 0.5, 7)]
    chosen = tiny_model(dtype=torch.float64)(test.inputs.double()).argmax(1)
    assert found.dense_accuracy == float((chosen == test.labels).double().mean())


def test_further_parameters_are_pruned_where_asked() -> None:
    """As `gaprune.prune` does."""
    found = compare(
        tiny_model(),
        sparsity=0.5,
        methods="magnitude",
        inputs=InputOptions(range=(0, 1)),
        prune_also=("0.bias",),
    )
    assert found.rows[0].actual == 0.5  # of 212


def test_progress_is_told_and_never_goes_back() -> None:
    """Each part begins, and moves forward; rows are counted to the end."""
    heard = Heard()
    found = ask(("magnitude", "evolved", "imp:linear"), observer=heard, seeds=(0, 1), epochs=1)
    assert tuple(heard.rows) == found.rows
    assert heard.counts == [(number, 10) for number in range(1, 11)]
    last: dict[str, float] = {}
    for what, done, total in heard.progressed:
        assert done >= last.get(what, 0.0)
        assert total is None or done <= total
        last[what] = done
    assert last["imp:linear, epoch"] == last["imp:linear, seed 1, epoch"] == 8
    assert last["evolved 0.5, generation"] == 1
    assert last["evolved 0.75, seed 1, generation"] == 1
    assert last["magnitude 0.5"] == 0


def test_an_assumed_range_is_said_once() -> None:
    """Not by every search; and nothing else is said twice."""
    heard = Heard()
    target = target_from_module(tiny_model(), inputs=InputOptions())
    found = compare_target(target, spec(("evolved",), seeds=(0, 1)), observer=heard)
    assert [row.error for row in found.rows] == [None] * 4
    assumed = [text for text in heard.warnings if "0 to 1 is assumed" in text]
    assert len(assumed) == 1


def test_methods_that_train_note_every_step(together: Comparison) -> None:
    """Linear steps of 10 % lead to the row, each with its accuracy; the last is the row itself."""
    for row in together.rows:
        if row.method == "imp:linear":
            passed = [step["sparsity"] for step in row.steps]
            tenths = [tenth / 10 for tenth in range(1, 10) if tenth / 10 < row.sparsity]
            assert passed == sorted({*tenths, *(s for s in SPARSITIES if s <= row.sparsity)})
            assert row.steps[-1]["accuracy"] == row.accuracy
            assert all(0 <= float(step["agreement"] or 0) <= 1 for step in row.steps)
        elif not row.needs.training:
            assert row.steps == ()
