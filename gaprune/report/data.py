"""The content of `report.json`: what a report needs beside `result.json`, stored by the run.

::

    schema        2
    inputs        `InputSpec.facts()`
    agreement     what it is: `class` (the same one is predicted) or `explained variance`
    layer_counts  method → weights that it keeps in each layer: magnitude, LAMP, the best criterion
    batches       some calibration and validation inputs, with the predictions of both networks
    confusion     on labelled test data, else null: `totals` (inputs) and `correct` predictions by
                  class, and `matrices` for few classes (rows: labels, columns: predictions)
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
from gaprune.evaluation.objectives import agreement
from gaprune.evolution.genome import Individual
from gaprune.models.input_spec import InputSpec

SCHEMA = 2
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
    # The best criterion on the validation inputs is what a search has to beat.
    first = max(made, key=lambda name: validation_scores[made[name].key].agreement, default="")
    # A dict keeps the order and removes repetitions.
    wanted = dict.fromkeys((*COMPARED, first))
    return {
        "schema": SCHEMA,
        "inputs": spec.facts(),
        "agreement": "class"
        if evaluator.objective.agreement is agreement
        else "explained variance",
        "layer_counts": {
            name: [int(mask.count_nonzero()) for mask in evaluator.masks(made[name].mask).values()]
            for name in wanted
            if name in made
        },
        "batches": [
            {"role": "search", **_samples(evaluator, spec, evaluator.search, best)},
            {"role": "validation", **_samples(evaluator, spec, evaluator.validation, best)},
        ],
        "confusion": confusion,
    }


def confusion_of(labels: Tensor, **logits: Tensor) -> dict[str, Any] | None:
    """Return accuracies by class and confusion matrices; None without classes, or with too many.

    `labels` is int64 `[N]`; `logits` holds the outputs `[N, classes]` of every network.
    """
    first = next(iter(logits.values()))
    if first.ndim != 2 or not 2 <= (classes := first.shape[1]) <= MAX_CLASSES:
        return None
    correct, matrices = {}, {}
    for name, outputs in logits.items():
        # Count pairs (label, prediction) as one number each: label × classes + prediction.
        cells = torch.bincount(labels * classes + outputs.argmax(1), minlength=classes**2)
        table = cells.view(classes, classes).cpu()
        correct[name], matrices[name] = table.diagonal().tolist(), table.tolist()
    return {
        "totals": torch.bincount(labels, minlength=classes).tolist(),
        "correct": correct,
        "matrices": matrices if classes <= MAX_MATRIX else None,
    }


def _samples(
    evaluator: Evaluator, spec: InputSpec, batch: TeacherBatch, best: Individual
) -> dict[str, Any]:
    """Return the first inputs of a batch with the predictions of both networks."""
    inputs, dense = batch.inputs[:SAMPLES], batch.teacher[:SAMPLES]
    predictions: list[dict[str, Any]] = [{} for _ in inputs]
    # Only logits of classes have a prediction and a probability.
    if dense.ndim == 2 and dense.shape[1] > 1:
        pruned = evaluator.outputs(best.mask, inputs).argmax(1).tolist()
        probabilities = functional.softmax(dense.float(), dim=1).amax(1).tolist()
        rows = zip(dense.argmax(1).tolist(), probabilities, pruned, strict=True)
        predictions = [
            {"dense": before, "probability": round(probability, 4), "pruned": after}
            for before, probability, after in rows
        ]
    values, shape = as_values(inputs, spec)
    return {
        "count": len(batch.inputs),
        "shape": shape,
        "samples": [
            {"values": value, **predicted}
            for value, predicted in zip(values, predictions, strict=True)
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
        # Raw values are what a reader recognises; normalised ones look washed out.
        values = (_raw(values, spec) - spec.low) / (spec.high - spec.low)
        values = _smaller(values)
    else:
        values = values.flatten(1)
        if values.shape[1] > MAX_VALUES:
            values = functional.adaptive_avg_pool1d(values.unsqueeze(1), MAX_VALUES).squeeze(1)
        # Signals have no fixed range: one scale for all samples keeps them comparable.
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
