"""Folders of picture files, through Pillow (optional extra `images`)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from gaprune.errors import InputError
from gaprune.models.input_spec import InputSpec

if TYPE_CHECKING:
    from PIL.Image import Image

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def read_folder(folder: Path, spec: InputSpec) -> tuple[Tensor, Tensor | None]:
    """Read every picture of a folder at the size the network takes.

    Pictures directly inside are unlabelled. Pictures in sub-folders belong to classes: one class
    per sub-folder, numbered in the order of the names (by value where all names are numbers). Each
    picture is turned upright, scaled so that it covers the input, and cropped at the centre.

    Returns:
        uint8 `[N, *spec.shape]`, and int64 labels `[N]` or None.

    Raises:
        InputError: Pillow is missing, the spec is no image of 1, 3 or 4 channels, no picture, both
            layouts at once, a file that is no picture.
    """
    if spec.kind != "image" or len(spec.shape) != 3 or spec.shape[0] not in MODES:
        raise InputError(
            f"calibration inputs: a folder of pictures fits image inputs of 1, 3 or 4 channels; the network "
            f"takes {spec.kind} of shape {spec.shape}; give an .npz, .npy, .pt or .safetensors file"
        )
    paths, labels = _list_pictures(folder)
    pictures = torch.stack([torch.from_numpy(_read_picture(path, spec)) for path in paths])
    return pictures, None if labels is None else torch.tensor(labels)


def _list_pictures(folder: Path) -> tuple[list[Path], list[int] | None]:
    loose = sorted(path for path in folder.iterdir() if _is_picture(path))
    classes = [path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."]
    numbered = all(path.name.isdecimal() for path in classes)
    classes.sort(key=lambda path: (int(path.name) if numbered else 0, path.name))
    filed = [
        (path, label)
        for label, inside in enumerate(classes)
        for path in sorted(inside.rglob("*"))
        if _is_picture(path)
    ]
    if loose and filed:
        raise InputError(
            f"calibration inputs: {folder} holds {len(loose)} pictures beside sub-folders with {len(filed)}; "
            "put all into one sub-folder per class (labelled), or all directly inside (unlabelled)"
        )
    if not loose and not filed:
        known = ", ".join(sorted(SUFFIXES))
        raise InputError(f"calibration inputs: {folder} holds no picture; looked for {known}")
    if loose:
        return loose, None
    return [path for path, _ in filed], [label for _, label in filed]


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.name[0] != "." and path.is_file()


def _read_picture(path: Path, spec: InputSpec) -> np.ndarray:
    """Return uint8 `[channels, height, width]`."""
    try:
        from PIL import Image, ImageOps  # noqa: PLC0415 - optional, so imported where it is used
    except ImportError as error:
        raise InputError(
            "calibration inputs: folders of pictures need Pillow; install it with pip install 'gaprune[images]'"
        ) from error
    channels, height, width = spec.shape
    try:
        with Image.open(path) as file:
            upright = _eight_bits(ImageOps.exif_transpose(file)).convert(MODES[channels])
            fitted = ImageOps.fit(upright, (width, height), Image.Resampling.BILINEAR)
    except Exception as error:  # decoders of foreign bytes raise almost anything
        raise InputError(
            f"calibration inputs: {path} cannot be read as a picture ({error})"
        ) from error
    pixels = np.array(fitted, dtype=np.uint8)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _eight_bits(image: Image) -> Image:
    """Bring 16-bit greyscale down to 8 bits (Pillow's own conversion clips instead)."""
    if not image.mode.startswith("I"):
        return image
    from PIL import Image as pillow  # noqa: N813, PLC0415 - optional; the class has the same name

    return pillow.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
