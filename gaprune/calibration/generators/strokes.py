"""Pen drawings that depict no known object.

Strokes: a pen moves with slowly varying curvature, sometimes turns a corner, and lifts off up to
twice. Outlines: loops and polygons, some left open. Glyphs: lines and arcs between the points of a
grid. All are drawn with the same soft nib. These are by far the best procedural calibration inputs
for networks that read characters.

Every function returns float32 `[count, channels, height, width]` in [0, 1].
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gaprune.calibration.generators.canvas import REFERENCE, Canvas, tint
from gaprune.calibration.generators.random_draws import draw_bool, draw_normal, draw_uniform

POINTS = 96  # of the pen's path in one image
MOST_STROKES = 3
MOST_ARCS = 4
CORNERS = 1.5  # expected number of sharp corners in one image
LIFT = 10.0  # distance the lifted pen moves, in steps on paper


def strokes(canvas: Canvas, generator: torch.Generator) -> Tensor:
    """Draw one to three pen strokes per image."""
    return _draw(*_pen_path(canvas.count, generator), canvas, generator)


def outlines(canvas: Canvas, generator: torch.Generator) -> Tensor:
    """Draw the outlines of one or two shapes per image, each a loop or a polygon."""
    half = POINTS // 2
    first, second = (_shape(canvas.count, half, generator) for _ in range(2))
    offset = 0.9 * draw_normal(generator, canvas.count, 1, 2)
    # Half of the images show the first shape only: the second one retraces it.
    alone = draw_bool(generator, 0.5, canvas.count, 1, 1)
    path = torch.cat([first, torch.where(alone, first, second + offset)], dim=1)
    lifted = torch.zeros(canvas.count, POINTS, dtype=torch.bool)
    lifted[:, half] = True
    return _draw(path, lifted, canvas, generator)


def glyphs(canvas: Canvas, generator: torch.Generator) -> Tensor:
    """Draw one to four lines or arcs per image between the points of a jittered 3×4 grid."""
    points = POINTS // MOST_ARCS
    ends = torch.rand(canvas.count, MOST_ARCS, 12, generator=generator).topk(2).indices
    # With probability 0.6 an arc continues where the previous one ended.
    joined = draw_bool(generator, 0.6, canvas.count, MOST_ARCS, 1)
    start = ends[..., :1]
    start[:, 1:] = torch.where(joined[:, 1:], ends[:, :-1, 1:], start[:, 1:])
    grid = torch.cartesian_prod(torch.arange(3) / 3, torch.arange(4) / 3)
    anchors = grid + 0.06 * draw_normal(generator, canvas.count, 12, 2)
    a, b = (_gather(anchors, end.squeeze(-1)) for end in (start, ends[..., 1:]))
    bulge = draw_normal(generator, canvas.count, MOST_ARCS, 1)
    bulge *= 0.8 * draw_bool(generator, 0.5, canvas.count, MOST_ARCS, 1)
    middle = (a + b) / 2 + bulge * torch.stack([a[..., 1] - b[..., 1], b[..., 0] - a[..., 0]], -1)
    time = (torch.arange(points) / (points - 1)).view(1, 1, -1, 1)
    a, b, middle = a.unsqueeze(2), b.unsqueeze(2), middle.unsqueeze(2)
    arcs = (1 - time) ** 2 * a + 2 * time * (1 - time) * middle + time**2 * b  # quadratic Bézier
    number = torch.randint(1, MOST_ARCS + 1, (canvas.count, 1), generator=generator)
    unused = (torch.arange(MOST_ARCS) >= number).view(canvas.count, MOST_ARCS, 1, 1)
    # An unused arc repeats the first one, which adds no ink.
    path = torch.where(unused, arcs[:, :1], arcs).flatten(1, 2)
    lifted = torch.zeros(canvas.count, POINTS, dtype=torch.bool)
    lifted[:, ::points] = True
    return _draw(path, lifted, canvas, generator)


def _gather(points: Tensor, index: Tensor) -> Tensor:
    """Pick points `[count, n, 2]` by index `[count, m]` → `[count, m, 2]`."""
    return points.gather(1, index.unsqueeze(-1).expand(-1, -1, 2))


def _draw(path: Tensor, lifted: Tensor, canvas: Canvas, generator: torch.Generator) -> Tensor:
    ink = _blur(_deposit_ink(_scale(path, generator), lifted, canvas), canvas, generator)
    gain = draw_uniform(generator, canvas.count, 1, 1, low=1.2, high=2.4)
    # The threshold removes the faint rim that the blur leaves.
    darkness = ((ink - 0.08) * gain).clamp_(0, 1).unsqueeze(1)
    return tint(darkness, canvas, generator)


def _pen_path(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return paths `[count, POINTS, 2]` and bool `[count, POINTS]`: the pen arrives lifted."""
    time = torch.arange(POINTS) / POINTS
    stroke = (time * torch.randint(1, MOST_STROKES + 1, (count, 1), generator=generator)).floor()
    lifted = torch.zeros(count, POINTS, dtype=torch.bool)
    lifted[:, 1:] = stroke[:, 1:] != stroke[:, :-1]

    cycles = time * draw_uniform(generator, count, 1, high=2.0)
    wave = torch.sin(2 * math.pi * (cycles + draw_uniform(generator, count, 1)))
    loops = 2 * draw_normal(generator, count, 1) + 2 * draw_normal(generator, count, 1) * wave
    corners = draw_normal(generator, count, POINTS) * draw_bool(
        generator, CORNERS / POINTS, count, POINTS
    )
    tremble = draw_normal(generator, count, POINTS)
    turn = 0.35 * 2 * math.pi / POINTS * loops + 1.8 * corners + 0.054 * tremble
    # After a lift the pen may go on in any direction.
    turn += lifted * draw_uniform(generator, count, POINTS, high=2 * math.pi)
    # Summing turns gives directions, summing unit steps gives positions.
    heading = draw_uniform(generator, count, 1, high=2 * math.pi) + turn.cumsum(1)

    step = torch.stack([heading.cos(), heading.sin()], dim=-1)
    flight = LIFT * draw_normal(generator, count, POINTS, 2)
    return torch.where(lifted.unsqueeze(-1), flight, step).cumsum(1), lifted


def _shape(count: int, points: int, generator: torch.Generator) -> Tensor:
    """Return the outline of a loop (three Fourier terms) or polygon, whole or in part.

    The points `[count, points, 2]` surround the origin at a distance of about 1.
    """
    part = draw_uniform(generator, count, 1, low=0.5)
    time = part * torch.arange(points) / (points - 1) + draw_uniform(generator, count, 1)
    angle = 2 * math.pi * time
    order = torch.arange(1, 4).view(1, -1, 1)
    phases = draw_uniform(generator, count, 3, 1, high=2 * math.pi)
    # Higher terms are weaker, so that loops stay smooth.
    amplitudes = 0.5 * draw_normal(generator, count, 3, 1) / order
    waves = amplitudes * torch.cos(order * angle[:, None] + phases)
    radius = 1 + waves.sum(1)
    loop = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1)

    corners = torch.randint(2, 6, (count, 1), generator=generator)
    vertices = draw_normal(generator, count, 5, 2)
    along = time * corners
    before = along.floor().long() % corners
    after = (before + 1) % corners
    ends = _gather(vertices, before), _gather(vertices, after)
    polygon = torch.lerp(*ends, along.frac().unsqueeze(-1))

    shape = torch.where(draw_bool(generator, 0.5, count, 1, 1), loop, polygon)
    turn = draw_uniform(generator, count, 1, high=2 * math.pi)
    stretch = draw_uniform(generator, count, 1, low=0.4)
    x, y = shape.unbind(-1)
    y = y * stretch
    return torch.stack([x * turn.cos() - y * turn.sin(), x * turn.sin() + y * turn.cos()], dim=-1)


def _scale(path: Tensor, generator: torch.Generator) -> Tensor:
    """Scale each path to 45 to 80 % of the image, squeeze some, and centre it with a jitter."""
    count = len(path)
    low, high = path.amin(1, keepdim=True), path.amax(1, keepdim=True)
    size = draw_uniform(generator, count, 1, 1, low=0.45, high=0.8)
    size = size / (high - low).amax(2, keepdim=True)
    # Narrow figures are more frequent than flat ones, as in writing.
    narrow = 0.6 * draw_uniform(generator, count, 1) * draw_bool(generator, 0.5, count, 1)
    flat = 0.4 * draw_uniform(generator, count, 1) * draw_bool(generator, 0.2, count, 1)
    squeeze = 1 - torch.stack([narrow, flat], dim=-1)
    centre = 0.5 + draw_normal(generator, count, 1, 2) / REFERENCE
    return (path - (low + high) / 2) * size * squeeze + centre


def _deposit_ink(path: Tensor, lifted: Tensor, canvas: Canvas) -> Tensor:
    """Drop ink along paths in [0, 1]², `[count, height, width]` with at most 1 per pixel."""
    # Large images need more drops per segment: lines must have no gaps.
    finer = max(2, round(2 * max(canvas.height, canvas.width) / REFERENCE))
    along = torch.arange(finer).view(1, 1, -1, 1) / finer
    dots = torch.lerp(path[:, :-1, None], path[:, 1:, None], along)
    # A lifted pen leaves one drop where its segment begins.
    wet = (~lifted[:, 1:, None] | (torch.arange(finer) == 0)).float()

    sides = torch.tensor([canvas.width, canvas.height])
    pixels = dots.flatten(1, 2) * sides - 0.5
    pixels = torch.minimum(pixels.clamp_(min=0), sides - 1.0)
    # The pixel to the right of and below `corner` must exist as well.
    corner = torch.minimum(pixels.floor(), sides - 2.0)
    right, down = (pixels - corner).unbind(-1)
    left, up = wet.flatten(1) * (1 - right), 1 - down
    right = wet.flatten(1) * right
    x, y = corner.long().unbind(-1)
    first = y * canvas.width + x
    # Bilinear: every drop is shared by the four nearest pixels.
    ink = torch.zeros(canvas.count, canvas.height * canvas.width)
    for offset, share in (
        (0, left * up),
        (1, right * up),
        (canvas.width, left * down),
        (canvas.width + 1, right * down),
    ):
        ink.scatter_add_(1, first + offset, share)
    return ink.clamp_(max=1).view(canvas.count, canvas.height, canvas.width)


def _blur(ink: Tensor, canvas: Canvas, generator: torch.Generator) -> Tensor:
    """Blur each image with a Gaussian nib of random width."""
    # The blur is separable, and its width differs between images, so that each axis takes one
    # product with a matrix of Gaussian rows.
    width = draw_uniform(generator, canvas.count, 1, 1, low=0.55, high=1.05)
    width = width * max(canvas.scale, 0.75)

    def nib(side: int) -> Tensor:
        position = torch.arange(side, dtype=torch.float32)
        return torch.exp(-((position - position.unsqueeze(1)) ** 2) / (2 * width**2))

    # Normalised along one axis only: the middle of a long line stays near 1.
    across = nib(canvas.width) / (width * math.sqrt(2 * math.pi))
    return nib(canvas.height) @ ink @ across
