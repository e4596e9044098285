"""The top of a run's page: the result in a sentence, the main figures, and what they mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gaprune.formatting import duration, number, percent, points, ratio, removed_weights, size
from gaprune.pattern_names import UNSTRUCTURED, WEIGHTS, sparsity_unit
from gaprune.report.reading import RunFiles

EVOLVED = "evolved"
_DATA_LEVELS = {
    "none": "No calibration inputs were used: the scores depend on the weights alone.",
    "noise": "No real data was used: the calibration inputs are random noise.",
    "procedural": "No real data was used: a program drew the calibration inputs.",
    "inversion": "No real data was used: the calibration inputs were inverted from the network.",
    "proxy": "The calibration inputs are real data of the same kind, but not of the network's "
    "domain.",
    "unlabelled": "The calibration inputs are real data of the network's domain, without labels.",
    "labelled": "The calibration inputs are real data of the network's domain, with labels.",
}
_STOP_REASONS = {
    "generations": "after all generations",
    "evaluations": "at its limit of evaluations",
    "seconds": "at its limit of time",
    "stagnation": "because it no longer improved",
    "validation": "because it overfitted its calibration inputs",
    "interrupted": "when it was interrupted; this is the best result so far",
}


@dataclass(frozen=True)
class Figure:
    """A figure of the headline: its name, its value, and what it means."""

    name: str
    value: str
    text: str


@dataclass(frozen=True)
class Headline:
    """The top of a page."""

    title: str  # what was pruned
    lead: str  # the result, in a sentence
    figures: tuple[Figure, ...]  # the main ones
    remarks: tuple[str, ...]  # what a reader must know to judge them


def headline(run: RunFiles) -> Headline:
    """Return the headline of a run."""
    record = run.record
    figures = [_sparsity(record), _quality(record), _size(run), *_gain(record)]
    return Headline(str(record["target"]), _lead(record), tuple(figures), tuple(_remarks(record)))


def weight_counts(record: Mapping[str, Any]) -> tuple[int, int]:
    """Return the number of prunable weights, and of those that are kept."""
    layers = record["layers"]
    return sum(layer["total"] for layer in layers), sum(layer["kept"] for layer in layers)


def repaired_in_loop(record: Mapping[str, Any]) -> bool:
    """Tell whether the search scored candidates after repair."""
    return bool((record.get("repaired") or {}).get("in_loop"))


def network_name(record: Mapping[str, Any]) -> str:
    """Return the name of the run's network: its method, or `evolved, repaired`."""
    return f"{record['method']}, repaired" if repaired_in_loop(record) else str(record["method"])


def network_scores(record: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Return validation agreement and test accuracy of the run's network."""
    if repaired_in_loop(record):
        return record["repaired"].get("validation"), record["repaired"].get("accuracy")
    accuracy = record.get("accuracy") or {}
    return record["agreement"].get("validation"), accuracy.get("pruned")


def estimated_bytes(run: RunFiles) -> tuple[float, float] | None:
    """Return bytes of the dense state dict and of a sparse file; None where shapes are unknown.

    The estimate for a layer is its kept weights plus log2 C(total, kept) bits, the entropy of
    their positions.
    """
    sizes = run.sizes
    if any(layer["name"] not in sizes for layer in run.record["layers"]):
        return None
    dense = float(sum(values * width for values, width in sizes.values()))
    sparse = dense
    for layer in run.record["layers"]:
        total, keep_count = int(layer["total"]), int(layer["kept"])
        # ln C(total, kept) by log-gamma, as factorials of layer sizes overflow.
        nats = sum(
            sign * math.lgamma(count + 1)
            for sign, count in ((1, total), (-1, keep_count), (-1, total - keep_count))
        )
        sparse += nats / math.log(2) / 8 - (total - keep_count) * sizes[layer["name"]][1]
    return dense, sparse


def _dense_accuracy(record: Mapping[str, Any]) -> float | None:
    return (record.get("accuracy") or {}).get("dense")


def _lead(record: Mapping[str, Any]) -> str:
    validation, accuracy = network_scores(record)
    repaired = " after repair" if repaired_in_loop(record) else ""
    subject = f"With {percent(record['sparsity']['actual'])} of its prunable weights removed, "
    subject += str(record["target"])
    if accuracy is not None:
        return (
            f"{subject} has a test accuracy of {percent(accuracy)}{repaired}; the dense network "
            f"has {percent(_dense_accuracy(record))}."
        )
    return (
        f"{subject} agrees with the dense network on {percent(validation)} of the validation "
        f"inputs{repaired}."
    )


def _sparsity(record: Mapping[str, Any]) -> Figure:
    total, keep_count = weight_counts(record)
    removed = removed_weights(total - keep_count, total, record.get("parameters"))
    text = f"{removed}; the other {number(keep_count)} are kept unchanged"
    settings = record.get("settings") or {}
    unit = sparsity_unit(settings.get("pattern", UNSTRUCTURED), record.get("budget") or WEIGHTS)
    if unit is not None:
        text += f"; the target was {percent(record['sparsity']['asked'])} of the {unit}"
    name = "Sparsity" if unit is None else "Sparsity of weights"
    return Figure(name, percent(record["sparsity"]["actual"]), text)


def _quality(record: Mapping[str, Any]) -> Figure:
    validation, accuracy = network_scores(record)
    if accuracy is None:
        text = "of the validation inputs get the class that the dense network predicts"
        return Figure("Agreement", percent(validation), text)
    dense = _dense_accuracy(record)
    lost = "" if dense is None else f"{points(accuracy - dense)} against the dense network; "
    text = f"{lost}{percent(validation)} agreement with it on the validation inputs"
    return Figure("Test accuracy", percent(accuracy), text)


def _size(run: RunFiles) -> Figure:
    estimate = estimated_bytes(run)
    if estimate is None:
        total, keep_count = weight_counts(run.record)
        return Figure("Size", ratio(total / max(1, keep_count)), "fewer weights")
    # The estimate ignores compression of values, so real files are often smaller.
    dense, sparse = estimate
    text = f"estimate for a sparse file; the dense file has {size(dense)}, "
    return Figure("Size", size(sparse), text + f"{ratio(dense / max(sparse, 1))} as much")


def _gain(record: Mapping[str, Any]) -> list[Figure]:
    best, gain = record.get("best_baseline"), record.get("gain")
    # One-shot methods have no gain: they are a baseline themselves.
    if best is None or gain is None or record["method"] != EVOLVED:
        return []
    value, unit = points(gain).split(" ", 1)
    text = (
        f"{unit} of agreement over {best}, the best of {len(record['baselines'])} one-shot criteria"
    )
    # Agreement decides the search; accuracy shows whether the gain is real.
    baseline = (record["baselines"].get(best) or {}).get("accuracy")
    accuracy = network_scores(record)[1]
    if baseline is not None and accuracy is not None:
        text += f"; {points(accuracy - baseline)} in test accuracy"
    return [Figure("Gain", value, text)]


def _remarks(record: Mapping[str, Any]) -> list[str]:
    remarks = [_DATA_LEVELS.get(record["provenance"].get("level"), "")]
    reason = _STOP_REASONS.get(str(record.get("stopped")))
    if record.get("seconds") is not None:
        took = duration(record["seconds"])
        if record["method"] != EVOLVED:
            remarks.append(f"One criterion scored the weights, without a search, in {took}.")
        elif reason is not None:
            evaluations = number(record.get("evaluations") or 0)
            remarks.append(f"The search stopped {reason}: {evaluations} evaluations in {took}.")
    repaired = record.get("repaired")
    # The headline shows the network without repair, which is the one that was selected.
    if repaired and not repaired_in_loop(record):
        scores = [f"{percent(repaired['validation'])} agreement on the validation inputs"]
        if repaired.get("accuracy") is not None:
            scores.append(f"{percent(repaired['accuracy'])} test accuracy")
        remarks.append(f"After repair of statistics and biases: {' and '.join(scores)}.")
    if record["method"] == EVOLVED and (record.get("gain") or 0) <= 0:
        remarks.append("The search found nothing better than the best one-shot criterion.")
    return [remark for remark in remarks if remark]
