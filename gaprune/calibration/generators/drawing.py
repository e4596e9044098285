"""Where procedural pictures are drawn: a canvas of moderate size, its grid, its colours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from gaprune.calibration.generators.draws import InputGenerator, uniform
from gaprune.models.input_spec import InputSpec

SMALLEST = 8  # a shape needs some pixels; smaller pictures are shrunk from this
REFERENCE = 28  # pen widths and jitters are stated in pixels of a picture of this size


@dataclass(frozen=True)
class Canvas:
    """How many pictures to draw and at what size."""

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
        """Pixels of this canvas per pixel of a 28-pixel picture, along the shorter side."""
        return min(self.height, self.width) / REFERENCE

    def grid(self) -> tuple[Tensor, Tensor]:
        """Pixel centres from 0 to 1: y `[height, 1]` and x `[width]`."""
        rows = (torch.arange(self.height) + 0.5) / self.height
        columns = (torch.arange(self.width) + 0.5) / self.width
        return rows.unsqueeze(1), columns


Draw = Callable[[Canvas, torch.Generator], Tensor]  # → [count, channels, height, width] in [0, 1]


def picture(draw: Draw, largest: int | None = None) -> InputGenerator:
    """Make a calibration input generator of a drawing function.

    Args:
        draw: draws on a canvas.
        largest: longest side that is drawn; bigger pictures are drawn at this size and enlarged,
            which bounds the cost and leaves soft shapes as they are. None: any size.
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
        return resized.clamp_(0, 1)

    return generate


def tint(ink: Tensor, canvas: Canvas, generator: torch.Generator) -> Tensor:
    """Colour an ink map `[count, 1, height, width]`: ink on paper, both of random colour.

    With one channel the map itself comes back: bright ink on dark ground.
    """
    if canvas.channels == 1:
        return ink
    paper, pen = uniform(generator, 2, canvas.count, canvas.channels, 1, 1)
    return torch.lerp(paper, pen, ink)
