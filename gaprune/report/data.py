"""The content of `report.json`: what a report needs beside `result.json`, stored by the run.

::

    schema     1
    inputs     `InputSpec.facts()`
    kept       method → weights that it keeps in each layer: magnitude, LAMP, the best criterion
    shown      some calibration and validation inputs, with the predictions of both networks
    confusion  on labelled test data, else null: inputs and correct predictions by class, and
               confusion matrices where there are few classes (rows: labels, columns: predictions)
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gaprune.evaluation.evaluator import Evaluator, ValidationScore
from gaprune.evaluation.forward_modes import TeacherBatch
from gaprune.evolution.genome import Individual
from gaprune.models.input_spec import InputSpec

SCHEMA = 1
SAMPLES = 18  # stored of the calibration inputs, and of the validation inputs
THUMBNAIL = 64  # pixels along the longer side
MAX_VALUES = 256  # stored of a signal or vector
MAX_TOKENS = 64  # stored of a sequence
MAX_CLASSES = 1000  # with an accuracy each
MAX_MATRIX = 24  # classes of a confusion matrix
COMPARED = ("magnitude", "lamp")


def report_data_of(
    evaluator: Evaluator,
    spec: InputSpec,
    seeds: Sequence[Individual],
    validation_scores: Mapping[str, ValidationScore],
    best: Individual,
    confusion: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the content of `report.json`. No random numbers are drawn.

    Args:
        evaluator: holds the inputs and the network.
        spec: what the network takes.
        seeds: the one-shot masks.
        validation_scores: mask key → its score on the validation inputs.
        best: the result of the search.
        confusion: see `confusion_of`.
    """
    made = {seed.origin: seed for seed in seeds}
    first = max(made, key=lambda name: validation_scores[made[name].key].agreement, default="")
    wanted = dict.fromkeys((*COMPARED, first))
    return {
        "schema": SCHEMA,
        "inputs": spec.facts(),
        "kept": {name: _kept(evaluator, made[name].mask) for name in wanted if name in made},
        "shown": [
            {"role": "search", **_samples(evaluator, spec, evaluator.search, best)},
            {"role": "validation", **_samples(evaluator, spec, evaluator.validation, best)},
        ],
        "confusion": confusion,
    }


def confusion_of(labels: Tensor, **logits: Tensor) -> dict[str, Any] | None:
    """Return accuracies by class and confusion matrices; None without classes, or with too many.

    Args:
        labels: int64 `[N]`.
        logits: network → its outputs `[N, classes]`.
    """
    first = next(iter(logits.values()))
    if first.ndim != 2 or not 2 <= (classes := first.shape[1]) <= MAX_CLASSES:
        return None
    correct, pairs = {}, {}
    for name, outputs in logits.items():
        cells = torch.bincount(labels * classes + outputs.argmax(1), minlength=classes**2)
        table = cells.view(classes, classes).cpu()
        correct[name], pairs[name] = table.diagonal().tolist(), table.tolist()
    return {
        "of": torch.bincount(labels, minlength=classes).tolist(),
        "right": correct,
        "pairs": pairs if classes <= MAX_MATRIX else None,
    }


def _kept(evaluator: Evaluator, mask: Tensor) -> list[int]:
    return [int(layer.count_nonzero()) for layer in evaluator.masks(mask).values()]


def _samples(
    evaluator: Evaluator, spec: InputSpec, batch: TeacherBatch, best: Individual
) -> dict[str, Any]:
    """Return the first inputs of a batch with the predictions of both networks."""
    inputs, dense = batch.inputs[:SAMPLES], batch.teacher[:SAMPLES]
    predictions: list[dict[str, Any]] = [{} for _ in inputs]
    if dense.ndim == 2 and dense.shape[1] > 1:
        pruned = evaluator.outputs(best.mask, inputs)
        sure = functional.softmax(dense.float(), dim=1).amax(1)
        rows = zip(dense.argmax(1).tolist(), sure.tolist(), pruned.argmax(1).tolist(), strict=True)
        predictions = [{"dense": a, "sure": round(s, 4), "pruned": b} for a, s, b in rows]
    values, shape = as_values(inputs, spec)
    return {
        "count": len(batch.inputs),
        "shape": shape,
        "samples": [
            {"values": value, **classes} for value, classes in zip(values, predictions, strict=True)
        ],
    }


def as_values(inputs: Tensor, spec: InputSpec) -> tuple[list[Any], list[int]]:
    """Return small copies of inputs, and the shape of each.

    Token ids are a list. All others have one byte per value in base64: images from the lowest to
    the highest raw value, signals and vectors from the smallest to the largest value.
    """
    if spec.kind == "tokens":
        ids = inputs.flatten(1)[:, :MAX_TOKENS]
        return ids.tolist(), [ids.shape[1]]
    values = inputs.detach().float().cpu()
    if spec.kind == "image":
        values = (_raw(values, spec) - spec.low) / (spec.high - spec.low)
        values = _smaller(values)
    else:
        values = values.flatten(1)
        if values.shape[1] > MAX_VALUES:
            values = functional.adaptive_avg_pool1d(values.unsqueeze(1), MAX_VALUES).squeeze(1)
        low, high = values.min(), values.max()
        values = (values - low) / (high - low).clamp_min(1e-12)
    pixels = (values.nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8)
    texts = [base64.b64encode(image.numpy().tobytes()).decode() for image in pixels]
    return texts, list(pixels.shape[1:])


def _raw(values: Tensor, spec: InputSpec) -> Tensor:
    """Undo the normalisation."""
    axes = (-1, *(1 for _ in values.shape[2:]))
    mean, std = (torch.tensor(numbers).view(axes) for numbers in (spec.mean, spec.std))
    return values * std + mean


def _smaller(images: Tensor) -> Tensor:
    """Average images `[N, C, H, W]` down to thumbnails."""
    height, width = images.shape[2:]
    scale = THUMBNAIL / max(height, width)
    if scale >= 1:
        return images
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return functional.adaptive_avg_pool2d(images, size)
