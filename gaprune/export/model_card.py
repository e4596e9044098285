"""The card of an exported network: what was pruned, how, on what, how well, and how to load it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from gaprune.export.format_registry import exporter_of
from gaprune.export.hf_folder import SCHEME
from gaprune.export.pruned_network import PrunedNetwork
from gaprune.export.sparse_entries import ExportOptions
from gaprune.formatting import percent

CARD = "README.md"
_SHOWN = 40  # layers
_ZEROS = (
    "The weights that were removed are zeros to most runtimes: fewer bytes, not fewer milliseconds."
)
_GAINS = {
    "compact": "The channels that were removed are gone, with all that made and read them: the "
    "network is smaller, and does less work in every runtime.",
    "semi-structured": "Tensor cores of CUDA GPUs skip the weights that were removed where sizes "
    "fit; to other runtimes they are zeros.",
}


def card(
    pruned: PrunedNetwork, form: str, how: ExportOptions, files: Mapping[str, int], dense_bytes: int
) -> str:
    """Return Markdown with the head that model hubs read.

    Args:
        pruned: what was exported.
        form: the format.
        how: the options of the file.
        files: file → its bytes.
        dense_bytes: of the same state dict in safetensors, zeros included.
    """
    sections = (
        _head(pruned, form),
        _what(pruned, how),
        _files(form, files, dense_bytes, how),
        _figures(pruned, form, how),
        _provenance(pruned.record["provenance"]),
        _layers(pruned.record["layers"]),
        _loading(form),
    )
    return "\n".join("\n".join(section) for section in sections) + "\n"


def _head(pruned: PrunedNetwork, form: str) -> Iterator[str]:
    yield "---"
    yield f"library_name: {exporter_of(form).library}"
    base = pruned.name.removeprefix(SCHEME)
    if pruned.name.startswith(SCHEME) and base.count("/") == 1 and not base.startswith((".", "~")):
        yield f"base_model: {json.dumps(base)}"
    yield "tags:"
    yield from (f"- {tag}" for tag in ("pruning", "sparse", "data-free", "gaprune"))
    yield "---"
    yield ""
    yield f"# {pruned.name}, {percent(pruned.record['sparsity']['actual'])} of its weights removed"
    yield ""


def _what(pruned: PrunedNetwork, how: ExportOptions) -> Iterator[str]:
    record = pruned.record
    total = sum(layer["total"] for layer in record["layers"])
    kept = sum(layer["kept"] for layer in record["layers"])
    yield "## What was pruned, and how"
    yield ""
    yield f"- network: {record['origin']}; SHA-256 of its weights `{record['weights_sha256']}`"
    yield f"- {total - kept:,} of {total:,} prunable weights were removed, {kept:,} stay"
    if how.half or how.codebook is not None:
        yield "- the weights that stay are those of the original network, rounded for this file"
    else:
        yield "- no weight that stays was changed: it has the bits of the original network"
    if pruned.repaired:
        yield "- repaired afterwards: " + ", ".join(record["repaired"]["changed"])
    search = f"preset {record['preset']}" if record["preset"] else "one shot"
    yield (
        f"- method: {record['method']} ({search}), seed {record['seed']}, "
        f"{record['evaluations']:,} evaluations in {record['seconds']:.0f} s"
    )
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    yield f"- by {versions}"
    yield ""


def _files(
    form: str, files: Mapping[str, int], dense_bytes: int, how: ExportOptions
) -> Iterator[str]:
    yield "## Files"
    yield ""
    yield "| file | bytes | of the dense state dict |"
    yield "|---|---:|---:|"
    for name, size in files.items():
        yield f"| `{name}` | {size:,} | {percent(size / dense_bytes)} |"
    yield ""
    yield f"Format `{form}`: {exporter_of(form).description}. Dense: {dense_bytes:,} bytes."
    if how.half:
        yield "Weights that stay are rounded to float16 in this file."
    if how.codebook is not None:
        yield f"Weights that stay share {how.codebook} values per layer in this file (k-means)."
    yield ""


def _figures(pruned: PrunedNetwork, form: str, how: ExportOptions) -> Iterator[str]:
    agreement, accuracy = pruned.figures
    record = pruned.record
    yield "## Figures"
    yield ""
    yield "| | agreement with the dense network | test accuracy |"
    yield "|---|---:|---:|"
    yield f"| dense | 100.00 % | {percent(record['accuracy']['dense'])} |"
    yield f"| pruned | {percent(agreement)} | {percent(accuracy)} |"
    yield ""
    yield "Agreement is measured on the inputs that judged the search, which it never selected on."
    if how.half or how.codebook is not None:
        yield (
            "These are the figures of the run, before the weights were rounded for this file; "
            "`gaprune measure` gives those of the file."
        )
    yield f"{_GAINS.get(form, _ZEROS)} `gaprune measure` tells what a file gains on a machine."
    yield ""


def _provenance(provenance: Mapping[str, Any]) -> Iterator[str]:
    held = f"{provenance['samples']:,} inputs held"
    fresh = ", and new ones at every step" if provenance["fresh"] else ""
    yield "## Data: the provenance"
    yield ""
    yield f"- data level: **{provenance['level']}**"
    yield f"- shown to the search: {'; '.join(provenance['sources']) or 'nothing'} ({held}{fresh})"
    yield f"- SHA-256 of what was held: `{provenance['sha256']}`"
    yield f"- judged on: {provenance['validation']} ({provenance['validation_samples']:,} inputs)"
    yield f"- SHA-256 of what judged: `{provenance['validation_sha256']}`"
    yield ""


def _layers(layers: list[Mapping[str, Any]]) -> Iterator[str]:
    yield "## Layers"
    yield ""
    yield "| layer | weights | kept | density |"
    yield "|---|---:|---:|---:|"
    for layer in layers[:_SHOWN]:
        share = percent(layer["kept"] / layer["total"])
        yield f"| `{layer['name']}` | {layer['total']:,} | {layer['kept']:,} | {share} |"
    if rest := layers[_SHOWN:]:
        total, kept = (sum(one[key] for one in rest) for key in ("total", "kept"))
        yield f"| {len(rest)} more | {total:,} | {kept:,} | {percent(kept / total)} |"
    yield ""


def _loading(form: str) -> Iterator[str]:
    yield "## How to load it"
    yield ""
    yield "```python"
    yield exporter_of(form).loading
    yield "```"
