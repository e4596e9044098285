"""The rows of a comparison: one measurement each, and what many of them say together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

RowKey = tuple[str, float, int]
"""What tells a row from the others of a comparison: method, sparsity, seed."""


@dataclass(frozen=True)
class MethodRequirements:
    """What a method had to be given.

    Attributes:
        data: the data level (`gaprune.calibration.provenance.DATA_LEVELS`): `none` looks at the
            weights alone, `labelled` at the training set.
        labels: whether labels of the training set were used.
        gradients: whether the network was differentiated.
        training: whether weights were changed.
    """

    data: str = "none"
    labels: bool = False
    gradients: bool = False
    training: bool = False


@dataclass(frozen=True)
class Row:
    """One method at one sparsity with one seed.

    Attributes:
        target: what was pruned.
        sparsity: fraction of prunable weights asked to be removed.
        method: its name.
        seed: of every random choice.
        needs: what the method had to be given.
        accuracy: on the held-out labels; None without labels.
        agreement: with the dense network on the same held-out inputs, in [0, 1].
        evaluations: candidates scored by a search; a gradient step on scores counts as one.
        epochs: of training, from the dense network to this row.
        seconds: it took, from the dense network to this row, without measuring it.
        actual: the fraction that was removed; None where nothing could be made.
        dense_accuracy: of the dense network on the held-out labels.
        steps: sparsity, accuracy, agreement and epochs after every step on the way here, for
            methods that train.
        path: the sparsities that the run passed through, where one is reached from another.
        code: hash of the user's own file that ranked the weights, or empty.
        error: why there is no figure where there should be one, or None.
        note: why there can be none: the method has no place under the pattern; or None.
    """

    target: str
    sparsity: float
    method: str
    seed: int
    needs: MethodRequirements
    accuracy: float | None = None
    agreement: float | None = None
    evaluations: int = 0
    epochs: float = 0.0
    seconds: float = 0.0
    actual: float | None = None
    dense_accuracy: float | None = None
    path: tuple[float, ...] = ()
    steps: tuple[Mapping[str, float | None], ...] = ()
    code: str = ""
    error: str | None = None
    note: str | None = None

    @property
    def key(self) -> RowKey:
        """What tells it from the other rows of a comparison."""
        return self.method, self.sparsity, self.seed

    @property
    def score(self) -> float | None:
        """Accuracy, or agreement where nobody has labels; None where nothing could be made."""
        return self.agreement if self.accuracy is None else self.accuracy

    def record(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Row:
        """Return the row that `record` wrote.

        Raises:
            TypeError: missing or unknown keys.
        """
        lists = {name: tuple(record[name]) for name in ("path", "steps") if name in record}
        return cls(**{**record, "needs": MethodRequirements(**record["needs"]), **lists})


@dataclass(frozen=True)
class SeedSummary:
    """The rows of one method at one sparsity, over seeds.

    Attributes:
        score: median accuracy (or agreement, without labels).
        low: the smallest.
        high: the largest.
        seeds: how many rows.
        actual: median fraction that was removed.
    """

    score: float
    low: float
    high: float
    seeds: int
    actual: float


@dataclass(frozen=True)
class MethodSummary:
    """One method over all sparsities.

    Attributes:
        method: its name.
        needs: what it had to be given.
        cells: sparsity → median and spread; a sparsity without any figure is missing.
        evaluations: median over the rows at the highest sparsity reached.
        epochs: the same.
        seconds: the same.
        error: why a figure is missing, or None where all are there.
        note: why there can be none, or None.
    """

    method: str
    needs: MethodRequirements
    cells: Mapping[float, SeedSummary]
    evaluations: float
    epochs: float
    seconds: float
    error: str | None
    note: str | None = None


def summarise(rows: Iterable[Row]) -> list[MethodSummary]:
    """Return one line a method: without training first, what reaches furthest, then the best."""
    by_method: dict[str, list[Row]] = {}
    for row in rows:
        by_method.setdefault(row.method, []).append(row)
    lines = [_line(method, own) for method, own in by_method.items()]
    return sorted(lines, key=_rank)


def _rank(line: MethodSummary) -> tuple[bool, float, float]:
    last = max(line.cells, default=0.0)
    return line.needs.training, -last, -line.cells[last].score if line.cells else 0.0


def _line(method: str, rows: Sequence[Row]) -> MethodSummary:
    scores: dict[float, list[float]] = {}
    removed: dict[float, list[float]] = {}
    for row in rows:
        if row.score is not None:
            scores.setdefault(row.sparsity, []).append(row.score)
            removed.setdefault(row.sparsity, []).append(row.actual or 0.0)
    cells = {
        sparsity: SeedSummary(median(own), min(own), max(own), len(own), median(removed[sparsity]))
        for sparsity, own in sorted(scores.items())
    }
    dearest = [row for row in rows if row.sparsity == max(cells, default=None)] or rows
    return MethodSummary(
        method=method,
        needs=rows[0].needs,
        cells=cells,
        evaluations=median(row.evaluations for row in dearest),
        epochs=median(row.epochs for row in dearest),
        seconds=median(row.seconds for row in dearest),
        error=next((row.error for row in rows if row.error), None),
        note=next((row.note for row in rows if row.note), None),
    )
