"""One export from a run to a folder: written under another name, read back, synced, renamed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from gaprune.errors import GapruneError, InputError
from gaprune.export.format_registry import find_exporter
from gaprune.export.model_card import CARD, card
from gaprune.export.pruned_network import PrunedNetwork, pruned_of
from gaprune.export.sparse_entries import ExportOptions
from gaprune.io.atomic import (
    check_output_folder,
    make_folders,
    remove_folders,
    remove_partial,
    replacing,
    writing,
)
from gaprune.io.manifest import FACTS, SCHEMA, file_facts, read_facts
from gaprune.io.serialization import to_json
from gaprune.runs.job import JOB_KEYS
from gaprune.runs.result import Result


@dataclass(frozen=True)
class ExportResult:
    """What an export wrote.

    Attributes:
        path: the folder.
        form: the format.
        file: the network in it.
        files: file → bytes, without the card and `export.json`.
        dense_bytes: of the same state dict in safetensors, zeros included.
    """

    path: Path
    form: str
    file: Path
    files: Mapping[str, int]
    dense_bytes: int

    @property
    def bytes(self) -> int:
        """Of all its files."""
        return sum(self.files.values())

    def record(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "schema": SCHEMA,
            "format": self.form,
            "path": str(self.path),
            "file": str(self.file),
            "files": dict(self.files),
            "bytes": self.bytes,
            "dense_bytes": self.dense_bytes,
        }


def export(  # noqa: PLR0913 # options, each by its own name
    run: Result | str | Path,
    form: str,
    out: str | Path,
    *,
    overwrite: bool = False,
    strict: bool = False,
    half: bool = False,
    codebook: int | None = None,
    compress: bool = True,
    model: nn.Module | None = None,
) -> ExportResult:
    """Write a pruned network in a format that others read, with a card.

    Args:
        run: what `gaprune.prune` returned, or a run folder.
        form: `dense`, `masks`, `prune`, `sparse`, `onnx`, `compact`, `semi-structured` or `hf`;
            see `gaprune.export.format_registry`.
        out: the folder for the files, new or empty.
        overwrite: whether an earlier export there is replaced; other files never are.
        strict: the network without repair, where the run repaired it.
        half: of `sparse`: round the kept weights to float16; of `semi-structured`: all of them.
        codebook: of `sparse`: so many shared values per layer (k-means) for the kept weights.
        compress: of `sparse`: with Zstandard where that is smaller.
        model: the dense network, where the run folder is of a network in memory and the format
            needs it (`onnx`, `compact`).

    Returns:
        What was written. Every file has been read back and compared.

    Raises:
        InputError: no run, an unknown format, an option that does not fit, a place that is taken.
        GapruneError: an optional package is missing, the run is damaged, or writing failed; there
            is nothing at `out` then, or what was there before.
    """
    how = ExportOptions(half=half, codebook=codebook, compress=compress)
    exporter = find_exporter(form, how)
    place = Path(out).expanduser().resolve()
    _check_free(place, out, overwrite=overwrite)
    pruned = pruned_of(run, strict=strict, model=model)
    dense_bytes = len(save({name: value.clone() for name, value in pruned.state.items()}))
    with _filling(place, out) as fresh:
        exporter.write(pruned, fresh, how)
        files = {
            str(path.relative_to(fresh)): path.stat().st_size
            for path in sorted(fresh.rglob("*"))
            if path.is_file()
        }
        facts = _facts(pruned, form, how, fresh, files)
        (fresh / FACTS).write_text(to_json(facts, indent=2) + "\n", encoding="utf-8")
        text = card(pruned, form, how, files, dense_bytes)
        (fresh / CARD).write_text(text, encoding="utf-8")
    return ExportResult(place, form, place / exporter.file, files, dense_bytes)


def _facts(
    pruned: PrunedNetwork, form: str, how: ExportOptions, folder: Path, files: Mapping[str, int]
) -> dict[str, Any]:
    """Return what a program needs to know about an export."""
    return {
        "schema": SCHEMA,
        "format": form,
        "options": {**vars(how)},
        "repaired": pruned.repaired,
        "target": pruned.name,
        "weights_sha256": pruned.record["weights_sha256"],
        "files": {name: file_facts(folder / name) for name in files},
        "config": _network(pruned),
    }


def _network(pruned: PrunedNetwork) -> dict[str, Any]:
    """Return what names the dense network, and nothing else of what was asked for."""
    named = {key.name: pruned.config[key.name] for key in JOB_KEYS if key.name in pruned.config}
    return {**named, "sparsity": pruned.record["sparsity"]["asked"]}


def _check_free(folder: Path, shown: str | Path, *, overwrite: bool) -> None:
    facts = read_facts(folder)
    allowed = set() if facts is None else {*facts["files"], FACTS, CARD}
    if check_output_folder(shown, allowed, recursive=True) and not overwrite:
        raise InputError(
            f"out: {shown} holds an earlier export; name another folder, or add --overwrite"
        )


@contextlib.contextmanager
def _filling(folder: Path, shown: str | Path) -> Iterator[Path]:
    """Yield a hidden folder that becomes `folder` once everything in it is on the disk.

    Raises:
        GapruneError: it cannot be written; `folder` is as it was.
    """
    with writing(shown, GapruneError):
        made = make_folders(folder.parent)
        try:
            remove_partial(folder.parent, folder.name)
            with replacing(folder) as fresh:
                fresh.mkdir()
                yield fresh
        except BaseException:
            remove_folders(made)
            raise
