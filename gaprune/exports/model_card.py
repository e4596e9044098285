"""The model card of an export: what was pruned, with which data, how well, and how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from importlib import resources

from jinja2 import Environment

from gaprune.exports.format_registry import find_exporter
from gaprune.exports.pruned_network import ExportOptions, PrunedNetwork
from gaprune.exports.writers import HF_PREFIX
from gaprune.models.zoo import ZOO
from gaprune.report.render import environment

CARD = "README.md"
TIMM_PREFIX = "timm:"
MAX_LAYERS = 40  # rows of the table of layers; the others are summed up
_ZEROS = (
    "Most runtimes compute with zeros like with other weights: the file is smaller, not faster."
)
_TASKS_OF_CLASSES = {  # part of the name of a class of transformers → its task
    "ForCausalLM": "text-generation",
    "ForMaskedLM": "fill-mask",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForImageClassification": "image-classification",
}
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
    agreement, accuracy = pruned.scores
    source = (resources.files("gaprune.exports") / "card.md").read_text(encoding="utf-8")
    return (
        _environment()
        .from_string(source)
        .render(
            record=record,
            provenance=record["provenance"],
            format=format_name,
            exporter=find_exporter(format_name),
            options=options,
            rounded=options.half or options.codebook is not None,
            corrected=pruned.corrected,
            agreement=agreement,
            accuracy=accuracy,
            files=files,
            dense_bytes=dense_bytes,
            total=sum(layer["total"] for layer in record["layers"]),
            kept=sum(layer["kept"] for layer in record["layers"]),
            base_model=_base_model(pruned),
            license=_license(pruned),
            task=_task(pruned),
            is_zoo=_is_zoo(pruned),
            speed=_SPEED.get(format_name, _ZEROS),
            max_layers=MAX_LAYERS,
        )
    )


def _environment() -> Environment:
    made = environment(keep_trailing_newline=True)
    made.filters["quoted"] = partial(json.dumps, ensure_ascii=False)  # a string of YAML
    return made


def _is_zoo(pruned: PrunedNetwork) -> bool:
    return pruned.name in ZOO and "weights" not in pruned.config


def _license(pruned: PrunedNetwork) -> str:
    """Return the licence where it is known: networks of the zoo have gaprune's."""
    return "mit" if _is_zoo(pruned) else ""


def _base_model(pruned: PrunedNetwork) -> str:
    """Return the repository of the weights on a hub; empty where the user gave others."""
    name = pruned.name.removeprefix(HF_PREFIX)
    if "weights" in pruned.config:
        return ""
    if name.startswith(TIMM_PREFIX):  # a name with a tag is that of its repository
        return name.replace(TIMM_PREFIX, "timm/", 1) if "." in name else ""
    is_hub = pruned.name.startswith(HF_PREFIX) and name.count("/") == 1 and name[0] not in "./~"
    return name if is_hub else ""


def _task(pruned: PrunedNetwork) -> str:
    """Return the task as model hubs call it; empty where inputs and class do not tell it."""
    origin = str(pruned.record.get("origin"))
    for part, task in _TASKS_OF_CLASSES.items():
        if part in origin:
            return task
    data = pruned.report_data
    samples = [sample for batch in data.get("batches") or () for sample in batch["samples"]]
    # Only the predictions of classifiers are stored.
    is_classifier = any("dense" in sample for sample in samples)
    is_image = (data.get("inputs") or {}).get("kind") == "image"
    return "image-classification" if is_classifier and is_image else ""
