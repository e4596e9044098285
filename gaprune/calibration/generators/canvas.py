"""The canvas on which procedural images are drawn: its size, its grid, its colours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from gaprune.calibration.generators.random_draws import InputGenerator, draw_uniform
from gaprune.models.input_spec import InputSpec

SMALLEST = 8  # pixels per side; smaller images are drawn at this size and shrunk
REFERENCE = 28  # pixels: pen widths and jitters are given for images of this size


@dataclass(frozen=True)
class Canvas:
    """Number and size of the images to draw."""

    count: int
    channels: int
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Count, channels, height and width."""
        return self.count, self.channels, self.height, self.width

    @property
    def scale(self) -> float:
        """Pixels of this canvas per pixel of a 28-pixel image, along the shorter side."""
        return min(self.height, self.width) / REFERENCE

    def grid(self) -> tuple[Tensor, Tensor]:
        """Return the pixel centres from 0 to 1: y `[height, 1]` and x `[width]`."""
        rows = (torch.arange(self.height) + 0.5) / self.height
        columns = (torch.arange(self.width) + 0.5) / self.width
        return rows.unsqueeze(1), columns


Draw = Callable[[Canvas, torch.Generator], Tensor]  # → [count, channels, height, width] in [0, 1]


def image_generator(draw: Draw, largest: int | None = None) -> InputGenerator:
    """Make an input generator from a drawing function.

    Images whose longest side exceeds `largest` pixels are drawn at this size and enlarged, which
    bounds the cost and does not change soft shapes. None is no limit.
    """

    def generate(spec: InputSpec, count: int, generator: torch.Generator) -> Tensor:
        channels, height, width = spec.shape
        shrink = 1.0 if largest is None else min(1.0, largest / max(height, width))
        rows, columns = (max(SMALLEST, round(side * shrink)) for side in (height, width))
        drawn = draw(Canvas(count, channels, rows, columns), generator)
        if (rows, columns) == (height, width):
            return drawn
        resized = functional.interpolate(
            drawn, (height, width), mode="bilinear", align_corners=False, antialias=True
        )
        # Interpolation can leave the unit range by rounding.
        return resized.clamp_(0, 1)

    return generate


def tint(ink: Tensor, canvas: Canvas, generator: torch.Generator) -> Tensor:
    """Colour an ink map `[count, 1, height, width]` with random colours of ink and paper.

    With one channel the map itself is returned: bright ink on a dark background.
    """
    if canvas.channels == 1:
        return ink
    paper, pen = draw_uniform(generator, 2, canvas.count, canvas.channels, 1, 1)
    return torch.lerp(paper, pen, ink)
