"""Inverted inputs: they reproduce the BatchNorm statistics of the training data."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from criterion_networks import Attention
from search_cases import seeded, tiny_model
from torch import Tensor, nn
from torch.nn import functional

from gaprune.calibration.generators.random_draws import to_network
from gaprune.calibration.inversion.adam import AdamSteps
from gaprune.calibration.inversion.batchnorm import InversionOptions, invert
from gaprune.calibration.inversion.batchnorm_statistics import BatchNormRecorder
from gaprune.calibration.inversion.impressions import soft_targets
from gaprune.errors import InputError
from gaprune.models.input_spec import InputSpec
from gaprune.models.macs import activation_bytes

IMAGE = InputSpec((2, 8, 8), "image", mean=(0.4, 0.6), std=(0.25, 0.5))
SIGNAL = InputSpec((1, 32), "signal", low=-1, high=1)
VECTOR = InputSpec((6,), "vector", low=-2, high=4)
QUICK = InversionOptions(steps=40, learning_rate=0.05)


def remembering(model: nn.Module, data: Tensor) -> nn.Module:
    """Return the network frozen, with seeded weights and the BatchNorm statistics of `data`."""
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(weight)
        elif weight.ndim > 1:
            nn.init.kaiming_uniform_(weight, generator=seeded(3 + weight.numel()))
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # the plain average
    model.train()(data)
    return model.eval().requires_grad_(False)


def images(count: int, spec: InputSpec = IMAGE) -> Tensor:
    """Return the training data: bright and dull, unlike uniform noise, in the unit range."""
    bright = 0.8 + 0.1 * torch.randn(count, *spec.shape, generator=seeded(11))
    return bright.clamp(0, 1)


def net_of(layer: type[nn.Module], norm: type[nn.Module], channels: int) -> nn.Module:
    """Return a small convolutional classifier with two BatchNorms."""
    return nn.Sequential(
        layer(channels, 8, 3, padding=1), norm(8), nn.ReLU(),
        layer(8, 8, 3, padding=1), norm(8), nn.ReLU(),
        nn.Flatten(2), Mean(), nn.Linear(8, 3),
    )  # fmt: skip


class Mean(nn.Module):
    """Average over positions."""

    def forward(self, features: Tensor) -> Tensor:
        return features.mean(2)


def image_net() -> nn.Module:
    """Return the network of `IMAGE`."""
    return remembering(net_of(nn.Conv2d, nn.BatchNorm2d, 2), to_network(IMAGE, images(256)))


def signal_net() -> nn.Module:
    """Return the network of `SIGNAL`."""
    net = net_of(nn.Conv1d, nn.BatchNorm1d, 1)
    return remembering(net, to_network(SIGNAL, images(256, SIGNAL)))


def vector_net() -> nn.Module:
    """Return the network of `VECTOR`."""
    net = nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 3))
    return remembering(net, to_network(VECTOR, images(256, VECTOR)))


CASES: dict[str, tuple[Callable[[], nn.Module], InputSpec]] = {
    "image": (image_net, IMAGE),
    "signal": (signal_net, SIGNAL),
    "vector": (vector_net, VECTOR),
}


def starts(spec: InputSpec, count: int = 64, seed: int = 1) -> Tensor:
    """Return uniform noise in the unit range."""
    return torch.rand(count, *spec.shape, generator=seeded(seed))


@torch.no_grad()
def mismatch(model: nn.Module, inputs: Tensor) -> float:
    """Return the divergence of a batch from the stored statistics."""
    with BatchNormRecorder(model) as watch:
        model(inputs)
        moments, statistics = watch.take()
    return float(statistics.divergence(moments))


@pytest.mark.parametrize("case", CASES)
def test_inverted_inputs_have_the_statistics_of_the_data(case: str) -> None:
    """The divergence falls to a tenth, and the mean comes near that of the training data."""
    build, spec = CASES[case]
    model, noise = build(), starts(spec)
    made = invert(model, spec, noise, seeded(5), QUICK)
    began = to_network(spec, noise)
    assert mismatch(model, made) < 0.1 * mismatch(model, began)
    data = to_network(spec, images(256, spec)).mean()
    assert abs(made.mean() - data) < 0.25 * abs(began.mean() - data)
    assert made.shape == noise.shape
    assert not made.requires_grad


@pytest.mark.parametrize("case", CASES)
def test_values_stay_in_the_range(case: str) -> None:
    """Even with a learning rate that is far too large."""
    build, spec = CASES[case]
    made = invert(
        build(), spec, starts(spec, 8), seeded(5), InversionOptions(steps=3, learning_rate=2.0)
    )
    ends = to_network(spec, torch.stack([torch.zeros(spec.shape), torch.ones(spec.shape)]))
    assert (made >= ends[0] - 1e-6).all()
    assert (made <= ends[1] + 1e-6).all()
    assert (made == ends[1]).any()


def test_the_seed_decides() -> None:
    """The same seed gives the same bits, another seed other inputs; the starts are unchanged."""
    model, noise = image_net(), starts(IMAGE, 16)
    before = noise.clone()
    options = InversionOptions(steps=4)
    first, second, third = (invert(model, IMAGE, noise, seeded(s), options) for s in (5, 5, 6))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert torch.equal(noise, before)


def test_adam_is_that_of_torch() -> None:
    """Bit for bit, over steps with different rates."""
    values = [torch.randn(3, 4, generator=seeded(seed)) for seed in range(2)]
    others = [value.clone() for value in values]
    adam, steps = torch.optim.Adam(others), AdamSteps(values)
    for number in range(5):
        gradients = [torch.randn(3, 4, generator=seeded(9 + number)) for _ in values]
        adam.param_groups[0]["lr"] = rate = 0.1 / (1 + number)
        for other, gradient in zip(others, gradients, strict=True):
            other.grad = gradient
        adam.step()
        steps.step(gradients, rate)
    assert all(map(torch.equal, values, others))


def test_nothing_is_left_on_the_model() -> None:
    """No hook, gradient, changed bit or mode is left, even after an error in a forward pass."""
    model = image_net()
    state = {name: value.clone() for name, value in model.state_dict().items()}

    class Broken(nn.Module):
        """Fails at the second pass."""

        calls = 0

        def forward(self, inputs: Tensor) -> Tensor:
            self.calls += 1
            if self.calls > 4:
                raise RuntimeError("broken")
            out: Tensor = model(inputs)
            return out

    broken = Broken()
    broken.inner = model
    invert(model, IMAGE, starts(IMAGE, 8), seeded(5), InversionOptions(steps=2))
    with pytest.raises(RuntimeError, match="broken"):
        invert(broken, IMAGE, starts(IMAGE, 8), seeded(5), InversionOptions(steps=9))
    assert broken.calls == 5
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())
    assert not any(module._forward_pre_hooks or module.training for module in model.modules())


def test_chunks_of_a_batch_match_the_whole_batch() -> None:
    """The first step is equal; later the statistics of other chunks are one step old."""
    model, noise = image_net(), starts(IMAGE)
    memory = 20.0 * activation_bytes(model, to_network(IMAGE, noise[:1]))
    exact, step = image_net().double(), InversionOptions(steps=1, jitter=0.0, mirror=False)
    at_once, in_chunks = (
        invert(exact, IMAGE, noise.double(), seeded(5), replace(step, memory=bytes_))
        for bytes_ in (1e9, memory)
    )
    assert torch.allclose(at_once, in_chunks, rtol=0, atol=1e-6)
    whole, parts = (
        mismatch(model, invert(model, IMAGE, noise, seeded(5), replace(QUICK, memory=bytes_)))
        for bytes_ in (1e9, memory)
    )
    assert parts < 1.2 * whole + 0.002


def test_outputs_move_towards_their_targets() -> None:
    """The cross-entropy to the soft targets falls more with a larger weight."""
    model, noise = image_net(), starts(IMAGE)
    targets = soft_targets(64, 3, seeded(5))

    def entropy(inputs: Tensor) -> float:
        return float(functional.cross_entropy(model(inputs), targets))

    before = entropy(to_network(IMAGE, noise))
    little, much = (
        entropy(
            invert(model, IMAGE, noise, seeded(5), replace(QUICK, statistics=1.0, classes=weight))
        )
        for weight in (0.0, 100.0)
    )
    assert much < 0.9 * before
    assert much < 0.9 * little


def test_the_prior_smooths() -> None:
    """A larger weight of the total variation makes neighbours more similar."""
    rough, smooth = (
        invert(image_net(), IMAGE, starts(IMAGE, 16), seeded(5), replace(QUICK, smoothness=weight))
        for weight in (0.0, 300.0)
    )
    assert smooth.diff(dim=-1).abs().mean() < 0.7 * rough.diff(dim=-1).abs().mean()


class Slow(nn.Module):
    """A network that sleeps in every pass."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.inner, self.seconds, self.calls = image_net(), seconds, 0

    def forward(self, inputs: Tensor) -> Tensor:
        self.calls += 1
        time.sleep(self.seconds)
        out: Tensor = self.inner(inputs)
        return out


def test_a_time_limit_shortens_the_first_batch_and_skips_others() -> None:
    """A limit too short for one batch reduces its steps."""
    model, begin = Slow(0.02), time.monotonic()
    options = InversionOptions(steps=1000, batch=8, seconds=0.3)
    inverted = invert(model, IMAGE, starts(IMAGE, 64), seeded(5), options)
    assert time.monotonic() - begin < 5
    assert len(inverted) == 8
    assert 2 < model.calls < 40


def test_a_time_limit_keeps_whole_batches() -> None:
    """No batch begins that would end too late."""
    options = InversionOptions(steps=10, batch=4, seconds=1.0)
    inverted = invert(Slow(0.005), IMAGE, starts(IMAGE, 400), seeded(5), options)
    assert 4 <= len(inverted) < 400
    assert len(inverted) % 4 == 0


def test_progress_counts_the_steps_of_all_batches() -> None:
    """It rises to the total."""
    reports: list[tuple[int, int]] = []
    options = InversionOptions(steps=3, batch=4)
    invert(image_net(), IMAGE, starts(IMAGE, 8), seeded(5), options, lambda *r: reports.append(r))
    assert list(dict.fromkeys(reports)) == [(done, 6) for done in range(1, 7)]


def large_net(head: nn.Module) -> nn.Module:
    """Return a network of 96×96 images with BatchNorm statistics."""
    net = nn.Sequential(nn.Conv2d(1, 4, 5, 4), nn.BatchNorm2d(4), nn.ReLU(), head)
    return remembering(net, to_network(LARGE, images(16, LARGE)))


class Sizes(nn.Module):
    """Records the width of its inputs."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.widths: list[int] = []

    def forward(self, inputs: Tensor) -> Tensor:
        self.widths.append(inputs.shape[-1])
        out: Tensor = self.inner(inputs)
        return out


LARGE = InputSpec((1, 96, 96), "image")


@pytest.mark.parametrize("any_size", [True, False])
def test_large_images_begin_at_half_the_resolution(any_size: bool) -> None:
    """Two thirds of the steps do, if the network accepts that size."""
    pooled, flat = (nn.Flatten(2), Mean(), nn.Linear(4, 3)), (nn.Flatten(), nn.Linear(4 * 23**2, 3))
    model = Sizes(large_net(nn.Sequential(*(pooled if any_size else flat))))
    inverted = invert(model, LARGE, starts(LARGE, 4), seeded(5), InversionOptions(steps=15))
    assert inverted.shape == (4, 1, 96, 96)
    assert model.widths[-1] == 96
    if any_size:
        assert 10 <= model.widths.count(48) <= 14
        assert 5 <= model.widths.count(96) <= 9
    else:
        assert model.widths.count(48) == 1  # the attempt that fails


class Viewed(nn.Module):
    """Views its features as vectors, which only the usual memory layout allows."""

    def forward(self, features: Tensor) -> Tensor:
        return features.view(len(features), -1)


@pytest.mark.parametrize("flatten", [nn.Flatten, Viewed])
def test_images_pass_in_a_layout_that_the_network_accepts(flatten: type[nn.Module]) -> None:
    """Channels come last where the network's code allows it."""
    head = (nn.ReLU(), flatten(), nn.Linear(8 * 64, 3))
    net = nn.Sequential(nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8), *head)
    model, layouts = remembering(net, to_network(IMAGE, images(64))), list[bool]()
    model.register_forward_pre_hook(
        lambda _, inputs: layouts.append(inputs[0].is_contiguous(memory_format=torch.channels_last))
    )
    invert(model, IMAGE, starts(IMAGE, 4), seeded(5), InversionOptions(steps=2))
    assert layouts[-1] == (flatten is nn.Flatten)


class Detached(nn.BatchNorm1d):
    """Passes no gradients to its inputs."""

    def forward(self, inputs: Tensor) -> Tensor:
        return super().forward(inputs).detach()


@pytest.mark.parametrize(
    ("model", "spec", "message"),
    [
        (tiny_model(), InputSpec((6,), "vector"), r"BatchNorm.*calibration='impressions'"),
        (
            nn.Sequential(nn.BatchNorm1d(6, track_running_stats=False)),
            InputSpec((6,), "vector"),
            r"running statistics.*calibration='impressions'",
        ),
        (Attention(), InputSpec((5,), "tokens", vocabulary=11), "token ids"),
        (Detached(6), InputSpec((6,), "vector"), r"gradients.*calibration='procedural'"),
    ],
)
def test_networks_that_cannot_be_inverted(model: nn.Module, spec: InputSpec, message: str) -> None:
    """The error names an alternative."""
    with pytest.raises(InputError, match=message):
        invert(model.eval(), spec, torch.rand(4, *spec.shape), seeded(), InversionOptions(steps=1))
