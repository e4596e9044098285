"""Objectives, compared with torch, plain loops and closed forms; functions of users."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_cases import seeded
from torch import Tensor
from torch.nn import functional

from gaprune.errors import InputError
from gaprune.evaluation.objectives import (
    AUTO,
    OBJECTIVES,
    SHARPNESS,
    WORST,
    find_objective,
    finite,
    relative_error,
)


def random_outputs(seed: int, *shape: int) -> Tensor:
    """Return random outputs."""
    return 2 * torch.randn(*shape, generator=seeded(seed))


@settings(max_examples=30)
@given(st.integers(0, 999), st.integers(1, 20), st.integers(2, 9), st.booleans())
def test_kl_equals_that_of_torch_on_sharpened_predictions(
    seed: int, count: int, classes: int, maps: bool
) -> None:
    """KL(teacher ‖ outputs) of the logits times `SHARPNESS`, mean over inputs."""
    shape = (count, classes, 3) if maps else (count, classes)
    outputs, teacher = random_outputs(seed, *shape), random_outputs(seed + 1, *shape)
    reference = functional.kl_div(
        functional.log_softmax(SHARPNESS * outputs.double(), 1),
        functional.softmax(SHARPNESS * teacher.double(), 1),
        reduction="none",
    ).sum(1)
    kl = OBJECTIVES["kl"]
    assert kl.loss is not None
    divergence = kl.loss(outputs, teacher, None).item()
    assert divergence == pytest.approx(reference.mean().item(), rel=1e-4, abs=1e-5)
    assert kl.score(outputs, teacher, None) == pytest.approx(-divergence)
    assert kl.score(teacher, teacher, None) == pytest.approx(0, abs=1e-6)


@given(st.integers(0, 999), st.integers(2, 20), st.integers(2, 9), st.floats(0.05, 20))
def test_scaled_kl_ignores_the_scale_of_logits(
    seed: int, count: int, classes: int, scale: float
) -> None:
    """Nor does a constant added to all logits of an input matter; equal logits are finite."""
    outputs, teacher = (random_outputs(seed + shift, count, classes) for shift in (0, 1))
    scaled = OBJECTIVES["scaled-kl"]
    fitness = scaled.score(outputs, teacher, None)
    moved = scale * outputs + random_outputs(seed + 2, count, 1)
    assert scaled.score(moved, teacher, None) == pytest.approx(fitness, rel=1e-3, abs=1e-3)
    assert scaled.score(scale * teacher, teacher, None) == pytest.approx(0, abs=1e-3)
    assert WORST < scaled.score(torch.ones(count, classes), teacher, None) < 0


@settings(max_examples=30)
@given(st.integers(0, 999), st.integers(1, 20), st.integers(2, 5))
def test_agreement_and_accuracy_count_equal_classes(seed: int, count: int, classes: int) -> None:
    """Both equal a loop over the inputs."""
    outputs, teacher = (random_outputs(seed + shift, count, classes) for shift in (0, 1))
    labels = torch.randint(classes, (count,), generator=seeded(seed))

    def predictions(rows: Tensor) -> list[int]:
        return [row.index(max(row)) for row in rows.tolist()]

    pairs = zip(predictions(outputs), predictions(teacher), labels.tolist(), strict=True)
    agreeing, correct = map(sum, zip(*((a == b, a == label) for a, b, label in pairs), strict=True))
    agreement, accuracy = OBJECTIVES["agreement"], OBJECTIVES["accuracy"]
    assert agreement.score(outputs, teacher, None) == agreeing / count
    assert accuracy.score(outputs, teacher, labels) == correct / count
    for objective in (agreement, accuracy, OBJECTIVES["kl"]):
        assert float(objective.agreement(outputs, teacher, labels)) == agreeing / count


def test_the_loss_of_accuracy_is_the_cross_entropy_of_sharpened_predictions() -> None:
    """Written out for labels."""
    outputs, labels = random_outputs(1, 12, 4), torch.randint(4, (12,), generator=seeded())
    loss = OBJECTIVES["accuracy"].loss
    assert loss is not None
    rows = functional.log_softmax(SHARPNESS * outputs, 1)[torch.arange(12), labels]
    assert loss(outputs, outputs, labels).item() == pytest.approx(-rows.mean().item())


@pytest.mark.parametrize("deviations", [0.0, 0.5, 1.0, 3.0])
def test_relative_error_has_its_closed_form(deviations: float) -> None:
    """k² for outputs k deviations off; the explained variance is 1 − k², never below 0."""
    objective, teacher = OBJECTIVES["relative-error"], random_outputs(1, 50, 3) + 7
    outputs = teacher + deviations * (teacher.mean(0, keepdim=True) - teacher)
    error = deviations**2
    assert relative_error(outputs, teacher).item() == pytest.approx(error, rel=1e-5)
    assert objective.score(outputs, teacher, None) == pytest.approx(-error, rel=1e-5)
    explained = float(objective.agreement(outputs, teacher, None))
    assert explained == pytest.approx(max(0, 1 - error), abs=1e-5)


def test_a_constant_teacher_causes_no_division_by_zero() -> None:
    """Equal outputs are perfect, all others have the worst fitness."""
    objective, teacher = OBJECTIVES["relative-error"], torch.ones(4, 1)
    assert objective.score(teacher, teacher, None) == 0
    assert objective.score(teacher + 1, teacher, None) == WORST


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_become_the_worst_value(value: float) -> None:
    """Selection never sees NaN."""
    assert finite(value) == WORST
    for name in ("kl", "relative-error"):
        outputs = torch.full((3, 2), value)
        assert OBJECTIVES[name].score(outputs, random_outputs(1, 3, 2), None) == WORST


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((8, 10), "kl"),
        ((8, 2), "kl"),
        ((8, 1), "relative-error"),
        ((8,), "relative-error"),
        ((8, 16, 4), "relative-error"),
        ((8, 3, 5, 5), "relative-error"),
    ],
)
def test_auto_depends_on_the_shape_of_the_outputs(shape: tuple[int, ...], expected: str) -> None:
    """Two axes with at least two columns are logits."""
    assert find_objective(AUTO, torch.zeros(shape)).name == expected


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_are_looked_up_by_name(name: str) -> None:
    """Those of classes are refused for outputs without classes."""
    assert find_objective(name, torch.zeros(4, 3)) is OBJECTIVES[name]
    if name in ("kl", "agreement", "accuracy"):
        with pytest.raises(InputError, match=rf"{name}.*\(4, 1\).*relative-error"):
            find_objective(name, torch.zeros(4, 1))


def test_an_unknown_objective_is_refused_with_the_valid_names() -> None:
    """The nearest name, all others, and the form for files."""
    with pytest.raises(InputError, match=r"'acuracy'.*'accuracy'") as caught:
        find_objective("acuracy", torch.zeros(4, 3))
    assert all(name in str(caught.value) for name in (*OBJECTIVES, AUTO, "FILE.py:FUNCTION"))


def test_accuracy_without_labels_is_refused() -> None:
    """The error names the option for labels."""
    with pytest.raises(InputError, match="labelled:FILE"):
        OBJECTIVES["accuracy"].score(torch.zeros(4, 3), torch.zeros(4, 3), None)


USER_FILE = """
import torch

def closeness(outputs, teacher, labels):
    print("noise on stdout")
    return 1 - float((outputs - teacher).abs().max())

def tensor(outputs, teacher, labels):
    return (outputs - teacher).abs().max()

def nothing(outputs, teacher, labels):
    pass

def several(outputs, teacher, labels):
    return torch.zeros(3)

def text(outputs, teacher, labels):
    return "good"

def not_a_number(outputs, teacher, labels):
    return float("nan")

def broken(outputs, teacher, labels):
    raise KeyError("oops")

CONSTANT = 3
"""


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    """A file with objectives of a user."""
    path = tmp_path / "own.py"
    path.write_text(USER_FILE)
    return path


@pytest.mark.parametrize(
    ("name", "expected"), [("closeness", 0.75), ("tensor", 0.25), ("not_a_number", WORST)]
)
def test_a_function_of_the_user_is_an_objective(
    user_file: Path, capsys: pytest.CaptureFixture[str], name: str, expected: float
) -> None:
    """It has no loss; agreement still compares with the teacher; stdout stays free for results."""
    spec, teacher = f"{user_file}:{name}", torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    objective = find_objective(spec, teacher)
    assert objective.score(teacher + 0.25, teacher, None) == expected
    assert (objective.loss, objective.name) == (None, spec)
    assert float(objective.agreement(teacher, teacher, None)) == 1
    regression = find_objective(spec, teacher[:, :1])
    assert float(regression.agreement(teacher[:, :1], teacher[:, :1], None)) == 1
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "NoneType"),
        ("several", "Tensor"),
        ("text", "str"),
        ("broken", "KeyError: 'oops'"),
        ("clossness", "closeness"),
        ("CONSTANT", "'CONSTANT'"),
    ],
)
def test_a_faulty_function_of_the_user_is_named(user_file: Path, name: str, message: str) -> None:
    """With its file, and what it returned or raised."""
    zeros = torch.zeros(2, 3)
    with pytest.raises(InputError, match=rf"objective: .*own\.py.*{message}"):
        find_objective(f"{user_file}:{name}", zeros).score(zeros, zeros, None)


@pytest.mark.parametrize("spec", ["none.py:f", "none.py:"])
def test_a_missing_file_is_named(spec: str) -> None:
    """As an error of the argument."""
    with pytest.raises(InputError, match=r"^objective: .*none\.py"):
        find_objective(spec, torch.zeros(4, 3))
