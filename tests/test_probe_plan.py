"""The probes of a run: guard apart from search, split files, receipts, every kind of input."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from saliency_networks import Attention
from search_cases import seeded, tiny_model
from torch import Tensor, nn

from gaprune.calibration import GENERATORS, sha256_of
from gaprune.calibration.affinity import affinities
from gaprune.calibration.calibration_set import ProbePlan, plan_probes
from gaprune.calibration.generators.mixture import Mixture, mix_generators
from gaprune.calibration.inversion.impressions import impressions
from gaprune.config import Settings, make_settings
from gaprune.errors import InputError
from gaprune.models.forward import answers
from gaprune.models.input_options import InputOptions
from gaprune.models.input_spec import KINDS, InputSpec
from gaprune.models.target import Target, load_target, target_from_module


def settings_of(**values: Any) -> Settings:
    """Return settings of a small run."""
    small = {"sparsity": 0.5, "probe_count": 40, "guard_count": 24, "impressions": 16}
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


def test_an_unknown_guard_is_refused(vector: Target) -> None:
    """The nearest name, `auto` among the valid ones."""
    with pytest.raises(InputError, match=r"guard: unknown name 'sprase' \(did you mean 'sparse'"):
        plan_probes(vector, settings_of(guard="sprase"), seeded())


def assert_apart(plan: ProbePlan) -> None:
    """Check that no input both selects (or steers) and judges."""
    guard = rows(plan.guard.inputs)
    assert not guard & rows(plan.search.inputs)
    assert plan.pool is None or not guard & rows(plan.pool.inputs)


@pytest.mark.parametrize(
    "probes",
    [
        ("procedural",),
        ("strokes",),
        ("strokes", "glyphs"),
        ("procedural", "noise"),
        ("noise",),
        ("procedural", "impressions"),
    ],
)
def test_the_guards_generator_never_selects(mlp: Target, probes: tuple[str, ...]) -> None:
    """What judges comes from a generator outside the search mixture, and shares no input."""
    plan = plan_probes(mlp, settings_of(probes=probes), seeded())
    judge = plan.guard.source.removeprefix("generated: ").partition(",")[0]
    assert judge in GENERATORS["image"]
    assert plan.fresh is not None
    assert judge not in plan.fresh.portions
    assert len(plan.search.inputs) == 40
    assert len(plan.guard.inputs) == 24
    assert_apart(plan)
    if "procedural" in probes:  # the runner-up judges, the best one searches
        assert judge == list(plan.affinity)[1]
        assert max(plan.fresh.portions, key=lambda name: plan.fresh.portions[name]) in (  # type: ignore[union-attr]
            next(iter(plan.affinity)),
            *probes,
        )


def test_a_named_guard_judges(vector: Target) -> None:
    """And is left out of `procedural`."""
    plan = plan_probes(vector, settings_of(guard="sparse"), seeded())
    assert plan.guard.source.startswith("generated: sparse")
    assert plan.fresh is not None
    assert "sparse" not in plan.fresh.portions


def test_where_every_generator_selects_another_seed_judges(vector: Target) -> None:
    """There is still a guard, with inputs of its own."""
    plan = plan_probes(vector, settings_of(probes=tuple(GENERATORS["vector"])), seeded())
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
    """A fifth is held out, labels stay on the rung `labelled` only, the receipt says the rung."""
    plan = plan_probes(vector, settings_of(probes=(prefix + labelled,)), seeded())
    assert plan.fresh is None
    assert plan.pool_share == 1
    assert plan.pool is not None
    assert_apart(plan)
    assert len(plan.guard.inputs) == 20
    assert len(plan.pool.inputs) == 80
    assert rows(plan.search.inputs) <= rows(plan.pool.inputs)
    stored = np.load(labelled)
    order = {row.tobytes(): int(y) for row, y in zip(stored["x"], stored["y"], strict=True)}
    assert rows(plan.guard.inputs) | rows(plan.pool.inputs) == set(order)
    for samples in (plan.search, plan.guard, plan.pool):
        if prefix != "labelled:":
            assert samples.labels is None
            continue
        assert samples.labels is not None
        pairs = zip(samples.inputs, samples.labels, strict=True)
        assert all(order[x.numpy().tobytes()] == int(y) for x, y in pairs)
    assert plan.receipt.rung == rung
    assert "held-out" in plan.receipt.guard


def test_a_file_and_generators_share_the_batch(vector: Target, labelled: str) -> None:
    """Half of the search set is held, half is generated; labels do not survive the mixture."""
    probes = (f"labelled:{labelled}", "procedural")
    plan = plan_probes(vector, settings_of(probes=probes), seeded())
    assert plan.pool is not None
    assert plan.fresh is not None
    assert plan.pool_share == 0.5
    assert len(rows(plan.search.inputs) & rows(plan.pool.inputs)) == 20
    assert len(plan.search.inputs) == 40
    assert plan.search.labels is None
    assert plan.receipt.rung == "labelled"


def test_a_guard_file_judges_alone(vector: Target, labelled: str, tmp_path: Path) -> None:
    """Its inputs are all guard, as many as asked; the search stays procedural."""
    plan = plan_probes(vector, settings_of(guard=labelled), seeded())
    stored = {row.tobytes() for row in np.load(labelled)["x"]}
    assert rows(plan.guard.inputs) <= stored
    assert len(plan.guard.inputs) == 24
    assert plan.guard.labels is None
    assert not rows(plan.search.inputs) & stored
    assert labelled in plan.receipt.guard


def test_the_rungs_see_a_shuffled_search_set(vector: Target, labelled: str) -> None:
    """The first quarter holds inputs of every source, so a rung is a fair sample."""
    plan = plan_probes(vector, settings_of(probes=(labelled, "procedural")), seeded())
    assert plan.pool is not None
    held = rows(plan.pool.inputs)
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
        plan_probes(vector, settings_of(probes=(f"{tmp_path}/bad.npz",)), seeded())


def test_labels_that_are_not_there_are_missed(vector: Target, tmp_path: Path) -> None:
    """`labelled:` on a file without labels says how to mend it."""
    np.savez(tmp_path / "bare.npz", x=np.zeros((9, 6), np.float32))
    with pytest.raises(InputError, match="holds no labels; drop the prefix"):
        plan_probes(vector, settings_of(probes=(f"labelled:{tmp_path}/bare.npz",)), seeded())


def test_the_pool_is_no_larger_than_asked(vector: Target, labelled: str) -> None:
    """A file of millions is not held in memory twice."""
    plan = plan_probes(vector, settings_of(probes=(labelled,), pool_count=10), seeded())
    assert plan.pool is not None
    assert len(plan.pool.inputs) == 10
    assert rows(plan.search.inputs) <= rows(plan.pool.inputs)


@pytest.mark.parametrize(
    ("probes", "rung", "fresh"),
    [
        (("procedural",), "procedural", True),
        (("uniform",), "procedural", True),
        (("noise",), "noise", True),
        (("impressions",), "inversion", False),
        (("impressions", "noise"), "inversion", True),
    ],
)
def test_the_receipt_says_what_was_shown(
    vector: Target, probes: tuple[str, ...], rung: str, fresh: bool
) -> None:
    """Rung, numbers, hashes that anyone can recompute."""
    plan = plan_probes(vector, settings_of(probes=probes), seeded())
    receipt, held = plan.receipt, plan.pool or plan.search
    assert (receipt.rung, receipt.fresh) == (rung, fresh)
    assert (receipt.samples, receipt.guard_samples) == (len(held.inputs), 24)
    assert receipt.sha256 == sha256_of(held.inputs, held.labels)
    assert receipt.guard_sha256 == sha256_of(plan.guard.inputs, plan.guard.labels)
    assert receipt.sources


def test_hashes_change_with_the_data_and_with_nothing_else(
    vector: Target, labelled: str, tmp_path: Path
) -> None:
    """Same seed, same receipt; another seed or another number in the file, another hash."""

    def receipt(path: str, seed: int) -> tuple[str, str]:
        plan = plan_probes(vector, settings_of(probes=(path,)), seeded(seed))
        return plan.receipt.sha256, plan.receipt.guard_sha256

    stored = np.load(labelled)
    np.savez(tmp_path / "other.npz", x=1 - stored["x"])
    first = receipt(labelled, 1)
    assert first == receipt(labelled, 1)
    for other in (receipt(labelled, 2), receipt(f"{tmp_path}/other.npz", 1)):
        assert not set(first) & set(other)


def test_impressions_are_held_and_in_the_networks_range(mlp: Target) -> None:
    """`--probes impressions` gives a pool of them and nothing fresh."""
    plan = plan_probes(mlp, settings_of(probes=("impressions",)), seeded())
    assert plan.pool is not None
    assert plan.fresh is None
    assert plan.pool.inputs.shape == (16, 1, 28, 28)
    assert 0 <= plan.pool.inputs.min().item() <= plan.pool.inputs.max().item() <= 1
    assert plan.pool_share == 1
    assert "16 class impressions" in plan.receipt.sources[0]


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
def test_every_kind_of_input_gets_probes_that_fit(kind: str) -> None:
    """The network takes search set, guard and fresh batches, all in its range or vocabulary."""
    build, options = MODELS[kind]
    target = target_from_module(build(), inputs=options)
    assert target.inputs.kind == kind
    plan = plan_probes(target, settings_of(), seeded())
    assert plan.fresh is not None
    batch = plan.fresh.draw(17, seeded())
    for inputs in (plan.search.inputs, plan.guard.inputs, batch):
        assert inputs.shape[1:] == target.inputs.shape
        assert answers(target.model, inputs).isfinite().all()
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
    with pytest.raises(InputError, match=r"token ids cannot.*--probes procedural"):
        impressions(Attention(), spec, torch.zeros(2, 5), seeded())


def test_probes_have_the_dtype_of_the_network(labelled: str) -> None:
    """A float64 network gets float64 inputs from generators, files and impressions."""
    target = target_from_module(tiny_model(dtype=torch.float64), inputs=InputOptions(range=(0, 1)))
    for probes in (("procedural",), (labelled,), ("impressions",)):
        plan = plan_probes(target, settings_of(probes=probes), seeded())
        assert plan.search.inputs.dtype == plan.guard.inputs.dtype == torch.float64
        answers(target.model, plan.search.inputs)


@pytest.mark.parametrize("probes", [("procedural",), ("impressions",)])
def test_the_seed_decides_and_global_randomness_stays(
    vector: Target, probes: tuple[str, ...]
) -> None:
    """Same generator state, same probes, whatever the global generators hold."""
    found = []
    for outside in (1, 2):
        torch.manual_seed(outside)
        np.random.seed(outside)  # noqa: NPY002 - the global one is the point
        state = torch.get_rng_state()
        found.append(plan_probes(vector, settings_of(probes=probes), seeded(3)))
        assert torch.equal(torch.get_rng_state(), state)
    assert found[0].receipt == found[1].receipt
    assert found[0].receipt != plan_probes(vector, settings_of(probes=probes), seeded(4)).receipt


@pytest.mark.parametrize("probes", [("auto",), ("procedural",)])
def test_plans_without_batchnorm_are_those_of_the_first_release(probes: tuple[str, ...]) -> None:
    """Recorded before networks were asked for statistics: ids, guard, and what was drawn in all."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        target = target_from_module(Attention(), inputs=InputOptions((5,)))
    generator = seeded(5)
    plan = plan_probes(target, settings_of(probes=probes), generator)
    assert sha256_of(plan.search.inputs).startswith("77a3afa52de5a551")
    assert plan.receipt.guard_sha256.startswith("78114052a0e4890b")
    state = hashlib.sha256(generator.get_state().numpy().tobytes()).hexdigest()
    assert state.startswith("5a4b694647ee3ab8")


def test_a_network_without_batchnorm_is_weighed_by_mutual_information(mlp: Target) -> None:
    """The default by hand, draw for draw: affinities, guard, search."""
    generator, spec = seeded(5), mlp.inputs
    weights = affinities(mlp.model, spec, GENERATORS["image"], generator)
    judge = list(weights)[1]
    guard = GENERATORS["image"][judge](spec, 24, _after_one_pick(generator, 24))
    mixture = Mixture(spec, mix_generators(["procedural"], weights, judge), torch.float32)
    search = mixture.draw(40, generator)
    search = search[torch.randperm(40, generator=generator)]
    by_hand, state = (guard, search), generator.get_state()
    generator = seeded(5)
    plan = plan_probes(mlp, settings_of(), generator)
    assert torch.equal(plan.guard.inputs, by_hand[0])
    assert torch.equal(plan.search.inputs, by_hand[1])
    assert torch.equal(generator.get_state(), state)


def _after_one_pick(generator: torch.Generator, count: int) -> torch.Generator:
    """Draw which generator each of `count` inputs comes from, where there is one only."""
    torch.multinomial(
        torch.ones(1, dtype=torch.float64), count, replacement=True, generator=generator
    )
    return generator
