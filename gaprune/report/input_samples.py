"""Inputs that the network was shown, as a reader can look at them, and what it answered."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gaprune.formatting import number
from gaprune.report.images import Picture, Pixels, curve, picture
from gaprune.report.reading import RunFiles
from gaprune.report.words import certainty

STRIP = 16  # values from which on a vector is drawn as a line

ROLES = {
    "search": ("What selected", "Candidates were scored on these."),
    "validation": ("What judged", "The result is judged on these; they never steered the search."),
}


@dataclass(frozen=True)
class Sample:
    """One input: a picture, a curve, or token ids as text; and what both networks answered."""

    words: str
    differs: bool
    image: Picture | None = None
    path: str = ""
    text: str = ""


@dataclass(frozen=True)
class Shown:
    """Some of the inputs of one kind."""

    title: str
    note: str
    samples: tuple[Sample, ...]


def shown(run: RunFiles) -> list[Shown]:
    """Return what was kept of the inputs; nothing for an older run."""
    kind = (run.report_data.get("inputs") or {}).get("kind", "")
    found = []
    for one in run.report_data.get("shown") or ():
        title, note = ROLES.get(one.get("role"), ("Shown", ""))
        samples = tuple(_samples(one, kind))
        if not samples:
            continue
        compared = [sample for sample in samples if sample.words]
        count = f"{len(samples)} of {number(one['count'])}. {note}"
        if compared:
            same = sum(not sample.differs for sample in compared)
            count += (
                " Below each is the class that the dense network names, and how sure it is; on "
            )
            count += f"{same} of these {len(compared)} the pruned one names the same."
        found.append(Shown(title, count, samples))
    return found


def _samples(one: Mapping[str, Any], kind: str) -> Iterator[Sample]:
    shape = [int(size) for size in one.get("shape") or ()]
    for place, sample in enumerate(one.get("samples") or (), 1):
        words, differs = _said(sample)
        values = sample.get("values")
        if kind == "tokens" and isinstance(values, list):
            yield Sample(words, differs, text=" ".join(str(value) for value in values))
            continue
        try:
            pixels = np.frombuffer(base64.b64decode(values), np.uint8).reshape(shape)
        except (ValueError, TypeError, binascii.Error):
            return
        if kind == "image" and len(shape) == 3:
            told = f"Input {place}. {words}" if words else f"Input {place}"
            yield Sample(words, differs, image=picture(_as_rgb(pixels), told, wide=84))
        else:
            yield Sample(words, differs, path=curve(pixels.ravel()))


def _as_rgb(pixels: Pixels) -> Pixels:
    """Return `[C, H, W]` as grey or RGB; of other numbers of channels the mean."""
    if pixels.shape[0] == 3:
        return np.ascontiguousarray(pixels.transpose(1, 2, 0))
    grey: Pixels = pixels.mean(0).round().astype(np.uint8)
    return grey


def _said(sample: Mapping[str, Any]) -> tuple[str, bool]:
    dense, pruned = sample.get("dense"), sample.get("pruned")
    if dense is None:
        return "", False
    words = f"class {dense}, {certainty(sample.get('sure'))}"
    if pruned == dense:
        return words, False
    return f"{words}; pruned class {pruned}", True
