"""Read folders of image files with Pillow (optional extra `images`)."""

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


def read_image_folder(folder: Path, spec: InputSpec) -> tuple[Tensor, Tensor | None]:
    """Read every image of a folder at the size that the network takes.

    Images directly in the folder are unlabelled. Images in sub-folders are labelled: one class per
    sub-folder, in the order of the names (numeric if all names are numbers). EXIF rotation is
    applied; then each image is scaled to cover the input and cropped at the centre.

    Returns:
        uint8 `[N, *spec.shape]`, and int64 labels `[N]` or None.

    Raises:
        InputError: Pillow is missing, the network does not take images of 1, 3 or 4 channels, no
            image, images both in the folder and in sub-folders, a damaged image.
    """
    if spec.kind != "image" or len(spec.shape) != 3 or spec.shape[0] not in MODES:
        raise InputError(
            "calibration inputs: a folder of images needs image inputs of 1, 3 or 4 channels; the "
            f"network takes {spec.kind} of shape {spec.shape}; give an .npz, .npy, .pt "
            "or .safetensors file"
        )
    paths, labels = _list_images(folder)
    images = torch.stack([torch.from_numpy(_read_image(path, spec)) for path in paths])
    return images, None if labels is None else torch.tensor(labels)


def _list_images(folder: Path) -> tuple[list[Path], list[int] | None]:
    loose = sorted(path for path in folder.iterdir() if _is_image(path))
    classes = [path for path in folder.iterdir() if path.is_dir() and path.name[0] != "."]
    # As text, class 10 would come before class 2.
    numbered = all(path.name.isdecimal() for path in classes)
    classes.sort(key=lambda path: (int(path.name) if numbered else 0, path.name))
    in_classes = [
        (path, label)
        for label, inside in enumerate(classes)
        for path in sorted(inside.rglob("*"))
        if _is_image(path)
    ]
    if loose and in_classes:
        raise InputError(
            f"calibration inputs: {folder} holds {len(loose)} images and sub-folders with "
            f"{len(in_classes)}; put all into one sub-folder per class (labelled), or all directly "
            "into the folder (unlabelled)"
        )
    if not loose and not in_classes:
        known = ", ".join(sorted(SUFFIXES))
        raise InputError(f"calibration inputs: {folder} holds no image; known suffixes are {known}")
    if loose:
        return loose, None
    return [path for path, _ in in_classes], [label for _, label in in_classes]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and path.name[0] != "." and path.is_file()


def _read_image(path: Path, spec: InputSpec) -> np.ndarray:
    """Return uint8 `[channels, height, width]`."""
    try:
        from PIL import Image, ImageOps  # noqa: PLC0415 - an optional dependency
    except ImportError as error:
        raise InputError(
            "calibration inputs: folders of images need Pillow; install it with "
            "pip install 'gaprune[images]'"
        ) from error
    channels, height, width = spec.shape
    try:
        with Image.open(path) as file:
            upright = _eight_bits(ImageOps.exif_transpose(file)).convert(MODES[channels])
            fitted = ImageOps.fit(upright, (width, height), Image.Resampling.BILINEAR)
    except Exception as error:  # damaged bytes make decoders raise almost anything
        raise InputError(
            f"calibration inputs: {path} cannot be read as an image ({error})"
        ) from error
    pixels = np.array(fitted, dtype=np.uint8)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _eight_bits(image: Image) -> Image:
    """Convert 16-bit greyscale to 8 bits."""
    # Pillow's own conversion would clip all values above 255.
    if not image.mode.startswith("I"):
        return image
    from PIL import Image as pillow  # noqa: N813, PLC0415 - the type has this name

    return pillow.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
