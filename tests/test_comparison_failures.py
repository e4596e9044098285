"""What a comparison refuses, what a method's failure leaves, and criteria of the user."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from comparison_cases import EPOCHS, SPARSITIES, compare_tiny, spec, timeless, tiny_data
from search_cases import tiny_model
from torch import Tensor, nn

from gaprune import InputOptions
from gaprune.comparison import ComparisonData, compare, compare_target
from gaprune.comparison.comparison_request import make_request
from gaprune.comparison.methods.iterative import PruningStep
from gaprune.errors import InputError
from gaprune.models.target import target_from_module


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 1.0}, "sparsity: .*0.*1"),
        ({"sparsity": (0.5, float("nan"))}, "sparsity: .*0.*1"),
        ({"sparsity": (0.5, 0.999)}, "sparsity: .*0.999.*0.*200.*0.985"),
        ({"methods": "none.py:score"}, "methods: .*none.py"),
        ({"methods": "imp-cubic"}, "methods: .*imp:cubic"),
        ({"methods": "imp:cubik"}, "methods: .*'cubic'"),
        ({"seeds": -1}, "seeds: .*-1"),
        ({"seeds": (0, 2**32)}, "seeds: .*0, 4294967296"),
        ({"epochs": float("nan")}, "epochs: .*0"),
        ({"clusters": 0}, "clusters: .*1.*0"),
        ({"schedule": "cubik"}, "schedule: .*'cubic'"),
        ({"seed": 3}, "seed: "),
        ({"method": "lamp"}, "method: "),
        ({"repair_in_loop": True}, "repair_in_loop: "),
        ({"sparsity": (0.5, 0.9), "floor": 0.2}, "floor: .*0.2.*floor="),
        ({"sede": 3}, "setting: .*'sede'"),
        ({"validation": "nois"}, "validation: .*'nois'"),
        ({"train": (torch.rand(4, 5), torch.zeros(4).long())}, "train: "),
        ({"test": (torch.rand(4, 6), torch.zeros(4))}, "test: "),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    options: dict[str, object], message: str, tmp_path: Path
) -> None:
    """The error names the argument; the folder does not exist."""
    valid = {"sparsity": 0.5, "methods": "magnitude", "inputs": InputOptions(range=(0, 1))}
    with pytest.raises(InputError, match=f"^{message}"):
        compare(tiny_model(), **{**valid, **options}, out=tmp_path / "rows")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_custom_schedule_must_contain_every_sparsity() -> None:
    """The error gives the missing sparsity; a complete schedule is followed exactly."""
    steps = [PruningStep(0.5, EPOCHS), PruningStep(0.75, EPOCHS)]
    rows = compare_tiny(("imp",), schedule=steps).rows
    assert [row.epochs for row in rows] == [pytest.approx(EPOCHS), pytest.approx(2 * EPOCHS)]
    assert [row.actual for row in rows] == [0.5, 0.75]
    with pytest.raises(InputError, match=r"0.75.*0.9.*0.75.*1"):
        compare_tiny(("imp",), sparsities=(0.9, 0.75), schedule=steps[:1])


def test_settings_of_single_runs_are_refused() -> None:
    """A comparison has no Pareto front, fixed method or repair; `repair = false` is harmless."""
    request = make_request({"target": "mnist-mlp", "repair": False, "pareto": False})
    assert request == make_request({"target": "mnist-mlp"})
    with pytest.raises(InputError, match=r"config key: .*'repair'"):
        make_request({"target": "mnist-mlp", "repair": True})
    for changes in ({"pareto": True}, {"method": "lamp"}, {"repair": True}):
        with pytest.raises(InputError, match=r"settings: "):
            spec(("evolved",), settings=changes)


def test_methods_without_training_data_fail_alone() -> None:
    """Their rows name `train:`; the rows of other methods are complete."""
    names = ("imp:linear", "magnitude", "slimming")
    rows = compare_tiny(names, data=ComparisonData(None, tiny_data().test)).rows
    assert [row.method for row in rows] == [name for name in names for _ in SPARSITIES]
    for row in rows:
        assert (row.error is None) == (row.method == "magnitude")
        assert row.error is None or row.error.startswith("train: ")


def test_a_failure_at_one_sparsity_spares_the_others() -> None:
    """The row names the layer of which the same density keeps nothing."""
    net = nn.Sequential(nn.Linear(60, 30), nn.Tanh(), nn.Linear(30, 1), nn.Linear(1, 3))
    target = target_from_module(net, inputs=InputOptions(range=(0, 1)))
    rows = compare_target(target, spec(("magnitude-layer", "lamp"), (0.5, 0.9))).rows
    errors = {(row.method, row.sparsity): row.error for row in rows}
    assert "'3.weight'" in str(errors.pop(("magnitude-layer", 0.9)))
    assert set(errors.values()) == {None}


class Fragile(nn.Module):
    """A network that raises in training mode, or with a weight of 0."""

    def __init__(self, *, zeros: bool) -> None:
        super().__init__()
        self.inner, self.zeros = tiny_model(), zeros

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            raise KeyError("two\nlines")
        if not self.zeros and any((parameter == 0).any() for parameter in self.parameters()):
            raise ValueError("a hole")
        outputs: Tensor = self.inner(inputs)
        return outputs


@pytest.mark.parametrize("zeros", [True, False])
def test_an_exception_of_the_network_fails_one_method(zeros: bool) -> None:
    """The row has its type and text in one line, from training and from measuring."""
    target = target_from_module(Fragile(zeros=zeros), inputs=InputOptions(range=(0, 1)))
    rows = compare_target(target, spec(("imp:direct", "imp:cubic", "lamp")), data=tiny_data()).rows
    errors = {row.method: row.error for row in rows}
    assert errors == {
        "imp:direct": r"KeyError: 'two\nlines'",
        "imp:cubic": r"KeyError: 'two\nlines'",
        "lamp": None if zeros else "ValueError: a hole",
    }


CRITERIA = """
import torch

def size(network, inputs, density, generator):
    return network.flat.abs()

def square(network, inputs, density, generator):
    assert inputs.shape == (32, 6) and 0 < density < 1
    return network.flat.double().square()

def overwrite(network, inputs, density, generator):
    inputs.zero_()
    for weight in network.weights.values():
        weight.zero_()
    return torch.rand(network.layout.total, generator=generator)

def raises(network, inputs, density, generator):
    raise ValueError("not today")

def few(network, inputs, density, generator):
    return torch.ones(3)

def nothing(network, inputs, density, generator):
    return None

def nan(network, inputs, density, generator):
    return network.flat * float("nan")

def leaves(network, inputs, density, generator):
    raise SystemExit(3)

number = 3
"""


@pytest.fixture
def criteria_file(tmp_path: Path) -> str:
    """A file with criteria, good and bad."""
    path = tmp_path / "criteria.py"
    path.write_text(CRITERIA)
    return str(path)


def test_a_custom_criterion_gives_the_rows_of_the_built_in_one(criteria_file: str) -> None:
    """Magnitude, the same scores from a file, and their squares remove the same weights."""
    figures = []
    for name in ("magnitude", f"{criteria_file}:size", f"{criteria_file}:square"):
        rows = compare_tiny((name,)).rows
        assert {row.method for row in rows} == {name}
        figures.append([(row.actual, row.accuracy, row.error) for row in rows])
    assert figures[0] == figures[1] == figures[2]
    assert [actual for actual, _, _ in figures[0]] == list(SPARSITIES)


def test_a_custom_criterion_cannot_change_other_rows(criteria_file: str) -> None:
    """It may overwrite weights and inputs, which are copies; its random scores repeat."""
    others, name = ("magnitude", "snip", "imp:direct"), f"{criteria_file}:overwrite"
    rows = compare_tiny((name, *others)).rows
    assert timeless(r for r in rows if r.method in others) == timeless(compare_tiny(others).rows)
    assert timeless(compare_tiny((name,)).rows) == timeless(r for r in rows if r.method == name)
    assert all(row.error is None for row in rows)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("raises", ["ValueError", "not today"]),
        ("few", ["200", "(3,)"]),
        ("nothing", ["200", "NoneType"]),
        ("nan", ["72 of 72", "'0.weight'"]),
        ("leaves", ["SystemExit: 3"]),
    ],
)
def test_a_bad_criterion_fails_alone(name: str, parts: list[str], criteria_file: str) -> None:
    """Each of its rows has the error, and the rows of other methods are complete."""
    rows = compare_tiny((f"{criteria_file}:{name}", "lamp")).rows
    assert all(part in str(row.error) for row in rows[:2] for part in parts)
    assert [row.error for row in rows[2:]] == [None, None]


@pytest.mark.parametrize(
    ("name", "message"),
    [("{}:none", "'none'"), ("{}:number", "'number'"), ("{}x:size", "FILE.py"), ("{}", "FILE.py")],
)
def test_an_unknown_criterion_is_refused(name: str, message: str, criteria_file: str) -> None:
    """Before anything is computed."""
    with pytest.raises(InputError, match=f"methods: .*{message}"):
        compare_tiny((name.format(criteria_file),))
