"""Procedural pictures of any size and number of channels: fields, blobs, dead leaves, contours."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from gaprune.calibration.generators.drawing import Canvas, picture, tint
from gaprune.calibration.generators.draws import (
    InputGenerator,
    chance,
    log_uniform,
    normal,
    power_law,
    uniform,
)
from gaprune.calibration.generators.strokes import glyphs, outlines, strokes

BLOBS = 10
LEAVES = 48
LEVELS = 3


def fields(canvas: Canvas, generator: torch.Generator) -> Tensor:
    """Random fields of amplitude spectrum 1/f^a, a from 0.5 to 2.5, clipped.

    With one channel the ground is mostly dark, as in scans; with more, values spread around the
    middle, as in photographs, and the channels are correlated.
    """
    count, channels, height, width = canvas.shape
    slopes = uniform(generator, count, low=0.5, high=2.5)
    size = (height, width)
    field = power_law(count, size, slopes, generator).unsqueeze(1)
    if channels == 1:
        gain = uniform(generator, count, 1, 1, 1, low=0.3, high=2.3)
        return (field * gain + 0.7 * normal(generator, count, 1, 1, 1) - 0.5).clamp_(0, 1)
    own = power_law(count * channels, size, slopes.repeat_interleave(channels), generator)
    share = uniform(generator, count, 1, 1, 1, low=0.5)
    field = share.sqrt() * field + (1 - share).sqrt() * own.view(count, channels, height, width)
    gain = uniform(generator, count, 1, 1, 1, low=0.05, high=0.5)
    light = 0.5 + 0.2 * normal(generator, count, 1, 1, 1)
    cast = 0.1 * normal(generator, count, channels, 1, 1)
    return (field * gain + light + cast).clamp_(0, 1)


class _Ellipses(NamedTuple):
    """Ellipses in pictures of side 1; every tensor is `[count, number]`."""

    x: Tensor
    y: Tensor
    angle: Tensor
    long: Tensor
    short: Tensor

    def distance(self, index: int, canvas: Canvas) -> Tensor:
        """Squared distance `[count, height, width]` from the centre; 1 on the rim."""
        rows, columns = canvas.grid()
        x, y, angle, long, short = (part[:, index, None, None] for part in self)
        right, down = columns - x, rows - y
        along = (angle.cos() / long) * right + (angle.sin() / long) * down
        across = (angle.cos() / short) * down - (angle.sin() / short) * right
        return along.square_().add_(across.square_())


def _ellipses(canvas: Canvas, radii: Tensor, generator: torch.Generator) -> _Ellipses:
    shape = radii.shape
    return _Ellipses(
        x=uniform(generator, *shape),
        y=uniform(generator, *shape),
        angle=uniform(generator, *shape, high=math.pi),
        long=radii,
        short=radii * uniform(generator, *shape, low=0.3),
    )


def blobs(canvas: Canvas, generator: torch.Generator) -> Tensor:
    """Draw sums of up to ten soft ellipses on dark, three times in ten on light ground."""
    count, channels, height, width = canvas.shape
    radii = log_uniform(generator, count, BLOBS, low=0.04, high=0.3)
    ellipses = _ellipses(canvas, radii, generator)
    number = torch.randint(1, BLOBS + 1, (count, 1), generator=generator)
    size = uniform(generator, count, BLOBS, low=0.3) * (torch.arange(BLOBS) < number)
    colours = _colours(count, BLOBS, channels, generator)
    ground = uniform(generator, count, channels, 1, 1, high=0.15)
    image = ground.expand(count, channels, height, width).clone()
    for index in range(BLOBS):
        soft = torch.exp(-0.5 * ellipses.distance(index, canvas)) * size[:, index, None, None]
        image += soft.unsqueeze(1) * colours[:, index, :, None, None]
    return _invert_some(image.clamp_(0, 1), 0.3, generator)


def dead_leaves(canvas: Canvas, generator: torch.Generator) -> Tensor:
    """Occluding ellipses of random colour with sizes of law r^-3 (Lee, Mumford and Huang 2001).

    That law makes the picture's statistics the same at every scale, as in photographs.
    """
    count, channels, height, width = canvas.shape
    smallest, largest = 0.06, 0.6
    draws = uniform(generator, count, LEAVES)
    radii = (smallest**-2 - draws * (smallest**-2 - largest**-2)) ** -0.5  # inverse CDF of r^-3
    ellipses = _ellipses(canvas, radii, generator)
    bend = log_uniform(generator, count, 1, 1, low=0.5, high=3.0)  # lighter or darker palettes
    colours = _shades(count, LEAVES + 1, channels, generator) ** bend
    image = colours[:, LEAVES, :, None, None].expand(count, channels, height, width).clone()
    pixels = ellipses.short * min(height, width)
    for index in range(LEAVES):
        inside = 1 - ellipses.distance(index, canvas).sqrt_()
        cover = (inside * pixels[:, index, None, None] + 0.5).clamp_(0, 1)  # a one-pixel soft rim
        image.lerp_(colours[:, index, :, None, None], cover.unsqueeze(1))
    return image.clamp_(0, 1)


def contours(canvas: Canvas, generator: torch.Generator) -> Tensor:
    """Level-set lines of smooth random fields, drawn with a nib of random width.

    The distance to the line f = level is |f − level| / |∇f| to first order.
    """
    count = canvas.count
    field = _smooth_field(canvas, generator)
    down, right = torch.gradient(field, dim=(1, 2))
    steepness = torch.hypot(down, right).clamp_(min=1e-3)
    nib = uniform(generator, count, 1, 1, low=0.4, high=1.2) * max(canvas.scale, 0.75)
    number = torch.randint(1, LEVELS + 1, (count, 1, 1), generator=generator)
    ink = torch.zeros_like(field)
    for index in range(LEVELS):
        level = 0.8 * normal(generator, count, 1, 1)
        line = torch.exp(-0.5 * ((field - level) / (steepness * nib)) ** 2)
        ink = torch.maximum(ink, line * (index < number))
    strength = uniform(generator, count, 1, 1, low=0.6)
    return _invert_some(tint((ink * strength).unsqueeze(1), canvas, generator), 0.25, generator)


def _smooth_field(canvas: Canvas, generator: torch.Generator) -> Tensor:
    """Field `[count, height, width]` without detail finer than a fourteenth of the shorter side."""
    slopes = uniform(generator, canvas.count, low=1.5, high=3.0)
    finest = max(2.0, min(canvas.height, canvas.width) / 14)
    size = [max(4, round(side / finest)) for side in (canvas.height, canvas.width)]
    coarse = power_law(canvas.count, size, slopes, generator).unsqueeze(1)
    sides = (canvas.height, canvas.width)
    return functional.interpolate(coarse, sides, mode="bicubic", align_corners=True).squeeze(1)


def _colours(count: int, number: int, channels: int, generator: torch.Generator) -> Tensor:
    """Colours of ink `[count, number, channels]`; with one channel the amount says it all."""
    if channels == 1:
        return torch.ones(count, number, 1)
    return uniform(generator, count, number, channels)


def _shades(count: int, number: int, channels: int, generator: torch.Generator) -> Tensor:
    """Shades `[count, number, channels]` whose channels agree by a random amount per picture."""
    common = uniform(generator, count, number, 1)
    own = uniform(generator, count, number, channels)
    return torch.lerp(common.expand_as(own), own, uniform(generator, count, 1, 1))


def _invert_some(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    swapped = chance(generator, probability, len(images), 1, 1, 1)
    return torch.where(swapped, 1 - images, images)


PICTURES: dict[str, InputGenerator] = {
    "blobs": picture(blobs, largest=64),
    "contours": picture(contours, largest=128),
    "dead-leaves": picture(dead_leaves, largest=128),
    "fields": picture(fields),
    "glyphs": picture(glyphs, largest=64),
    "outlines": picture(outlines, largest=64),
    "strokes": picture(strokes, largest=64),
}
