"""The top of a run's page: the result in a sentence, the main figures, and what they mean."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gaprune.formatting import duration, number, percent, points, ratio, removed_weights, size
from gaprune.pattern_names import CHANNEL, UNSTRUCTURED, WEIGHTS, sparsity_unit
from gaprune.records import LOW_FIT
from gaprune.report.reading import RunFiles

EVOLVED = "evolved"
_GENERATED = ("none", "noise", "procedural", "inversion")  # data levels without real inputs
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
    warnings: tuple[str, ...] = ()  # those of the run


def headline(run: RunFiles) -> Headline:
    """Return the headline of a run."""
    record = run.record
    figures = [_kept_weights(record), *_quality(run), *_gain(record), _size(run), *_speed(record)]
    warnings = [str(text) for text in record.get("warnings") or ()]
    if record["method"] == EVOLVED and (record.get("gain") or 0) <= 0:
        warnings.append("The search found nothing better than the best one-shot criterion.")
    title, lead = str(record["target"]), _lead(run)
    return Headline(title, lead, tuple(figures), tuple(_remarks(record)), tuple(warnings))


def weight_counts(record: Mapping[str, Any]) -> tuple[int, int]:
    """Return the number of prunable weights, and of those that are kept."""
    layers = record["layers"]
    return sum(layer["total"] for layer in layers), sum(layer["kept"] for layer in layers)


def corrected_networks(record: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the networks beside the strict one by name: `repaired`, `compensated`."""
    return {name: record[name] for name in ("repaired", "compensated") if record.get(name)}


def in_loop(record: Mapping[str, Any]) -> str | None:
    """Return as which of them the search scored candidates, or None."""
    networks = corrected_networks(record).items()
    return next((name for name, network in networks if network.get("in_loop")), None)


def network_name(record: Mapping[str, Any]) -> str:
    """Return the name of the run's network: its method, or `evolved, repaired`."""
    return ", ".join(filter(None, [str(record["method"]), in_loop(record)]))


def network_scores(record: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Return validation agreement and test accuracy of the run's network."""
    if (name := in_loop(record)) is not None:
        return record[name].get("validation"), record[name].get("accuracy")
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


def _lead(run: RunFiles) -> str:
    record = run.record
    validation, accuracy = network_scores(record)
    repaired = "" if in_loop(record) is None else f", {in_loop(record)}"
    subject = f"With {percent(record['sparsity']['actual'])} of its prunable weights removed, "
    subject += str(record["target"])
    if accuracy is not None:
        return (
            f"{subject} has a test accuracy of {percent(accuracy)}{repaired}; the dense network "
            f"has {percent(_dense_accuracy(record))}."
        )
    if not _compares_classes(run):
        return f"{subject} explains {percent(validation)} of the dense outputs' variance{repaired}."
    return (
        f"{subject} agrees with the dense network on {percent(validation)} of the validation "
        f"inputs{repaired}."
    )


def _compares_classes(run: RunFiles) -> bool:
    return bool(run.report_data.get("agreement", "class") == "class")


def _kept_weights(record: Mapping[str, Any]) -> Figure:
    total, keep_count = weight_counts(record)
    text = f"{number(keep_count)} weights, unchanged; removed: "
    text += removed_weights(total - keep_count, total, record.get("parameters"))
    settings = record.get("settings") or {}
    unit = sparsity_unit(settings.get("pattern", UNSTRUCTURED), record.get("budget") or WEIGHTS)
    if unit is not None:
        text += f"; the target was {percent(record['sparsity']['asked'])} of the {unit}"
    return Figure("Weights kept", percent(keep_count / max(1, total)), text)


def _quality(run: RunFiles) -> list[Figure]:
    """Return the test accuracy, where it is known, and the agreement with what it means."""
    record = run.record
    validation, accuracy = network_scores(record)
    provenance = record["provenance"]
    source = str(provenance.get("validation") or "")
    generated = provenance.get("level") in _GENERATED or source.startswith("generated")
    inputs = f"on {number(provenance['validation_samples'])} validation inputs, real ones"
    if generated:
        fit = provenance.get("domain_fit")
        inputs = "on generated inputs, which are harder than real ones"
        if fit is not None and fit < LOW_FIT:
            inputs = f"on generated inputs, which are far from the domain (domain fit {fit:.2f})"
    name = "the same class predicted as by the dense network"
    if not _compares_classes(run):
        name = "of the variance of the dense network's outputs explained"
    figures = [Figure("Agreement", percent(validation), f"{inputs}: {name}")]
    if perplexity := record.get("perplexity"):
        text = f"on the test text; the dense network has {perplexity['dense']:.4g}"
        figures.insert(0, Figure("Perplexity", f"{perplexity['pruned']:.4g}", text))
    if accuracy is not None:
        dense = _dense_accuracy(record)
        text = "of the pruned network"
        if dense is not None:
            text = f"{points(accuracy - dense)} against the dense network, {percent(dense)}"
        figures.insert(0, Figure("Test accuracy", percent(accuracy), text))
    return figures


def _size(run: RunFiles) -> Figure:
    estimate = estimated_bytes(run)
    if estimate is None:
        total, keep_count = weight_counts(run.record)
        return Figure("Size", ratio(total / max(1, keep_count)), "fewer weights")
    # The estimate ignores compression of values, so real files are often smaller.
    dense, sparse = estimate
    text = f"of a sparse file, estimated; the dense file has {size(dense)}, "
    return Figure("Bytes", size(sparse), text + f"{ratio(dense / max(sparse, 1))} as much")


def _speed(record: Mapping[str, Any]) -> list[Figure]:
    """Return the multiply-adds, and the latency where the run measured it."""
    macs, latency = record.get("macs") or {}, record.get("latency") or {}
    figures = []
    if macs.get("dense") and macs.get("kept") is not None:
        text = f"{number(macs['kept'])} of {number(macs['dense'])}; fewer in runtimes that skip "
        text += "zeros" if latency else "zeros only; latency was not measured"
        if (record.get("settings") or {}).get("pattern") == CHANNEL:
            text = (
                f"{number(macs['kept'])} of {number(macs['dense'])}; the compact export skips them"
            )
        figures.append(Figure("MACs", percent(macs["kept"] / macs["dense"]), text))
    if latency.get("compact_ms") is not None:
        text = f"of {latency['dense_ms']:.3g} ms, the dense network's; measured in "
        text += f"{latency['runtime']}, batch {latency['batch']}, threads: {latency['threads']}"
        if factors := latency.get("speed_up"):
            text = f"{factors[1]:.2f} times as fast ({factors[0]:.2f} to {factors[2]:.2f}); {text}"
        figures.append(Figure("Latency", f"{latency['compact_ms']:.3g} ms", text))
    return figures


def _gain(record: Mapping[str, Any]) -> list[Figure]:
    best, gain = record.get("best_baseline"), record.get("gain")
    # One-shot methods have no gain: they are a baseline themselves.
    if best is None or gain is None or record["method"] != EVOLVED:
        return []
    value, unit = points(gain).split(" ", 1)
    text = f"{unit} of agreement over {best}, the best of {len(record['baselines'])} one-shot masks"
    # Agreement decides the search; accuracy shows whether the gain is real.
    baseline = (record["baselines"].get(best) or {}).get("accuracy")
    accuracy = network_scores(record)[1]
    if baseline is not None and accuracy is not None:
        text += f"; {points(accuracy - baseline)} in test accuracy"
    return [Figure("Gain", value, text)]


def _remarks(record: Mapping[str, Any]) -> list[str]:
    remarks = []
    reason = _STOP_REASONS.get(str(record.get("stopped")))
    if record.get("seconds") is not None:
        took = duration(record["seconds"])
        if record["method"] != EVOLVED:
            remarks.append(f"One criterion scored the weights, without a search, in {took}.")
        elif reason is not None:
            evaluations = number(record.get("evaluations") or 0)
            remarks.append(f"The search stopped {reason}: {evaluations} evaluations in {took}.")
    for name, network in corrected_networks(record).items():
        if network.get("in_loop"):
            continue  # the headline shows it; else the strict one, which was selected
        scores = [f"{percent(network['validation'])} agreement on the validation inputs"]
        if network.get("accuracy") is not None:
            scores.append(f"{percent(network['accuracy'])} test accuracy")
        remarks.append(f"The network {name}: {' and '.join(scores)}.")
    return remarks
