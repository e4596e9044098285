"""Parsing of `--calibration`, and which generators suit a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from batchnorm_targets import bare_network, vector_target
from hypothesis import given
from hypothesis import strategies as st
from search_cases import seeded
from torch import Tensor, nn
from torch.nn import functional

from gaprune.calibration.auto import mixture_fitter
from gaprune.calibration.domain_fit import mutual_information
from gaprune.calibration.generator_choice import (
    GeneratorChoice,
    choose_generators,
    shares_by_name,
)
from gaprune.calibration.generators.mixture import GeneratorMixture
from gaprune.calibration.generators.procedural import GENERATORS
from gaprune.calibration.parse import CalibrationFile, parse_calibration
from gaprune.errors import InputError
from gaprune.models.input_spec import InputSpec
from gaprune.models.target import Target, load_target
from gaprune.models.zoo import MNIST_INPUT

PENS = {"strokes", "outlines", "glyphs"}
TABLE = GENERATORS["vector"]
VECTOR = InputSpec((6,), "vector")


@pytest.mark.parametrize(
    ("words", "names", "level", "path"),
    [
        (["procedural"], ("procedural",), None, ""),
        (["auto"], (), None, ""),
        (["strokes", "noise"], ("strokes", "noise"), None, ""),
        (["impressions"], (), None, ""),
        (["impressions", "blobs"], ("blobs",), None, ""),
        (["mnist-train"], (), "unlabelled", "mnist-train"),
        (["labelled:a.npz"], (), "labelled", "a.npz"),
        (["proxy:photos/cats"], (), "proxy", "photos/cats"),
        (["unlabelled:a.npz", "fields"], ("fields",), "unlabelled", "a.npz"),
        (["x.npy+y.npy"], (), "unlabelled", "x.npy+y.npy"),
        ([r"C:\data\x.npz"], (), "unlabelled", r"C:\data\x.npz"),
    ],
)
def test_words_are_generators_files_or_optimised_inputs(
    words: list[str], names: tuple[str, ...], level: str | None, path: str
) -> None:
    """A path without a level is unlabelled."""
    request = parse_calibration(words, MNIST_INPUT)
    files = () if level is None else (CalibrationFile(level, path),)
    assert (request.names, request.files) == (names, files)
    assert request.impressions == ("impressions" in words)


def test_an_existing_folder_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if its name has neither dot nor slash."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    files = parse_calibration(["photos"], MNIST_INPUT).files
    assert files == (CalibrationFile("unlabelled", "photos"),)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["strokez"], "strokes"),
        (["procedral"], "procedural"),
        (["labelled:mnist-trian"], "mnist-train"),
        (["tones"], "strokes"),  # a generator of signals
        ([], "auto"),
    ],
)
def test_unknown_words_are_refused_with_the_valid_ones(words: list[str], named: str) -> None:
    """The error lists generators, aliases and the forms of a path."""
    with pytest.raises(InputError, match="calibration") as error:
        parse_calibration(words, MNIST_INPUT)
    for name in (named, "dead-leaves", "noise", "impressions", *words):
        assert name in str(error.value)


def test_pen_drawings_rank_first_for_a_network_of_digits() -> None:
    """mnist-mlp ranks the three pen generators above noise and all others, without any data."""
    table = {**GENERATORS["image"], "noise": lambda spec, n, gen: torch.rand(n, *spec.shape)}
    values = mutual_information(load_target("mnist-mlp"), table, seeded(), 256)
    assert set(list(values)[:3]) == PENS
    assert list(values.values()) == sorted(values.values(), reverse=True)
    assert all(0 <= value <= np.log(10) for value in values.values())


class Confident(nn.Module):
    """Predicts one of four classes by the first feature."""

    def forward(self, x: Tensor) -> Tensor:
        return 100 * functional.one_hot((4 * x[:, 0]).long().clamp(max=3), 4).float()


class Constant(nn.Module):
    """Predicts the same for all inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([1.0, 2.0, 3.0]).expand(len(x), 3)


@pytest.mark.parametrize(
    ("model", "expected"), [(Confident(), np.log(4)), (Constant(), 0), (nn.Linear(6, 1), 0)]
)
def test_mutual_information_of_input_and_class(model: nn.Module, expected: float) -> None:
    """Confident, evenly distributed classes give ln 4; constant outputs and regressors 0."""
    table = {"even": lambda spec, n, gen: torch.arange(n)[:, None].expand(-1, 6) / n}
    values = mutual_information(bare_network(model, VECTOR), table, seeded(), 256)
    assert values["even"] == pytest.approx(expected, abs=1e-9)


@given(
    st.lists(st.sampled_from(["procedural", "noise", *GENERATORS["image"]]), max_size=5),
    st.none() | st.sampled_from(sorted(GENERATORS["image"])),
    st.integers(0, 99),
)
def test_shares_leave_out_the_validation_generator(
    names: list[str], validation: str | None, seed: int
) -> None:
    """Every name beside `procedural` has an equal part."""
    values = torch.rand(len(GENERATORS["image"]), generator=seeded(seed)).tolist()
    shares = shares_by_name(names, dict(zip(GENERATORS["image"], values, strict=True)), validation)
    assert sum(shares.values()) == pytest.approx(1)
    assert validation is None or validation in names or validation not in shares
    for name in set(names) - {"procedural"}:
        assert shares[name] >= 1 / len(set(names)) - 1e-9


def test_a_batch_has_the_shares_of_the_mixture() -> None:
    """Zeros tell the generators apart; inputs have the network's dtype."""
    mixture = GeneratorMixture(VECTOR, {"sparse": 0.7, "noise": 0.3}, torch.float64)
    inputs = mixture.draw(3000, seeded(1))
    assert inputs.dtype == torch.float64
    with_zeros = (inputs == 0).any(1).double().mean().item()
    # Nearly every sparse vector of six has a zero; five standard deviations of a binomial.
    assert with_zeros == pytest.approx(0.7, abs=5 * (0.21 / 3000) ** 0.5 + 0.01)
    assert mixture.description == "sparse 70%, noise 30%"


@pytest.fixture(scope="module")
def far() -> Target:
    """Return a network trained on inputs unlike those of any generator."""
    return vector_target(near=False)


def choice_of(target: Target, *words: str, validation: str = "auto") -> GeneratorChoice:
    """Return the choice of generators for a request."""
    request = parse_calibration(words, target.inputs)
    return choose_generators(target, request, validation, seeded(), held_out=False)


@pytest.mark.parametrize("words", [("inversion",), ("inversion", "procedural")])
def test_inversion_uses_the_fitted_mixture(far: Target, words: tuple[str, ...]) -> None:
    """The nearest generator outside the mixture makes the validation inputs."""
    choice, fit = choice_of(far, *words), mixture_fitter(far).fit()
    outside = [name for name in TABLE if name not in fit.shares]
    assert outside
    assert choice.shares == pytest.approx(fit.shares)
    assert choice.validation == min(outside, key=lambda name: fit.single_divergence[name])
    assert not choice.mutual_information


def test_a_mixture_of_all_gives_its_smallest_part_to_validation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The shares of the others are fitted again."""
    target = vector_target(near=True)
    table = dict.fromkeys(("first", "second", "third"), TABLE["uniform"])
    monkeypatch.setitem(GENERATORS, "vector", table)
    whole = mixture_fitter(target).fit().shares
    choice = choice_of(target, "inversion")
    assert len(whole) == 3
    assert choice.validation == min(whole, key=lambda name: whole[name])
    assert set(choice.shares) == set(whole) - {choice.validation}
    assert sum(choice.shares.values()) == pytest.approx(1)


def test_a_named_validation_generator_is_left_out_of_the_mixture() -> None:
    """Even if it is the nearest generator."""
    target = vector_target(near=True)
    choice = choice_of(target, "inversion", "procedural", validation="uniform")
    assert choice.validation == "uniform"
    assert "uniform" not in choice.shares
    assert sum(choice.shares.values()) == pytest.approx(1)


def test_named_generators_get_equal_parts_beside_inversion(far: Target) -> None:
    """If all are named, the nearest one validates with other random numbers."""
    choice = choice_of(far, "inversion", "sparse", "noise")
    assert choice.shares == {"sparse": 0.5, "noise": 0.5}
    assert choice.validation not in choice.shares
    choice = choice_of(far, "inversion", *TABLE)
    assert choice.shares == pytest.approx(dict.fromkeys(TABLE, 1 / len(TABLE)))
    single = mixture_fitter(far).fit().single_divergence
    assert choice.validation == min(single, key=lambda name: single[name])


@pytest.mark.parametrize("words", [("noise",), ("inversion", "sparse")])
def test_stated_generators_are_not_weighed_where_that_takes_long(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """If validation is stated as well, no measurement decides anything."""
    monkeypatch.setattr("gaprune.calibration.auto.LARGE_MACS", 1)
    target = vector_target(near=False)
    request, passed = parse_calibration(words, target.inputs), []
    target.model.register_forward_pre_hook(lambda _, inputs: passed.append(len(inputs[0])))
    choice = choose_generators(target, request, "uniform", seeded(), held_out=False)
    assert choice == GeneratorChoice({words[-1]: 1.0}, "uniform", {})
    assert sum(passed) <= 1  # an example, to count multiply-adds


@pytest.mark.parametrize(("words", "held_out"), [(("inversion",), False), (("a.npz",), True)])
def test_statistics_and_files_draw_nothing_from_the_run(
    far: Target, words: tuple[str, ...], held_out: bool
) -> None:
    """The generator of the run does not advance."""
    generator, request = seeded(3), parse_calibration(words, far.inputs)
    choice = choose_generators(far, request, "auto", generator, held_out=held_out)
    assert torch.equal(generator.get_state(), seeded(3).get_state())
    assert mixture_fitter(far) is mixture_fitter(far)
    assert (choice == GeneratorChoice({}, None, {})) == held_out


def test_without_inversion_mutual_information_decides(far: Target) -> None:
    """Even with BatchNorm; the runner-up makes the validation inputs."""
    choice = choice_of(far, "procedural")
    values = mutual_information(far, TABLE, seeded(), 1024)
    assert choice.mutual_information == values
    assert choice.validation == list(values)[1]
    assert choice.shares == shares_by_name(["procedural"], values, choice.validation)
