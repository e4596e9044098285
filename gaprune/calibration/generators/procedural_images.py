"""Procedural images of any size and number of channels: fields, blobs, dead leaves, contours.

Every drawing function returns float32 `[count, channels, height, width]` in [0, 1].
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from gaprune.calibration.generators.canvas import Canvas, image_generator, tint
from gaprune.calibration.generators.random_draws import (
    InputGenerator,
    draw_bool,
    draw_log_uniform,
    draw_normal,
    draw_power_law_fields,
    draw_uniform,
)
from gaprune.calibration.generators.strokes import glyphs, outlines, strokes

BLOBS = 10
LEAVES = 48
LEVELS = 3


def fields(canvas: Canvas, generator: torch.Generator) -> Tensor:
    """Draw random fields of amplitude spectrum 1/f^a, a from 0.5 to 2.5, clipped.

    With one channel most of the background is dark, as in scans. With several channels, values
    spread around ½, as in photographs, and the channels are correlated.
    """
    count, channels, height, width = canvas.shape
    slopes = draw_uniform(generator, count, low=0.5, high=2.5)
    size = (height, width)
    field = draw_power_law_fields(count, size, slopes, generator).unsqueeze(1)
    if channels == 1:
        gain = draw_uniform(generator, count, 1, 1, 1, low=0.3, high=2.3)
        # The offset of -0.5 clips most of the background to black.
        return (field * gain + 0.7 * draw_normal(generator, count, 1, 1, 1) - 0.5).clamp_(0, 1)
    separate = draw_power_law_fields(
        count * channels, size, slopes.repeat_interleave(channels), generator
    )
    share = draw_uniform(generator, count, 1, 1, 1, low=0.5)
    separate = separate.view(count, channels, height, width)
    # The square roots keep the variance of the sum at 1.
    field = share.sqrt() * field + (1 - share).sqrt() * separate
    gain = draw_uniform(generator, count, 1, 1, 1, low=0.05, high=0.5)
    light = 0.5 + 0.2 * draw_normal(generator, count, 1, 1, 1)
    cast = 0.1 * draw_normal(generator, count, channels, 1, 1)
    return (field * gain + light + cast).clamp_(0, 1)


class _Ellipses(NamedTuple):
    """Ellipses in images of side 1; every tensor is `[count, number]`."""

    x: Tensor
    y: Tensor
    angle: Tensor
    long: Tensor
    short: Tensor

    def distance(self, index: int, canvas: Canvas) -> Tensor:
        """Return the squared distance `[count, height, width]` from the centre; 1 on the rim."""
        rows, columns = canvas.grid()
        x, y, angle, long, short = (part[:, index, None, None] for part in self)
        right, down = columns - x, rows - y
        along = (angle.cos() / long) * right + (angle.sin() / long) * down
        across = (angle.cos() / short) * down - (angle.sin() / short) * right
        return along.square_().add_(across.square_())


def _ellipses(radii: Tensor, generator: torch.Generator) -> _Ellipses:
    shape = radii.shape
    return _Ellipses(
        x=draw_uniform(generator, *shape),
        y=draw_uniform(generator, *shape),
        angle=draw_uniform(generator, *shape, high=math.pi),
        long=radii,
        short=radii * draw_uniform(generator, *shape, low=0.3),
    )


def blobs(canvas: Canvas, generator: torch.Generator) -> Tensor:
    """Draw sums of up to ten soft ellipses, bright on dark; three of ten images are inverted."""
    count, channels, height, width = canvas.shape
    radii = draw_log_uniform(generator, count, BLOBS, low=0.04, high=0.3)
    ellipses = _ellipses(radii, generator)
    number = torch.randint(1, BLOBS + 1, (count, 1), generator=generator)
    # All ten are always drawn and surplus ones get size 0: one batched draw serves all images.
    size = draw_uniform(generator, count, BLOBS, low=0.3) * (torch.arange(BLOBS) < number)
    colours = torch.ones(count, BLOBS, 1)
    if channels > 1:
        colours = draw_uniform(generator, count, BLOBS, channels)
    ground = draw_uniform(generator, count, channels, 1, 1, high=0.15)
    image = ground.expand(count, channels, height, width).clone()
    for index in range(BLOBS):
        soft = torch.exp(-0.5 * ellipses.distance(index, canvas)) * size[:, index, None, None]
        image += soft.unsqueeze(1) * colours[:, index, :, None, None]
    return _invert_some(image.clamp_(0, 1), 0.3, generator)


def dead_leaves(canvas: Canvas, generator: torch.Generator) -> Tensor:
    """Draw ellipses of random colour that hide each other (Lee, Mumford and Huang 2001).

    The density of the radii is r^-3, which makes image statistics the same at every scale, as in
    photographs.
    """
    count, channels, height, width = canvas.shape
    smallest, largest = 0.06, 0.6
    draws = draw_uniform(generator, count, LEAVES)
    radii = (smallest**-2 - draws * (smallest**-2 - largest**-2)) ** -0.5  # inverse CDF of r^-3
    ellipses = _ellipses(radii, generator)
    bend = draw_log_uniform(generator, count, 1, 1, low=0.5, high=3.0)  # lighter or darker colours
    grey = draw_uniform(generator, count, LEAVES + 1, 1)
    coloured = draw_uniform(generator, count, LEAVES + 1, channels)
    # How grey the colours are is random for each image.
    colours = torch.lerp(grey.expand_as(coloured), coloured, draw_uniform(generator, count, 1, 1))
    colours = colours**bend
    # The last colour is the background.
    image = colours[:, LEAVES, :, None, None].expand(count, channels, height, width).clone()
    pixels = ellipses.short * min(height, width)
    for index in range(LEAVES):
        inside = 1 - ellipses.distance(index, canvas).sqrt_()
        cover = (inside * pixels[:, index, None, None] + 0.5).clamp_(0, 1)  # a one-pixel soft rim
        image.lerp_(colours[:, index, :, None, None], cover.unsqueeze(1))
    return image.clamp_(0, 1)


def contours(canvas: Canvas, generator: torch.Generator) -> Tensor:
    """Draw one to three level lines of a smooth random field with a nib of random width."""
    # The distance to the line f = level is |f − level| / |∇f| to first order.
    count = canvas.count
    field = _smooth_field(canvas, generator)
    down, right = torch.gradient(field, dim=(1, 2))
    # The limit avoids a division by 0 where the field is flat.
    steepness = torch.hypot(down, right).clamp_(min=1e-3)
    nib = draw_uniform(generator, count, 1, 1, low=0.4, high=1.2) * max(canvas.scale, 0.75)
    number = torch.randint(1, LEVELS + 1, (count, 1, 1), generator=generator)
    ink = torch.zeros_like(field)
    for index in range(LEVELS):
        level = 0.8 * draw_normal(generator, count, 1, 1)
        line = torch.exp(-0.5 * ((field - level) / (steepness * nib)) ** 2)
        ink = torch.maximum(ink, line * (index < number))
    strength = draw_uniform(generator, count, 1, 1, low=0.6)
    return _invert_some(tint((ink * strength).unsqueeze(1), canvas, generator), 0.25, generator)


def _smooth_field(canvas: Canvas, generator: torch.Generator) -> Tensor:
    """Draw fields `[count, height, width]` without detail finer than 1/14 of the shorter side."""
    slopes = draw_uniform(generator, canvas.count, low=1.5, high=3.0)
    finest = max(2.0, min(canvas.height, canvas.width) / 14)
    size = [max(4, round(side / finest)) for side in (canvas.height, canvas.width)]
    coarse = draw_power_law_fields(canvas.count, size, slopes, generator).unsqueeze(1)
    sides = (canvas.height, canvas.width)
    return functional.interpolate(coarse, sides, mode="bicubic", align_corners=True).squeeze(1)


def _invert_some(images: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    inverted = draw_bool(generator, probability, len(images), 1, 1, 1)
    return torch.where(inverted, 1 - images, images)


IMAGES: dict[str, InputGenerator] = {
    "blobs": image_generator(blobs, largest=64),
    "contours": image_generator(contours, largest=128),
    "dead-leaves": image_generator(dead_leaves, largest=128),
    "fields": image_generator(fields),
    "glyphs": image_generator(glyphs, largest=64),
    "outlines": image_generator(outlines, largest=64),
    "strokes": image_generator(strokes, largest=64),
}
