"""A method that cannot do it says so in its row; criteria of the user's own, good and bad."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from comparison_cases import SPARSITIES, ask, spec, timeless, tiny_data
from search_cases import tiny_model
from torch import nn

from gaprune import InputOptions
from gaprune.comparison import ComparisonData, compare_target
from gaprune.errors import InputError
from gaprune.models.target import target_from_module


def test_without_training_data_a_row_says_so_and_the_others_go_on() -> None:
    """Every method that needs labels names the way out."""
    found = ask(
        ("imp:linear", "magnitude", "slimming"), data=ComparisonData(None, tiny_data().test)
    )
    errors = {row.method: row.error for row in found.rows}
    assert errors["magnitude"] is None
    for name in ("imp:linear", "slimming"):
        assert errors[name] is not None
        assert "train: this method needs labelled training data" in str(errors[name])
    assert [row.method for row in found.rows] == [
        name for name in ("imp:linear", "magnitude", "slimming") for _ in SPARSITIES
    ]


def test_a_failure_names_the_layer_and_spares_the_other_sparsities() -> None:
    """Every layer at the same density: the smallest keeps nothing at 0.99."""
    net = nn.Sequential(nn.Linear(60, 30), nn.Tanh(), nn.Linear(30, 1), nn.Linear(1, 3))
    target = target_from_module(net, inputs=InputOptions(range=(0, 1)))
    found = compare_target(target, spec(("magnitude-layer", "lamp"), (0.5, 0.9)))
    errors = {(row.method, row.sparsity): row.error for row in found.rows}
    assert errors.pop(("magnitude-layer", 0.9)) == (
        "sparsity: 0.9 keeps nothing of layer '3.weight' (3 weights) when every layer keeps the "
        "same density; use a lower sparsity or --scope allocated"
    )
    assert set(errors.values()) == {None}


class Fragile(nn.Module):
    """A network whose code breaks in training, in a way that no rule of ours foresees."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tiny_model()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            raise KeyError("two\nlines")
        out: torch.Tensor = self.inner(inputs)
        return out


def test_whatever_the_network_raises_ends_one_row_only() -> None:
    """In one line, with its type."""
    target = target_from_module(Fragile(), inputs=InputOptions(range=(0, 1)))
    found = compare_target(target, spec(("imp:direct", "imp:cubic", "lamp")), data=tiny_data())
    errors = {row.method: row.error for row in found.rows}
    assert errors == {
        "imp:direct": r"KeyError: 'two\nlines'",
        "imp:cubic": r"KeyError: 'two\nlines'",
        "lamp": None,
    }


class Whole(Fragile):
    """A network that does not run with weights of 0."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if any((parameter == 0).any() for parameter in self.parameters()):
            raise ValueError("a hole")
        out: torch.Tensor = self.inner(inputs)
        return out


def test_a_network_that_cannot_be_measured_has_a_row_all_the_same() -> None:
    """The method was done, and what it made does not run."""
    target = target_from_module(Whole(), inputs=InputOptions(range=(0, 1)))
    found = compare_target(target, spec(("magnitude", "lamp")), data=tiny_data())
    assert [row.error for row in found.rows] == ["ValueError: a hole"] * 4


CRITERIA = """
import torch

def size(network, inputs, density, generator):
    return network.flat.abs()

def chance(network, inputs, density, generator):
    return torch.rand(network.layout.total, generator=generator)

def shown(network, inputs, density, generator):
    assert inputs.shape == (32, 6) and 0 < density < 1
    return network.flat.double().square()

def vandal(network, inputs, density, generator):
    inputs.zero_()
    for weight in network.weights.values():
        weight.zero_()
    return torch.arange(network.layout.total)

def raises(network, inputs, density, generator):
    raise ValueError("not today")

def few(network, inputs, density, generator):
    return torch.ones(3)

def nothing(network, inputs, density, generator):
    return None

def holes(network, inputs, density, generator):
    return network.flat * float("nan")

def leaves(network, inputs, density, generator):
    raise SystemExit(3)

number = 3
"""


@pytest.fixture
def own(tmp_path: Path) -> str:
    """Return the path of a file of criteria."""
    path = tmp_path / "own.py"
    path.write_text(CRITERIA)
    return str(path)


def test_an_own_criterion_stands_beside_the_others(own: str) -> None:
    """Sizes of weights, or their squares, are magnitude; the row bears the user's name."""
    names = ("magnitude", f"{own}:size", f"{own}:shown")
    by_name = {
        name: [(r.actual, r.accuracy, r.error) for r in ask((name,)).rows if r.method == name]
        for name in names
    }
    assert by_name[names[0]] == by_name[names[1]] == by_name[names[2]]
    assert [actual for actual, _, _ in by_name[names[0]]] == list(SPARSITIES)


def test_an_own_criterion_draws_from_the_seed(own: str) -> None:
    """Another seed is another row, the same seed the same."""
    rows = ask((f"{own}:chance",), seeds=range(5)).rows
    assert timeless(rows) == timeless(ask((f"{own}:chance",), seeds=range(5)).rows)
    assert len({row.agreement for row in rows if row.sparsity == 0.5}) > 1


def test_an_own_criterion_spoils_nothing_for_the_others(own: str) -> None:
    """It may overwrite weights and calibration inputs: it has its own."""
    others = ("magnitude", "snip", "imp:direct")
    found = ask((f"{own}:vandal", *others))
    assert timeless(r for r in found.rows if r.method in others) == timeless(ask(others).rows)
    assert all(row.error is None for row in found.rows)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", "raised ValueError: not today"),
        ("few", r"must return one score for each of the 200 prunable weights.*got (3,)"),
        ("nothing", "must return one score for each of the 200 prunable weights.*got NoneType"),
        ("holes", "72 of 72 scores of layer '0.weight' are not finite"),
        ("leaves", "raised SystemExit: 3"),
    ],
)
def test_a_bad_criterion_says_what_is_wrong_and_the_others_go_on(
    name: str, message: str, own: str
) -> None:
    """In its row, once for each sparsity."""
    found = ask((f"{own}:{name}", "lamp"))
    bad, good = found.rows[:2], found.rows[2:]
    for part in message.split(".*"):
        assert all(part in str(row.error) for row in bad)
    assert [row.error for row in good] == [None, None]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{}:none", "methods: .*'none'"),
        ("{}:number", "methods: .*'number'"),
        ("{}x:size", "methods: .*FILE.py:FUNCTION"),
        ("{}", "methods: .*FILE.py:FUNCTION"),
    ],
)
def test_a_criterion_that_is_not_there_is_refused(spec: str, message: str, own: str) -> None:
    """Before anything is computed."""
    with pytest.raises(InputError, match=message):
        ask((spec.format(own),))
