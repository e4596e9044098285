"""Pictures of masks: filters of the first layer, pixels that are looked at, where weights stay.

Of a large network the first layers are drawn, and of a large layer means over its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from gaprune.formatting import number, percent
from gaprune.io.run_files import MASK, PRUNED
from gaprune.report.images import Picture, Pixels, picture, tiles, tinted
from gaprune.report.reading import RunFiles

FILTERS, ROWS = 64, 24  # filters, and rows of a linear layer, that are drawn
PORTRAITS = 12  # layers that are
SIDE = 64  # cells along the side of such a picture
TALL = 160  # points along the longer side of one
LARGEST = 2**26  # weights of a layer that is still drawn
POSITIVE, NEGATIVE = (22, 140, 118), (214, 110, 30)
GREEN = POSITIVE
GROUND = (128, 128, 128, 34)  # a weight that was dropped


@dataclass(frozen=True)
class Portrait:
    """A picture with a name and a line of words below it."""

    name: str
    words: str
    image: Picture


def first_layer(run: RunFiles) -> list[Portrait]:
    """Return what can be shown of the first layer: its filters, or the pixels that it looks at."""
    names = [layer["name"] for layer in run.record["layers"][:1]]
    for name, mask in run.tensors(MASK, names):
        if mask.numel() > LARGEST:
            return []
        weights = next((one for _, one in run.tensors(PRUNED, [name])), None)
        signed = mask.float() if weights is None else weights.float() * mask
        shape = _image_shape(run.report_data)
        if mask.ndim == 4 and max(mask.shape[2:]) > 1:
            return [_filters(name, signed, mask)]
        if mask.ndim == 2 and shape is not None and math.prod(shape) == mask.shape[1]:
            return [_pixel_map(name, mask, shape), _rows(name, signed, mask, shape)]
    return []


def portraits(run: RunFiles) -> list[Portrait]:
    """Return where weights stay in the first layers, as outputs by inputs."""
    kept = {layer["name"]: layer for layer in run.record["layers"]}
    chosen = [name for name, layer in kept.items() if layer["total"] <= LARGEST][:PORTRAITS]
    return [_portrait(name, mask) for name, mask in run.tensors(MASK, chosen) if mask.ndim > 1]


def _image_shape(report_data: Mapping[str, Any]) -> tuple[int, int, int] | None:
    inputs = report_data.get("inputs") or {}
    shape: list[int] = inputs.get("shape") or []
    if inputs.get("kind") != "image" or len(shape) != 3:
        return None
    return int(shape[0]), int(shape[1]), int(shape[2])


def _signed(values: Tensor, mask: Tensor, largest: float) -> Pixels:
    """Return weights `[h, w]` as colours; those that were dropped are grey."""
    strength = values.abs().numpy() / max(largest, 1e-12)
    positive = tinted(0.35 + 0.65 * strength, POSITIVE)
    out = np.where(
        values.numpy()[..., None] >= 0, positive, tinted(0.35 + 0.65 * strength, NEGATIVE)
    )
    return np.where(mask.bool().numpy()[..., None], out, np.array(GROUND, np.uint8)).astype(
        np.uint8
    )


def _filters(name: str, weights: Tensor, mask: Tensor) -> Portrait:
    total = math.prod(mask.shape[:2])
    flat = weights.reshape(total, *weights.shape[2:])[:FILTERS]
    held = mask.reshape(total, *mask.shape[2:])[:FILTERS]
    largest = float(flat.abs().max())
    made = [_signed(one, kept, largest) for one, kept in zip(flat, held, strict=True)]
    columns = 16 if len(made) > 24 else 8
    all_of = f"all {total}" if total <= FILTERS else f"the first {FILTERS} of {number(total)}"
    alive = int(held.flatten(1).any(1).sum())
    words = (
        f"{all_of} kernels ({mask.shape[2]} × {mask.shape[3]}), channel after "
        f"channel; {'all' if alive == len(made) else number(alive)} of these keep a weight"
    )
    sheet = tiles(made, columns)
    return Portrait("Filters", words, picture(sheet, f"Filters of {name}: {words}.", wide=640))


def _rows(name: str, weights: Tensor, mask: Tensor, shape: tuple[int, int, int]) -> Portrait:
    busiest = mask.long().sum(1).argsort(descending=True, stable=True)[:ROWS]
    flat, held = weights[busiest].view(-1, *shape), mask[busiest].view(-1, *shape)
    largest = float(flat.abs().max())
    made = [
        _signed(one.sum(0), kept.amax(0), largest) for one, kept in zip(flat, held, strict=True)
    ]
    words = (
        f"the {len(made)} neurons of {name} that keep most weights, as pictures of the inputs that "
        "they look at"
    )
    sheet = tiles(made, 6, gap=2)
    return Portrait("Neurons", words, picture(sheet, f"Masks: {words}.", wide=420))


def _pixel_map(name: str, mask: Tensor, shape: tuple[int, int, int]) -> Portrait:
    kept = mask.long().sum(0).view(shape).sum(0)
    used, pixels = int((kept > 0).sum()), kept.numel()
    strength = (kept.float() / kept.max().clamp_min(1)).sqrt().numpy()
    ground = np.zeros((*strength.shape, 4), np.uint8)
    ground[...] = GROUND
    image = np.where((strength > 0)[..., None], tinted(0.15 + 0.85 * strength, GREEN), ground)
    words = (
        f"{number(used)} of the {number(pixels)} pixels are still looked at by {name}; the busiest "
        f"by {number(int(kept.max()))} neurons"
    )
    return Portrait("Pixels", words, picture(image.astype(np.uint8), f"Map: {words}.", wide=280))


def _portrait(name: str, mask: Tensor) -> Portrait:
    flat = mask.flatten(1).float()
    outputs, inputs = flat.shape
    size = (min(SIDE, outputs), min(SIDE, inputs))
    cells = functional.adaptive_avg_pool2d(flat[None, None], size)[0, 0]
    strength = (cells / cells.max().clamp_min(1e-12)).pow(0.6).numpy()
    ground = np.zeros((*size, 4), np.uint8)
    ground[...] = GROUND
    image = np.where((strength > 0)[..., None], tinted(0.15 + 0.85 * strength, GREEN), ground)
    kept = int(torch.count_nonzero(mask)) / mask.numel()
    words = f"{number(outputs)} outputs by {number(inputs)} inputs, {percent(kept)} kept"
    return Portrait(
        name,
        words,
        picture(image.astype(np.uint8), f"{name}: {words}.", wide=TALL * size[1] // max(size)),
    )
