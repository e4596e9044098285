"""The calibration inputs of a run: validation apart from search, split files, receipts, every kind of input."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from criterion_networks import Attention
from search_cases import seeded, tiny_model
from torch import Tensor, nn

from gaprune.calibration.calibration_set import CalibrationSet, make_calibration_set
from gaprune.calibration.generator_choice import mutual_information, shares_by_name
from gaprune.calibration.generators.mixture import GeneratorMixture
from gaprune.calibration.generators.procedural import GENERATORS
from gaprune.calibration.inversion.impressions import impressions
from gaprune.calibration.provenance import samples_sha256
from gaprune.config import Settings, make_settings
from gaprune.errors import InputError
from gaprune.models.forward import batched_forward
from gaprune.models.input_spec import KINDS, InputOptions, InputSpec
from gaprune.models.target import Target, load_target, target_from_module


def settings_of(**values: Any) -> Settings:
    """Return settings of a small run."""
    small = {"sparsity": 0.5, "calibration_count": 40, "validation_count": 24, "impressions": 16}
    return make_settings({**small, **values})


def rows(inputs: Tensor) -> set[bytes]:
    """Return every input as bytes."""
    return {row.contiguous().numpy().tobytes() for row in inputs}


@pytest.fixture(scope="module")
def mlp() -> Target:
    """The zoo's MNIST network."""
    return load_target("mnist-mlp")


@pytest.fixture(scope="module")
def vector() -> Target:
    """A tiny network of six features in [0, 1]."""
    return target_from_module(tiny_model(), inputs=InputOptions(range=(0, 1)))


def test_an_unknown_validation_is_refused(vector: Target) -> None:
    """The nearest name, `auto` among the valid ones."""
    with pytest.raises(
        InputError, match=r"validation: unknown name 'sprase' \(did you mean 'sparse'"
    ):
        make_calibration_set(vector, settings_of(validation="sprase"), seeded())


def assert_apart(plan: CalibrationSet) -> None:
    """Check that no input both selects (or steers) and judges."""
    validation = rows(plan.validation.inputs)
    assert not validation & rows(plan.search.inputs)
    assert plan.gradient_inputs is None or not validation & rows(plan.gradient_inputs.inputs)


@pytest.mark.parametrize(
    "calibration",
    [
        ("procedural",),
        ("strokes",),
        ("strokes", "glyphs"),
        ("procedural", "noise"),
        ("noise",),
        ("procedural", "impressions"),
    ],
)
def test_the_validations_generator_never_selects(mlp: Target, calibration: tuple[str, ...]) -> None:
    """What judges comes from a generator outside the search mixture, and shares no input."""
    plan = make_calibration_set(mlp, settings_of(calibration=calibration), seeded())
    judge = plan.validation.source.removeprefix("generated: ").partition(",")[0]
    assert judge in GENERATORS["image"]
    assert plan.mixture is not None
    assert judge not in plan.mixture.shares
    assert len(plan.search.inputs) == 40
    assert len(plan.validation.inputs) == 24
    assert_apart(plan)
    if "procedural" in calibration:  # the runner-up judges, the best one searches
        assert judge == list(plan.mutual_information)[1]
        assert max(plan.mixture.shares, key=lambda name: plan.mixture.shares[name]) in (  # type: ignore[union-attr]
            next(iter(plan.mutual_information)),
            *calibration,
        )


def test_a_named_validation_judges(vector: Target) -> None:
    """And is left out of `procedural`."""
    plan = make_calibration_set(vector, settings_of(validation="sparse"), seeded())
    assert plan.validation.source.startswith("generated: sparse")
    assert plan.mixture is not None
    assert "sparse" not in plan.mixture.shares


def test_where_every_generator_selects_another_seed_judges(vector: Target) -> None:
    """There is still a validation, with inputs of its own."""
    plan = make_calibration_set(
        vector, settings_of(calibration=tuple(GENERATORS["vector"])), seeded()
    )
    assert_apart(plan)


@pytest.fixture
def labelled(tmp_path: Path) -> str:
    """A file of 100 labelled vectors, all distinct."""
    x = np.random.default_rng(0).random((100, 6), dtype=np.float32)
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(100) % 4)
    return str(tmp_path / "data.npz")


@pytest.mark.parametrize(
    ("prefix", "rung"), [("", "unlabelled"), ("labelled:", "labelled"), ("proxy:", "proxy")]
)
def test_a_file_is_split_into_what_searches_and_what_judges(
    vector: Target, labelled: str, prefix: str, rung: str
) -> None:
    """A fifth is held out, labels stay on the rung `labelled` only, the provenance says the rung."""
    plan = make_calibration_set(vector, settings_of(calibration=(prefix + labelled,)), seeded())
    assert plan.mixture is None
    assert plan.gradient_share == 1
    assert plan.gradient_inputs is not None
    assert_apart(plan)
    assert len(plan.validation.inputs) == 20
    assert len(plan.gradient_inputs.inputs) == 80
    assert rows(plan.search.inputs) <= rows(plan.gradient_inputs.inputs)
    stored = np.load(labelled)
    order = {row.tobytes(): int(y) for row, y in zip(stored["x"], stored["y"], strict=True)}
    assert rows(plan.validation.inputs) | rows(plan.gradient_inputs.inputs) == set(order)
    for samples in (plan.search, plan.validation, plan.gradient_inputs):
        if prefix != "labelled:":
            assert samples.labels is None
            continue
        assert samples.labels is not None
        pairs = zip(samples.inputs, samples.labels, strict=True)
        assert all(order[x.numpy().tobytes()] == int(y) for x, y in pairs)
    assert plan.provenance.level == rung
    assert "held-out" in plan.provenance.validation


def test_a_file_and_generators_share_the_batch(vector: Target, labelled: str) -> None:
    """Half of the search set is held, half is generated; labels do not survive the mixture."""
    calibration = (f"labelled:{labelled}", "procedural")
    plan = make_calibration_set(vector, settings_of(calibration=calibration), seeded())
    assert plan.gradient_inputs is not None
    assert plan.mixture is not None
    assert plan.gradient_share == 0.5
    assert len(rows(plan.search.inputs) & rows(plan.gradient_inputs.inputs)) == 20
    assert len(plan.search.inputs) == 40
    assert plan.search.labels is None
    assert plan.provenance.level == "labelled"


def test_a_validation_file_judges_alone(vector: Target, labelled: str, tmp_path: Path) -> None:
    """Its inputs are all validation, as many as asked; the search stays procedural."""
    plan = make_calibration_set(vector, settings_of(validation=labelled), seeded())
    stored = {row.tobytes() for row in np.load(labelled)["x"]}
    assert rows(plan.validation.inputs) <= stored
    assert len(plan.validation.inputs) == 24
    assert plan.validation.labels is None
    assert not rows(plan.search.inputs) & stored
    assert labelled in plan.provenance.validation


def test_the_rungs_see_a_shuffled_search_set(vector: Target, labelled: str) -> None:
    """The first quarter holds inputs of every source, so a rung is a fair sample."""
    plan = make_calibration_set(vector, settings_of(calibration=(labelled, "procedural")), seeded())
    assert plan.gradient_inputs is not None
    held = rows(plan.gradient_inputs.inputs)
    first = sum(bool(rows(row[None]) & held) for row in plan.search.inputs[:20])
    assert 4 <= first <= 16


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((1, 6), np.float32), "at least 2 inputs.*got 1"),
        (np.zeros((0, 6), np.float32), "is empty"),
        (np.zeros((9, 5), np.float32), r"got \(9, 5\)"),
        (np.full((9, 6), 7, np.float32), "range 0 to 1.*got 7"),
        (np.full((9, 6), np.nan, np.float32), "must be finite"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    vector: Target, tmp_path: Path, array: np.ndarray, message: str
) -> None:
    """Too few, none, another shape, another range, NaN: each with its own message."""
    np.savez(tmp_path / "bad.npz", x=array)
    with pytest.raises(InputError, match=message):
        make_calibration_set(vector, settings_of(calibration=(f"{tmp_path}/bad.npz",)), seeded())


def test_labels_that_are_not_there_are_missed(vector: Target, tmp_path: Path) -> None:
    """`labelled:` on a file without labels says how to mend it."""
    np.savez(tmp_path / "bare.npz", x=np.zeros((9, 6), np.float32))
    with pytest.raises(InputError, match="labels.*'labelled:'"):
        make_calibration_set(
            vector, settings_of(calibration=(f"labelled:{tmp_path}/bare.npz",)), seeded()
        )


def test_the_pool_is_no_larger_than_asked(vector: Target, labelled: str) -> None:
    """A file of millions is not held in memory twice."""
    plan = make_calibration_set(
        vector, settings_of(calibration=(labelled,), gradient_count=10), seeded()
    )
    assert plan.gradient_inputs is not None
    assert len(plan.gradient_inputs.inputs) == 10
    assert rows(plan.search.inputs) <= rows(plan.gradient_inputs.inputs)


@pytest.mark.parametrize(
    ("calibration", "rung", "fresh"),
    [
        (("procedural",), "procedural", True),
        (("uniform",), "procedural", True),
        (("noise",), "noise", True),
        (("impressions",), "inversion", False),
        (("impressions", "noise"), "inversion", True),
    ],
)
def test_the_provenance_says_what_was_shown(
    vector: Target, calibration: tuple[str, ...], rung: str, fresh: bool
) -> None:
    """Rung, numbers, hashes that anyone can recompute."""
    plan = make_calibration_set(vector, settings_of(calibration=calibration), seeded())
    provenance, held = plan.provenance, plan.gradient_inputs or plan.search
    assert (provenance.level, provenance.fresh) == (rung, fresh)
    assert (provenance.samples, provenance.validation_samples) == (len(held.inputs), 24)
    assert provenance.sha256 == samples_sha256(held)
    assert provenance.validation_sha256 == samples_sha256(plan.validation)
    assert provenance.sources


def test_hashes_change_with_the_data_and_with_nothing_else(
    vector: Target, labelled: str, tmp_path: Path
) -> None:
    """Same seed, same provenance; another seed or another number in the file, another hash."""

    def provenance(path: str, seed: int) -> tuple[str, str]:
        plan = make_calibration_set(vector, settings_of(calibration=(path,)), seeded(seed))
        return plan.provenance.sha256, plan.provenance.validation_sha256

    stored = np.load(labelled)
    np.savez(tmp_path / "other.npz", x=1 - stored["x"])
    first = provenance(labelled, 1)
    assert first == provenance(labelled, 1)
    for other in (provenance(labelled, 2), provenance(f"{tmp_path}/other.npz", 1)):
        assert not set(first) & set(other)


def test_impressions_are_held_and_in_the_networks_range(mlp: Target) -> None:
    """`--calibration impressions` gives a pool of them and nothing fresh."""
    plan = make_calibration_set(mlp, settings_of(calibration=("impressions",)), seeded())
    assert plan.gradient_inputs is not None
    assert plan.mixture is None
    assert plan.gradient_inputs.inputs.shape == (16, 1, 28, 28)
    assert (
        0
        <= plan.gradient_inputs.inputs.min().item()
        <= plan.gradient_inputs.inputs.max().item()
        <= 1
    )
    assert plan.gradient_share == 1
    assert "16 class impressions" in plan.provenance.sources[0]


class OneAxis(nn.Module):
    """Two convolutions over a signal `[N, 2, 40]`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Conv1d(2, 6, 5), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Average over time, then classify."""
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
def test_every_kind_of_input_gets_calibration_that_fit(kind: str) -> None:
    """The network takes search set, validation and fresh batches, all in its range or vocabulary."""
    build, options = MODELS[kind]
    target = target_from_module(build(), inputs=options)
    assert target.inputs.kind == kind
    plan = make_calibration_set(target, settings_of(), seeded())
    assert plan.mixture is not None
    batch = plan.mixture.draw(17, seeded())
    for inputs in (plan.search.inputs, plan.validation.inputs, batch):
        assert inputs.shape[1:] == target.inputs.shape
        assert batched_forward(target.model, inputs).isfinite().all()
        if kind == "tokens":
            assert inputs.dtype == torch.int64
            assert 0 <= int(inputs.min()) <= int(inputs.max()) < 11
        else:
            spec = target.inputs
            low = min((spec.low - m) / s for m, s in zip(spec.mean, spec.std, strict=True))
            high = max((spec.high - m) / s for m, s in zip(spec.mean, spec.std, strict=True))
            assert low - 1e-5 <= inputs.min().item() <= inputs.max().item() <= high + 1e-5


def test_token_ids_cannot_be_optimised() -> None:
    """They cannot be moved a little; the message says what to use."""
    spec = InputSpec((5,), "tokens", vocabulary=11)
    with pytest.raises(InputError, match="token ids.*--calibration procedural"):
        impressions(Attention(), spec, torch.zeros(2, 5), seeded())


def test_calibration_have_the_dtype_of_the_network(labelled: str) -> None:
    """A float64 network gets float64 inputs from generators, files and impressions."""
    target = target_from_module(tiny_model(dtype=torch.float64), inputs=InputOptions(range=(0, 1)))
    for calibration in (("procedural",), (labelled,), ("impressions",)):
        plan = make_calibration_set(target, settings_of(calibration=calibration), seeded())
        assert plan.search.inputs.dtype == plan.validation.inputs.dtype == torch.float64
        batched_forward(target.model, plan.search.inputs)


@pytest.mark.parametrize("calibration", [("procedural",), ("impressions",)])
def test_the_seed_decides_and_global_randomness_stays(
    vector: Target, calibration: tuple[str, ...]
) -> None:
    """Same generator state, same calibration inputs, whatever the global generators hold."""
    found = []
    for outside in (1, 2):
        torch.manual_seed(outside)
        np.random.seed(outside)  # noqa: NPY002 - the global one is the point
        state = torch.get_rng_state()
        found.append(make_calibration_set(vector, settings_of(calibration=calibration), seeded(3)))
        assert torch.equal(torch.get_rng_state(), state)
    assert found[0].provenance == found[1].provenance
    assert (
        found[0].provenance
        != make_calibration_set(vector, settings_of(calibration=calibration), seeded(4)).provenance
    )


@pytest.mark.parametrize("calibration", [("auto",), ("procedural",)])
def test_plans_without_batchnorm_are_those_of_the_first_release(
    calibration: tuple[str, ...],
) -> None:
    """Recorded before networks were asked for statistics: ids, validation, and what was drawn in all."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        target = target_from_module(Attention(), inputs=InputOptions((5,)))
    generator = seeded(5)
    plan = make_calibration_set(target, settings_of(calibration=calibration), generator)
    assert samples_sha256(plan.search).startswith("1fac2cad433a3600")
    assert plan.provenance.validation_sha256.startswith("78114052a0e4890b")
    state = hashlib.sha256(generator.get_state().numpy().tobytes()).hexdigest()
    assert state.startswith("5a4b694647ee3ab8")


def test_a_network_without_batchnorm_is_weighed_by_mutual_information(mlp: Target) -> None:
    """The default by hand, draw for draw: affinities, validation, search."""
    generator, spec = seeded(5), mlp.inputs
    weights = mutual_information(mlp.model, spec, GENERATORS["image"], generator)
    judge = list(weights)[1]
    validation = GENERATORS["image"][judge](spec, 24, _after_one_pick(generator, 24))
    mixture = GeneratorMixture(spec, shares_by_name(["procedural"], weights, judge), torch.float32)
    search = mixture.draw(40, generator)
    search = search[torch.randperm(40, generator=generator)]
    by_hand, state = (validation, search), generator.get_state()
    generator = seeded(5)
    plan = make_calibration_set(mlp, settings_of(), generator)
    assert torch.equal(plan.validation.inputs, by_hand[0])
    assert torch.equal(plan.search.inputs, by_hand[1])
    assert torch.equal(generator.get_state(), state)


def _after_one_pick(generator: torch.Generator, count: int) -> torch.Generator:
    """Draw which generator each of `count` inputs comes from, where there is one only."""
    torch.multinomial(
        torch.ones(1, dtype=torch.float64), count, replacement=True, generator=generator
    )
    return generator
