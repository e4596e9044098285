"""Images inside the page: pixels as a PNG data URL, curves as the points of a polyline."""

from __future__ import annotations

import base64
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
_KINDS = {1: 0, 2: 4, 3: 2, 4: 6}  # channels → PNG colour type: grey, grey + alpha, RGB, RGBA


@dataclass(frozen=True)
class Picture:
    """An image of the page."""

    source: str  # a data URL
    width: int  # on the screen, where there is room
    height: int
    text: str  # the alternative text
    name: str = ""  # below it; may be empty
    caption: str = ""


def picture(
    pixels: Pixels, text: str, *, width: int = 0, name: str = "", caption: str = ""
) -> Picture:
    """Return pixels `[height, width(, channels)]`, enlarged to about `width` screen pixels."""
    height, columns = pixels.shape[:2]
    scale = max(1.0, width / columns)
    source = "data:image/png;base64," + base64.b64encode(png(pixels)).decode()
    return Picture(source, round(columns * scale), round(height * scale), text, name, caption)


def png(pixels: Pixels) -> bytes:
    """Return pixels `[height, width]` or `[height, width, 1 to 4 channels]` as a PNG file.

    The format: W3C, Portable Network Graphics, third edition; eight bits, no filter.
    """
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    height, width, channels = pixels.shape
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # a filter byte of 0 before each row
    rows[:, 1:] = pixels.reshape(height, -1)
    # Width, height, bit depth, colour type, and the only values of the last three fields.
    head = struct.pack(">IIBBBBB", width, height, 8, _KINDS[channels], 0, 0, 0)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b""))
    chunks = (
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def tinted(strength: NDArray[np.floating[Any]], colour: tuple[int, int, int]) -> Pixels:
    """Return one colour with opacities `[h, w]` in [0, 1] as RGBA."""
    out = np.zeros((*strength.shape, 4), np.uint8)
    out[..., :3] = colour
    out[..., 3] = np.clip(strength * 255, 0, 255).round()
    return out


def tiles(pictures: list[Pixels], columns: int, gap: int = 1) -> Pixels:
    """Arrange images of one size in rows, with transparent gaps."""
    height, width, channels = pictures[0].shape
    rows = -(-len(pictures) // columns)
    columns = min(columns, len(pictures))
    # Zeros in the alpha channel make the gaps transparent.
    size = (rows * (height + gap) - gap, columns * (width + gap) - gap)
    sheet = np.zeros((*size, channels), np.uint8)
    for index, tile in enumerate(pictures):
        top, left = (index // columns) * (height + gap), (index % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = tile
    return sheet


def curve(values: NDArray[np.uint8]) -> str:
    """Return values `[n]` of 0 to 255 as the points of a polyline in a box of 100 by 100."""
    # SVG counts y from the top, so values are subtracted from 100.
    step = 100 / max(1, len(values) - 1)
    return " ".join(f"{i * step:.4g},{100 - v / 2.55:.4g}" for i, v in enumerate(values.tolist()))
