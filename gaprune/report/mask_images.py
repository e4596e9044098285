"""Images of masks: filters of the first layer, pixels that it reads, density of other layers.

Only the first layers of a large network are drawn. Each cell of a large layer is a mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from gaprune.formatting import number, percent
from gaprune.io.run_files import MASK, PRUNED
from gaprune.report.images import Picture, Pixels, picture, tiles, tinted
from gaprune.report.reading import RunFiles

MAX_FILTERS, MAX_NEURONS = 64, 24  # drawn of the first layer
MAX_LAYERS = 12  # drawn as density maps
MAX_CELLS = 64  # along each side of a density map
MAP_SIZE = 160  # pixels along the longer side of a density map
MAX_WEIGHTS = 2**26  # of a layer that is drawn
POSITIVE, NEGATIVE = (22, 140, 118), (214, 110, 30)
REMOVED = (128, 128, 128, 34)


def first_layer_images(run: RunFiles) -> list[Picture]:
    """Return the filters of the first layer, or the pixels that it reads."""
    names = [layer["name"] for layer in run.record["layers"][:1]]
    for name, mask in run.tensors(MASK, names):
        # Reading and averaging a larger layer would take longer than the rest of the page.
        if mask.numel() > MAX_WEIGHTS:
            return []
        weights = next((tensor for _, tensor in run.tensors(PRUNED, [name])), None)
        signed = mask.float() if weights is None else weights.float() * mask
        inputs = run.report_data.get("inputs") or {}
        shape = inputs.get("shape") or []
        # 1 × 1 kernels are no images; they are covered by the density maps.
        if mask.ndim == 4 and max(mask.shape[2:]) > 1:
            return [_filters(name, signed, mask)]
        is_image = inputs.get("kind") == "image" and len(shape) == 3
        if mask.ndim == 2 and is_image and math.prod(shape) == mask.shape[1]:
            return [_pixel_map(name, mask, shape), _neurons(name, signed, mask, shape)]
    return []


def density_maps(run: RunFiles) -> list[Picture]:
    """Return where weights are kept in the first layers, outputs × inputs."""
    totals = {layer["name"]: layer["total"] for layer in run.record["layers"]}
    names = [name for name, total in totals.items() if total <= MAX_WEIGHTS][:MAX_LAYERS]
    return [_density_map(name, mask) for name, mask in run.tensors(MASK, names) if mask.ndim > 1]


def _coloured(values: Tensor, mask: Tensor, largest: float) -> Pixels:
    """Colour weights `[h, w]` by sign and magnitude; removed ones are grey."""
    # The smallest kept weight must still differ from the grey of a removed one.
    strength = 0.35 + 0.65 * values.abs().numpy() / max(largest, 1e-12)
    signs = values.numpy()[..., None] >= 0
    colours = np.where(signs, tinted(strength, POSITIVE), tinted(strength, NEGATIVE))
    keep_mask = mask.bool().numpy()[..., None]
    return np.where(keep_mask, colours, np.array(REMOVED, np.uint8)).astype(np.uint8)


def _heat_map(strength: NDArray[np.floating[Any]]) -> Pixels:
    """Colour values `[h, w]` of 0 to 1; cells of 0 are grey."""
    # The lowest opacity is 0.15: a fainter cell would look like one without weights.
    colours = tinted(0.15 + 0.85 * strength, POSITIVE)
    grey = np.array(REMOVED, np.uint8)
    return np.where((strength > 0)[..., None], colours, grey).astype(np.uint8)


def _filters(name: str, weights: Tensor, mask: Tensor) -> Picture:
    total = math.prod(mask.shape[:2])
    kernels = weights.reshape(total, *weights.shape[2:])[:MAX_FILTERS]
    masks = mask.reshape(total, *mask.shape[2:])[:MAX_FILTERS]
    largest = float(kernels.abs().max())
    drawn = [_coloured(*pair, largest) for pair in zip(kernels, masks, strict=True)]
    count = (
        f"all {total}" if total <= MAX_FILTERS else f"the first {MAX_FILTERS} of {number(total)}"
    )
    # A kernel without weights is an edge that the pruned network no longer has.
    alive = int(masks.flatten(1).any(1).sum())
    caption = (
        f"{count} kernels ({mask.shape[2]} × {mask.shape[3]}) of {name}, channel by channel; "
        f"{'all' if alive == len(drawn) else number(alive)} of these keep a weight"
    )
    sheet = tiles(drawn, 16 if len(drawn) > 24 else 8)
    return picture(sheet, f"Filters: {caption}.", width=640, name="Filters", caption=caption)


def _neurons(name: str, weights: Tensor, mask: Tensor, shape: Sequence[int]) -> Picture:
    # A stable order makes the page the same every time.
    densest = mask.long().sum(1).argsort(descending=True, stable=True)[:MAX_NEURONS]
    rows, masks = weights[densest].view(-1, *shape), mask[densest].view(-1, *shape)
    largest = float(rows.abs().max())
    drawn = [
        _coloured(row.sum(0), keep_mask.amax(0), largest)
        for row, keep_mask in zip(rows, masks, strict=True)
    ]
    caption = (
        f"the {len(drawn)} neurons of {name} with most weights, each as an image of its inputs"
    )
    sheet = tiles(drawn, 6, gap=2)
    return picture(sheet, f"Masks: {caption}.", width=420, name="Neurons", caption=caption)


def _pixel_map(name: str, mask: Tensor, shape: Sequence[int]) -> Picture:
    # A pixel with no reader is an input that the pruned network ignores.
    readers = mask.long().sum(0).view(*shape).sum(0)
    strength = (readers.float() / readers.max().clamp_min(1)).sqrt().numpy()
    caption = (
        f"{name} reads {number(int((readers > 0).sum()))} of the {number(readers.numel())} pixels; "
        f"at most {number(int(readers.max()))} neurons read the same one"
    )
    pixels = _heat_map(strength)
    return picture(pixels, f"Map: {caption}.", width=280, name="Pixels", caption=caption)


def _density_map(name: str, mask: Tensor) -> Picture:
    flat = mask.flatten(1).float()
    outputs, inputs = flat.shape
    size = (min(MAX_CELLS, outputs), min(MAX_CELLS, inputs))
    cells = functional.adaptive_avg_pool2d(flat[None, None], size)[0, 0]
    # The power brings out sparse regions.
    strength = (cells / cells.max().clamp_min(1e-12)).pow(0.6).numpy()
    density = int(torch.count_nonzero(mask)) / mask.numel()
    caption = f"{number(outputs)} outputs × {number(inputs)} inputs, {percent(density)} kept"
    width = MAP_SIZE * size[1] // max(size)
    pixels = _heat_map(strength)
    return picture(pixels, f"{name}: {caption}.", width=width, name=name, caption=caption)
