"""Export a run: write the files of a format into a new folder, and read them back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import nn

from gaprune.errors import GapruneError, InputError
from gaprune.exports.format_registry import HF, check_options, find_exporter
from gaprune.exports.model_card import CARD, model_card
from gaprune.exports.pruned_network import ExportOptions, read_pruned
from gaprune.io.atomic import (
    check_output_folder,
    make_folders,
    remove_folders,
    remove_partial,
    replacing,
    writing,
)
from gaprune.io.manifest import MANIFEST, SCHEMA, file_entries, read_manifest, sealed
from gaprune.io.serialization import to_json
from gaprune.io.trusted_code import remember_code
from gaprune.models.forward import standard_torch
from gaprune.models.subnormal_numbers import with_subnormals_zeroed
from gaprune.pattern_names import EXPERT
from gaprune.runs.live_networks import live_network, remember_network
from gaprune.runs.option_keys import JOB_KEYS
from gaprune.runs.result import Result

_JOB_NAMES = tuple(key.name for key in JOB_KEYS)


@dataclass(frozen=True)
class ExportResult:
    """What an export wrote."""

    path: Path  # the folder
    format: str  # its name
    file: Path  # the network in the folder
    files: Mapping[str, int]  # file → bytes, without the card and `export.json`
    dense_bytes: int  # of the same state dict in safetensors, zeros included
    # with the dense network, as the run measured it before an export rounds weights
    agreement: float
    accuracy: float | None  # on the test data of the run
    compared_on: str  # the inputs of the agreement

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(self.files.values())

    def record(self) -> dict[str, Any]:
        """Return plain data."""
        paths = {"path": str(self.path), "file": str(self.file), "bytes": self.bytes}
        return {"schema": SCHEMA, **vars(self), "files": dict(self.files), **paths}


@standard_torch()
def export(  # noqa: PLR0913 # options, each by its own name
    run: Result | str | Path,
    format: str,  # noqa: A002 - the word of the command line
    out: str | Path,
    *,
    overwrite: bool = False,
    strict: bool = False,
    repaired: bool = False,
    half: bool = False,
    codebook: int | None = None,
    compress: bool = True,
    flush_subnormals: bool = False,
    model: nn.Module | None = None,
    trust_code: bool = False,
) -> ExportResult:
    """Write a pruned network in a format that other tools read, with a model card.

    Args:
        run: what `gaprune.prune` returned, or a run directory.
        format: `dense`, `masks`, `prune`, `sparse`, `onnx`, `compact`, `semi-structured`, `hf`, or
            the name of a plug-in's.
        out: the folder for the files, new or empty.
        overwrite: whether to replace an earlier export there; other files are never replaced.
        strict: write the network without compensation and repair, where the run made one with. Else
            a compensated run is written compensated, a repaired one repaired.
        repaired: write the repaired network of a run that has a compensated one, too.
        half: `sparse`: round the kept weights to float16; `semi-structured`: round all weights.
        codebook: `sparse`: the number of values that the kept weights of each layer share
            (k-means).
        compress: `sparse`: with Zstandard where that is smaller.
        flush_subnormals: write weights as 0 that are too small for the usual floating-point format
            (below 1.2e-38), with which Intel processors compute up to 60 times slower.
        model: the dense network, where the run pruned a network in memory and the format traces it
            (`onnx`, `compact`).
        trust_code: whether the factory that the run directory names may run, if this user's gaprune
            did not write that directory on this machine; `onnx` and `compact` run it.

    Returns:
        What was written. Every file has been read back and compared.

    Raises:
        InputError: no run, an unknown format, an option that doesn't fit, or an output folder that
            isn't free.
        GapruneError: an optional package is missing, the run is damaged, or writing failed; `out`
            is as it was before.
    """
    options = ExportOptions(
        half=half, codebook=codebook, compress=compress, flush_subnormals=flush_subnormals
    )
    check_options(format, options)
    exporter = find_exporter(format)
    path = Path(out).expanduser().resolve()
    _check_free(path, out, overwrite=overwrite)
    pruned = read_pruned(run, strict=strict, repaired=repaired, model=model, trust_code=trust_code)
    if pruned.config.get("pattern") == EXPERT and format != HF:
        raise InputError(
            f"format: {format} stores removed experts as zeros, which a router still chooses; "
            "export a run with --pattern=expert as hf"
        )
    if flush_subnormals:
        state = {name: with_subnormals_zeroed(value) for name, value in pruned.state.items()}
        pruned = replace(pruned, state=state)
    # The card compares with the same state dict, stored whole.
    dense_bytes = len(save({name: value.clone() for name, value in pruned.state.items()}))
    with writing(out, GapruneError):
        # Folders that this call creates are removed again if it fails.
        parents = make_folders(path.parent)
        try:
            remove_partial(path.parent, path.name)  # what a killed export left
            # The format writes into a hidden folder, which gets its name once it is complete.
            with replacing(path) as folder:
                folder.mkdir()
                exporter.write(pruned, folder, options)
                files = {
                    str(file.relative_to(folder)): file.stat().st_size
                    for file in sorted(folder.rglob("*"))
                    if file.is_file()
                }
                config = {name: pruned.config[name] for name in _JOB_NAMES if name in pruned.config}
                manifest = {
                    "schema": SCHEMA,
                    "format": format,
                    "options": dict(vars(options)),
                    "repaired": pruned.corrected == "repaired",
                    "compensated": pruned.corrected == "compensated",
                    "target": pruned.name,
                    "weights_sha256": pruned.record["weights_sha256"],
                    "files": file_entries(folder, files),
                    "config": {**config, "sparsity": pruned.record["sparsity"]["asked"]},
                }
                text = to_json(sealed(manifest), indent=2) + "\n"
                (folder / MANIFEST).write_text(text, encoding="utf-8")
                card = model_card(pruned, format, options, files, dense_bytes)
                (folder / CARD).write_text(card, encoding="utf-8")
            dense = run.target.model if isinstance(run, Result) else model or live_network(run)
            if dense is not None:
                remember_network(path, dense)
            if pruned.trusted:  # what another user's run names must not become known code
                remember_code(path, config)
        # KeyboardInterrupt too: an interrupted export leaves nothing behind.
        except BaseException:
            remove_folders(parents)
            raise
    provenance = pruned.record["provenance"]
    source = f"{provenance['validation_samples']:,} validation inputs of the run: "
    source += str(provenance["validation"])
    return ExportResult(
        path, format, path / exporter.file, files, dense_bytes, *pruned.scores, source
    )


def _check_free(path: Path, out: str | Path, *, overwrite: bool) -> None:
    manifest = read_manifest(path)
    exported = () if manifest is None else (*manifest["files"], MANIFEST, CARD)
    if check_output_folder(out, exported, recursive=True) and not overwrite:
        raise InputError(
            f"out: {out} holds an earlier export; name another folder, or add --overwrite"
        )
