"""The model card of an export: what was pruned, with which data, how well, and how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources

from gaprune.exports.format_registry import find_exporter
from gaprune.exports.pruned_network import ExportOptions, PrunedNetwork
from gaprune.exports.writers import HF_PREFIX
from gaprune.report.render import environment

CARD = "README.md"
MAX_LAYERS = 40  # rows of the table of layers; the others are summed up
_ZEROS = (
    "Most runtimes compute with zeros like with other weights: the file is smaller, not faster."
)
_SPEED = {
    "compact": "Channels that no kept weight reads are removed: the network is smaller, and takes "
    "fewer multiply-adds in every runtime.",
    "semi-structured": "Sparse tensor cores of CUDA GPUs skip the removed weights where the sizes "
    "fit; other runtimes compute with zeros.",
}


def model_card(
    pruned: PrunedNetwork,
    format_name: str,
    options: ExportOptions,
    files: Mapping[str, int],
    dense_bytes: int,
) -> str:
    """Return Markdown with the metadata that model hubs read.

    `files` maps names to bytes; `dense_bytes` is the size of the same state dict with all zeros.
    """
    record = pruned.record
    # A repository NAME/NAME of a hub, not a local folder, is the base model.
    base = pruned.name.removeprefix(HF_PREFIX)
    is_hub = pruned.name.startswith(HF_PREFIX) and base.count("/") == 1 and base[0] not in "./~"
    # Scores must be those of the network in this folder.
    after_repair = record.get("repaired") if pruned.repaired else None
    source = (resources.files("gaprune.exports") / "card.md").read_text(encoding="utf-8")
    return (
        environment(keep_trailing_newline=True)
        .from_string(source)
        .render(
            record=record,
            provenance=record["provenance"],
            format=format_name,
            exporter=find_exporter(format_name),
            options=options,
            rounded=options.half or options.codebook is not None,
            repaired=pruned.repaired,
            agreement=(after_repair or record["agreement"])["validation"],
            accuracy=after_repair["accuracy"] if after_repair else record["accuracy"]["pruned"],
            files=files,
            dense_bytes=dense_bytes,
            total=sum(layer["total"] for layer in record["layers"]),
            kept=sum(layer["kept"] for layer in record["layers"]),
            base_model=json.dumps(base) if is_hub else "",
            speed=_SPEED.get(format_name, _ZEROS),
            max_layers=MAX_LAYERS,
        )
    )
