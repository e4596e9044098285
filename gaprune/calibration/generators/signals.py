"""Procedural signals: tones, chirps, coloured noise, clicks and steps; `[C, L]` or `[L]`."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gaprune.calibration.generators.draws import (
    InputGenerator,
    chance,
    log_uniform,
    normal,
    power_law,
    uniform,
)
from gaprune.models.input_spec import InputSpec

NYQUIST = 0.5  # cycles per sample
VOICES = 3
HARMONICS = 8
EVENTS = 6

_Mono = Callable[[int, int, torch.Generator], Tensor]  # rows, length → [rows, length], any scale


def _signal(mono: _Mono) -> InputGenerator:
    """Make a generator of one: correlated channels, random loudness, centred on 1/2."""

    def draw(spec: InputSpec, count: int, generator: torch.Generator) -> Tensor:
        length = spec.shape[-1]
        channels = math.prod(spec.shape[:-1])
        wave = mono(count, length, generator).unsqueeze(1)
        if channels > 1:  # every channel hears some of the common source and some of its own
            own = mono(count * channels, length, generator).view(count, channels, length)
            share = uniform(generator, count, 1, 1)
            wave = share * wave + (1 - share) * own
        peak = wave.abs().amax((1, 2), keepdim=True).clamp(min=1e-12)
        loudness = log_uniform(generator, count, 1, 1, low=0.05, high=1.0)
        statistics_loss = uniform(generator, count, 1, 1, low=-0.5, high=0.5) * (1 - loudness)
        unit = 0.5 + 0.5 * (loudness * wave / peak + statistics_loss)
        return unit.clamp_(0, 1).view(count, *spec.shape)

    return draw


def _pitch(rows: int, length: int, generator: torch.Generator) -> Tensor:
    low = min(1 / length, NYQUIST / 4)  # one period in the window
    return log_uniform(generator, rows, 1, low=low, high=NYQUIST / 2)


def _phase(rows: int, generator: torch.Generator) -> Tensor:
    return uniform(generator, rows, 1, high=2 * math.pi)


def _envelope(rows: int, length: int, generator: torch.Generator) -> Tensor:
    """Steady for half of the rows, otherwise an onset and an exponential decay."""
    time = torch.arange(length) / length
    onset = uniform(generator, rows, 1, low=-0.2, high=0.7)
    decay = uniform(generator, rows, 1, high=8.0)
    fall = torch.exp(-decay * (time - onset).clamp(min=0)) * torch.sigmoid((time - onset) * 100)
    return torch.where(chance(generator, 0.5, rows, 1), torch.ones(()), fall)


def _tones(rows: int, length: int, generator: torch.Generator) -> Tensor:
    """One to three voices, each a harmonic series that stops below the Nyquist frequency."""
    time = torch.arange(length)
    voices = torch.randint(1, VOICES + 1, (rows, 1), generator=generator)
    wave = torch.zeros(rows, length)
    for voice in range(VOICES):
        pitch = _pitch(rows, length, generator)
        slope = uniform(generator, rows, 1, low=0.5, high=3.0)
        series = torch.zeros(rows, length)
        for harmonic in range(1, HARMONICS + 1):
            size = uniform(generator, rows, 1) * harmonic**-slope * (harmonic * pitch < NYQUIST)
            angle = 2 * math.pi * harmonic * pitch * time + _phase(rows, generator)
            series += size * angle.sin()
        wave += series * _envelope(rows, length, generator) * (voice < voices)
    return wave


def _chirps(rows: int, length: int, generator: torch.Generator) -> Tensor:
    """Sweep a sine whose frequency glides exponentially between two random pitches."""
    start, end = _pitch(rows, length, generator), _pitch(rows, length, generator)
    glide = start * (end / start) ** (torch.arange(length) / length)
    angle = 2 * math.pi * glide.cumsum(1) + _phase(rows, generator)
    return angle.sin() * _envelope(rows, length, generator)


def _coloured_noise(rows: int, length: int, generator: torch.Generator) -> Tensor:
    """Noise of amplitude spectrum 1/f^a, a from 0 (white) to 2 (smoother than brown)."""
    noise = power_law(rows, (length,), uniform(generator, rows, high=2.0), generator)
    return noise * _envelope(rows, length, generator)


def _clicks(rows: int, length: int, generator: torch.Generator) -> Tensor:
    """Up to six events on a quiet ground: clicks that die away, and steps that stay."""
    time = torch.arange(length)
    wave = 0.01 * normal(generator, rows, length)
    events = torch.randint(1, EVENTS + 1, (rows, 1), generator=generator)
    for event in range(EVENTS):
        since = time - torch.randint(length, (rows, 1), generator=generator)
        dying = log_uniform(generator, rows, 1, low=0.5, high=max(1.0, length / 8))
        lasting = chance(generator, 0.4, rows, 1)
        shape = torch.where(lasting, torch.ones(()), torch.exp(-since.clamp(min=0) / dying))
        wave += normal(generator, rows, 1) * shape * (since >= 0) * (event < events)
    return wave


SIGNALS: dict[str, InputGenerator] = {
    "chirps": _signal(_chirps),
    "clicks": _signal(_clicks),
    "coloured-noise": _signal(_coloured_noise),
    "tones": _signal(_tones),
}
