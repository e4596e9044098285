"""The inputs of a run: search and validation inputs never overlap, whatever they are made of."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchnorm_targets import vector_target
from comparison_cases import conv_target
from criterion_networks import Attention
from hypothesis import given
from hypothesis import strategies as st
from search_cases import seeded, tiny_model
from torch import Tensor, nn

from gaprune.calibration.calibration_set import (
    CalibrationSet,
    _may_be_moved,
    make_calibration_set,
    mix_validation,
)
from gaprune.calibration.generators.procedural import GENERATORS
from gaprune.calibration.inversion.augment import Augmentation
from gaprune.calibration.inversion.batchnorm import InversionOptions
from gaprune.calibration.provenance import samples_sha256
from gaprune.calibration.samples import Samples
from gaprune.config import Settings, make_settings
from gaprune.errors import InputError
from gaprune.models.forward import batched_forward
from gaprune.models.input_spec import KINDS, InputOptions
from gaprune.models.target import Target, load_target, target_from_module
from gaprune.runs.run import PruningRun
from gaprune.runs.setup import check_settings, resolve_settings


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAPRUNE_CACHE", str(tmp_path))
    quick = functools.partial(InversionOptions, steps=3)
    monkeypatch.setattr("gaprune.calibration.calibration_set.InversionOptions", quick)


def settings_of(*calibration: str, **values: Any) -> Settings:
    """Return settings of a small run."""
    counts = {"calibration_count": 40, "validation_count": 24, "impressions": 16, "inversions": 30}
    chosen = {"calibration": calibration} if calibration else {}
    return make_settings({"sparsity": 0.5, **counts, **chosen, **values})


def rows(inputs: Tensor) -> set[bytes]:
    """Return every input as bytes."""
    return {row.contiguous().numpy().tobytes() for row in inputs}


def stored_inputs(plan: CalibrationSet) -> Tensor:
    """Return the stored inputs for gradient steps."""
    assert plan.gradient_inputs is not None
    return plan.gradient_inputs.inputs


def shares(plan: CalibrationSet) -> list[str]:
    """Return the generators of the search, largest share first."""
    assert plan.mixture is not None
    return sorted(plan.mixture.shares, key=lambda name: -plan.mixture.shares[name])  # type: ignore[union-attr]


def assert_disjoint(plan: CalibrationSet) -> None:
    """Check that no input both selects (or steers) and validates."""
    validation = rows(plan.validation.inputs)
    assert not validation & rows(plan.search.inputs)
    assert plan.gradient_inputs is None or not validation & rows(plan.gradient_inputs.inputs)


@pytest.fixture
def few_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure mutual information on few inputs."""
    monkeypatch.setattr("gaprune.calibration.domain_fit.SAMPLE_INPUTS", 64)


@pytest.fixture(scope="module")
def mlp() -> Target:
    """The zoo's MNIST network."""
    return load_target("mnist-mlp")


@pytest.fixture(scope="module")
def vector() -> Target:
    """A tiny network of six features in [0, 1]."""
    return target_from_module(tiny_model(), inputs=InputOptions(range=(0, 1)))


@pytest.fixture
def labelled(tmp_path: Path) -> str:
    """A file of 100 labelled vectors, all distinct."""
    x = np.random.default_rng(0).random((100, 6), dtype=np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(100) % 4)
    return str(tmp_path / "data.npz")


@pytest.mark.parametrize(
    "calibration",
    [
        ("procedural",),
        ("strokes", "glyphs"),
        ("procedural", "noise"),
        ("procedural", "impressions"),
    ],
)
def test_the_validation_generator_never_selects(
    mlp: Target, few_inputs: None, calibration: tuple[str, ...]
) -> None:
    """The runner-up validates if `procedural` searches on the best generator."""
    plan = make_calibration_set(mlp, settings_of(*calibration), seeded())
    judge = plan.validation.source.removeprefix("generated: ").partition(",")[0]
    assert judge in GENERATORS["image"]
    assert judge not in shares(plan)
    assert (len(plan.search.inputs), len(plan.validation.inputs)) == (40, 24)
    assert_disjoint(plan)
    if "procedural" in calibration:
        assert judge == list(plan.mutual_information)[1]
        assert shares(plan)[0] in (next(iter(plan.mutual_information)), *calibration)


def test_stated_validation_inputs(vector: Target, labelled: str) -> None:
    """A generator is left out of the search; a file validates alone; a wrong name is refused."""
    plan = make_calibration_set(vector, settings_of(validation="sparse"), seeded())
    assert plan.validation.source.startswith("generated: sparse")
    assert "sparse" not in shares(plan)
    plan = make_calibration_set(vector, settings_of(*GENERATORS["vector"]), seeded())
    assert_disjoint(plan)  # all generators search: another seed validates
    plan = make_calibration_set(vector, settings_of(validation=labelled), seeded())
    stored = {row.tobytes() for row in np.load(labelled)["x"]}
    assert rows(plan.validation.inputs) <= stored
    assert len(plan.validation.inputs) == 24
    assert plan.validation.labels is None
    assert not rows(plan.search.inputs) & stored
    with pytest.raises(InputError, match=r"validation: .*'sprase'.*'sparse'"):
        make_calibration_set(vector, settings_of(validation="sprase"), seeded())


@pytest.mark.parametrize(
    ("prefix", "level"), [("", "unlabelled"), ("labelled:", "labelled"), ("proxy:", "proxy")]
)
def test_a_file_is_split_into_search_and_validation_inputs(
    vector: Target, labelled: str, prefix: str, level: str
) -> None:
    """A fifth is held out; only the level `labelled` keeps labels."""
    plan = make_calibration_set(vector, settings_of(prefix + labelled), seeded())
    assert plan.mixture is None
    assert plan.gradient_share == 1
    assert_disjoint(plan)
    assert (len(plan.validation.inputs), len(stored_inputs(plan))) == (20, 80)
    assert rows(plan.search.inputs) <= rows(stored_inputs(plan))
    data = np.load(labelled)
    label_of = {row.tobytes(): int(y) for row, y in zip(data["x"], data["y"], strict=True)}
    assert rows(plan.validation.inputs) | rows(stored_inputs(plan)) == set(label_of)
    for samples in (plan.search, plan.validation, plan.gradient_inputs):
        assert samples is not None
        assert (samples.labels is not None) == (level == "labelled")
        if samples.labels is not None:
            pairs = zip(samples.inputs, samples.labels, strict=True)
            assert all(label_of[x.numpy().tobytes()] == int(y) for x, y in pairs)
    assert plan.provenance.level == level


def test_a_file_and_generators_share_the_batch(vector: Target, labelled: str) -> None:
    """Half of the search inputs come from the file, in random order and without labels."""
    settings = settings_of(f"labelled:{labelled}", "procedural", gradient_count=30)
    plan = make_calibration_set(vector, settings, seeded())
    stored = rows(stored_inputs(plan))
    assert plan.gradient_share == 0.5
    assert len(stored) == 30
    assert len(plan.search.inputs) == 40
    assert len(rows(plan.search.inputs) & stored) == 20
    assert 4 <= len(rows(plan.search.inputs[:20]) & stored) <= 16
    assert plan.search.labels is None
    assert plan.provenance.level == "labelled"


@pytest.mark.parametrize(
    ("prefix", "array", "message"),
    [
        ("", np.zeros((1, 6), np.float32), "at least 2.*got 1"),
        ("labelled:", np.zeros((9, 6), np.float32), "'labelled:'"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    vector: Target, tmp_path: Path, prefix: str, array: np.ndarray, message: str
) -> None:
    """Too few inputs, or missing labels."""
    np.savez(tmp_path / "bad.npz", x=array)
    with pytest.raises(InputError, match=message):
        make_calibration_set(vector, settings_of(f"{prefix}{tmp_path}/bad.npz"), seeded())


@pytest.mark.parametrize(
    ("calibration", "level", "fresh"),
    [
        (("uniform",), "procedural", True),
        (("noise",), "noise", True),
        (("impressions",), "inversion", False),
        (("impressions", "noise"), "inversion", True),
    ],
)
def test_the_provenance_states_level_numbers_and_hashes(
    vector: Target, calibration: tuple[str, ...], level: str, fresh: bool
) -> None:
    """The hashes can be recomputed from the inputs."""
    plan = make_calibration_set(vector, settings_of(*calibration), seeded())
    provenance, stored = plan.provenance, plan.gradient_inputs or plan.search
    assert (provenance.level, provenance.fresh) == (level, fresh)
    assert (provenance.samples, provenance.validation_samples) == (len(stored.inputs), 24)
    assert provenance.sha256 == samples_sha256(stored)
    assert provenance.validation_sha256 == samples_sha256(plan.validation)
    assert provenance.sources


def test_hashes_change_with_the_data_and_with_nothing_else(
    vector: Target, labelled: str, tmp_path: Path
) -> None:
    """Another seed or other data change the hashes; the same ones do not."""

    def hashes(path: str, seed: int) -> tuple[str, str]:
        plan = make_calibration_set(vector, settings_of(path), seeded(seed))
        return plan.provenance.sha256, plan.provenance.validation_sha256

    np.savez(tmp_path / "other.npz", x=1 - np.load(labelled)["x"])
    first = hashes(labelled, 1)
    assert first == hashes(labelled, 1)
    for other in (hashes(labelled, 2), hashes(f"{tmp_path}/other.npz", 1)):
        assert not set(first) & set(other)


class OneAxis(nn.Module):
    """A convolution over a signal `[N, 2, 40]`, averaged over time."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Conv1d(2, 6, 5), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.first(x).relu().mean(2))
        return logits


MODELS: dict[str, tuple[Callable[[], nn.Module], InputOptions]] = {
    "image": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(400, 3)),
        InputOptions((3, 12, 12), mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.3)),
    ),
    "signal": (OneAxis, InputOptions((2, 40), range=(-1, 1))),
    "vector": (tiny_model, InputOptions(range=(-3, 3))),
    "tokens": (Attention, InputOptions((5,))),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_input_gets_inputs_that_fit(kind: str) -> None:
    """The network takes search, validation and fresh inputs, all in its range or vocabulary."""
    build, options = MODELS[kind]
    target = target_from_module(build(), inputs=options)
    plan, spec = make_calibration_set(target, settings_of(), seeded()), target.inputs
    assert spec.kind == kind
    assert plan.mixture is not None
    for inputs in (plan.search.inputs, plan.validation.inputs, plan.mixture.draw(17, seeded())):
        assert inputs.shape[1:] == spec.shape
        assert batched_forward(target.model, inputs).isfinite().all()
        low, high = 0.0, 10.0
        if kind == "tokens":
            assert inputs.dtype == torch.int64
        else:
            low = min((spec.low - m) / s for m, s in zip(spec.mean, spec.std, strict=True))
            high = max((spec.high - m) / s for m, s in zip(spec.mean, spec.std, strict=True))
        assert low - 1e-5 <= inputs.min().item() <= inputs.max().item() <= high + 1e-5


@pytest.mark.parametrize("calibration", ["procedural", "impressions", "file"])
def test_inputs_have_the_dtype_of_the_network(labelled: str, calibration: str) -> None:
    """A float64 network gets float64 inputs."""
    target = target_from_module(tiny_model(dtype=torch.float64), inputs=InputOptions(range=(0, 1)))
    word = labelled if calibration == "file" else calibration
    plan = make_calibration_set(target, settings_of(word), seeded())
    assert plan.search.inputs.dtype == plan.validation.inputs.dtype == torch.float64


@pytest.mark.parametrize("calibration", ["procedural", "impressions"])
def test_the_seed_decides_and_global_randomness_stays(vector: Target, calibration: str) -> None:
    """The same generator state gives the same inputs, whatever the global generators hold."""

    def provenance(seed: int, outside: int) -> object:
        torch.manual_seed(outside)
        np.random.seed(outside)  # noqa: NPY002 - the global one is the point
        state = torch.get_rng_state()
        plan = make_calibration_set(vector, settings_of(calibration), seeded(seed))
        assert torch.equal(torch.get_rng_state(), state)
        return plan.provenance

    assert provenance(3, 1) == provenance(3, 2) != provenance(4, 2)


@pytest.mark.parametrize("calibration", ["auto", "procedural"])
def test_inputs_without_batchnorm_are_those_of_the_first_release(calibration: str) -> None:
    """Recorded hashes of search inputs, validation inputs and the generator's final state."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        target = target_from_module(Attention(), inputs=InputOptions((5,)))
    generator = seeded(5)
    plan = make_calibration_set(target, settings_of(calibration), generator)
    assert samples_sha256(plan.search).startswith("1fac2cad433a3600")
    assert plan.provenance.validation_sha256.startswith("78114052a0e4890b")
    state = hashlib.sha256(generator.get_state().numpy().tobytes()).hexdigest()
    assert state.startswith("5a4b694647ee3ab8")


@given(st.integers(2, 60), st.integers(2, 60), st.integers(0, 99))
def test_half_of_the_validation_inputs_are_inverted(made: int, generated: int, seed: int) -> None:
    """At most a fifth of the inverted inputs validates; the others stay for the search."""
    inverted = Samples(torch.arange(made), None, "inverted")
    others = Samples(100 + torch.arange(generated), None, "generated: uniform")
    validation, rest = mix_validation(inverted, others, seeded(seed))
    chosen = validation.inputs[validation.inputs < 100]
    assert len(chosen) == min(max(1, made // 5), generated // 2)
    assert torch.equal(validation.inputs[validation.inputs >= 100], others.inputs[: len(chosen)])
    assert sorted([*chosen.tolist(), *rest.inputs.tolist()]) == list(range(made))
    assert rest.source == "inverted"


@pytest.mark.parametrize(("made", "generated"), [(1, 9), (9, 1)])
def test_a_single_input_is_not_split(made: int, generated: int) -> None:
    """One input cannot be used for search and validation."""
    inverted, others = (Samples(torch.zeros(n), None, "some") for n in (made, generated))
    validation, rest = mix_validation(inverted, others, seeded())
    assert validation is others
    assert rest is inverted


@pytest.mark.parametrize(("validation", "left", "judges"), [("auto", 24, 12), ("sparse", 30, 24)])
def test_no_inverted_input_both_searches_and_validates(
    validation: str, left: int, judges: int
) -> None:
    """Stated validation inputs leave all inverted inputs to the search."""
    settings = settings_of("inversion", "procedural", validation=validation)
    plan = make_calibration_set(vector_target(near=True), settings, seeded())
    assert (len(stored_inputs(plan)), len(plan.validation.inputs)) == (left, judges)
    assert plan.gradient_share == 0.5
    assert_disjoint(plan)
    judge = plan.validation.source.partition("generated: ")[2].partition(",")[0]
    assert judge
    assert judge not in shares(plan)


def test_inverted_images_are_copied_and_cached(tmp_path: Path) -> None:
    """A fifth of 30 is held out; each of the others has three moved copies."""
    plan = make_calibration_set(conv_target(), settings_of("inversion"), seeded())
    assert len(stored_inputs(plan)) == 4 * 24
    assert plan.mixture is None
    assert 0 <= stored_inputs(plan).min().item() <= stored_inputs(plan).max().item() <= 1
    assert plan.provenance.level == "inversion"
    assert plan.provenance.validation_samples == 12
    assert len(list((tmp_path / "calibration").iterdir())) == 1
    again = make_calibration_set(conv_target(), settings_of("inversion"), seeded())
    assert again.provenance == plan.provenance


@pytest.mark.parametrize("loop", [False, True])
def test_inverted_inputs_are_moved_or_with_repair_in_the_loop_mixed(loop: bool) -> None:
    """Noise is new in every batch and needs neither."""
    inverted = Augmentation(moves=not loop, mixes=loop)
    for calibration, augmentation in (("inversion", inverted), ("noise", None)):
        settings = settings_of(calibration).replace(method="evolved", repair_in_loop=loop)
        target = conv_target()
        run = PruningRun(target, resolve_settings(check_settings(settings), target))
        assert run.evaluator.augmentation == augmentation


@pytest.mark.parametrize(
    ("values", "count"),
    [
        ({"method": "magnitude"}, 256),
        ({"method": "magnitude", "calibration_count": 500}, 500),
        ({"method": "magnitude", "repair": True}, 1024),
        ({"method": "wanda"}, 1024),
        ({}, 1024),
    ],
)
def test_few_inputs_serve_where_a_large_network_needs_none(
    vector: Target, monkeypatch: pytest.MonkeyPatch, values: dict[str, Any], count: int
) -> None:
    """A stated number, repair, a criterion that runs the network and a search keep all of them."""
    monkeypatch.setattr("gaprune.runs.setup.SLOW_MACS", 1)
    settings = make_settings({"sparsity": 0.5, **values})
    assert resolve_settings(check_settings(settings), vector).settings.calibration_count == count


def test_few_inputs_of_a_file_are_filled_up(vector: Target, tmp_path: Path) -> None:
    """Generated inputs and impressions join both sets; held-out inputs validate, and none twice."""
    few = np.random.default_rng(0).random((10, 6), np.float32)
    np.savez(tmp_path / "few.npz", x=few)
    plan = make_calibration_set(vector, settings_of(f"{tmp_path}/few.npz"), seeded())
    known = rows(torch.from_numpy(few))
    assert len(rows(plan.validation.inputs) & known) == 2
    assert len(rows(stored_inputs(plan)) & known) == 8
    assert len(plan.validation.inputs) == 2 + 24
    assert plan.mixture is not None
    assert plan.provenance.level == "unlabelled"
    assert_disjoint(plan)


class Dot(nn.Module):
    """Tells whether an image has a lit pixel: anywhere, or in its corner."""

    def __init__(self, *, anywhere: bool) -> None:
        super().__init__()
        self.fc, self.anywhere = nn.Linear(1, 2), anywhere
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[50.0], [-50.0]]))
            self.fc.bias.copy_(torch.tensor([-25.0, 25.0]))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits `[N, 2]` of images `[N, 1, 8, 8]`."""
        lit = x.amax((2, 3)) if self.anywhere else x[:, :, 0, 0]
        logits: Tensor = self.fc(lit)
        return logits


@pytest.mark.parametrize("anywhere", [True, False])
def test_inputs_are_moved_only_where_the_network_allows_it(anywhere: bool) -> None:
    """Moved inputs must be separated as well as the originals."""
    options = InputOptions((1, 8, 8), kind="image", range=(0, 1))
    images = torch.zeros(40, 1, 8, 8)
    images[::2, :, 0, 0] = 1
    target = target_from_module(Dot(anywhere=anywhere), inputs=options)
    assert _may_be_moved(target, [Samples(images, None, "dots")]) == anywhere
