"""The sparse file: a state dict of which only the kept values take room.

It is a safetensors file. Its metadata has one key, `about`, a JSON object of texts:

::

    format   "gaprune sparse"
    version  "1"
    table    bytes of the table before compression with Zstandard, or "" where it is not compressed
    sha256   of the other facts, as JSON with sorted keys, followed by the table as it is stored
    …        facts about the run: target, weights_sha256, sparsity

All its tensors are uint8. `gaprune/table` is the table: JSON, state dict name → how that tensor is
stored. The tensor of the same name holds its *streams* of bytes, one after the other:

::

    dtype    as in the state dict
    shape    as in the state dict
    kept     how many values are stored; all others are +0 (default: all are stored)
    masked   whether the places are a mask; else they are the values that are not +0 (default: no)
    places   how it is stored which values are kept, counted over the flat tensor:
               all    every one; no stream (default)
               bits   stream bits: ⌈n/8⌉ bytes, the first value in the highest bit
               csr    stream rows: uint32 [rows + 1], where each row's values begin, a row being one
                      index of the first axis; stream columns: uint8, uint16 or uint32, the
                      smallest that holds a row's length − 1
               gaps   stream gaps: a byte b < 255 skips b values and keeps one; 255 skips 255 and
                      keeps none
    values   how the kept values are stored, in the order of their places:
               own       stream values: in the tensor's dtype, bit for bit (default)
               float16   stream values: rounded to float16
               codebook  stream book: k values in the tensor's dtype; stream codes: uint8 (uint16
                         for k > 256), which of them each value is; where codes is empty the book
                         holds all values themselves
    order    of the bytes in values: raw, value after value (default); planes, all first bytes,
             then all second ones, …
    streams  stream → [bytes], or [bytes, bytes before compression with Zstandard], in the order in
             which they lie
    sha256   its first 16 digits, of the streams as they are stored
    same_as  instead of all these: the name of a tensor with the same values (tied ones)

Numbers are little-endian. For each tensor the smallest of bits, csr and gaps is taken.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from gaprune.errors import InputError, unknown_name
from gaprune.exports.entries import Entry, How, Kept, read_entry, write_entry
from gaprune.exports.squeezing import squeeze, unsqueeze
from gaprune.formats import from_stamp, to_stamp
from gaprune.supermask import check_mask

FORMAT, VERSION = "gaprune sparse", "1"
TABLE = "gaprune/table"


def sparse_bytes(
    state: Mapping[str, Tensor], masks: Mapping[str, Tensor], how: How, **about: str
) -> bytes:
    """Return the content of a sparse file.

    Args:
        state: the network's state dict; what the masks drop is 0.
        masks: parameter name → bool of its shape. Tensors without a mask are stored whole or by
            what is not 0, whichever is smaller, and never rounded.
        how: of the kept weights.
        about: facts for the metadata.

    Raises:
        InputError: a mask without a tensor, or over values that are not 0; `How.check`.
        GapruneError: an optional package is not installed.
    """
    how.check()
    _check(state, masks)
    table: dict[str, Any] = {}
    stored: dict[str, Tensor] = {}
    first: dict[tuple[str, str], str] = {}
    for name in sorted(state, key=lambda one: one not in masks):  # tied ones after the masked one
        tensor = state[name]
        twin = first.setdefault(_identity(tensor, name), name)
        if twin != name and name not in masks:
            table[name] = {"same_as": twin}
            continue
        table[name], data = write_entry(tensor, masks.get(name), how)
        stored[name] = torch.from_numpy(data.copy())
    plain = json.dumps({name: table[name] for name in state}, separators=(",", ":")).encode()
    small = squeeze(np.frombuffer(plain, np.uint8)).tobytes() if how.compress else plain
    size = str(len(plain)) if how.compress else ""
    facts = {"format": FORMAT, "version": VERSION, "table": size, **about}
    stored[TABLE] = torch.frombuffer(bytearray(small), dtype=torch.uint8)
    return save(stored, to_stamp(**facts, sha256=_sha256(facts, small)))


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
        if _sha256(self.about, stored.tobytes()) != stated:
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


def _check(state: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> None:
    for name, mask in masks.items():
        if name not in state:
            raise unknown_name("masks", name, state)
        check_mask(f"masks[{name!r}]", mask, state[name].shape)
        if state[name][~mask.to(state[name].device)].count_nonzero():
            raise InputError(
                f"state[{name!r}]: has weights that its mask drops; give the pruned network's state"
            )


def _identity(tensor: Tensor, name: str) -> tuple[str, str]:
    """Tell tensors of the same bits from others; counters and empty ones are never shared."""
    if tensor.numel() < 2:
        return name, ""
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return f"{tensor.dtype} {list(tensor.shape)}", hashlib.sha256(data).hexdigest()


def _sha256(facts: Mapping[str, str], table: bytes) -> str:
    text = json.dumps({key: facts[key] for key in sorted(facts)}, ensure_ascii=False)
    return hashlib.sha256(text.encode() + table).hexdigest()
