"""The statistics that BatchNorms store, and the divergence of a batch from them."""

from __future__ import annotations

import pytest
import torch
from criterion_networks import seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from gaprune.calibration.inversion.batchnorm_statistics import (
    BatchNormRecorder,
    ChunkedMoments,
    batchnorms,
)
from gaprune.errors import InputError


def norm_of(kind: type[nn.BatchNorm1d | nn.BatchNorm2d], channels: int, seed: int) -> nn.Module:
    """Return a BatchNorm in float64 with random statistics."""
    norm = kind(channels, eps=1e-3).double().eval().requires_grad_(False)
    norm.get_buffer("running_mean").normal_(generator=seeded(seed))
    norm.get_buffer("running_var").uniform_(0.2, 3, generator=seeded(seed + 1))
    return norm


def divergence_of(model: nn.Module, inputs: Tensor) -> float:
    """Return the divergence of a batch from the stored statistics."""
    with BatchNormRecorder(model) as watch:
        model(inputs)
        moments, statistics = watch.take()
    return float(statistics.divergence(moments))


@given(st.integers(1, 5), st.integers(2, 9), st.integers(0, 999))
@settings(max_examples=20)
def test_the_divergence_is_that_of_gaussians(channels: int, rows: int, seed: int) -> None:
    """It equals the KL divergence of torch, averaged over channels, with epsilon in both."""
    norm = norm_of(nn.BatchNorm2d, channels, seed)
    inputs = torch.randn(rows, channels, 3, 2, generator=seeded(seed), dtype=torch.float64)
    inputs = 2 * inputs + 1
    variance, mean = torch.var_mean(inputs, (0, 2, 3), correction=0)
    batch = Normal(mean, (variance + 1e-3).sqrt())
    running = (norm.get_buffer("running_mean"), norm.get_buffer("running_var"))
    stored = Normal(running[0], (running[1] + 1e-3).sqrt())
    expected = float(kl_divergence(batch, stored).mean())
    assert divergence_of(norm, inputs) == pytest.approx(expected, rel=1e-9)


def test_norms_count_alike_and_every_call_counts() -> None:
    """A norm of 1 channel weighs as much as one of 4; a norm that runs twice counts twice."""
    wide, narrow = norm_of(nn.BatchNorm1d, 4, 1), norm_of(nn.BatchNorm1d, 1, 2)
    inputs = torch.randn(8, 4, generator=seeded(), dtype=torch.float64)

    class Both(nn.Module):
        """Calls the wide one twice."""

        def __init__(self) -> None:
            super().__init__()
            self.wide, self.narrow = wide, narrow

        def forward(self, batch: Tensor) -> Tensor:
            self.wide(batch)
            self.wide(2 * batch)
            out: Tensor = self.narrow(batch[:, :1])
            return out

    pairs = ((wide, inputs), (wide, 2 * inputs), (narrow, inputs[:, :1]))
    expected = sum(divergence_of(norm, batch) for norm, batch in pairs) / 3
    assert divergence_of(Both(), inputs) == pytest.approx(expected)


def test_constant_and_dead_channels_stay_finite() -> None:
    """Divergence and gradient are finite if both variances are 0."""
    norm = nn.BatchNorm1d(2).eval()
    norm.get_buffer("running_var").copy_(torch.tensor([0.0, 1.0]))
    inputs = torch.tensor([[0.0, 1e4], [0.0, 1e4]], requires_grad=True)
    with BatchNormRecorder(norm) as watch:
        norm(inputs)
        moments, statistics = watch.take()
    value = statistics.divergence(moments)
    (gradient,) = torch.autograd.grad(value, inputs)
    assert value.isfinite()
    assert gradient.isfinite().all()


@given(st.lists(st.integers(1, 6), min_size=1, max_size=5), st.integers(0, 99))
@settings(max_examples=20)
def test_moments_of_chunks_are_those_of_the_batch(sizes: list[int], seed: int) -> None:
    """After every chunk has passed once, an update returns the moments of the whole batch."""
    norm = norm_of(nn.BatchNorm1d, 3, 1)
    inputs = torch.randn(sum(sizes), 3, generator=seeded(seed), dtype=torch.float64)
    pool = ChunkedMoments(sizes)
    with BatchNormRecorder(norm) as watch:
        for _ in range(2):
            for number, part in enumerate(inputs.split(sizes)):
                norm(part)
                joined = pool.update(number, watch.take()[0])
    whole = torch.stack([inputs.mean(0), inputs.square().mean(0)])
    assert torch.allclose(joined, whole, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_gradient_is_that_of_the_moments(layout: torch.memory_format) -> None:
    """It agrees with finite differences, in either memory layout."""
    norm, weights = norm_of(nn.BatchNorm2d, 3, 1), torch.randn(2, 3, generator=seeded(2)).double()
    inputs = torch.randn(2, 3, 4, 5, generator=seeded(), dtype=torch.float64)

    def weighted(values: Tensor) -> Tensor:
        with BatchNormRecorder(norm) as watch:
            norm(values.contiguous(memory_format=layout))
            return (weights * watch.take()[0]).sum()

    assert torch.autograd.gradcheck(weighted, inputs.requires_grad_())


def test_norms_without_running_statistics_are_left_out() -> None:
    """The others are returned, including subclasses."""

    class Mine(nn.BatchNorm2d):
        """With an activation, as in many model collections."""

    plain = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, track_running_stats=False))
    mine = Mine(2)
    assert not batchnorms(plain)
    assert not batchnorms(nn.Sequential(nn.LayerNorm(2), nn.GroupNorm(1, 2)))
    assert batchnorms(nn.Sequential(plain, mine)) == [mine]


def test_a_recorder_removes_its_hooks() -> None:
    """Even after an error; without a pass there is nothing to take."""
    norm = norm_of(nn.BatchNorm1d, 2, 1)
    with pytest.raises(RuntimeError, match="mine"), BatchNormRecorder(norm):
        raise RuntimeError("mine")
    assert not norm._forward_pre_hooks
    with (
        BatchNormRecorder(norm) as watch,
        pytest.raises(InputError, match=r"no BatchNorm.*takes part"),
    ):
        watch.take()


def test_half_precision_is_summed_in_single() -> None:
    """Moments of bfloat16 inputs have float32 precision."""
    norm = norm_of(nn.BatchNorm1d, 2, 1).to(torch.bfloat16)
    inputs = (100 + torch.randn(4096, 2, generator=seeded())).to(torch.bfloat16)
    with BatchNormRecorder(norm) as watch:
        norm(inputs)
        moments, _ = watch.take()
    exact = torch.stack([inputs.double().mean(0), inputs.double().square().mean(0)])
    assert torch.allclose(moments.double(), exact, rtol=1e-5)
