"""Read files that nobody vouches for: sizes, depths and counts are checked before memory is taken.

Every function raises ValueError with a reason, or OSError where a file cannot be read; the caller
names the file and the remedy. `gaprune.io.tensor_files` does the same for tensors.
"""

from __future__ import annotations

import gzip
import json
import os
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

MAX_JSON = 64 << 20  # bytes of a JSON file; tokenizers of large vocabularies have 35 MB
MAX_ITEMS = 4_000_000  # commas and brackets in it: one list of Python takes 56 bytes
MAX_TOML = 256 << 10  # bytes
MAX_DOTS = 64  # parts of a dotted key: tomllib takes the square of their number
MAX_DEPTH = 40  # of lists and objects in each other
MAX_LINE, MAX_LINES = 1 << 20, 1_000_000  # of a file with one object per line
MAX_RATIO = 100  # to which compressed files may expand, beyond the next figure
ALWAYS_ALLOWED = 64 << 20  # bytes that a compressed file or an expanded tensor may always have
_CHUNK = 1 << 20
_T = TypeVar("_T")


def reason(error: Exception) -> str:
    """Return why a file cannot be read, without the name of the file."""
    return str(getattr(error, "strerror", None) or error)


def memory_bytes() -> int:
    """Return the size of this machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def read_bytes(path: Path, limit: int) -> bytes:
    """Return the content of a file of at most `limit` bytes."""
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"it has more than {limit:,} bytes")
    return content


def parse_json(text: str | bytes, *, bits: int = 64) -> Any:  # noqa: ANN401 - any plain data
    """Return the plain data in a JSON text of bounded depth, count and integers of some `bits`."""
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    if sum(text.count(mark) for mark in ",[{") > MAX_ITEMS:
        raise ValueError(f"it has more than {MAX_ITEMS:,} values")
    try:
        content = json.loads(text)
    except (RecursionError, MemoryError) as error:
        raise ValueError("its lists and objects are nested too deeply") from error
    _check_plain_data(content, bits)
    if "\\ud" in text.lower():  # half a character cannot be written again: this raises ValueError
        json.dumps(content, ensure_ascii=False).encode()
    return content


def parse_as(adapter: TypeAdapter[_T], text: str | bytes) -> _T:
    """Return the value of a type in a JSON text, in which every value has the right type."""
    try:
        return adapter.validate_json(text, strict=True)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, problem["loc"])) or "its content"
        raise ValueError(f"{where}: {problem['msg']}"[:200]) from error


def read_json(path: Path) -> Any:  # noqa: ANN401 - any plain data
    """Return the plain data in a JSON file."""
    return parse_json(read_bytes(path, MAX_JSON))


def read_object(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__} and no object")  # noqa: TRY004
    return content


def parse_toml(text: str) -> dict[str, Any]:
    """Return the settings in a TOML text."""
    if len(text) > MAX_TOML:
        raise ValueError(f"it has more than {MAX_TOML:,} bytes")
    # Only dots and what ends a key remain, so that parts of any length count as one.
    marks = "".join(mark for mark in text if mark in ".,=\n[]{}")
    if "." * MAX_DOTS in marks:
        raise ValueError(f"a key has more than {MAX_DOTS} parts")
    try:
        content = tomllib.loads(text)
    except (RecursionError, MemoryError) as error:
        raise ValueError("its lists and tables are nested too deeply") from error
    _check_plain_data(content)
    return content


def read_toml(path: Path) -> dict[str, Any]:
    """Return the settings in a TOML file."""
    return parse_toml(read_bytes(path, MAX_TOML).decode("utf-8").replace("\r\n", "\n"))


def read_lines(path: Path) -> Iterator[bytes]:
    """Yield the complete lines of a file without their ends; a last line without one is left out.

    The file may grow meanwhile.
    """
    with path.open("rb") as file:
        for _ in range(MAX_LINES):
            line = file.readline(MAX_LINE)
            if not line.endswith(b"\n"):
                if len(line) == MAX_LINE:
                    raise ValueError(f"a line has more than {MAX_LINE:,} bytes")
                return
            yield line[:-1]
    raise ValueError(f"it has more than {MAX_LINES:,} lines")


def _check_plain_data(content: object, bits: int = 64) -> None:
    """Refuse deep data, and large integers, which neither JSON nor TOML promise."""
    level: list[Any] = [content]
    for _ in range(MAX_DEPTH):
        if any(isinstance(value, int) and abs(value) >> bits for value in level):
            raise ValueError(f"an integer has more than {bits} bits")
        containers = [value for value in level if isinstance(value, (dict, list))]
        level = [
            inner
            for value in containers
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise ValueError(f"its values are nested more than {MAX_DEPTH} deep")


def open_gzip(path: Path) -> IO[bytes]:
    """Open a file for reading, unpacked if it is compressed by gzip, whatever its name."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path) if packed else path.open("rb")  # type: ignore[return-value]


def read_exactly(file: IO[bytes], size: int, *, more: bool = False) -> bytes:
    """Return the next `size` bytes of a file in bounded pieces; refuse it if it has not so many.

    Args:
        file: is read up to the end of these bytes.
        size: of the content.
        more: whether other bytes may follow.
    """
    pieces, left = [], size
    while left and (piece := file.read(min(left, _CHUNK))):
        pieces.append(piece)
        left -= len(piece)
    if left or not (more or not file.read(1)):
        raise ValueError(
            f"its header states {size:,} bytes, and {'fewer' if left else 'more'} follow"
        )
    return b"".join(pieces)


def check_expanded(size: int, stored: int) -> None:
    """Refuse to unpack `stored` bytes to far more of them."""
    if size > ALWAYS_ALLOWED + MAX_RATIO * stored:
        raise ValueError(
            f"its content would grow from {stored:,} to {size:,} bytes; store it uncompressed"
        )
