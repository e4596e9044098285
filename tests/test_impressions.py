"""Class impressions, and shifted and mirrored copies of inputs."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from search_cases import seeded, tiny_model
from torch import Tensor, nn
from torch.nn import functional

from gaprune.calibration.inversion.augment import COPIES, shift_and_mirror, with_copies
from gaprune.calibration.inversion.impressions import impressions, soft_targets
from gaprune.calibration.inversion.patch_diversity import (
    BANDWIDTH,
    attention_outputs,
    similarity_entropy,
)
from gaprune.calibration.samples import Samples
from gaprune.errors import InputError
from gaprune.models.forward import batched_forward
from gaprune.models.input_spec import InputSpec
from gaprune.models.sources.optional_packages import import_extra


@given(st.integers(1, 40), st.integers(2, 12), st.integers(0, 999))
@settings(max_examples=30)
def test_soft_targets_are_distributions(count: int, classes: int, seed: int) -> None:
    """Rows are not negative and sum to 1; the seed determines them."""
    targets = soft_targets(count, classes, seeded(seed))
    assert targets.shape == (count, classes)
    assert (targets >= 0).all()
    assert torch.allclose(targets.sum(1), torch.ones(count), atol=1e-5)
    assert torch.equal(targets, soft_targets(count, classes, seeded(seed)))
    assert not torch.equal(targets, soft_targets(count, classes, seeded(seed + 1)))


def test_soft_targets_range_from_confident_to_uniform() -> None:
    """Some are nearly one-hot, others nearly uniform, and all classes are equally likely."""
    targets = soft_targets(2000, 10, seeded())
    confidence = targets.amax(1)
    assert (confidence > 0.99).double().mean().item() > 0.05
    assert (confidence < 0.4).double().mean().item() > 0.1
    assert targets.mean(0).tolist() == pytest.approx([0.1] * 10, abs=0.025)


def test_impressions_move_the_teacher_towards_their_targets() -> None:
    """The cross-entropy to the soft targets falls, and values stay in the unit range."""
    model, spec = tiny_model(), InputSpec((6,), "vector", low=-2, high=2)
    starts = torch.rand(64, 6, generator=seeded(1))
    before = starts.clone()
    made = impressions(model, spec, starts, seeded(5))
    targets = soft_targets(64, 4, seeded(5))

    def miss(unit: Tensor) -> float:
        log_outputs = functional.log_softmax(batched_forward(model, 4 * unit - 2), 1)
        return float(-(targets * log_outputs).sum(1).mean())

    assert miss(made) < 0.7 * miss(starts)
    assert made.shape == starts.shape
    assert 0 <= made.min().item() <= made.max().item() <= 1
    assert torch.equal(starts, before)
    assert not made.requires_grad
    assert all(p.grad is None for p in model.parameters())


def test_impressions_of_a_regressor_match_its_outputs_for_other_inputs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without classes the targets are a permutation of the teacher's own outputs."""
    monkeypatch.setattr("gaprune.calibration.inversion.impressions.SMOOTHNESS", 0.0)
    model = nn.Sequential(tiny_model(), nn.Linear(4, 1)).requires_grad_(False)
    starts = torch.rand(64, 6, generator=seeded(1))
    made = impressions(model, InputSpec((6,), "vector"), starts, seeded(5))
    outputs = batched_forward(model, starts)
    targets = outputs[torch.randperm(64, generator=seeded(5))]
    error = (batched_forward(model, made) - targets).square().mean()
    assert error < 0.5 * (outputs - targets).square().mean()


@pytest.mark.parametrize("spec", [InputSpec((1, 8, 8), "image"), InputSpec((64,), "signal")])
def test_total_variation_smooths(spec: InputSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images and signals get smoother with a weight above 0."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).requires_grad_(False)
    starts = torch.rand(16, *spec.shape, generator=seeded(1))
    roughness = []
    for weight in (0.0, 0.5):
        monkeypatch.setattr("gaprune.calibration.inversion.impressions.SMOOTHNESS", weight)
        made = impressions(model, spec, starts, seeded(5))
        roughness.append(made.diff(dim=-1).abs().mean())
    assert roughness[1] < 0.7 * roughness[0]


class Detached(nn.Linear):
    """Passes no gradients to its inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


def test_networks_without_gradients_refuse_impressions() -> None:
    """The error names an alternative."""
    spec = InputSpec((6,), "vector")
    with pytest.raises(InputError, match=r"gradients.*calibration='procedural'"):
        impressions(Detached(6, 3), spec, torch.rand(2, 6), seeded())
    tokens = InputSpec((5,), "tokens", vocabulary=11)
    with pytest.raises(InputError, match=r"token ids.*calibration='procedural'"):
        impressions(Detached(6, 3), tokens, torch.zeros(2, 5), seeded())


IMAGE = InputSpec((2, 8, 16), "image")
SIGNAL = InputSpec((1, 32), "signal")
VECTOR = InputSpec((6,), "vector")


def draw(spec: InputSpec, count: int = 20) -> Samples:
    """Return made inputs without two equal values."""
    size = count * torch.Size(spec.shape).numel()
    order = torch.randperm(size, generator=seeded(1)).float()
    return Samples(order.view(count, *spec.shape), None, "made")


@pytest.mark.parametrize("spec", [IMAGE, SIGNAL])
def test_copies_hold_the_values_of_the_inputs_in_other_positions(
    spec: InputSpec,
) -> None:
    """The inputs come first; every channel of a copy has the same values, moved."""
    made = draw(spec)
    more = with_copies(made, spec, seeded()).inputs
    assert len(more) == (1 + COPIES) * len(made.inputs)
    assert torch.equal(more[: len(made.inputs)], made.inputs)
    for copies in more.split(len(made.inputs)):
        same = copies.flatten(2).sort(-1).values
        assert torch.equal(same, made.inputs.flatten(2).sort(-1).values)
    assert not torch.equal(more[len(made.inputs) :], torch.cat([made.inputs] * COPIES))


def test_a_shift_is_at_most_the_given_fraction_of_the_axis() -> None:
    """A single bright pixel moves to all positions within the limit and to no other."""
    point = torch.zeros(1, 2, 8, 16)
    point[:, :, 4, 8] = 1
    generator = seeded()
    shifted = (shift_and_mirror(point, IMAGE, 1 / 8, generator, mirror=False) for _ in range(200))
    positions = {tuple(images[0, 0].nonzero()[0].tolist()) for images in shifted}
    assert positions == {(row, column) for row in (3, 4, 5) for column in (6, 7, 8, 9, 10)}


def test_images_are_mirrored_left_to_right_half_the_time_and_signals_never() -> None:
    """Reversed time would change what a signal means."""
    generator = seeded()
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
    """Vectors have no spatial or time axis."""
    made = draw(VECTOR)
    assert with_copies(made, VECTOR, seeded()) is made


def vision_transformer() -> nn.Module:
    """Return a small one of timm with random weights."""
    sizes = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 4}
    timm = import_extra("timm", "timm", "test")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.models.vision_transformer.VisionTransformer(img_size=16, **sizes).eval()
        for parameter in (p for p in model.parameters() if p.ndim > 1):
            nn.init.normal_(parameter, std=0.3)
    return cast(nn.Module, model.requires_grad_(False))


def test_patches_of_a_vision_transformer_differ_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The histogram of cosines between outputs of attention gets broader, the same each time."""
    model, spec = vision_transformer(), InputSpec((3, 16, 16), "image")
    monkeypatch.setattr("gaprune.calibration.inversion.impressions.STEPS", 30)
    starts = torch.rand(6, *spec.shape, generator=seeded(1))
    entropies = []
    for weight in (0.0, 1.0):
        monkeypatch.setattr("gaprune.calibration.inversion.impressions.DIVERSITY", weight)
        made = impressions(model, spec, starts, seeded(5))
        with attention_outputs(model, spec) as layers:
            model(made)
        assert len(layers) == 2
        entropies.append(0.0)
        for patches in (image for layer in layers for image in layer):
            cosines = functional.cosine_similarity(patches[:, None], patches[None], dim=2)
            counts = torch.histc(cosines, 20, -1, 1)
            entropies[-1] += float(torch.distributions.Categorical(counts).entropy()) / 12
    assert entropies[1] > entropies[0] + 0.1
    assert torch.equal(made, impressions(model, spec, starts, seeded(5)))
    assert not any(module._forward_hooks for module in model.modules())


def test_patch_similarity_entropy_is_that_of_its_density() -> None:
    """Equal patches give a single Gaussian, different ones a higher entropy."""
    patches = torch.ones(3, 5, 7, dtype=torch.float64)
    gaussian = float(torch.distributions.Normal(0, BANDWIDTH).entropy())
    assert float(similarity_entropy(patches)) / 3 == pytest.approx(gaussian, abs=0.02)
    mixed = patches.clone()
    mixed[:, :2] *= torch.tensor([1.0, -1, 1, -1, 1, -1, 1])
    assert similarity_entropy(mixed) > similarity_entropy(patches) + 1
    with attention_outputs(tiny_model(), InputSpec((6,), "vector")) as layers:
        tiny_model()(torch.rand(2, 6))
    assert layers == []
