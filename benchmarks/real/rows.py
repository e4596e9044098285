"""Rows of the benchmark on real networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from benchmarks.row_store import VERSION


class Key(NamedTuple):
    """The identity of a row."""

    network: str
    sparsity: float
    method: str
    seed: int


@dataclass(frozen=True)
class Row:
    """One network pruned by one method.

    Attributes:
        network, sparsity, method, seed: its `Key`; `sparsity` is the requested one.
        score: score of the pruned network on the test items; None: see `note`.
        dense: score of the dense network.
        agreement: fraction of test items with the same class as the dense network, or the mean
            cosine of embeddings.
        seconds: time of pruning and repair, without loading and scoring.
        calibration_seconds: part of `seconds` that made the calibration inputs.
        cached: whether inverted calibration inputs were read from an earlier run.
        peak_mb: peak memory of the row's process at the end of pruning, MB (1e6 bytes), including
            the test data.
        needs: data level of the inputs that the method used; `none` for criteria that rank weights
            alone, although all methods of a network run with the same calibration inputs.
        provenance: `gaprune.records.Provenance` of the calibration inputs, as plain data.
        validation: agreement on the validation inputs before repair.
        removed: fraction of the weights removed.
        measure: description of the score.
        test_count: number of test items; 0 where the network could not be opened.
        settings: settings that differ from the defaults.
        warnings: warnings of the run.
        note: why there is no score, or empty.
        version: of gaprune.
    """

    network: str
    sparsity: float
    method: str
    seed: int
    score: float | None = None
    dense: float | None = None
    agreement: float | None = None
    seconds: float | None = None
    calibration_seconds: float | None = None
    cached: bool = False
    peak_mb: float | None = None
    needs: str | None = None
    provenance: Mapping[str, Any] | None = None
    validation: float | None = None
    removed: float | None = None
    measure: str = ""
    test_count: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    note: str = ""
    version: str = VERSION

    @property
    def key(self) -> Key:
        """The identity of the row."""
        return Key(self.network, self.sparsity, self.method, self.seed)

    def record(self) -> dict[str, Any]:
        """Return the row as plain data."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Row:
        """Return the row of plain data."""
        return cls(**{**record, "warnings": tuple(record["warnings"])})
