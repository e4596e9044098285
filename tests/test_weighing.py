"""Who weighs the generators: remembered statistics beside inverted inputs, else the teacher."""

from __future__ import annotations

import pytest
import torch
from batchnorm_targets import vector_target
from search_cases import seeded

from gaprune.calibration.auto import mixture_fitter
from gaprune.calibration.generator_choice import (
    GeneratorChoice,
    choose_generators,
    mutual_information,
    shares_by_name,
)
from gaprune.calibration.generators.procedural import GENERATORS
from gaprune.calibration.parse import parse_calibration
from gaprune.models.target import Target

TABLE = GENERATORS["vector"]


@pytest.fixture(scope="module")
def far() -> Target:
    """A network that remembers what no generator draws."""
    return vector_target(near=False)


@pytest.fixture(scope="module")
def near() -> Target:
    """A network that remembers uniform vectors."""
    return vector_target(near=True)


def weights_of(target: Target, *calibration: str, validation: str = "auto") -> GeneratorChoice:
    """Return how the generators of a request are weighed."""
    request = parse_calibration(calibration, target.inputs)
    return choose_generators(target, request, validation, seeded(), held_out=False)


def test_beside_inverted_inputs_stands_the_blend(far: Target) -> None:
    """The nearest blend's shares; the best generator outside of it judges."""
    for calibration in (("inversion",), ("inversion", "procedural")):
        found = weights_of(far, *calibration)
        whole = mixture_fitter(far).fit()
        outside = [name for name in TABLE if name not in whole.shares]
        assert outside
        assert found.shares == pytest.approx(whole.shares)
        assert found.validation == min(outside, key=lambda name: whole.single_divergence[name])
        assert not found.mutual_information


def test_a_blend_of_all_gives_its_smallest_part_to_the_validation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The others are blended without it."""
    other = vector_target(near=True)
    table = dict.fromkeys(("one", "two", "three"), TABLE["uniform"])
    monkeypatch.setitem(GENERATORS, "vector", table)
    whole = mixture_fitter(other).fit().shares
    assert len(whole) == 3
    found = weights_of(other, "inversion")
    assert found.validation == min(whole, key=lambda name: whole[name])
    assert set(found.shares) == set(whole) - {found.validation}
    assert sum(found.shares.values()) == pytest.approx(1)


def test_a_named_validation_is_left_out_of_the_blend(near: Target) -> None:
    """Even where it is nearest."""
    found = weights_of(near, "inversion", "procedural", validation="uniform")
    assert found.validation == "uniform"
    assert "uniform" not in found.shares
    assert sum(found.shares.values()) == pytest.approx(1)


def test_named_generators_stay_as_named(far: Target) -> None:
    """Beside inverted inputs too; where all are named, the nearest judges with another seed."""
    found = weights_of(far, "inversion", "sparse", "noise")
    assert found.shares == {"sparse": 0.5, "noise": 0.5}
    assert found.validation not in found.shares
    found = weights_of(far, "inversion", *TABLE)
    assert found.shares == pytest.approx(dict.fromkeys(TABLE, 1 / len(TABLE)))
    alone = mixture_fitter(far).fit().single_divergence
    assert found.validation == min(alone, key=lambda name: alone[name])


def test_statistics_draw_nothing_from_the_run(far: Target) -> None:
    """The generator of the run is as before; the same target is surveyed once."""
    generator = seeded(3)
    request = parse_calibration(("inversion",), far.inputs)
    choose_generators(far, request, "auto", generator, held_out=False)
    assert torch.equal(generator.get_state(), seeded(3).get_state())
    assert mixture_fitter(far) is mixture_fitter(far)


def test_without_inversion_the_teacher_weighs(far: Target) -> None:
    """By mutual information, with BatchNorm or without; the runner-up judges."""
    found = weights_of(far, "procedural")
    wanted = mutual_information(far.model, far.inputs, TABLE, seeded())
    assert found.mutual_information == wanted
    assert found.validation == list(wanted)[1]
    assert found.shares == shares_by_name(["procedural"], wanted, found.validation)


def test_a_file_that_judges_needs_no_weights(far: Target) -> None:
    """Nothing is shown where only files are used."""
    generator = seeded(3)
    request = parse_calibration(("a.npz",), far.inputs)
    assert choose_generators(far, request, "auto", generator, held_out=True) == GeneratorChoice(
        {}, None, {}
    )
    assert torch.equal(generator.get_state(), seeded(3).get_state())
