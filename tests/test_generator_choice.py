"""What the user may ask for, what the teacher prefers, and the mixture that comes of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from search_cases import seeded
from torch import Tensor, nn
from torch.nn import functional

from gaprune.calibration.generator_choice import mutual_information, shares_by_name, softmax_shares
from gaprune.calibration.generators.mixture import GeneratorMixture
from gaprune.calibration.generators.procedural import GENERATORS
from gaprune.calibration.parse import CalibrationFile, parse_calibration
from gaprune.errors import InputError
from gaprune.models.input_spec import InputSpec
from gaprune.models.target import Target, load_target
from gaprune.models.zoo import MNIST_INPUT

IMAGE = MNIST_INPUT
PENS = {"strokes", "outlines", "glyphs"}


@pytest.fixture(scope="module")
def mlp() -> Target:
    """The zoo's MNIST network."""
    return load_target("mnist-mlp")


@pytest.fixture(scope="module")
def weighed(mlp: Target) -> dict[str, float]:
    """How the zoo's network weighs the generators."""
    return mutual_information(mlp.model, IMAGE, GENERATORS["image"], seeded())


@pytest.mark.parametrize(
    ("listed", "names", "files", "wanted"),
    [
        (["procedural"], ("procedural",), (), False),
        (["auto"], (), (), False),
        (["strokes", "noise"], ("strokes", "noise"), (), False),
        (["impressions"], (), (), True),
        (["impressions", "blobs"], ("blobs",), (), True),
        (["mnist-train"], (), (CalibrationFile("unlabelled", "mnist-train"),), False),
        (["labelled:a.npz"], (), (CalibrationFile("labelled", "a.npz"),), False),
        (["proxy:photos/cats"], (), (CalibrationFile("proxy", "photos/cats"),), False),
        (
            ["unlabelled:a.npz", "fields"],
            ("fields",),
            (CalibrationFile("unlabelled", "a.npz"),),
            False,
        ),
        (["x.npy+y.npy"], (), (CalibrationFile("unlabelled", "x.npy+y.npy"),), False),
        ([r"C:\data\x.npz"], (), (CalibrationFile("unlabelled", r"C:\data\x.npz"),), False),
    ],
)
def test_calibration_are_names_files_or_impressions(
    listed: list[str], names: tuple[str, ...], files: tuple[CalibrationFile, ...], wanted: bool
) -> None:
    """Each word is sorted by what it is; a bare path is unlabelled."""
    request = parse_calibration(listed, IMAGE)
    assert (request.names, request.files, request.impressions) == (names, files, wanted)


def test_a_file_in_the_folder_needs_no_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A word that names an existing path is that path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    assert parse_calibration(["photos"], IMAGE).files == (CalibrationFile("unlabelled", "photos"),)


@pytest.mark.parametrize(
    ("word", "hint"),
    [("strokez", "strokes"), ("procedral", "procedural"), ("labelled:mnist-trian", "mnist-train")],
)
def test_an_unknown_calibration_is_refused_with_the_nearest_name(word: str, hint: str) -> None:
    """All generators of this kind of input, the aliases and the forms of a path are listed."""
    with pytest.raises(InputError, match=rf"calibration: .*'{word}'") as caught:
        parse_calibration([word], IMAGE)
    for valid in (hint, "dead-leaves", "noise", "impressions", "mnist-train", "labelled:PATH"):
        assert valid in str(caught.value)


def test_generators_of_another_kind_are_unknown() -> None:
    """Tones are for signals."""
    with pytest.raises(InputError, match="'tones'"):
        parse_calibration(["tones"], IMAGE)
    assert parse_calibration(["tones"], InputSpec((64,), "signal")).names == ("tones",)


def test_no_calibration_are_refused() -> None:
    """The message lists what there is."""
    with pytest.raises(
        InputError, match="auto, procedural, imp"
    ):
        parse_calibration([], IMAGE)


def test_a_network_of_digits_prefers_pen_drawings(weighed: dict[str, float]) -> None:
    """Without any data, mnist-mlp ranks the three pen generators above noise and all others."""
    assert set(list(weighed)[:3]) == PENS
    assert list(weighed.values()) == sorted(weighed.values(), reverse=True)
    assert all(0 <= value <= np.log(10) for value in weighed.values())


def test_pen_drawings_tell_more_than_noise(mlp: Target, weighed: dict[str, float]) -> None:
    """White noise says next to nothing about a network of digits."""
    table = {"noise": lambda spec, count, generator: torch.rand(count, *spec.shape)}
    noise = mutual_information(mlp.model, IMAGE, table, seeded())["noise"]
    assert min(weighed[name] for name in PENS) > max(noise, weighed["blobs"])


def test_affinity_is_the_mutual_information_of_input_and_class() -> None:
    """H(mean p) − mean H(p): ln of the classes for sure and even answers, 0 for constant ones."""

    class Sure(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 100 * functional.one_hot((4 * x[:, 0]).long().clamp(max=3), 4).float()

    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([1.0, 2.0, 3.0]).expand(len(x), 3)

    spec = InputSpec((6,), "vector")
    even = {
        "even": lambda spec, count, generator: torch.arange(count)[:, None].expand(-1, 6) / count
    }
    assert mutual_information(Sure(), spec, even, seeded())["even"] == pytest.approx(np.log(4))
    assert mutual_information(Constant(), spec, even, seeded())["even"] == pytest.approx(
        0, abs=1e-9
    )


def test_outputs_without_classes_give_equal_affinities() -> None:
    """A regressor cannot weigh its generators: all share alike."""
    model = nn.Sequential(nn.Linear(6, 1))
    found = mutual_information(model, InputSpec((6,), "vector"), GENERATORS["vector"], seeded())
    assert set(found.values()) == {0.0}
    assert list(found) == list(GENERATORS["vector"])


@given(st.dictionaries(st.text(min_size=1), st.floats(0, 5), min_size=1, max_size=8))
def test_shares_grow_with_affinity_and_add_up(affinity: dict[str, float]) -> None:
    """A softmax: they sum to 1 and keep the order."""
    portions = softmax_shares(affinity)
    assert sum(portions.values()) == pytest.approx(1)
    for one, other in zip(affinity, list(affinity)[1:], strict=False):
        if affinity[one] > affinity[other]:
            assert portions[one] >= portions[other]


words = st.lists(st.sampled_from(["procedural", "noise", *GENERATORS["image"]]), max_size=5)


@given(words, st.none() | st.sampled_from(sorted(GENERATORS["image"])), st.integers(0, 99))
def test_portions_add_up_and_leave_the_validation_out(
    names: list[str], validation: str | None, seed: int
) -> None:
    """`procedural` never includes the validation inputs's generator; every name beside it has an equal part."""
    values = torch.rand(len(GENERATORS["image"]), generator=seeded(seed)).tolist()
    portions = shares_by_name(
        names, dict(zip(GENERATORS["image"], values, strict=True)), validation
    )
    assert sum(portions.values()) == pytest.approx(1)
    assert validation is None or validation in names or validation not in portions
    distinct = list(dict.fromkeys(names))
    for name in distinct:
        if name != "procedural":
            assert portions[name] >= 1 / len(distinct) - 1e-9


def test_a_batch_has_the_portions_of_the_mixture() -> None:
    """Zeros tell the generators apart; inputs come in the network's dtype, and in words."""
    mixture = GeneratorMixture(
        InputSpec((6,), "vector"), {"sparse": 0.7, "noise": 0.3}, torch.float64
    )
    drawn = mixture.draw(3000, seeded(1))
    assert drawn.dtype == torch.float64
    with_zeros = (drawn == 0).any(1).double().mean().item()
    # nearly every sparse vector of six has a zero; five deviations of a binomial
    assert with_zeros == pytest.approx(0.7, abs=5 * (0.21 / 3000) ** 0.5 + 0.01)
    assert mixture.draw_unit(1, seeded()).shape == (1, 6)
    assert mixture.description == "sparse 70%, noise 30%"
