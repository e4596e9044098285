"""What a run comes to, in a sentence and a few figures; which of its networks the page is about."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gaprune.formatting import duration, listing, number, percent, points, ratio, size
from gaprune.pattern_names import UNSTRUCTURED, WEIGHTS, sparsity_unit
from gaprune.report.reading import RunFiles
from gaprune.report.words import DATA_LEVELS, ENDINGS

EVOLVED = "evolved"


@dataclass(frozen=True)
class Figure:
    """One figure of the headline: its name, itself, and what it means."""

    name: str
    value: str
    words: str


@dataclass(frozen=True)
class Headline:
    """The top of a page.

    Attributes:
        title: what was pruned.
        lead: the result, in a sentence.
        figures: the most important ones.
        remarks: what a reader must know to judge them.
    """

    title: str
    lead: str
    figures: tuple[Figure, ...]
    remarks: tuple[str, ...]


def headline(run: RunFiles) -> Headline:
    """Say what came of a run."""
    record = run.record
    figures = [
        _sparsity(record),
        _quality(record),
        _size(run),
        *_gain(record),
    ]
    return Headline(str(record["target"]), _lead(record), tuple(figures), tuple(_remarks(record)))


def counts(record: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many prunable weights there are, and how many stay."""
    layers = record["layers"]
    return sum(layer["total"] for layer in layers), sum(layer["kept"] for layer in layers)


def own_name(record: Mapping[str, Any]) -> str:
    """Return what the network that was found is called: `evolved`, `evolved, repaired`."""
    method = str(record["method"])
    return f"{method}, repaired" if in_loop(record) else method


def in_loop(record: Mapping[str, Any]) -> bool:
    """Tell whether masks were chosen by how they do after repair."""
    repaired = record.get("repaired")
    return bool(repaired and repaired.get("in_loop"))


def own_scores(record: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Return agreement on the validation inputs and test accuracy of the network that the page is about."""
    if in_loop(record):
        return record["repaired"].get("validation"), record["repaired"].get("accuracy")
    return record["agreement"].get("validation"), _accuracy(record, "pruned")


def estimated_bytes(run: RunFiles) -> tuple[float, float] | None:
    """Return bytes of the dense state dict and of a sparse file, or None where sizes are unknown.

    The values that stay, and for their places log2 of the number of ways to choose them.
    """
    sizes = run.sizes
    if not sizes:
        return None
    dense = float(sum(values * width for values, width in sizes.values()))
    sparse = dense
    for layer in run.record["layers"]:
        if layer["name"] not in sizes:
            return None
        total, kept = int(layer["total"]), int(layer["kept"])
        ways = math.lgamma(total + 1) - math.lgamma(kept + 1) - math.lgamma(total - kept + 1)
        sparse += kept * sizes[layer["name"]][1] + ways / math.log(2) / 8
        sparse -= total * sizes[layer["name"]][1]
    return dense, sparse


def _accuracy(record: Mapping[str, Any], which: str) -> float | None:
    return (record.get("accuracy") or {}).get(which)


def _lead(record: Mapping[str, Any]) -> str:
    removed = percent(record["sparsity"]["actual"])
    validation, accuracy = own_scores(record)
    after = " and repaired" if in_loop(record) else ""
    told = f"With {removed} of its weights removed{after}, {record['target']}"
    if accuracy is not None:
        dense = percent(_accuracy(record, "dense"))
        return f"{told} still gets {percent(accuracy)} of the test set right; dense it got {dense}."
    return f"{told} still answers as the dense network does on {percent(validation)} of the validation inputs."


def _sparsity(record: Mapping[str, Any]) -> Figure:
    total, kept = counts(record)
    words = f"{number(kept)} of {number(total)} weights stay, each bit for bit as it was"
    settings = record.get("settings") or {}
    unit = sparsity_unit(settings.get("pattern", UNSTRUCTURED), record.get("budget") or WEIGHTS)
    if unit is not None:
        words += f"; asked was to remove {percent(record['sparsity']['asked'])} of the {unit}"
    name = "Sparsity" if unit is None else "Sparsity of weights"
    return Figure(name, percent(record["sparsity"]["actual"]), words)


def _quality(record: Mapping[str, Any]) -> Figure:
    validation, accuracy = own_scores(record)
    if accuracy is None:
        words = "of the validation inputs inputs are answered as by the dense network"
        return Figure("Agreement", percent(validation), words)
    dense = _accuracy(record, "dense")
    lost = "" if dense is None else f"; {points(accuracy - dense)} against the dense network"
    words = f"on test data used for nothing else{lost}; {percent(validation)} agreement on the validation inputs"
    return Figure("Test accuracy", percent(accuracy), words)


def _size(run: RunFiles) -> Figure:
    total, kept = counts(run.record)
    found = estimated_bytes(run)
    if found is None:
        return Figure("Size", ratio(total / max(1, kept)), "fewer weights")
    dense, sparse = found
    words = (
        f"about, in a sparse file before compression; the dense one has {size(dense)}, "
        f"{ratio(dense / max(sparse, 1))} as much"
    )
    return Figure("Size", size(sparse), words)


def _gain(record: Mapping[str, Any]) -> list[Figure]:
    best, gain = record.get("best_baseline"), record.get("gain")
    if best is None or gain is None or record["method"] != EVOLVED:
        return []
    words = f"of agreement on the validation inputs above {best}, the best of {len(record['baselines'])} rankings"
    tested = record["baselines"][best].get("accuracy") if best in record["baselines"] else None
    own = own_scores(record)[1]
    if tested is not None and own is not None:
        words += f"; {points(own - tested)} of test accuracy"
    return [Figure("Margin", points(gain), words)]


def _remarks(record: Mapping[str, Any]) -> list[str]:
    found = [DATA_LEVELS.get(record["provenance"].get("level"), "")]
    ending = ENDINGS.get(str(record.get("stopped")))
    if ending is not None and record.get("seconds") is not None:
        found.append(
            f"The search ended {ending}: {duration(record['seconds'])}, "
            f"{number(record.get('evaluations') or 0)} candidates scored."
            if record["method"] == EVOLVED
            else f"Made {ending}: {duration(record['seconds'])}."
        )
    repaired = record.get("repaired")
    if repaired and not in_loop(record):
        scores = [f"{percent(repaired['validation'])} agreement on the validation inputs"]
        if repaired.get("accuracy") is not None:
            scores.append(f"{percent(repaired['accuracy'])} test accuracy")
        found.append(f"After repair (statistics and biases only): {listing(scores)}.")
    if record["method"] == EVOLVED and (record.get("gain") or 0) <= 0:
        found.append("The search found nothing better than the best ranking.")
    return [one for one in found if one]
