"""Inputs from files: every format comes back as stored, every bad file is refused."""

from __future__ import annotations

import gzip
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gaprune.calibration.files import read_samples
from gaprune.errors import InputError
from gaprune.models.input_spec import InputSpec

torch.set_num_threads(1)

GREY = InputSpec((1, 4, 6), "image")
COLOUR = InputSpec((3, 4, 6), "image", mean=(0.5, 0.25, 0.75), std=(0.5, 0.25, 2.0))
TOKENS = InputSpec((5,), "tokens", vocabulary=10)


def pixels(count: int = 7, shape: tuple[int, ...] = (1, 4, 6)) -> np.ndarray:
    """Draw random bytes."""
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


def values(count: int = 7, shape: tuple[int, ...] = (1, 4, 6)) -> np.ndarray:
    """Draw raw values in [0, 1)."""
    return np.random.default_rng(0).random((count, *shape), dtype=np.float32)


def tensor(array: np.ndarray) -> torch.Tensor:
    """Return an array as a tensor."""
    return torch.from_numpy(array)


def write_idx(path: Path, array: np.ndarray) -> None:
    """Write the IDX format by hand, as its definition says (unsigned bytes only)."""
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    raw = header + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


Writer = Callable[[Path, np.ndarray, np.ndarray], object]
LABELLED: dict[str, Writer] = {
    "a.npz": lambda path, x, y: np.savez(path, images=x, labels=y),
    "a.pt": lambda path, x, y: torch.save({"inputs": tensor(x), "y": tensor(y)}, path),
    "a.pth": lambda path, x, y: torch.save({"inputs": tensor(x), "y": tensor(y)}, path),
    "a.safetensors": lambda path, x, y: save_file({"x": tensor(x), "labels": tensor(y)}, path),
}
UNLABELLED: dict[str, Callable[[Path, np.ndarray], object]] = {
    "a.npy": np.save,
    "a.pt": lambda path, x: torch.save(tensor(x), path),
    "a.idx": write_idx,
    "a.idx.gz": write_idx,
    "a-images-idx4-ubyte": write_idx,
    "a-images.idx4-ubyte.gz": write_idx,
}


@pytest.mark.parametrize("name", LABELLED)
def test_labelled_formats_come_back_as_stored(tmp_path: Path, name: str) -> None:
    """Float inputs in range are raw values; labels come as int64."""
    stored, labels = values(), np.arange(7, dtype=np.int32)
    LABELLED[name](tmp_path / name, stored, labels)
    samples = read_samples(str(tmp_path / name), GREY)
    assert torch.equal(samples.inputs, tensor(stored))
    assert samples.labels is not None
    assert samples.labels.dtype == torch.int64
    assert samples.labels.tolist() == labels.tolist()
    assert name in samples.source


@pytest.mark.parametrize("name", UNLABELLED)
def test_single_arrays_of_bytes_are_scaled_to_the_unit_range(tmp_path: Path, name: str) -> None:
    """uint8 0 to 255 becomes 0 to 1; there are no labels."""
    stored = pixels()
    UNLABELLED[name](tmp_path / name, stored)
    samples = read_samples(str(tmp_path / name), GREY)
    assert torch.allclose(samples.inputs, tensor(stored / 255).float(), atol=1e-7)
    assert samples.labels is None


@pytest.mark.parametrize(("inputs", "labels"), [("x.idx.gz", "y.idx"), ("x.npy", "y.npy")])
def test_two_files_joined_by_plus_are_inputs_and_labels(
    tmp_path: Path, inputs: str, labels: str
) -> None:
    """IDX and .npy hold one array each, so labels come second; a folder may be called a+b."""
    folder = tmp_path / "a+b"
    folder.mkdir()
    UNLABELLED["a" + inputs[1:]](folder / inputs, pixels())
    UNLABELLED.get("a" + labels[1:], np.save)(folder / labels, np.arange(7, dtype=np.uint8))
    read = read_samples(f"{folder / inputs}+{folder / labels}", GREY)
    assert read.labels is not None
    assert read.labels.tolist() == list(range(7))


@pytest.mark.parametrize("stored_shape", [(7, 1, 4, 6), (7, 4, 6), (7, 4, 6, 1), (7, 24)], ids=str)
def test_equivalent_layouts_of_grey_images_agree(
    tmp_path: Path, stored_shape: tuple[int, ...]
) -> None:
    """With a channel axis first or last, without one, or flattened: the same inputs."""
    np.save(tmp_path / "a.npy", values().reshape(stored_shape))
    assert torch.equal(
        read_samples(str(tmp_path / "a.npy"), GREY).inputs, torch.from_numpy(values())
    )


def test_channels_last_images_are_transposed(tmp_path: Path) -> None:
    """(N, H, W, C) becomes (N, C, H, W), and each channel gets its own mean and std."""
    stored = values(5, (4, 6, 3))
    np.save(tmp_path / "a.npy", stored)
    expected = (stored - np.array([0.5, 0.25, 0.75])) / np.array([0.5, 0.25, 2.0])
    read = read_samples(str(tmp_path / "a.npy"), COLOUR).inputs
    assert torch.allclose(read, torch.from_numpy(expected.transpose(0, 3, 1, 2)).float(), atol=1e-6)


def test_bytes_fill_the_stated_range_before_normalisation(tmp_path: Path) -> None:
    """0 and 255 are the ends low and high: (low − mean) / std and (high − mean) / std."""
    spec = InputSpec((2,), "vector", low=-2, high=2, mean=(1,), std=(0.5,))
    np.save(tmp_path / "a.npy", np.array([[0, 255]], np.uint8))
    assert read_samples(str(tmp_path / "a.npy"), spec).inputs.tolist() == [[-6.0, 2.0]]
    np.save(tmp_path / "a.npy", broken(1.0005))  # rounding at the end of the range is accepted
    assert read_samples(str(tmp_path / "a.npy"), GREY).inputs.max().item() > 1


@pytest.mark.parametrize("dtype", ["<f2", ">f4", "<f8", "<i2"])
def test_other_number_formats_become_float32(tmp_path: Path, dtype: str) -> None:
    """Half, double, big-endian and small integers hold raw values too."""
    stored = np.array([[0, 1, 1, 0]]).astype(dtype)
    np.save(tmp_path / "a.npy", stored)
    read = read_samples(str(tmp_path / "a.npy"), InputSpec((4,), "vector")).inputs
    assert read.dtype == torch.float32
    assert read.tolist() == [[0, 1, 1, 0]]


def test_token_ids_become_int64(tmp_path: Path) -> None:
    """Ids of any integer type keep their values, even uint8."""
    ids = np.random.default_rng(0).integers(0, 10, (3, 5))
    for dtype in (np.uint8, np.int32, np.int64):
        np.save(tmp_path / "a.npy", ids.astype(dtype))
        read = read_samples(str(tmp_path / "a.npy"), TOKENS).inputs
        assert read.dtype == torch.int64
        assert read.tolist() == ids.tolist()


def test_bundled_mnist_files_have_aliases() -> None:
    """mnist-test gives the 10,000 labelled images with their well-known first digits."""
    read = read_samples("mnist-test", InputSpec((1, 28, 28), "image"))
    assert read.inputs.shape == (10_000, 1, 28, 28)
    assert read.labels is not None
    assert read.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert (read.inputs.min().item(), read.inputs.max().item()) == (0, 1)


def broken(value: float) -> np.ndarray:
    """Draw raw values and replace one of them."""
    array = values()
    array[3, 0, 2, 2] = value
    return array


BAD_ARRAYS = {
    "wrong shape": (pixels(7, (1, 6, 4)), GREY, r"\(N, 1, 4, 6\) or \(N, 24\).*\(7, 1, 6, 4\)"),
    "no batch axis": (values(1, (3, 4, 6))[0], COLOUR, r"got \(3, 4, 6\)"),
    "a single number": (np.float32(0.5), InputSpec((1,), "vector"), "single number"),
    "no sample": (values(0), GREY, r"is empty \(shape \(0, 1, 4, 6\)\)"),
    "bool": (values() > 0.5, GREY, "got torch.bool"),
    "complex": (values().astype(complex), GREY, "got torch.complex128"),
    "text": (np.array([["a"] * 24]), GREY, "got dtype <U1"),
    "NaN": (broken(np.nan), GREY, "got 1 values"),
    "infinity": (broken(-np.inf), GREY, "got 1 values"),
    "too high": (broken(255), GREY, r"stated.*0 to 1.*to 255.*uint8"),
    "too low": (broken(-0.5), GREY, "got -0.5 to"),
    "assumed range": (broken(2), InputSpec((1, 4, 6), "image", assumed=True), "assumed range"),
    "fractional ids": (np.zeros((3, 5)), TOKENS, "got torch.float64"),
    "id too high": (np.full((3, 5), 10), TOKENS, "0 to 9, got 10 to 10"),
    "negative id": (np.full((3, 5), -1), TOKENS, "0 to 9, got -1 to -1"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_arrays_that_break_a_rule_are_refused(tmp_path: Path, case: str) -> None:
    """The error names the rule and the actual value."""
    array, spec, message = BAD_ARRAYS[case]
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(InputError, match=message):
        read_samples(str(tmp_path / "a.npy"), spec)


BAD_LABELS = {
    "too few": (np.arange(6), r"shape \(7,\), got \(6,\)"),
    "one-hot": (np.eye(7, dtype=np.int64), r"shape \(7,\), got \(7, 7\)"),
    "fractions": (np.linspace(0, 1, 7), "got torch.float64"),
    "bool": (np.ones(7, bool), "got torch.bool"),
    "negative": (np.arange(7) - 1, "0 or above, got -1"),
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_labels_that_break_a_rule_are_refused(tmp_path: Path, case: str) -> None:
    """Labels are one non-negative integer per input."""
    labels, message = BAD_LABELS[case]
    LABELLED["a.npz"](tmp_path / "a.npz", values(), labels)
    with pytest.raises(InputError, match=f"labels: .*{message}"):
        read_samples(str(tmp_path / "a.npz"), GREY)


def write_open(write: Callable[..., object], path: Path, *args: object, **named: object) -> None:
    """Write to an open file: NumPy then keeps the suffix."""
    with path.open("wb") as file:
        write(file, *args, **named)


def truncated_safetensors(path: Path) -> None:
    """Save a valid file, then cut off its last bytes."""
    LABELLED["a.safetensors"](path, values(), np.arange(7))
    path.write_bytes(path.read_bytes()[:-9])


BAD_FILES: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "unknown suffix": ("a.csv", lambda p: p.write_text("1,2"), "'.csv'.*npz"),
    "no suffix": ("a", lambda p: p.write_text("1,2"), "unknown suffix ''"),
    "empty npy": ("a.npy", lambda p: p.write_bytes(b""), "cannot be read"),
    "empty npz": ("a.npz", lambda p: p.write_bytes(b""), "cannot be read"),
    "empty idx": ("a.idx", lambda p: p.write_bytes(b""), "00 00"),
    "empty pt": ("a.pt", lambda p: p.write_bytes(b""), "cannot be read"),
    "rubbish npz": ("a.npz", lambda p: p.write_bytes(b"PK\x03\x04" + b"?" * 99), "cannot be read"),
    "rubbish pt": ("a.pt", lambda p: p.write_bytes(b"?" * 99), "a.pt.*tensors"),
    "rubbish safetensors": ("a.safetensors", lambda p: p.write_bytes(b"?" * 99), "cannot be read"),
    "cut safetensors": ("a.safetensors", truncated_safetensors, "cannot be read"),
    "cut gzip": ("a.idx.gz", lambda p: p.write_bytes(gzip.compress(b"0" * 99)[:20]), "damaged"),
    "npz without inputs": ("a.npz", lambda p: np.savez(p, z=values()), "x, inputs, images.*got z"),
    "npz of two inputs": (
        "a.npz",
        lambda p: np.savez(p, x=values(), images=values()),
        "x, inputs, images.*got x, images",
    ),
    "an array named npz": (
        "a.npz",
        lambda p: write_open(np.save, p, values()),
        "single array.*npy",
    ),
    "an archive named npy": (
        "a.npy",
        lambda p: write_open(np.savez, p, x=values()),
        "archive.*npz",
    ),
    "a list in pt": ("a.pt", lambda p: torch.save([1, 2], p), "got list"),
    "a number in pt": ("a.pt", lambda p: torch.save({"x": 3}, p), "dense.*got int"),
    "a sparse tensor": (
        "a.pt",
        lambda p: torch.save(torch.eye(4).to_sparse(), p),
        "dense.*sparse_coo",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_damaged_or_foreign_files_are_refused(tmp_path: Path, case: str) -> None:
    """The error names the file and the fault."""
    name, write, message = BAD_FILES[case]
    write(tmp_path / name)
    with pytest.raises(InputError, match=message) as refusal:
        read_samples(str(tmp_path / name), GREY)
    assert name in str(refusal.value)


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return Path.touch, (self.target,)


PICKLES: dict[str, tuple[str, Callable[[Path, Payload], object]]] = {
    "npy": ("a.npy", lambda p, load: np.save(p, np.array([load], object), allow_pickle=True)),
    "npz": ("a.npz", lambda p, load: np.savez(p, x=np.array([load], object))),
    "pt": ("a.pt", lambda p, load: torch.save({"x": load}, p)),
    "bare pt": ("a.pt", lambda p, load: p.write_bytes(pickle.dumps(load))),
    "bare npy": ("a.npy", lambda p, load: p.write_bytes(pickle.dumps(load))),
    "bare safetensors": ("a.safetensors", lambda p, load: p.write_bytes(pickle.dumps(load))),
}


@pytest.mark.parametrize("case", PICKLES)
def test_files_never_execute_code(
    tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pickle inside is refused unopened, even with torch's unsafe override in the environment."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    name, write = PICKLES[case]
    target = tmp_path / "executed"
    write(tmp_path / name, Payload(target))
    with pytest.raises(InputError):
        read_samples(str(tmp_path / name), GREY)
    assert not target.exists()


@pytest.mark.parametrize("name", ["nowhere.npz", "a.npy+b.npy", "mnist", "", "x" * 300])
def test_a_missing_path_is_refused(name: str) -> None:
    """The error repeats the path."""
    with pytest.raises(InputError, match=f"calibration inputs: .*'{name[:9]}".replace("+", r"\+")):
        read_samples(name, GREY)


def test_formats_with_labels_inside_are_not_joined(tmp_path: Path) -> None:
    """.npz files hold their labels, so `+` between two of them is refused."""
    for name in ("a.npz", "b.npz"):
        LABELLED["a.npz"](tmp_path / name, values(), np.arange(7))
    with pytest.raises(InputError, match=r"\.npy and IDX"):
        read_samples(f"{tmp_path / 'a.npz'}+{tmp_path / 'b.npz'}", GREY)


def save_image(path: Path, array: np.ndarray) -> None:
    """Write one image, or skip the test where Pillow is missing."""
    image = pytest.importorskip("PIL.Image")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.fromarray(array).save(path)


def test_a_flat_folder_of_images_is_unlabelled(tmp_path: Path) -> None:
    """Images are sorted by name; other files and hidden ones are ignored."""
    stored = pixels(3, (4, 6))
    for index, name in enumerate(("a.png", "b.bmp", "c.PNG")):
        save_image(tmp_path / name, stored[index])
    (tmp_path / "readme.txt").write_text("not a picture")
    (tmp_path / ".hidden.png").write_text("not a picture")
    read = read_samples(str(tmp_path), GREY)
    assert read.labels is None
    assert torch.equal(read.inputs[:, 0], torch.from_numpy(stored).float() / 255)


def test_sub_folders_are_classes_in_the_order_of_their_names(tmp_path: Path) -> None:
    """cat, dog, emu become 0, 1, 2; names that are numbers are ordered by value."""
    for names in (("emu", "cat", "dog"), ("10", "2", "0")):
        root = tmp_path / names[0]
        for shade, name in enumerate(names):
            save_image(root / name / "a.png", np.full((4, 6), shade * 100, np.uint8))
        read = read_samples(str(root), GREY)
        assert read.labels is not None
        assert read.labels.tolist() == [0, 1, 2]
        shades = (read.inputs[:, 0, 0, 0] * 255).round().int().tolist()
        expected = {"emu": [100, 200, 0], "10": [200, 100, 0]}
        assert shades == expected[names[0]]


def test_images_are_scaled_to_cover_and_cropped_at_the_centre(tmp_path: Path) -> None:
    """A wide image loses its sides: only the middle colour remains."""
    wide = np.zeros((8, 36, 3), np.uint8)
    wide[:, 11:25] = (255, 51, 0)
    save_image(tmp_path / "a.png", wide)
    read = read_samples(str(tmp_path), InputSpec((3, 4, 6), "image")).inputs
    assert torch.allclose(read[0, :, 0, 0], torch.tensor([1.0, 0.2, 0.0]), atol=1e-6)
    assert torch.equal(read, read[:, :, :1, :1].expand_as(read))


def test_modes_are_converted_to_the_channels_of_the_network(tmp_path: Path) -> None:
    """Colour becomes grey by luma, grey becomes colour, 16 bits become 8 instead of clipping."""
    save_image(tmp_path / "colour" / "a.png", np.full((4, 6, 3), (255, 0, 0), np.uint8))
    save_image(tmp_path / "grey" / "a.png", np.full((4, 6), 128, np.uint8))
    save_image(tmp_path / "deep" / "a.png", np.full((4, 6), 128 * 256, np.uint16))
    three = InputSpec((3, 4, 6), "image")
    assert read_samples(str(tmp_path / "colour"), GREY).inputs.mean().item() == pytest.approx(
        0.299, abs=0.003
    )
    for folder in ("grey", "deep"):
        read = read_samples(str(tmp_path / folder), three).inputs
        assert torch.allclose(read, torch.full((1, 3, 4, 6), 128 / 255))


def test_folders_without_usable_images_are_refused(tmp_path: Path) -> None:
    """An empty folder, both layouts at once, a damaged image, an input that is no image."""
    with pytest.raises(InputError, match=r"no image.*\.png"):
        read_samples(str(tmp_path), GREY)
    save_image(tmp_path / "a.png", pixels(1, (4, 6))[0])
    with pytest.raises(InputError, match=r"1, 3 or 4 channels.*vector"):
        read_samples(str(tmp_path), InputSpec((24,), "vector"))
    save_image(tmp_path / "cat" / "b.png", pixels(1, (4, 6))[0])
    with pytest.raises(InputError, match=r"1 images.* 1;"):
        read_samples(str(tmp_path), GREY)
    (tmp_path / "cat" / "b.png").unlink()
    (tmp_path / "b.jpg").write_bytes(b"\xff\xd8\xff rubbish")
    with pytest.raises(InputError, match=r"b\.jpg"):
        read_samples(str(tmp_path), GREY)


def test_a_folder_without_pillow_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pillow is optional; the error names the extra that installs it."""
    (tmp_path / "a.png").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(InputError, match=r"gaprune\[images\]"):
        read_samples(str(tmp_path), GREY)
