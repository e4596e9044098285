"""calibration inputs from files: arrays in five formats, folders of pictures, and the carried MNIST files."""

from __future__ import annotations

from pathlib import Path

from gaprune.calibration.generators.photos import read_folder
from gaprune.calibration.inversion.fitting import fit_inputs, fit_labels
from gaprune.calibration.loaders import Stored, file_format, load_arrays
from gaprune.calibration.samples import Samples
from gaprune.errors import InputError
from gaprune.models.input_spec import InputSpec
from gaprune.models.zoo import mnist

ALIASES = {
    "mnist-test": (mnist.TEST_IMAGES, mnist.TEST_LABELS),
    "mnist-train": (mnist.TRAIN_IMAGES, mnist.TRAIN_LABELS),
}
"""Names that stand for files carried with the package: images, labels."""

_PAIRED = frozenset({"idx", "npy"})  # formats that hold one array, so labels come in a second file


def read_samples(path_spec: str, spec: InputSpec) -> Samples:
    """Read inputs, and labels where there are some.

    Args:
        path_spec: `file.npz` (keys x, inputs or images; y or labels), `.npy`, `.pt` or `.pth` (a
            tensor or a dictionary with those keys), `.safetensors`, IDX (also `.gz`), a folder of
            pictures, `IMAGES+LABELS` for a pair of .npy or IDX files, `mnist-train`, `mnist-test`.
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
    inputs = fit_inputs(stored.inputs, spec, path_spec)
    labels = None if stored.labels is None else fit_labels(stored.labels, len(inputs), path_spec)
    kind = "unlabelled" if labels is None else "labelled"
    return Samples(inputs, labels, f"{path_spec} ({len(inputs)} inputs, {kind})")


def _read(path_spec: str, spec: InputSpec) -> Stored:
    if path_spec in ALIASES:
        return _read_pair(*ALIASES[path_spec])
    path = Path(path_spec)
    if path_spec and path.is_dir():
        return Stored(*read_folder(path, spec))
    if path_spec and path.exists():
        return load_arrays(path)
    pair = _split_pair(path_spec)
    if pair is None:
        raise InputError(
            f"calibration inputs: there is no file or folder {path_spec!r}; give an existing path, two paths "
            f"joined by + (inputs+labels), or one of {', '.join(sorted(ALIASES))}"
        )
    return _read_pair(*pair)


def _split_pair(path_spec: str) -> tuple[Path, Path] | None:
    """Return the two existing files around a plus sign (file names may contain one themselves)."""
    parts = path_spec.split("+")
    for cut in range(1, len(parts)):
        pair = Path("+".join(parts[:cut])), Path("+".join(parts[cut:]))
        if all(path.is_file() for path in pair):
            return pair
    return None


def _read_pair(inputs: Path, labels: Path) -> Stored:
    for path in (inputs, labels):
        if file_format(path) not in _PAIRED:
            raise InputError(
                f"calibration inputs: only .npy and IDX files are joined by +, got {path}; this format holds "
                "inputs and labels in one file"
            )
    return Stored(load_arrays(inputs).inputs, load_arrays(labels).inputs)
