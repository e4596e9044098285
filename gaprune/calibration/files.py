"""Calibration inputs from files: read, checked against the network, brought into its range."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from gaprune.calibration.array_files import StoredArrays, file_format, load_arrays
from gaprune.calibration.generators.random_draws import normalise, to_network
from gaprune.calibration.image_folder import read_image_folder
from gaprune.calibration.samples import Samples
from gaprune.calibration.text_files import SUFFIX as TEXT
from gaprune.calibration.text_files import read_texts
from gaprune.errors import InputError
from gaprune.models.input_spec import InputSpec
from gaprune.models.zoo import mnist

ALIASES = {
    "mnist-test": (mnist.TEST_IMAGES, mnist.TEST_LABELS),
    "mnist-train": (mnist.TRAIN_IMAGES, mnist.TRAIN_LABELS),
}
"""Name → bundled files: images, labels."""

_PAIRED = frozenset({"idx", "npy"})  # formats of one array, so labels are in a second file
_TOLERANCE = 1e-3  # values may exceed the stated range by rounding


def read_samples(path_spec: str, spec: InputSpec) -> Samples:
    """Read inputs, and labels if there are any.

    Args:
        path_spec: `.txt` in UTF-8 (for networks with a tokenizer), `file.npz` (keys x, inputs or
            images; y or labels), `.npy`, `.pt` or `.pth` (a tensor or a dictionary with those
            keys), `.safetensors`, IDX (also `.gz`), a folder of images, `IMAGES+LABELS` for a pair
            of .npy or IDX files, `mnist-train`, `mnist-test`.
        spec: shape, kind and range of one input.

    Raises:
        InputError: a missing path, an unknown suffix, a damaged file, or content that breaks a rule
            (shape, dtype, range, NaN, labels).
    """
    try:
        stored = _read(path_spec, spec)
    except OSError as error:
        raise InputError(
            f"calibration inputs: cannot read {path_spec!r} ({error.strerror})"
        ) from error
    return fit_samples(stored, spec, path_spec, normalised=path_spec in spec.in_memory)


def fit_samples(
    stored: StoredArrays, spec: InputSpec, source: str, *, normalised: bool = False
) -> Samples:
    """Return stored inputs as the network takes them, and their labels, if any, as int64 `[N]`.

    With `normalised` the inputs may be normalised already; see `fit_inputs`, also for errors.
    """
    inputs = fit_inputs(stored.inputs, spec, source, normalised=normalised)
    labels = None if stored.labels is None else fit_labels(stored.labels, len(inputs), source)
    kind = "unlabelled" if labels is None else "labelled"
    return Samples(inputs, labels, f"{source} ({len(inputs)} inputs, {kind})")


def _read(path_spec: str, spec: InputSpec) -> StoredArrays:
    if path_spec in spec.in_memory:
        return StoredArrays(*spec.in_memory[path_spec])
    if path_spec in ALIASES:
        return _read_pair(*ALIASES[path_spec])
    path = Path(path_spec)
    if path_spec and path.is_dir():
        return StoredArrays(*read_image_folder(path, spec))
    if path_spec and path.exists():
        is_text = path.suffix.lower() == TEXT
        return StoredArrays(read_texts(path, spec)) if is_text else load_arrays(path)
    # File names may contain a plus sign themselves, so every split is tried.
    parts = path_spec.split("+")
    for cut in range(1, len(parts)):
        pair = Path("+".join(parts[:cut])), Path("+".join(parts[cut:]))
        if all(path.is_file() for path in pair):
            return _read_pair(*pair)
    raise InputError(
        f"calibration inputs: there is no file or folder {path_spec!r}; give an existing path, two "
        f"paths joined by + (inputs+labels), or one of {', '.join(sorted(ALIASES))}"
    )


def _read_pair(inputs: Path, labels: Path) -> StoredArrays:
    for path in (inputs, labels):
        if file_format(path) not in _PAIRED:
            raise InputError(
                f"calibration inputs: only .npy and IDX files can be joined by +, got {path}; this "
                "format holds inputs and labels in one file"
            )
    return StoredArrays(load_arrays(inputs).inputs, load_arrays(labels).inputs)


def fit_inputs(stored: Tensor, spec: InputSpec, source: str, *, normalised: bool = False) -> Tensor:
    """Return stored inputs as the network takes them: `[N, *spec.shape]`, normalised.

    uint8 values are divided by 255 and mapped to [low, high]. Other numbers must be raw values in
    [low, high]. Then mean and std are applied. Token ids become int64. With `normalised`, values
    that exceed [low, high], but not that range after mean and std, are taken as they are: loaders
    of trainers apply mean and std themselves.

    Raises:
        InputError: no sample, a dtype that is not real, a shape that does not fit, NaN or Inf,
            values outside the stated range, ids outside the vocabulary.
    """
    if stored.dtype == torch.bool or stored.is_complex():
        raise InputError(f"calibration inputs: {source} must hold real numbers, got {stored.dtype}")
    if stored.dim() == 0:
        raise InputError(f"calibration inputs: {source} must hold an array, got a single number")
    if stored.numel() == 0:
        raise InputError(f"calibration inputs: {source} is empty (shape {tuple(stored.shape)})")
    inputs = _fit_shape(stored, spec, source)
    # Ids have no range in [0, 1] and no mean or std.
    if spec.kind == "tokens":
        return _check_ids(inputs, spec, source)
    if inputs.dtype == torch.uint8:
        return to_network(spec, inputs.float() / 255)
    raw = inputs.float()
    if normalised and not _within(raw, spec.low, spec.high):
        ends = normalise(spec, torch.tensor([spec.low, spec.high]).view(2, *[1] * len(spec.shape)))
        if _within(raw, float(ends.min()), float(ends.max())):
            return raw
    _check_values(raw, spec, source)
    return normalise(spec, raw)


def fit_labels(labels: Tensor, count: int, source: str) -> Tensor:
    """Return labels as int64 `[count]`; raise an `InputError` unless they are classes."""
    if labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex():
        raise InputError(f"labels: {source} must hold integers, got {labels.dtype}")
    if labels.shape != (count,):
        raise InputError(
            f"labels: {source} must hold one class per input, shape ({count},), "
            f"got {tuple(labels.shape)}"
        )
    if labels.min() < 0:
        raise InputError(f"labels: {source} must be 0 or above, got {int(labels.min())}")
    return labels.long()


def _fit_shape(stored: Tensor, spec: InputSpec, source: str) -> Tensor:
    """Accept the network's own shape, channels last, no channel axis, or flattened samples."""
    wanted, actual = spec.shape, tuple(stored.shape[1:])
    is_image = spec.kind == "image" and len(wanted) == 3
    if actual == wanted:
        return stored
    if is_image and actual == (*wanted[1:], wanted[0]):
        return stored.movedim(-1, 1).contiguous()
    if wanted[0] == 1 and actual == wanted[1:]:
        return stored.unsqueeze(1)
    if actual == (math.prod(wanted),):
        return stored.reshape(-1, *wanted)
    if spec.examples:
        raise InputError(
            f"calibration inputs: {source} holds one argument of the network, which takes several; "
            "state examples of all with --inputs alone"
        )
    shapes = [wanted, (math.prod(wanted),)] + ([(*wanted[1:], wanted[0])] if is_image else [])
    accepted = " or ".join(str(("N", *shape)).replace("'", "") for shape in dict.fromkeys(shapes))
    raise InputError(
        f"calibration inputs: {source} must have shape {accepted}, got {tuple(stored.shape)}; "
        "the first axis counts the samples"
    )


def _check_ids(ids: Tensor, spec: InputSpec, source: str) -> Tensor:
    if ids.is_floating_point():
        raise InputError(
            f"calibration inputs: {source} must hold integer token ids, got {ids.dtype}"
        )
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high >= spec.vocabulary:
        raise InputError(
            f"calibration inputs: {source} must hold token ids from 0 to {spec.vocabulary - 1}, "
            f"got {low} to {high}"
        )
    return ids.long()


def _within(values: Tensor, low: float, high: float) -> bool:
    """Return whether all values are in a range; NaN is not."""
    return bool((values >= low - _TOLERANCE).all() and (values <= high + _TOLERANCE).all())


def _check_values(raw: Tensor, spec: InputSpec, source: str) -> None:
    if count := int((~raw.isfinite()).sum()):
        raise InputError(
            f"calibration inputs: {source} must be finite, got {count} values of NaN or Inf"
        )
    if not _within(raw, spec.low, spec.high):
        low, high = raw.min().item(), raw.max().item()
        origin = "assumed" if spec.assumed else "stated"
        raise InputError(
            f"calibration inputs: {source} must hold raw values in the {origin} range {spec.low:g} "
            f"to {spec.high:g}, before mean and std are applied, got {low:g} to {high:g}; state "
            "the range of the values (--range=LOW,HIGH), or store pixels as uint8 (0 to 255)"
        )
