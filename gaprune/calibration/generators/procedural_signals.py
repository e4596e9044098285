"""Procedural signals: tones, chirps, coloured noise, clicks and steps.

Every generator draws float32 `[count, C, L]` or `[count, L]` in [0, 1], centred near ½.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gaprune.calibration.generators.random_draws import (
    InputGenerator,
    draw_bool,
    draw_log_uniform,
    draw_normal,
    draw_power_law_fields,
    draw_uniform,
)
from gaprune.models.input_spec import InputSpec

NYQUIST = 0.5  # cycles per sample
VOICES = 3
HARMONICS = 8
EVENTS = 6

_Wave = Callable[[int, int, torch.Generator], Tensor]  # rows, length → [rows, length], any scale


def _signal(wave_of: _Wave) -> InputGenerator:
    """Make a generator of correlated channels with random loudness from a single-channel wave."""

    def draw(spec: InputSpec, count: int, generator: torch.Generator) -> Tensor:
        length = spec.shape[-1]
        channels = math.prod(spec.shape[:-1])
        wave = wave_of(count, length, generator).unsqueeze(1)
        if channels > 1:  # each channel mixes a common source with its own
            separate = wave_of(count * channels, length, generator).view(count, channels, length)
            share = draw_uniform(generator, count, 1, 1)
            wave = share * wave + (1 - share) * separate
        peak = wave.abs().amax((1, 2), keepdim=True).clamp(min=1e-12)
        loudness = draw_log_uniform(generator, count, 1, 1, low=0.05, high=1.0)
        # Small amplitudes keep the signal plus offset within the unit range.
        offset = draw_uniform(generator, count, 1, 1, low=-0.5, high=0.5) * (1 - loudness)
        unit = 0.5 + 0.5 * (loudness * wave / peak + offset)
        return unit.clamp_(0, 1).view(count, *spec.shape)

    return draw


def _pitch(rows: int, length: int, generator: torch.Generator) -> Tensor:
    low = min(1 / length, NYQUIST / 4)  # one period per signal
    # At most half of the Nyquist frequency: one overtone or more stays below it.
    return draw_log_uniform(generator, rows, 1, low=low, high=NYQUIST / 2)


def _phase(rows: int, generator: torch.Generator) -> Tensor:
    return draw_uniform(generator, rows, 1, high=2 * math.pi)


def _envelope(rows: int, length: int, generator: torch.Generator) -> Tensor:
    """Constant for half of the rows, an onset with exponential decay for the others."""
    time = torch.arange(length) / length
    onset = draw_uniform(generator, rows, 1, low=-0.2, high=0.7)
    decay = draw_uniform(generator, rows, 1, high=8.0)
    # The sigmoid softens the onset: a hard one would be a click.
    fall = torch.exp(-decay * (time - onset).clamp(min=0)) * torch.sigmoid((time - onset) * 100)
    return torch.where(draw_bool(generator, 0.5, rows, 1), torch.ones(()), fall)


def _tones(rows: int, length: int, generator: torch.Generator) -> Tensor:
    """Add one to three voices, each a harmonic series below the Nyquist frequency."""
    time = torch.arange(length)
    voices = torch.randint(1, VOICES + 1, (rows, 1), generator=generator)
    wave = torch.zeros(rows, length)
    for voice in range(VOICES):
        pitch = _pitch(rows, length, generator)
        slope = draw_uniform(generator, rows, 1, low=0.5, high=3.0)
        series = torch.zeros(rows, length)
        for harmonic in range(1, HARMONICS + 1):
            # Harmonics above the Nyquist frequency would alias.
            audible = harmonic * pitch < NYQUIST
            size = draw_uniform(generator, rows, 1) * harmonic**-slope * audible
            angle = 2 * math.pi * harmonic * pitch * time + _phase(rows, generator)
            series += size * angle.sin()
        wave += series * _envelope(rows, length, generator) * (voice < voices)
    return wave


def _chirps(rows: int, length: int, generator: torch.Generator) -> Tensor:
    """Draw sines whose frequency changes exponentially between two random pitches."""
    start, end = _pitch(rows, length, generator), _pitch(rows, length, generator)
    glide = start * (end / start) ** (torch.arange(length) / length)
    # The phase is the integral of the frequency.
    angle = 2 * math.pi * glide.cumsum(1) + _phase(rows, generator)
    return angle.sin() * _envelope(rows, length, generator)


def _coloured_noise(rows: int, length: int, generator: torch.Generator) -> Tensor:
    """Draw noise of amplitude spectrum 1/f^a, a from 0 (white) to 2 (smoother than brown)."""
    slopes = draw_uniform(generator, rows, high=2.0)
    noise = draw_power_law_fields(rows, (length,), slopes, generator)
    return noise * _envelope(rows, length, generator)


def _clicks(rows: int, length: int, generator: torch.Generator) -> Tensor:
    """Add up to six events to faint noise: clicks that decay, and steps that stay."""
    time = torch.arange(length)
    wave = 0.01 * draw_normal(generator, rows, length)
    events = torch.randint(1, EVENTS + 1, (rows, 1), generator=generator)
    for event in range(EVENTS):
        since = time - torch.randint(length, (rows, 1), generator=generator)
        decay = draw_log_uniform(generator, rows, 1, low=0.5, high=max(1.0, length / 8))
        is_step = draw_bool(generator, 0.4, rows, 1)
        shape = torch.where(is_step, torch.ones(()), torch.exp(-since.clamp(min=0) / decay))
        wave += draw_normal(generator, rows, 1) * shape * (since >= 0) * (event < events)
    return wave


SIGNALS: dict[str, InputGenerator] = {
    "chirps": _signal(_chirps),
    "clicks": _signal(_clicks),
    "coloured-noise": _signal(_coloured_noise),
    "tones": _signal(_tones),
}
