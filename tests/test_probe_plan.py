"""Which probes a run uses: requests, the teacher's choice, guard, split files, impressions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from saliency_networks import Attention
from search_cases import seeded, tiny_model
from torch import Tensor, nn
from torch.nn import functional

from gaprune.bench import answers
from gaprune.config import Settings, make_settings
from gaprune.errors import InputError
from gaprune.input_options import InputOptions
from gaprune.inputs import KINDS, InputSpec
from gaprune.probes import GENERATORS, sha256_of
from gaprune.probes.affinity import affinities, shares
from gaprune.probes.impressions import Recipe, impressions, soft_targets
from gaprune.probes.mixture import Mixture, mix_generators
from gaprune.probes.plan import ProbePlan, plan_probes
from gaprune.probes.requests import FileRequest, parse_probes
from gaprune.target import Target, load_target, target_from_module
from gaprune.zoo import MNIST_INPUT

IMAGE = MNIST_INPUT
PENS = {"strokes", "outlines", "glyphs"}


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


@pytest.fixture(scope="module")
def weighed(mlp: Target) -> dict[str, float]:
    """How the zoo's network weighs the generators."""
    return affinities(mlp.model, IMAGE, GENERATORS["image"], seeded())


# What the user may write


@pytest.mark.parametrize(
    ("listed", "names", "files", "wanted"),
    [
        (["procedural"], ("procedural",), (), False),
        (["strokes", "noise"], ("strokes", "noise"), (), False),
        (["impressions"], (), (), True),
        (["impressions", "blobs"], ("blobs",), (), True),
        (["mnist-train"], (), (FileRequest("unlabelled", "mnist-train"),), False),
        (["labelled:a.npz"], (), (FileRequest("labelled", "a.npz"),), False),
        (["proxy:photos/cats"], (), (FileRequest("proxy", "photos/cats"),), False),
        (["unlabelled:a.npz", "fields"], ("fields",), (FileRequest("unlabelled", "a.npz"),), False),
        (["x.npy+y.npy"], (), (FileRequest("unlabelled", "x.npy+y.npy"),), False),
        ([r"C:\data\x.npz"], (), (FileRequest("unlabelled", r"C:\data\x.npz"),), False),
    ],
)
def test_probes_are_names_files_or_impressions(
    listed: list[str], names: tuple[str, ...], files: tuple[FileRequest, ...], wanted: bool
) -> None:
    """Each word is sorted by what it is; a bare path is unlabelled."""
    request = parse_probes(listed, IMAGE)
    assert (request.names, request.files, request.impressions) == (names, files, wanted)


def test_a_file_in_the_folder_needs_no_dot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A word that names an existing path is that path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    assert parse_probes(["photos"], IMAGE).files == (FileRequest("unlabelled", "photos"),)


@pytest.mark.parametrize(
    ("word", "hint"),
    [("strokez", "strokes"), ("procedral", "procedural"), ("labelled:mnist-trian", "mnist-train")],
)
def test_an_unknown_probe_is_refused_with_the_nearest_name(word: str, hint: str) -> None:
    """All generators of this kind of input, the aliases and the forms of a path are listed."""
    with pytest.raises(InputError, match=rf"probes: unknown name '{word}'") as caught:
        parse_probes([word], IMAGE)
    for valid in (hint, "dead-leaves", "noise", "impressions", "mnist-train", "labelled:PATH"):
        assert valid in str(caught.value)


def test_generators_of_another_kind_are_unknown() -> None:
    """Tones are for signals."""
    with pytest.raises(InputError, match="unknown name 'tones'"):
        parse_probes(["tones"], IMAGE)
    assert parse_probes(["tones"], InputSpec((64,), "signal")).names == ("tones",)


def test_no_probes_are_refused() -> None:
    """The message lists what there is."""
    with pytest.raises(InputError, match="probes: name at least one of procedural, impressions"):
        parse_probes([], IMAGE)


def test_an_unknown_guard_is_refused(vector: Target) -> None:
    """The nearest name, `auto` among the valid ones."""
    with pytest.raises(InputError, match=r"guard: unknown name 'sprase' \(did you mean 'sparse'"):
        plan_probes(vector, settings_of(guard="sprase"), seeded())


# What the teacher chooses


def test_a_network_of_digits_prefers_pen_drawings(weighed: dict[str, float]) -> None:
    """Without any data, mnist-mlp ranks the three pen generators above noise and all others."""
    assert set(list(weighed)[:3]) == PENS
    assert list(weighed.values()) == sorted(weighed.values(), reverse=True)
    assert all(0 <= value <= np.log(10) for value in weighed.values())


def test_pen_drawings_tell_more_than_noise(mlp: Target, weighed: dict[str, float]) -> None:
    """White noise says next to nothing about a network of digits."""
    table = {"noise": lambda spec, count, generator: torch.rand(count, *spec.shape)}
    noise = affinities(mlp.model, IMAGE, table, seeded())["noise"]
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
    assert affinities(Sure(), spec, even, seeded())["even"] == pytest.approx(np.log(4))
    assert affinities(Constant(), spec, even, seeded())["even"] == pytest.approx(0, abs=1e-9)


def test_outputs_without_classes_give_equal_affinities() -> None:
    """A regressor cannot weigh its generators: all share alike."""
    model = nn.Sequential(nn.Linear(6, 1))
    found = affinities(model, InputSpec((6,), "vector"), GENERATORS["vector"], seeded())
    assert set(found.values()) == {0.0}
    assert list(found) == list(GENERATORS["vector"])


@given(st.dictionaries(st.text(min_size=1), st.floats(0, 5), min_size=1, max_size=8))
def test_shares_grow_with_affinity_and_add_up(affinity: dict[str, float]) -> None:
    """A softmax: they sum to 1 and keep the order."""
    portions = shares(affinity)
    assert sum(portions.values()) == pytest.approx(1)
    for one, other in zip(affinity, list(affinity)[1:], strict=False):
        if affinity[one] > affinity[other]:
            assert portions[one] >= portions[other]


words = st.lists(st.sampled_from(["procedural", "noise", *GENERATORS["image"]]), max_size=5)


@given(words, st.none() | st.sampled_from(sorted(GENERATORS["image"])), st.integers(0, 99))
def test_portions_add_up_and_leave_the_guard_out(
    names: list[str], guard: str | None, seed: int
) -> None:
    """`procedural` never includes the guard's generator; every name beside it has an equal part."""
    values = torch.rand(len(GENERATORS["image"]), generator=seeded(seed)).tolist()
    portions = mix_generators(names, dict(zip(GENERATORS["image"], values, strict=True)), guard)
    assert sum(portions.values()) == pytest.approx(1)
    assert guard is None or guard in names or guard not in portions
    distinct = list(dict.fromkeys(names))
    for name in distinct:
        if name != "procedural":
            assert portions[name] >= 1 / len(distinct) - 1e-9


def test_a_batch_has_the_portions_of_the_mixture() -> None:
    """Zeros tell the generators apart; inputs come in the network's dtype, and in words."""
    mixture = Mixture(InputSpec((6,), "vector"), {"sparse": 0.7, "noise": 0.3}, torch.float64)
    drawn = mixture.draw(3000, seeded(1))
    assert drawn.dtype == torch.float64
    with_zeros = (drawn == 0).any(1).double().mean().item()
    # nearly every sparse vector of six has a zero; five deviations of a binomial
    assert with_zeros == pytest.approx(0.7, abs=5 * (0.21 / 3000) ** 0.5 + 0.01)
    assert mixture.draw_unit(1, seeded()).shape == (1, 6)
    assert mixture.description == "sparse 70%, noise 30%"


# The plan as a whole


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


# Receipts


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


# Impressions


@given(st.integers(1, 40), st.integers(2, 12), st.integers(0, 999))
@settings(max_examples=30)
def test_soft_targets_are_distributions(count: int, classes: int, seed: int) -> None:
    """Rows are positive and sum to 1; the seed decides."""
    targets = soft_targets(count, classes, seeded(seed))
    assert targets.shape == (count, classes)
    assert (targets >= 0).all()
    assert torch.allclose(targets.sum(1), torch.ones(count), atol=1e-5)
    assert torch.equal(targets, soft_targets(count, classes, seeded(seed)))
    assert not torch.equal(targets, soft_targets(count, classes, seeded(seed + 1)))


def test_soft_targets_range_from_sure_to_undecided() -> None:
    """Some are nearly one-hot, others spread over the classes, and no class is preferred."""
    targets = soft_targets(2000, 10, seeded())
    sureness = targets.amax(1)
    assert (sureness > 0.99).double().mean().item() > 0.05
    assert (sureness < 0.4).double().mean().item() > 0.1
    assert targets.mean(0).tolist() == pytest.approx([0.1] * 10, abs=0.025)


def test_impressions_move_the_teacher_towards_their_targets() -> None:
    """The cross-entropy to the drawn targets falls, and every value stays in the unit range."""
    model, spec = tiny_model(), InputSpec((6,), "vector", low=-2, high=2)
    starts = torch.rand(64, 6, generator=seeded(1))
    before = starts.clone()
    made = impressions(model, spec, starts, seeded(5), Recipe(batch=64))
    targets = soft_targets(64, 4, seeded(5))

    def miss(unit: Tensor) -> float:
        log_outputs = functional.log_softmax(answers(model, 4 * unit - 2), 1)
        return float(-(targets * log_outputs).sum(1).mean())

    assert miss(made) < 0.7 * miss(starts)
    assert made.shape == starts.shape
    assert 0 <= made.min().item() <= made.max().item() <= 1
    assert torch.equal(starts, before)
    assert not made.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_impressions_of_a_regressor_match_its_answers_on_other_inputs() -> None:
    """Without classes the targets are the teacher's own outputs, dealt anew."""
    model = nn.Sequential(tiny_model(), nn.Linear(4, 1)).requires_grad_(False)
    starts = torch.rand(64, 6, generator=seeded(1))
    spec = InputSpec((6,), "vector")
    made = impressions(model, spec, starts, seeded(5), Recipe(smoothness=0.0, batch=64))
    outputs = answers(model, starts)
    targets = outputs[torch.randperm(64, generator=seeded(5))]
    error = (answers(model, made) - targets).square().mean()
    assert error < 0.5 * (outputs - targets).square().mean()


def test_smooth_impressions_are_smoother() -> None:
    """The total-variation prior counts for pictures and signals."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).requires_grad_(False)
    for spec in (InputSpec((1, 8, 8), "image"), InputSpec((64,), "signal")):
        starts = torch.rand(16, *spec.shape, generator=seeded(1))
        rough, smooth = (
            impressions(model, spec, starts, seeded(5), Recipe(steps=20, smoothness=weight))
            for weight in (0.0, 0.5)
        )
        assert smooth.diff(dim=-1).abs().mean() < 0.7 * rough.diff(dim=-1).abs().mean()


def test_impressions_are_held_and_in_the_networks_range(mlp: Target) -> None:
    """`--probes impressions` gives a pool of them and nothing fresh."""
    plan = plan_probes(mlp, settings_of(probes=("impressions",)), seeded())
    assert plan.pool is not None
    assert plan.fresh is None
    assert plan.pool.inputs.shape == (16, 1, 28, 28)
    assert 0 <= plan.pool.inputs.min().item() <= plan.pool.inputs.max().item() <= 1
    assert plan.pool_share == 1
    assert "16 class impressions" in plan.receipt.sources[0]


# Every kind of input


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


def test_token_networks_refuse_impressions() -> None:
    """Ids cannot be moved a little; the message says what to use."""
    target = target_from_module(Attention(), inputs=InputOptions((5,)))
    with pytest.raises(InputError, match=r"impressions.*--probes procedural"):
        plan_probes(target, settings_of(probes=("impressions",)), seeded())
    spec = InputSpec((5,), "tokens", vocabulary=11)
    with pytest.raises(InputError, match="token ids cannot"):
        impressions(Attention(), spec, torch.zeros(2, 5), seeded())


class Detached(nn.Linear):
    """A network that passes no gradient on."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


def test_networks_without_gradients_refuse_impressions() -> None:
    """The message says what to use."""
    spec = InputSpec((6,), "vector")
    with pytest.raises(InputError, match=r"passes gradients.*--probes procedural"):
        impressions(Detached(6, 3), spec, torch.rand(2, 6), seeded())


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
