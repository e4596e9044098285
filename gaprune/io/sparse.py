"""The sparse file: a state dict of which only the kept weights are stored, read bit for bit.

`docs/sparse-format.md` describes the format; `gaprune.exports.sparse_writer` writes it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import zstandard
from annotated_types import Ge, Le, Len
from numpy.typing import NDArray
from pydantic import TypeAdapter
from safetensors import SafetensorError
from torch import Tensor

from gaprune.errors import InputError
from gaprune.io.bounded_reading import MAX_JSON, memory_bytes, parse_as, parse_json
from gaprune.io.serialization import from_metadata
from gaprune.io.tensor_files import open_tensors

FORMAT, VERSION = "gaprune sparse", "2"
TABLE, DATA = "gaprune/table", "gaprune/data"
SKIP = 255  # a distance that skips 255 positions and keeps none
DIGITS = 16  # hexadecimal digits of a SHA-256: one flaw in 2^64 passes by chance
_TORCH_DTYPES = (
    *(torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.bool, torch.uint8),
    *(torch.int8, torch.int16, torch.int32, torch.int64, torch.complex64, torch.complex128),
)
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in _TORCH_DTYPES}

Bytes = NDArray[np.uint8]
Count = Annotated[int, Ge(0)]


@dataclass(frozen=True)
class _TableEntry:
    """The types of one entry; see `docs/sparse-format.md`."""

    same_as: str | None = None
    dtype: str | None = None
    shape: list[Count] | None = None
    kept: Count | None = None
    stored_as: str | None = None
    codebook: Annotated[int, Ge(1), Le(1 << 16)] | None = None
    bytes: Annotated[list[Count], Len(1, 2)] | None = None
    sha256: str | None = None


_TABLE = TypeAdapter(dict[str, _TableEntry])


def is_sparse(file: Any) -> bool:  # noqa: ANN401 - safetensors has no type for an open file
    """Tell whether an open safetensors file is a sparse file, perhaps a damaged one."""
    return TABLE in file.keys() or from_metadata(file.metadata()).get("format") == FORMAT  # noqa: SIM118


def load_sparse(path: str | Path, *, max_bytes: int | None = None) -> dict[str, Tensor]:
    """Return the state dict in a sparse file, as `load_state_dict` takes it.

    Weights that the mask removes are +0; all others have the bits that were exported.

    Args:
        path: the file.
        max_bytes: that the tensors may take, such as those of the network; None is the memory of
            this machine.

    Raises:
        InputError: no such file, damaged, not a sparse file, or of another version.
    """
    if Path(path).is_dir():
        raise InputError(f"sparse: {path} is a folder; name the file inside it")
    subject = "the file"
    try:
        with open_tensors(path, "numpy") as file:
            metadata = from_metadata(file.metadata())
            _check_version(metadata, path)
            stored, data = file.get_tensor(TABLE), file.get_tensor(DATA)
        table = _read_table(metadata, stored, len(data))
        _check_size(table, memory_bytes() if max_bytes is None else max_bytes)
        state: dict[str, Tensor] = {}
        begin = 0
        for subject, facts in table.items():
            if "same_as" not in facts:
                end = begin + facts["bytes"][0]
                state[subject] = decode(facts, data[begin:end])
                begin = end
        for subject, facts in table.items():
            if "same_as" in facts:
                state[subject] = state[facts["same_as"]].clone()
    except OSError as error:
        raise InputError(f"sparse: cannot read {path} ({error.strerror or error})") from error
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError(
            f"sparse: {path} is damaged or not a sparse file ({subject}: {error}); fetch or export "
            "it again"
        ) from error
    return {name: state[name] for name in table}


def _check_version(metadata: Mapping[str, str], path: str | Path) -> None:
    version = metadata.get("version")
    if metadata.get("format") != FORMAT:
        raise InputError(
            f"sparse: {path} is a safetensors file of another kind; export it with --format=sparse"
        )
    if version == "1":
        raise InputError(
            f"sparse: {path} has version 1 of the format, which gaprune up to 0.2 wrote; export "
            "the run again, or load the file with gaprune 0.2"
        )
    if version != VERSION:
        raise InputError(
            f"sparse: {path} has version {version} of the format, and this gaprune reads version "
            f"{VERSION}; load it with a later gaprune"
        )


def _read_table(metadata: dict[str, str], stored: Bytes, size: int) -> dict[str, dict[str, Any]]:
    expected = metadata.pop("sha256")
    if table_sha256(metadata, stored.tobytes()) != expected:
        raise ValueError("the SHA-256 of its table is another one")
    plain = metadata["table"]
    if plain and int(plain) > MAX_JSON:
        raise ValueError(f"its table has more than {MAX_JSON:,} bytes")
    text = _decompress(stored, int(plain)) if plain else stored
    parse_as(_TABLE, text.tobytes())
    table: dict[str, dict[str, Any]] = parse_json(text.tobytes())
    stated = sum(facts["bytes"][0] for facts in table.values() if "same_as" not in facts)
    if stated != size:
        raise ValueError(f"its tensors take {stated} bytes, and it has {size}")
    return table


def _check_size(table: Mapping[str, Mapping[str, Any]], limit: int) -> None:
    """Refuse tensors that take more memory than they may, before any of it is taken."""
    size = sum(
        prod(facts["shape"]) * DTYPES[facts["dtype"]].itemsize
        for facts in table.values()
        if "same_as" not in facts
    )
    if size > limit:
        raise ValueError(f"its tensors take {size:,} bytes, and at most {limit:,} fit")


def decode(facts: Mapping[str, Any], stored: Bytes) -> Tensor:
    """Return the tensor of one table entry; ValueError if the bytes don't fit it."""
    if entry_sha256(stored) != facts["sha256"]:
        raise ValueError("the SHA-256 is another one")
    plain = facts["bytes"][1:]
    dtype, shape = DTYPES[facts["dtype"]], tuple(facts["shape"])
    count = facts.get("kept", prod(shape))
    # No entry has more bytes than its values, a codebook, and a byte per distance.
    if count > prod(shape) or (plain and plain[0] > (prod(shape) + (1 << 16)) * 17):
        raise ValueError("it has more values or bytes than its shape")
    data = _decompress(stored, plain[0]) if plain else stored
    if "codebook" in facts:
        data, codes = _split(data, count, code_dtype(facts["codebook"]))
        data, book = _split(data, facts["codebook"], dtype)
        indices = codes.numpy().astype(np.int64)  # torch can't index with uint16
        if count and indices.max() >= len(book):
            raise ValueError("a code lies outside the codebook")
        values = book[torch.from_numpy(indices)]
    else:
        data, values = _split(data, count, DTYPES[facts.get("stored_as", facts["dtype"])])
    if "kept" in facts:
        flat = torch.zeros(prod(shape), dtype=dtype)
        flat[_positions(data, count, len(flat))] = values.to(dtype)
        return flat.view(shape)
    if len(data):
        raise ValueError("it has more bytes than values")
    return values.view(shape)


def code_dtype(size: int) -> torch.dtype:
    """Return the dtype of indices into a codebook of `size` values."""
    return torch.uint8 if size <= 1 << 8 else torch.uint16


def _split(data: Bytes, count: int, dtype: torch.dtype) -> tuple[Bytes, Tensor]:
    """Cut `count` values off the end of the bytes; return the rest and the values."""
    start = len(data) - count * dtype.itemsize
    if start < 0:
        raise ValueError(f"{len(data)} bytes are too few for {count} values")
    if not count:
        return data, torch.zeros(0, dtype=dtype)
    # Bytes of equal significance are neighbours in the file: signs and exponents of trained
    # weights are alike, so they compress, and the random low bytes don't disturb them.
    planes = data[start:].reshape(dtype.itemsize, count)
    return data[:start], torch.from_numpy(planes.T.copy().reshape(-1)).view(dtype)


def _positions(distances: Bytes, kept: int, total: int) -> Tensor:
    """Return the positions of the kept weights, int64 `[kept]`, in a flat tensor of `total`."""
    keeps = distances != SKIP
    positions = np.cumsum(distances.astype(np.int64) + keeps)[keeps] - 1
    if len(positions) != kept or (kept and positions[-1] >= total):
        raise ValueError(f"its positions aren't {kept} of {total}")
    return torch.from_numpy(positions)


def entry_sha256(stored: Bytes) -> str:
    """Return the first `DIGITS` hexadecimal digits of the SHA-256 of an entry's bytes."""
    return hashlib.sha256(stored.tobytes()).hexdigest()[:DIGITS]


def table_sha256(metadata: Mapping[str, str], table: bytes) -> str:
    """Return the SHA-256 of the other metadata and of the table as it is stored."""
    text = json.dumps(metadata, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode() + table).hexdigest()


def _decompress(data: Bytes, size: int) -> Bytes:
    try:
        # The frame states its size: check it before memory for it is allocated.
        if zstandard.frame_content_size(data.tobytes()) != size:
            raise ValueError(f"its content doesn't have the {size} bytes that the table states")
        content = zstandard.ZstdDecompressor().decompress(data.tobytes(), max_output_size=size)
    except zstandard.ZstdError as error:
        raise ValueError(f"its bytes can't be decompressed ({error})") from error
    return np.frombuffer(content, np.uint8)
