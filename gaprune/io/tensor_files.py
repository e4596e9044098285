"""Read files of tensors and arrays: sizes and counts are checked before memory is taken.

Every function raises ValueError with a reason, SafetensorError or OSError; nothing in a file is
executed. See `gaprune.io.bounded_reading`.
"""

from __future__ import annotations

import contextlib
import warnings
import zipfile
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from gaprune.io.bounded_reading import ALWAYS_ALLOWED, check_expanded

MAX_HEADER, MAX_TENSORS = 32 << 20, 100_000  # of a safetensors file
_NUMPY = ("numpy.core.multiarray", "numpy._core.multiarray")
HARMLESS = (
    *("numpy.dtype", "numpy.ndarray", "_codecs.encode"),
    *(f"{module}.{name}" for module in _NUMPY for name in ("scalar", "_reconstruct")),
    *("argparse.Namespace", "types.SimpleNamespace", "typing.Any"),
    *(f"datetime.{name}" for name in ("date", "datetime", "timedelta", "timezone")),
    *(f"pathlib.{name}" for name in ("PosixPath", "WindowsPath", "PurePosixPath", "Path")),
    *("pathlib._local.PosixPath", "pathlib._local.WindowsPath"),
    *("omegaconf.dictconfig.DictConfig", "omegaconf.listconfig.ListConfig"),
    *("omegaconf.base.ContainerMetadata", "omegaconf.base.Metadata", "omegaconf.nodes.AnyNode"),
    *(f"omegaconf.nodes.{kind}Node" for kind in ("String", "Integer", "Float", "Boolean")),
    *(f"{module}.{kind}" for module in ("builtins", "__builtin__") for kind in ("list", "int")),
)
"""Types that trainers save beside weights. Instead of them a pickle makes an `Unread`."""
_DICTIONARIES = (
    "collections.defaultdict",
    *(
        f"{package}.AttributeDict"
        for package in (
            "pytorch_lightning.utilities.parsing",
            "lightning.pytorch.utilities.parsing",
            "lightning_fabric.utilities.data",
            "lightning.fabric.utilities.data",
        )
    ),
)


@contextlib.contextmanager
def open_tensors(path: str | Path, framework: str = "pt") -> Iterator[Any]:
    """Open a safetensors file whose header has a bounded size and number of tensors."""
    with Path(path).open("rb") as file:
        start = file.read(8)
        size = int.from_bytes(start, "little")
        if len(start) == 8 and size > MAX_HEADER:
            raise ValueError(f"its header has {size:,} bytes, and {MAX_HEADER:,} are the most")
        if file.read(size).count(b'"dtype"') > MAX_TENSORS:
            raise ValueError(f"it has more than {MAX_TENSORS:,} tensors")
    with safe_open(path, framework) as opened:
        yield opened


def load_tensors(path: str | Path) -> dict[str, Tensor]:
    """Return all tensors of a safetensors file, on the CPU."""
    with open_tensors(path) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict


class Unread:
    """Stands for an object beside the weights; nothing of its own type is run or stored."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


class _Dictionary:
    """Stands for a type of dictionary: the unpickler makes a plain one."""

    def __new__(cls, *_: object) -> dict[object, object]:  # type: ignore[misc]
        """Return an empty dictionary, which the unpickler fills."""
        return {}


def is_torchscript(path: Path) -> bool:
    """Tell whether a file is a program of `torch.jit.save`."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.split("/")[1:] == ["constants.pkl"] for name in archive.namelist())
    except OSError:
        raise
    except Exception:  # noqa: BLE001 - no archive, or a damaged one, which can raise any type
        return False


def load_torch(path: Path) -> object:
    """Return what `torch.save` wrote, if that is tensors in plain containers.

    Objects of `HARMLESS` types are left out: an `Unread` stands in their place.

    Raises:
        Exception: of any type, as a damaged pickle can raise any.
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            check_expanded(sum(m.file_size for m in archive.infolist()), path.stat().st_size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of layouts that are refused later anyway
        stand_ins: list[Any] = [(Unread, name) for name in HARMLESS]
        stand_ins += [(_Dictionary, name) for name in _DICTIONARIES]
        # explicit: TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 overrides the default, not the argument
        with torch.serialization.safe_globals(stand_ins):
            return torch.load(path, map_location="cpu", weights_only=True)


def check_dense(name: str, tensor: Tensor) -> None:
    """Refuse a tensor that does not store its elements one by one.

    Raises:
        ValueError: sparse, quantised, without data, or expanded to far more than is stored.
    """
    if tensor.is_quantized:
        raise ValueError(f"{name!r} is quantised; save it after dequantize()")
    if tensor.layout != torch.strided:
        layout = str(tensor.layout).removeprefix("torch.")
        raise ValueError(f"{name!r} has the layout {layout}; save it after to_dense()")
    if tensor.is_meta:
        raise ValueError(f"{name!r} is on the device meta and holds no data; save real weights")
    size = tensor.numel() * tensor.element_size()
    if size > max(ALWAYS_ALLOWED, tensor.untyped_storage().nbytes()):
        raise ValueError(
            f"{name!r} is expanded from {tensor.untyped_storage().nbytes():,} to {size:,} bytes; "
            "save it after contiguous()"
        )


def is_npy(path: Path) -> bool:
    """Tell whether a file begins like one of `numpy.save`."""
    with path.open("rb") as file:
        return file.read(len(np.lib.format.MAGIC_PREFIX)) == np.lib.format.MAGIC_PREFIX


def read_npy(path: Path) -> NDArray[Any]:
    """Return the array of a .npy file."""
    with path.open("rb") as file:
        return _read_array(file, path.stat().st_size)


def read_npz(path: Path, names: tuple[str, ...]) -> dict[str, NDArray[Any] | None]:
    """Return all names in a .npz file, with the arrays of those that are in `names`."""
    arrays: dict[str, NDArray[Any] | None] = {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            arrays[name] = None
            if name in names:
                check_expanded(member.file_size, member.compress_size)
                with archive.open(member) as file:
                    arrays[name] = _read_array(file, member.file_size)
    return arrays


def _read_array(file: IO[bytes], size: int) -> NDArray[Any]:
    """Read an array in the format of numpy whose header must state the `size` of the file."""
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"version {version} of the format .npy is unknown")
    shape, _, dtype = readers[version](file)
    if not dtype.hasobject and file.tell() + prod(shape) * dtype.itemsize != size:
        raise ValueError(f"shape {shape} of {dtype} does not take its {size:,} bytes")
    file.seek(0)
    content: NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    return content
