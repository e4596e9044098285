"""What a report shows beside the record: small, and made while network and calibration inputs are at hand.

::

    schema     1
    inputs     `InputSpec.facts()`
    kept       baseline → weights that it keeps, layer by layer: magnitude, LAMP, the best one
    shown      a few of the inputs that select and of those that judge, each with the answers
    confusion  on labelled test data, else null: per class and network what is right, and where
               there are few classes who was taken for whom (row: label, column: answer)
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
SAMPLES = 18  # inputs that are kept to be shown, of those that select and those that judge
THUMBNAIL = 64  # pixels along the longer side
LONGEST = 256  # values of a signal or vector that are kept
MOST_IDS = 64  # token ids that are
MOST_CLASSES = 1000  # of which right answers are counted
MOST_CELLS = 24  # classes up to which every pair is
BESIDE = ("magnitude", "lamp")


def report_data_of(  # what a run knows at its end
    evaluator: Evaluator,
    spec: InputSpec,
    seeds: Sequence[Individual],
    validation_scores: Mapping[str, ValidationScore],
    best: Individual,
    confusion: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return plain data for a report; nothing random is drawn, and nothing changed.

    Args:
        evaluator: on which the network was pruned.
        spec: what the network takes.
        seeds: the one-shot masks.
        validation_scores: mask key → how each does on the validation inputs.
        best: what was found.
        confusion: see `confusion_of`.
    """
    made = {seed.origin: seed for seed in seeds}
    first = max(made, key=lambda name: validation_scores[made[name].key].agreement, default="")
    wanted = dict.fromkeys((*BESIDE, first))
    return {
        "schema": SCHEMA,
        "inputs": spec.facts(),
        "kept": {name: _kept(evaluator, made[name].mask) for name in wanted if name in made},
        "shown": [
            {"role": "search", **_shown(evaluator, spec, evaluator.search, best)},
            {"role": "validation", **_shown(evaluator, spec, evaluator.validation, best)},
        ],
        "confusion": confusion,
    }


def confusion_of(labels: Tensor, **answers: Tensor) -> dict[str, Any] | None:
    """Return who was taken for whom; None where the answers are no classes, or far too many.

    Args:
        labels: int64 `[N]`.
        answers: network → logits `[N, classes]`.
    """
    first = next(iter(answers.values()))
    if first.ndim != 2 or not 2 <= (classes := first.shape[1]) <= MOST_CLASSES:
        return None
    right, pairs = {}, {}
    for name, logits in answers.items():
        cells = torch.bincount(labels * classes + logits.argmax(1), minlength=classes**2)
        table = cells.view(classes, classes).cpu()
        right[name], pairs[name] = table.diagonal().tolist(), table.tolist()
    return {
        "of": torch.bincount(labels, minlength=classes).tolist(),
        "right": right,
        "pairs": pairs if classes <= MOST_CELLS else None,
    }


def _kept(evaluator: Evaluator, mask: Tensor) -> list[int]:
    return [int(one.count_nonzero()) for one in evaluator.masks(mask).values()]


def _shown(
    evaluator: Evaluator, spec: InputSpec, shown: TeacherBatch, best: Individual
) -> dict[str, Any]:
    """Return the first of some inputs, with what the dense and the pruned network answer."""
    inputs, dense = shown.inputs[:SAMPLES], shown.teacher[:SAMPLES]
    said: list[dict[str, Any]] = [{} for _ in inputs]
    if dense.ndim == 2 and dense.shape[1] > 1:
        pruned = evaluator.outputs(best.mask, inputs)
        sure = functional.softmax(dense.float(), dim=1).amax(1)
        rows = zip(dense.argmax(1).tolist(), sure.tolist(), pruned.argmax(1).tolist(), strict=True)
        said = [{"dense": a, "sure": round(s, 4), "pruned": b} for a, s, b in rows]
    values, shape = as_values(inputs, spec)
    return {
        "count": len(shown.inputs),
        "shape": shape,
        "samples": [{"values": one, **words} for one, words in zip(values, said, strict=True)],
    }


def as_values(inputs: Tensor, spec: InputSpec) -> tuple[list[Any], list[int]]:
    """Return inputs small enough to be kept, and the shape of one.

    Token ids are a list; all else is one byte a value, base64: images from the lowest to the
    highest raw value, signals and vectors from the smallest to the largest value that is shown.
    """
    if spec.kind == "tokens":
        ids = inputs.flatten(1)[:, :MOST_IDS]
        return ids.tolist(), [ids.shape[1]]
    values = inputs.detach().float().cpu()
    if spec.kind == "image":
        values = (_raw(values, spec) - spec.low) / (spec.high - spec.low)
        values = _smaller(values)
    else:
        values = values.flatten(1)
        if values.shape[1] > LONGEST:
            values = functional.adaptive_avg_pool1d(values.unsqueeze(1), LONGEST).squeeze(1)
        low, high = values.min(), values.max()
        values = (values - low) / (high - low).clamp_min(1e-12)
    pixels = (values.nan_to_num(0.0).clamp(0, 1) * 255).round().to(torch.uint8)
    texts = [base64.b64encode(one.numpy().tobytes()).decode() for one in pixels]
    return texts, list(pixels.shape[1:])


def _raw(values: Tensor, spec: InputSpec) -> Tensor:
    """Undo the normalisation."""
    axes = (-1, *(1 for _ in values.shape[2:]))
    mean, std = (torch.tensor(numbers).view(axes) for numbers in (spec.mean, spec.std))
    return values * std + mean


def _smaller(images: Tensor) -> Tensor:
    """Average pictures `[N, C, H, W]` down to thumbnails."""
    height, width = images.shape[2:]
    scale = THUMBNAIL / max(height, width)
    if scale >= 1:
        return images
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return functional.adaptive_avg_pool2d(images, size)
