"""Some of the calibration and validation inputs, drawn, with the predictions of both networks."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gaprune.formatting import MISSING, number, percent
from gaprune.report.images import Picture, Pixels, curve, picture
from gaprune.report.reading import RunFiles

_ROLES = {
    "search": ("Calibration inputs", "Candidates are scored on these."),
    "validation": (
        "Validation inputs",
        "The result is chosen on these; the search never uses them.",
    ),
}


@dataclass(frozen=True)
class Sample:
    """An input as an image, a curve or token ids, and the predictions as text."""

    text: str
    differs: bool
    image: Picture | None = None
    path: str = ""
    tokens: str = ""


@dataclass(frozen=True)
class SampleGroup:
    """Samples under a heading."""

    title: str
    note: str
    samples: tuple[Sample, ...]


def sample_groups(run: RunFiles) -> list[SampleGroup]:
    """Return the samples that the run stored."""
    kind = (run.report_data.get("inputs") or {}).get("kind", "")
    groups = []
    for batch in run.report_data.get("batches") or ():
        title, role = _ROLES.get(batch.get("role"), ("Inputs", ""))
        samples = tuple(_samples(batch, kind))
        if not samples:
            continue
        note = f"{len(samples)} of {number(batch['count'])}. {role}"
        predicted = [sample for sample in samples if sample.text]
        if predicted:
            agreeing = sum(not sample.differs for sample in predicted)
            note += (
                " Each has the class that the dense network predicts, and its probability. The "
                f"pruned network predicts the same class for {agreeing} of these {len(predicted)}."
            )
        groups.append(SampleGroup(title, note, samples))
    return groups


def _samples(batch: Mapping[str, Any], kind: str) -> Iterator[Sample]:
    shape = [int(size) for size in batch.get("shape") or ()]
    for index, sample in enumerate(batch.get("samples") or (), 1):
        text, differs = _prediction(sample)
        values = sample.get("values")
        if kind == "tokens" and isinstance(values, list):
            yield Sample(text, differs, tokens=" ".join(str(value) for value in values))
            continue
        try:
            pixels = np.frombuffer(base64.b64decode(values), np.uint8).reshape(shape)
        # A damaged report.json costs the samples, not the page.
        except (ValueError, TypeError, binascii.Error):
            return
        if kind == "image" and len(shape) == 3:
            alt = f"Input {index}. {text}" if text else f"Input {index}"
            yield Sample(text, differs, image=picture(_as_rgb(pixels), alt, width=84))
        else:
            yield Sample(text, differs, path=curve(pixels.ravel()))


def _as_rgb(pixels: Pixels) -> Pixels:
    """Return `[C, H, W]` as RGB, or the mean of other numbers of channels."""
    # PNG stores channels last, torch first.
    if pixels.shape[0] == 3:
        return np.ascontiguousarray(pixels.transpose(1, 2, 0))
    grey: Pixels = pixels.mean(0).round().astype(np.uint8)
    return grey


def _prediction(sample: Mapping[str, Any]) -> tuple[str, bool]:
    dense, pruned = sample.get("dense"), sample.get("pruned")
    if dense is None:
        return "", False
    text = f"class {dense}, {certainty(sample.get('probability'))}"
    return (text, False) if pruned == dense else (f"{text}; pruned: class {pruned}", True)


def certainty(probability: float | None) -> str:
    """Format a probability in whole percent, but never as 100 %: 0.9999 → `>99 %`."""
    if probability is None:
        return MISSING
    # "100 %" would claim certainty that no softmax has.
    return ">99 %" if probability > 0.995 else percent(probability, 0)
