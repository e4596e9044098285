"""Objectives against torch's own functions, plain loops and closed forms; users' own functions."""

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
    Objective,
    find_objective,
    finite,
    relative_error,
)


def outputs_of(seed: int, *shape: int) -> Tensor:
    """Return random outputs."""
    return 2 * torch.randn(*shape, generator=seeded(seed))


@settings(max_examples=30)
@given(st.integers(0, 999), st.integers(1, 20), st.integers(2, 9), st.booleans())
def test_kl_is_that_of_torch_on_sharpened_predictions(
    seed: int, count: int, classes: int, maps: bool
) -> None:
    """KL(teacher ‖ outputs) of the logits times the documented sharpness, mean over inputs."""
    shape = (count, classes, 3) if maps else (count, classes)
    outputs, teacher = outputs_of(seed, *shape), outputs_of(seed + 1, *shape)
    reference = functional.kl_div(
        functional.log_softmax(SHARPNESS * outputs.double(), 1),
        functional.softmax(SHARPNESS * teacher.double(), 1),
        reduction="none",
    ).sum(1)
    kl = OBJECTIVES["kl"]
    assert kl.loss is not None
    found = kl.loss(outputs, teacher, None).item()
    assert found == pytest.approx(reference.mean().item(), rel=1e-4, abs=1e-5)
    assert kl.score(outputs, teacher, None) == pytest.approx(-found)
    assert kl.score(teacher, teacher, None) == pytest.approx(0, abs=1e-6)


@settings(max_examples=30)
@given(st.integers(0, 999), st.integers(1, 20), st.integers(2, 5))
def test_agreement_and_accuracy_count_equal_classes(seed: int, count: int, classes: int) -> None:
    """Both against a loop over the inputs."""
    outputs, teacher = outputs_of(seed, count, classes), outputs_of(seed + 1, count, classes)
    labels = torch.randint(classes, (count,), generator=seeded(seed))

    def named(row: Tensor) -> int:
        values = row.tolist()
        return values.index(max(values))

    agreeing = sum(named(a) == named(b) for a, b in zip(outputs, teacher, strict=True))
    right = sum(named(a) == int(b) for a, b in zip(outputs, labels, strict=True))
    agreement, accuracy = OBJECTIVES["agreement"], OBJECTIVES["accuracy"]
    assert agreement.score(outputs, teacher, None) == agreeing / count
    assert accuracy.score(outputs, teacher, labels) == right / count
    for objective in (agreement, accuracy, OBJECTIVES["kl"]):
        assert float(objective.agreement(outputs, teacher, labels)) == agreeing / count


def test_accuracy_is_steered_by_the_cross_entropy_of_sharpened_predictions() -> None:
    """Its gradient is torch's cross-entropy on the labels."""
    outputs, labels = outputs_of(1, 12, 4), torch.randint(4, (12,), generator=seeded())
    loss = OBJECTIVES["accuracy"].loss
    assert loss is not None
    rows = functional.log_softmax(SHARPNESS * outputs, 1)[torch.arange(12), labels]
    assert loss(outputs, outputs, labels).item() == pytest.approx(-rows.mean().item())


def test_relative_error_has_its_closed_form() -> None:
    """0 for the teacher's own answers, 1 for their mean, k² for answers k deviations off."""
    teacher = outputs_of(1, 50, 3) + 7
    mean = teacher.mean(0, keepdim=True)
    assert relative_error(teacher, teacher).item() == 0
    assert relative_error(mean.expand_as(teacher), teacher).item() == pytest.approx(1)
    assert relative_error(teacher + 3 * (teacher - mean), teacher).item() == pytest.approx(9)
    objective = OBJECTIVES["relative-error"]
    assert float(objective.agreement(teacher, teacher, None)) == 1
    assert float(objective.agreement(teacher * 9, teacher, None)) == 0  # never below 0
    half = teacher + 0.5 * (teacher - mean)
    assert float(objective.agreement(half, teacher, None)) == pytest.approx(0.75)
    assert objective.score(half, teacher, None) == pytest.approx(-0.25)


def test_a_constant_teacher_is_no_division_by_zero() -> None:
    """Where the teacher never varies, the same answers are perfect and any other the worst."""
    objective, teacher = OBJECTIVES["relative-error"], torch.ones(4, 1)
    assert objective.score(teacher, teacher, None) == 0
    assert objective.score(teacher + 1, teacher, None) == WORST


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_the_worst_finite_value(value: float) -> None:
    """Selection never sees NaN, which would win every comparison."""
    assert finite(value) == WORST
    outputs = torch.full((3, 2), value)
    for name in ("kl", "relative-error"):
        score = OBJECTIVES[name].score(outputs, outputs_of(1, 3, 2), None)
        assert score == WORST


@given(st.floats(-1e8, 1e8))
def test_finite_numbers_pass_as_they_are(value: float) -> None:
    """Nothing else is touched, and nothing is worse than what is not finite."""
    assert finite(value) == value
    assert finite(value * 1e30) >= WORST


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
def test_auto_looks_at_the_outputs(shape: tuple[int, ...], expected: str) -> None:
    """Two axes with at least two columns are logits; everything else is compared as numbers."""
    assert find_objective(AUTO, torch.zeros(shape)).name == expected


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_are_found_by_name(name: str) -> None:
    """Every key works on logits."""
    assert find_objective(name, torch.zeros(4, 3)) is OBJECTIVES[name]


@pytest.mark.parametrize("name", ["kl", "agreement", "accuracy"])
def test_class_objectives_need_classes(name: str) -> None:
    """A regressor has none; the message says its shape and the way out."""
    with pytest.raises(InputError, match=rf"{name}.*\(4, 1\).*relative-error"):
        find_objective(name, torch.zeros(4, 1))


def test_an_unknown_objective_is_refused_with_the_valid_names() -> None:
    """The nearest name and all of them, the user's own form included."""
    with pytest.raises(InputError, match=r"'acuracy' \(did you mean 'accuracy'\?\)") as caught:
        find_objective("acuracy", torch.zeros(4, 3))
    for name in (*OBJECTIVES, AUTO, "FILE.py:FUNCTION"):
        assert name in str(caught.value)


def test_accuracy_without_labels_is_refused() -> None:
    """It says where labels come from."""
    with pytest.raises(InputError, match="labelled:FILE"):
        OBJECTIVES["accuracy"].score(torch.zeros(4, 3), torch.zeros(4, 3), None)


OWN = """
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
def own(tmp_path: Path) -> Path:
    """Return a user's file of objectives."""
    path = tmp_path / "own.py"
    path.write_text(OWN)
    return path


def found(own: Path, name: str, classes: int = 3) -> Objective:
    """Return the user's objective `name`."""
    return find_objective(f"{own}:{name}", torch.zeros(4, classes))


def test_the_users_own_function_is_an_objective(
    own: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is a black box, its numbers count, and the judge still compares with the teacher."""
    teacher = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    objective = found(own, "closeness")
    assert objective.score(teacher + 0.25, teacher, None) == 0.75
    assert found(own, "tensor").score(teacher + 0.25, teacher, None) == 0.25
    assert objective.loss is None
    assert objective.name == f"{own}:closeness"
    assert float(objective.agreement(teacher, teacher, None)) == 1
    assert (
        float(found(own, "closeness", classes=1).agreement(teacher[:, :1], teacher[:, :1], None))
        == 1
    )
    assert capsys.readouterr().out == ""  # stdout is for results


def test_the_users_nan_is_the_worst_value(own: Path) -> None:
    """Their numbers pass the same filter."""
    assert found(own, "not_a_number").score(torch.zeros(2, 3), torch.zeros(2, 3), None) == WORST


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "must return one number, got NoneType"),
        ("several", "must return one number, got Tensor"),
        ("text", "must return one number, got str"),
        ("broken", "broken raised KeyError: 'oops'"),
    ],
)
def test_a_users_function_that_goes_wrong_is_named(own: Path, name: str, message: str) -> None:
    """What it returned or raised, with the file and its name."""
    with pytest.raises(InputError, match=rf"objective: .*own\.py:{name}") as caught:
        found(own, name).score(torch.zeros(2, 3), torch.zeros(2, 3), None)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{own}:clossness", "has no function 'clossness'; it has .*closeness"),
        ("{own}:CONSTANT", "has no function 'CONSTANT'"),
        ("{own}x.py:closeness", "no file"),
        ("{own}:", "must be path/to/file.py:function"),
    ],
)
def test_a_missing_file_or_function_is_named(own: Path, spec: str, message: str) -> None:
    """Nothing runs; the message says what is there."""
    with pytest.raises(InputError, match=f"objective: .*{message}"):
        find_objective(spec.format(own=own), torch.zeros(4, 3))
