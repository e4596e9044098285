"""A sparse file, read: a state dict of which only the kept values take room.

`docs/sparse-format.md` is the whole format on one page; a file is written by `gaprune.export`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from gaprune.errors import InputError, unknown_name
from gaprune.io.serialization import from_stamp
from gaprune.io.sparse.compression import unsqueeze
from gaprune.io.sparse.tensors import Entry, Kept, read_entry

FORMAT, VERSION = "gaprune sparse", "1"
TABLE = "gaprune/table"


def is_sparse(file: Any) -> bool:  # noqa: ANN401 - the library says no types
    """Tell whether an open safetensors file is a sparse file, or was one before it was damaged.

    Raises:
        ValueError, TypeError: its metadata is damaged.
    """
    return TABLE in file.keys() or from_stamp(file.metadata()).get("format") == FORMAT  # noqa: SIM118


class SparseFile:
    """A sparse file that is read tensor after tensor: what has been read may be let go.

    Use it in a `with` block.

    Attributes:
        path: where it lies.
        about: the facts in its metadata.
        names: of its tensors, in the order of the state dict.

    Raises:
        InputError: no such file, damaged, or not a sparse file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            if self.path.is_dir():
                raise InputError(f"sparse: {path} is a folder; name the file inside it")
            self._file = safe_open(self.path, "numpy").__enter__()  # type: ignore[no-untyped-call]
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"sparse: cannot read {path} ({reason})") from error
        except SafetensorError as error:
            raise self._damaged(f"no safetensors file, or cut off: {error}") from error
        self.about = self._facts()
        try:
            self._table = self._read_table()
        except (ValueError, KeyError, TypeError, SafetensorError) as error:
            raise self._damaged(f"its table cannot be read: {error}") from error
        self.names = tuple(self._table)

    def read(self, name: str) -> Tensor:
        """Return one tensor, checked.

        Raises:
            InputError: no such tensor, or damaged.
            GapruneError: it is compressed, and Zstandard is not installed.
        """
        return self.kept(name).tensor()

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """Yield names and tensors, one after the other; only one is held at a time."""
        for name in self.names:
            yield name, self.read(name)

    def masks(self) -> Iterator[tuple[str, Tensor]]:
        """Yield parameter names and masks, true where a weight was kept."""
        for name, facts in self._table.items():
            if facts.get("masked"):
                yield name, self.kept(name).mask()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.__exit__(kind, error, trace)

    def kept(self, name: str) -> Kept:
        """Return what a tensor keeps, checked; the tensor itself is not made.

        Raises:
            InputError: no such tensor, or damaged.
            GapruneError: it is compressed, and Zstandard is not installed.
        """
        if name not in self._table:
            raise unknown_name("sparse", name, self.names)
        place = self._table[name].get("same_as", name)
        try:
            return read_entry(Entry(self._table[place], self._file.get_tensor(place)))
        except (ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
            raise self._damaged(f"tensor {name!r}: {error}") from error

    def _facts(self) -> dict[str, str]:
        try:
            facts = from_stamp(self._file.metadata())
        except (ValueError, TypeError) as error:
            raise self._damaged(f"its metadata cannot be read: {error}") from error
        if facts.get("format") != FORMAT or "version" not in facts:
            raise InputError(
                f"sparse: {self.path} is a safetensors file of another kind "
                f"({facts.get('format', 'no gaprune format')}); "
                "name a file of gaprune export --format sparse"
            )
        if facts["version"] != VERSION:
            raise InputError(
                f"sparse: {self.path} has version {facts['version']} of the format, and this "
                f"gaprune reads version {VERSION}; read it with the gaprune that wrote it"
            )
        return facts

    def _read_table(self) -> dict[str, dict[str, Any]]:
        stored = self._file.get_tensor(TABLE)
        stated = self.about.pop("sha256")
        if stamp_sha256(self.about, stored.tobytes()) != stated:
            raise ValueError("it is not what was written (SHA-256)")
        size = self.about.pop("table")
        plain = unsqueeze(stored, int(size)) if size else stored
        return dict(json.loads(plain.tobytes()))

    def _damaged(self, reason: str) -> InputError:
        return InputError(
            f"sparse: {self.path} is damaged or not a sparse file ({reason}); "
            "fetch or export it again"
        )


def load_sparse(path: str | Path) -> dict[str, Tensor]:
    """Return the state dict in a sparse file, as `load_state_dict` takes it.

    Raises:
        InputError: no such file, damaged, or not a sparse file.
        GapruneError: it is compressed, and Zstandard is not installed.
    """
    with SparseFile(path) as file:
        return dict(file.items())


@torch.no_grad()
def load_sparse_into(model: nn.Module, path: str | Path) -> nn.Module:
    """Copy a sparse file into a network, in place, holding one tensor of the file at a time.

    Raises:
        InputError: as `load_sparse`, or names or shapes that are not the network's; the network
            may hold part of the values then.
    """
    own = model.state_dict(keep_vars=True)
    with SparseFile(path) as file:
        if missing := set(own) ^ set(file.names):
            raise InputError(
                f"sparse: the names in {path} must be those of {type(model).__name__}; "
                f"{', '.join(sorted(missing)[:5])} is in one of them only"
            )
        for name in file.names:
            kept = file.kept(name)
            if kept.shape != own[name].shape:
                raise InputError(
                    f"sparse: {name} has shape {list(kept.shape)} in {path} and "
                    f"{list(own[name].shape)} in {type(model).__name__}"
                )
            kept.put_into(own[name])
    return model


def stamp_sha256(facts: Mapping[str, str], table: bytes) -> str:
    """Return the SHA-256 of the other facts in the metadata and of the table as it is stored."""
    text = json.dumps({key: facts[key] for key in sorted(facts)}, ensure_ascii=False)
    return hashlib.sha256(text.encode() + table).hexdigest()
