"""Inputs that are mixed for gradient steps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from search_cases import seeded

from gaprune.calibration.inversion.augment import Augmentation, mix
from gaprune.models.input_spec import InputSpec

IMAGE, SIGNAL = InputSpec((2, 6, 9), "image"), InputSpec((1, 40), "signal")


@given(st.integers(0, 2**32), st.integers(1, 6), st.sampled_from([(2, 6, 9), (1, 5, 5), (3, 1, 4)]))
def test_a_rectangle_of_one_other_image_replaces_a_part(
    seed: int, count: int, shape: tuple[int, ...]
) -> None:
    """In all channels alike; the rest of the image stays."""
    images = torch.rand(count, *shape, generator=seeded(seed))
    before = images.clone()
    for own, mixed in zip(
        images, mix(images, InputSpec(shape, "image"), seeded(seed)), strict=True
    ):
        changed = (mixed != own).any(0)
        assert torch.equal((mixed != own).all(0), changed)
        if not changed.any():
            continue
        rows, columns = changed.any(1).nonzero().flatten(), changed.any(0).nonzero().flatten()
        box = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        assert changed[box].all()
        assert changed.sum() == changed[box].numel()
        part = mixed[:, *box]
        assert sum(torch.equal(part, other[:, *box]) for other in images) == 1
    assert torch.equal(images, before)


@pytest.mark.parametrize("spec", [IMAGE, SIGNAL])
def test_half_of_the_values_are_those_of_others(spec: InputSpec) -> None:
    """On average: the share of the other input is uniform."""
    owners = torch.arange(4000.0).view(-1, *[1] * len(spec.shape)).expand(-1, *spec.shape)
    mixed = mix(owners, spec, seeded(0))
    assert float((mixed != owners).float().mean()) == pytest.approx(0.5, abs=0.02)
    shares = (mixed != owners).float().flatten(1).mean(1)
    assert float((shares < 0.25).float().mean()) == pytest.approx(0.25, abs=0.05)


def test_vectors_stay() -> None:
    """They have no parts that lie beside each other."""
    vectors = torch.rand(5, 7, generator=seeded(0))
    assert torch.equal(mix(vectors, InputSpec((7,), "vector"), seeded(0)), vectors)


def test_inputs_are_moved_before_they_are_mixed() -> None:
    """The images that are mixed are the moved ones."""
    images = torch.rand(16, *IMAGE.shape, generator=seeded(0))
    both = Augmentation(moves=True, mixes=True).apply(images, IMAGE, seeded(1))
    generator = seeded(1)
    moved = Augmentation(moves=True, mixes=False).apply(images, IMAGE, generator)
    assert torch.equal(both, mix(moved, IMAGE, generator))
    assert not torch.equal(moved, images)
