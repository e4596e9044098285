"""Synthesised tones of known pitch: sines, harmonic tones, and harmonic tones in noise."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

RATE = 16_000  # samples per second
# Hz: at least five periods in a frame of 1,024 samples, and inside CREPE's 31.7 to 2,005 Hz. Below
# 80 Hz, in noise, the tiny network confuses one tone in 150 with its octave.
LOWEST, HIGHEST = 80.0, 1500.0
HARMONICS = 10
STEEPEST = 2.0  # largest exponent of the decay of harmonic amplitudes
SIGNAL_TO_NOISE = (10.0, 30.0)  # decibels
REFERENCE = 10.0  # Hz, from which cents are counted (Kim et al. 2018, eq. 1)


class Tones(NamedTuple):
    """Frames with their pitch.

    Attributes:
        samples: float32 `[N, length]`, mean 0 and standard deviation 1.
        cents: float32 `[N]`, pitch over 10 Hz.
        kinds: int64 `[N]`: 0 sine, 1 harmonic, 2 harmonic in noise.
    """

    samples: Tensor
    cents: Tensor
    kinds: Tensor


def make_tones(count: int, length: int, generator: torch.Generator) -> Tones:
    """Draw tones with log-uniform pitch; sine, harmonic and noisy tones alternate."""
    kinds = torch.arange(count) % 3
    low, high = (1200 * math.log2(edge / REFERENCE) for edge in (LOWEST, HIGHEST))
    cents = low + (high - low) * torch.rand(count, generator=generator)
    pitch = REFERENCE * 2 ** (cents.double() / 1200)
    harmonic = torch.arange(1, HARMONICS + 1)
    steepness = STEEPEST * torch.rand(count, 1, generator=generator)
    sizes = harmonic.double() ** -steepness * (pitch[:, None] * harmonic < RATE / 2)
    sizes[kinds == 0, 1:] = 0
    phases = 2 * math.pi * torch.rand(count, HARMONICS, generator=generator)
    time = torch.arange(length, dtype=torch.float64) / RATE
    angles = 2 * math.pi * (pitch[:, None] * harmonic)[:, :, None] * time + phases[:, :, None]
    waves = (sizes[:, :, None] * angles.sin()).sum(1)
    waves /= waves.std(1, keepdim=True)
    quiet, loud = SIGNAL_TO_NOISE
    decibels = quiet + (loud - quiet) * torch.rand(count, 1, generator=generator)
    noise = torch.randn(count, length, generator=generator) * 10 ** (-decibels / 20)
    waves += torch.where(kinds[:, None] == 2, noise, 0)
    waves -= waves.mean(1, keepdim=True)
    return Tones((waves / waves.std(1, keepdim=True)).float(), cents, kinds)
