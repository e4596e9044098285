"""Small networks, data and comparisons that the tests of `gaprune.comparison` share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from search_cases import seeded, tiny_model
from torch import Tensor, nn

from gaprune.calibration.samples import Samples
from gaprune.comparison import Comparison, ComparisonData, ComparisonSpec, Row, compare_target
from gaprune.comparison.context import ComparisonObserver
from gaprune.comparison.methods.training import TrainingOptions
from gaprune.config import make_settings
from gaprune.models.input_spec import InputOptions
from gaprune.models.target import Target, target_from_module

QUICK: dict[str, Any] = {
    "generations": 1,
    "steps": 2,
    "batch": 8,
    "population": 2,
    "offspring": 2,
    "calibration_count": 32,
    "validation_count": 32,
}
SPARSITIES = (0.5, 0.75)
EPOCHS = 0.5  # two steps on `tiny_data`
TRAINING = TrainingOptions(batch=16, learning_rate=0.02)


def tiny_target() -> Target:
    """Return the network 6 → 12 → 8 → 4 of the search's tests."""
    return target_from_module(tiny_model(), inputs=InputOptions(range=(0, 1)))


def labelled(count: int, seed: int) -> Samples:
    """Return inputs labelled by the largest of their first four values."""
    inputs = torch.rand(count, 6, generator=seeded(seed))
    return Samples(inputs, inputs[:, :4].argmax(1), f"{count} labelled inputs")


def tiny_data() -> ComparisonData:
    """Return training and test data for `tiny_target`."""
    return ComparisonData(labelled(64, 1), labelled(100, 2))


class ConvNet(nn.Module):
    """Two convolutions with BatchNorm and a classifier; inputs `[N, 1, 8, 8]`, three classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6)
        self.conv2, self.norm2 = nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 3)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `[N, 3]`."""
        maps = self.norm1(self.conv1(images)).relu()
        maps = self.norm2(self.conv2(maps)).relu()
        logits: Tensor = self.fc(maps.mean((2, 3)))
        return logits


def conv_target() -> Target:
    """Return a seeded `ConvNet` as a target."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ConvNet()
    return target_from_module(network, inputs=InputOptions(shape=(1, 8, 8), range=(0, 1)))


def images(count: int, seed: int) -> Samples:
    """Return images `[N, 1, 8, 8]` with random labels."""
    inputs = torch.rand(count, 1, 8, 8, generator=seeded(seed))
    return Samples(inputs, torch.randint(3, (count,), generator=seeded(seed)), f"{count} images")


def spec(
    methods: Iterable[str], sparsities: Iterable[float] = SPARSITIES, **options: Any
) -> ComparisonSpec:
    """Return a fast comparison; `settings` extends `QUICK`, other options replace fields."""
    settings = make_settings({"sparsity": 0.5, **QUICK, **options.pop("settings", {})})
    return ComparisonSpec(
        tuple(sparsities),
        tuple(methods),
        settings=settings,
        **{"epochs": EPOCHS, "training": TRAINING, **options},
    )


def compare_tiny(
    methods: Iterable[str],
    *,
    data: ComparisonData | None = None,
    out: Path | None = None,
    observer: ComparisonObserver | None = None,
    **options: Any,
) -> Comparison:
    """Compare methods on `tiny_target`; `options` are those of `spec`."""
    return compare_target(
        tiny_target(),
        spec(methods, **options),
        data=tiny_data() if data is None else data,
        out=out,
        observer=observer,
    )


def timeless(rows: Iterable[Row]) -> list[Row]:
    """Return rows without the seconds they took, which no seed fixes."""
    return [replace(row, seconds=0.0) for row in rows]


class RecordingObserver(ComparisonObserver):
    """An observer that records its calls and interrupts the comparison after some rows."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.rows: list[Row] = []
        self.counts: list[tuple[int, int]] = []
        self.warnings: list[str] = []
        self.updates: list[tuple[str, float, float | None]] = []
        self.stop_after = stop_after

    def row(self, row: Row, done: int, total: int) -> None:
        self.rows.append(row)
        self.counts.append((done, total))
        if len(self.rows) == self.stop_after:
            raise KeyboardInterrupt

    def progress(self, what: str, done: float, total: float | None) -> None:
        self.updates.append((what, done, total))

    def warning(self, text: str) -> None:
        self.warnings.append(text)
