"""A validation of two halves: inverted inputs that nobody searches on, and generated ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from batchnorm_targets import vector_target
from hypothesis import given
from hypothesis import strategies as st
from search_cases import seeded
from torch import Tensor

from gaprune.calibration.calibration_set import CalibrationSet, make_calibration_set, mix_validation
from gaprune.calibration.samples import Samples
from gaprune.config import make_settings


@pytest.fixture
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAPRUNE_CACHE", str(tmp_path))


@given(st.integers(2, 60), st.integers(2, 60), st.integers(0, 99))
def test_halves_are_equal_and_nothing_is_lost(made: int, generated: int, seed: int) -> None:
    """A fifth of what was made, half of the validation inputs at most; the rest stays for the search."""
    inverted = Samples(torch.arange(made), None, "inverted")
    others = Samples(100 + torch.arange(generated), None, "generated: uniform")
    validation, rest = mix_validation(inverted, others, seeded(seed))
    held = validation.inputs[validation.inputs < 100]
    assert len(held) == min(max(1, made // 5), generated // 2)
    assert torch.equal(validation.inputs[validation.inputs >= 100], others.inputs[: len(held)])
    assert sorted([*held.tolist(), *rest.inputs.tolist()]) == list(range(made))
    assert validation.source == "held-out part of inverted, and as many generated: uniform"
    assert rest.source == "inverted"


@pytest.mark.parametrize(("made", "generated"), [(1, 9), (9, 1)])
def test_what_is_too_small_stays_whole(made: int, generated: int) -> None:
    """One input cannot both search and judge."""
    inverted, others = (Samples(torch.zeros(n), None, "some") for n in (made, generated))
    validation, rest = mix_validation(inverted, others, seeded())
    assert validation is others
    assert rest is inverted


def rows(inputs: Tensor) -> set[bytes]:
    """Return every input as bytes."""
    return {row.contiguous().numpy().tobytes() for row in inputs}


def plan_of(validation: str = "auto", **counts: int) -> CalibrationSet:
    """Return the calibration inputs of a small run with inverted inputs."""
    wanted = {"calibration_count": 40, "validation_count": 24, "inversions": 30, **counts}
    calibration = ("inversion", "procedural")
    settings = make_settings(
        {"sparsity": 0.5, "calibration": calibration, "validation": validation, **wanted}
    )
    return make_calibration_set(vector_target(near=True), settings, seeded())


@pytest.mark.usefixtures("_own_cache")
def test_no_inverted_input_both_searches_and_judges() -> None:
    """24 are left of 30; the generator of the other half is not in the search."""
    plan = plan_of()
    assert plan.gradient_inputs is not None
    assert plan.mixture is not None
    assert (len(plan.gradient_inputs.inputs), len(plan.validation.inputs)) == (24, 12)
    assert not rows(plan.validation.inputs) & (
        rows(plan.gradient_inputs.inputs) | rows(plan.search.inputs)
    )
    judge = plan.validation.source.partition("generated: ")[2].partition(",")[0]
    assert judge
    assert judge not in plan.mixture.shares


@pytest.mark.usefixtures("_own_cache")
def test_a_stated_validation_judges_alone() -> None:
    """All inverted inputs search then."""
    plan = plan_of(validation="sparse")
    assert plan.gradient_inputs is not None
    assert len(plan.gradient_inputs.inputs) == 30
    assert plan.validation.source == "generated: sparse, from another seed"
    assert len(plan.validation.inputs) == 24
