"""Noise and procedural inputs: ranges, shapes, determinism, and the statistics they promise."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_cases import seeded
from torch import Tensor

from gaprune.calibration.generators.procedural import GENERATORS, NOISE, procedural
from gaprune.calibration.generators.random_draws import (
    InputGenerator,
    draw_power_law_fields,
    to_network,
)
from gaprune.calibration.provenance import (
    DATA_LEVELS,
    highest_level,
    samples_sha256,
)
from gaprune.calibration.samples import Samples
from gaprune.models.input_spec import InputSpec

torch.set_num_threads(1)

SPECS = {
    "image": InputSpec((1, 28, 28), "image"),
    "signal": InputSpec((2, 256), "signal"),
    "vector": InputSpec((40,), "vector"),
    "tokens": InputSpec((32,), "tokens", vocabulary=50),
}
EVERY = [
    pytest.param(kind, draw, id=f"{kind}-{name}")
    for kind in SPECS
    for name, draw in (GENERATORS[kind] | {"noise": NOISE[kind]}).items()
]


def image_specs() -> st.SearchStrategy[InputSpec]:
    """Pictures of any channels and sides, also one pixel."""
    side = st.integers(1, 48)
    return st.builds(lambda *shape: InputSpec(shape, "image"), st.integers(1, 4), side, side)


def signal_specs() -> st.SearchStrategy[InputSpec]:
    """Signals with and without a channel axis."""
    length = st.integers(1, 300)
    shapes = st.one_of(st.tuples(length), st.tuples(st.integers(1, 4), length))
    return shapes.map(lambda shape: InputSpec(shape, "signal"))


def vector_specs() -> st.SearchStrategy[InputSpec]:
    """Feature vectors."""
    return st.integers(1, 200).map(lambda size: InputSpec((size,), "vector"))


def token_specs() -> st.SearchStrategy[InputSpec]:
    """Token rows over small and large vocabularies."""
    return st.builds(
        lambda length, vocabulary: InputSpec((length,), "tokens", vocabulary=vocabulary),
        st.integers(1, 60),
        st.integers(2, 3000),
    )


def assert_valid(drawn: Tensor, spec: InputSpec, count: int) -> None:
    """Check shape, dtype, finite and inside the unit range or the vocabulary."""
    assert drawn.shape == (count, *spec.shape)
    if spec.kind == "tokens":
        assert drawn.dtype == torch.int64
        assert 0 <= int(drawn.min()) <= int(drawn.max()) < spec.vocabulary
    else:
        assert drawn.dtype == torch.float32
        assert drawn.isfinite().all()
        assert 0 <= drawn.min().item() <= drawn.max().item() <= 1


@settings(max_examples=40, deadline=None)
@given(
    spec=st.one_of(image_specs(), signal_specs(), vector_specs(), token_specs()),
    count=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
def test_every_generator_fills_any_shape_within_the_unit_range(
    spec: InputSpec, count: int, seed: int
) -> None:
    """Whatever the shape, each generator gives finite values in [0, 1], or ids in vocabulary."""
    for name, draw in (GENERATORS[spec.kind] | {"noise": NOISE[spec.kind]}).items():
        try:
            assert_valid(draw(spec, count, seeded(seed)), spec, count)
        except Exception as error:
            error.add_note(f"generator {name}, {spec}")
            raise


@pytest.mark.parametrize(("kind", "draw"), EVERY)
def test_the_seed_decides_and_every_call_is_fresh(kind: str, draw: InputGenerator) -> None:
    """Same seed, same bits; another seed or a second call on the same generator, other inputs."""
    spec, generator = SPECS[kind], seeded(1)
    first, second = draw(spec, 8, generator), draw(spec, 8, generator)
    assert torch.equal(first, draw(spec, 8, seeded(1)))
    assert not torch.equal(first, second)
    assert not torch.equal(first, draw(spec, 8, seeded(2)))


@pytest.mark.parametrize("kind", list(SPECS))
def test_the_global_random_state_is_neither_used_nor_moved(kind: str) -> None:
    """Calibration inputs come from the passed generator only."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = procedural(SPECS[kind], 12, seeded())
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert torch.equal(first, procedural(SPECS[kind], 12, seeded()))


def measured_slope(fields: np.ndarray) -> float:
    """Log-log slope of the mean amplitude spectrum against frequency."""
    axes = tuple(range(1, fields.ndim))
    grids = np.meshgrid(*(np.fft.fftfreq(side) for side in fields.shape[1:]), indexing="ij")
    radius = np.sqrt(sum(grid**2 for grid in grids)).ravel()
    amplitude = np.abs(np.fft.fftn(fields, axes=axes)).mean(0).ravel()
    band = (radius > 0.03) & (radius < 0.45)
    return float(np.polyfit(np.log(radius[band]), np.log(amplitude[band]), 1)[0])


@pytest.mark.parametrize("size", [(64, 64), (48, 80), (512,)])
@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.5])
def test_fields_have_the_spectrum_they_are_asked_for(
    size: tuple[int, ...], exponent: float
) -> None:
    """The measured amplitude spectrum falls as 1/f^a."""
    fields = draw_power_law_fields(64, size, torch.full((64,), exponent), seeded())
    assert measured_slope(fields.double().numpy()) == pytest.approx(-exponent, abs=0.1)
    axes = tuple(range(1, fields.dim()))
    assert torch.allclose(fields.mean(axes), torch.zeros(64), atol=1e-5)
    assert torch.allclose(fields.std(axes, correction=0), torch.ones(64), atol=1e-4)


PENS = ["glyphs", "outlines", "strokes"]


@pytest.mark.parametrize("side", [28, 56, 96])
@pytest.mark.parametrize("name", PENS)
def test_pen_drawings_are_sparse_bright_ink_on_dark_ground(name: str, side: int) -> None:
    """At any size most pixels are black and every picture has a well inked line."""
    drawn = GENERATORS["image"][name](InputSpec((1, side, side), "image"), 256, seeded())
    assert 0.05 < drawn.mean().item() < 0.35
    assert (drawn == 0).float().mean().item() > 0.6
    assert (drawn.amax((1, 2, 3)) > 0.8).float().mean().item() > 0.99
    border = torch.cat([drawn[..., 0], drawn[..., -1]]).mean().item()
    assert border < 0.02  # the pen stays on the paper


@pytest.mark.parametrize("name", PENS)
def test_coloured_pen_drawings_lie_between_an_ink_and_a_paper_colour(name: str) -> None:
    """With several channels each picture is a blend of two colours: its pixels lie on a line."""
    drawn = GENERATORS["image"][name](InputSpec((3, 28, 28), "image"), 16, seeded())
    for pixels in drawn.double().flatten(2).transpose(1, 2).numpy():
        spread = np.linalg.svd(pixels - pixels.mean(0), compute_uv=False)
        assert spread[1] < 1e-3 * max(spread[0], 1e-3)
    assert drawn.flatten(2).amax(2).std().item() > 0.1  # colours differ between pictures


def test_tones_concentrate_their_energy_where_noise_spreads_it() -> None:
    """A few frequencies carry a tone; white noise needs them all."""
    spec = InputSpec((1024,), "signal")

    def peakedness(drawn: Tensor) -> float:
        power = np.abs(np.fft.rfft(drawn.double().numpy() - 0.5)) ** 2
        ordered = np.sort(power, axis=1)[:, ::-1]
        return float(np.median(ordered[:, :50].sum(1) / ordered.sum(1)))

    assert peakedness(GENERATORS["signal"]["tones"](spec, 64, seeded())) > 0.9
    assert peakedness(NOISE["signal"](spec, 64, seeded())) < 0.6


def test_sparse_vectors_are_mostly_zero_and_never_empty() -> None:
    """Bag-of-words-like vectors: few features, at least one."""
    drawn = GENERATORS["vector"]["sparse"](InputSpec((300,), "vector"), 256, seeded())
    present = (drawn > 0).float().mean(1)
    assert present.mean().item() < 0.4
    assert present.min().item() > 0


def test_mixture_vectors_are_correlated_across_features() -> None:
    """The covariance of mixture vectors is dominated by few directions, that of noise is not."""
    spec = InputSpec((60,), "vector")

    def share_of_first_ten(drawn: Tensor) -> float:
        power = np.linalg.svd(drawn.numpy() - drawn.numpy().mean(0), compute_uv=False) ** 2
        return float(power[:10].sum() / power.sum())

    assert share_of_first_ten(GENERATORS["vector"]["mixture"](spec, 512, seeded())) > 0.5
    assert share_of_first_ten(NOISE["vector"](spec, 512, seeded())) < 0.35


def test_zipf_bursts_are_uneven_and_repeat_themselves() -> None:
    """A few ids dominate, and bigrams recur within a row more often than in the shuffled row."""
    spec = InputSpec((128,), "tokens", vocabulary=500)
    ids = GENERATORS["tokens"]["zipf-bursts"](spec, 64, seeded())
    counts = ids.flatten().bincount(minlength=500).sort(descending=True).values.float()
    assert counts[:25].sum() / counts.sum() > 0.3

    def repeats(row: np.ndarray) -> int:
        pairs = list(itertools.pairwise(row.tolist()))
        return len(pairs) - len(set(pairs))

    rows = ids.numpy()
    shuffled = np.random.default_rng(0).permuted(rows, axis=1)
    assert sum(map(repeats, rows)) > 2 * sum(map(repeats, shuffled))


@given(count=st.integers(1, 50), parts=st.integers(1, 7), seed=st.integers(0, 1000))
@settings(deadline=None)
def test_procedural_inputs_are_equal_parts_in_random_order(
    count: int, parts: int, seed: int
) -> None:
    """The parts of any two generators differ by at most one input."""

    def constant(value: float) -> InputGenerator:
        return lambda spec, count, generator: torch.full((count, *spec.shape), value)

    table = {str(index): constant(float(index)) for index in range(parts)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(GENERATORS, "vector", table)
        drawn = procedural(InputSpec((1,), "vector"), count, seeded(seed)).flatten().long()
    shares = drawn.bincount(minlength=parts)
    assert int(shares.sum()) == count
    assert int(shares.max() - shares.min()) <= 1
    if parts == 2 and count > 40:
        assert int((drawn.diff() != 0).sum()) > 5  # inputs of one generator are not adjacent


def test_inputs_are_mapped_to_what_the_network_takes() -> None:
    """Black, grey and white map to (low, middle, high), then each channel to (x − mean) / std."""
    spec = InputSpec((2, 1, 1), "image", low=-1, high=3, mean=(1, 2), std=(0.5, 4))
    unit = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 2, 1, 1)
    expected = torch.tensor([[-4.0, -0.75], [0.0, -0.25], [4.0, 0.25]])
    assert torch.equal(to_network(spec, unit).view(3, 2), expected)
    ids = torch.tensor([[3, 1, 4]])
    assert to_network(SPECS["tokens"], ids, torch.float64) is ids


def test_the_hash_covers_values_dtype_shape_and_absence() -> None:
    """Equal samples have equal hashes; another value, dtype, shape or missing labels change it."""

    def digest(inputs: Tensor, labels: Tensor | None = None) -> str:
        return samples_sha256(Samples(inputs, labels, ""))

    base = torch.arange(6, dtype=torch.float32)
    variants = [base, base + 1, base.double(), base.bfloat16(), base.view(2, 3)]
    hashes = [digest(inputs) for inputs in variants]
    hashes += [digest(base, base.long()), digest(base.long(), base), samples_sha256(None)]
    assert len(set(hashes)) == len(hashes)
    assert digest(base.clone()) == hashes[0]
    assert digest(torch.arange(12.0)[::2] / 2) == hashes[0]  # the values, not the strides
    plain = b"torch.int64(2,);" + np.array([7, 9], "<i8").tobytes() + b"absent;"
    assert digest(torch.tensor([7, 9])) == hashlib.sha256(plain).hexdigest()


def test_the_level_that_needs_most_data_counts() -> None:
    """One labelled file makes a run labelled, whatever else it uses."""
    assert highest_level([]) == "none"
    assert highest_level(["procedural", "inversion", "noise"]) == "inversion"
    assert highest_level(reversed(DATA_LEVELS)) == "labelled"
