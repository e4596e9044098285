"""Moved copies of made inputs."""

from __future__ import annotations

import pytest
import torch

from gaprune.calibration.inversion.augment import COPIES, shift_and_mirror, with_copies
from gaprune.calibration.samples import Samples
from gaprune.models.input_spec import InputSpec

IMAGE = InputSpec((2, 8, 16), "image")
SIGNAL = InputSpec((1, 32), "signal")
VECTOR = InputSpec((6,), "vector")


def draw(spec: InputSpec, count: int = 20) -> Samples:
    """Return made inputs without two equal values."""
    size = count * torch.Size(spec.shape).numel()
    order = torch.randperm(size, generator=torch.Generator().manual_seed(1)).float()
    return Samples(order.view(count, *spec.shape), None, "made")


@pytest.mark.parametrize("spec", [IMAGE, SIGNAL])
def test_the_inputs_come_first_and_their_copies_hold_the_same_values_in_other_places(
    spec: InputSpec,
) -> None:
    """Moving loses nothing, adds nothing and mixes no channels."""
    made = draw(spec)
    more = with_copies(made, spec, torch.Generator().manual_seed(0)).inputs
    assert len(more) == (1 + COPIES) * len(made.inputs)
    assert torch.equal(more[: len(made.inputs)], made.inputs)
    for copies in more.split(len(made.inputs)):
        same = copies.flatten(2).sort(-1).values
        assert torch.equal(same, made.inputs.flatten(2).sort(-1).values)
    assert not torch.equal(
        more[len(made.inputs) :], made.inputs.repeat(COPIES, *[1] * (more.ndim - 1))
    )


def test_a_shift_is_at_most_the_asked_part_of_the_axis() -> None:
    """A single bright pixel stays within reach of where it was."""
    point = torch.zeros(1, 2, 8, 16)
    point[:, :, 4, 8] = 1
    generator = torch.Generator().manual_seed(0)
    places = {
        tuple(
            shift_and_mirror(point, IMAGE, 1 / 8, generator, mirror=False)[0, 0]
            .nonzero()[0]
            .tolist()
        )
        for _ in range(200)
    }
    assert places == {(row, column) for row in (3, 4, 5) for column in (6, 7, 8, 9, 10)}


def test_images_are_mirrored_left_to_right_half_the_time_and_signals_never() -> None:
    """A reflection of time would be another sound."""
    generator = torch.Generator().manual_seed(0)
    image, signal = draw(IMAGE).inputs, draw(SIGNAL).inputs
    mirrored = [
        torch.equal(shift_and_mirror(image, IMAGE, 0, generator), image.flip(-1))
        for _ in range(200)
    ]
    assert 70 < sum(mirrored) < 130
    assert all(
        torch.equal(shift_and_mirror(signal, SIGNAL, 0, generator), signal) for _ in range(20)
    )


def test_inputs_that_cannot_be_moved_come_back_as_they_are() -> None:
    """Neither vectors nor tokens have neighbours to shift to."""
    made = draw(VECTOR)
    assert with_copies(made, VECTOR, torch.Generator().manual_seed(0)) is made
