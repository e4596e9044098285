"""Plain records that packages exchange and that files store; importing them needs no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA = 1


@dataclass(frozen=True)
class Provenance:
    """Where the calibration and validation inputs came from.

    Attributes:
        level: highest data level used: `none`, `noise`, `procedural`, `inversion`, `proxy`,
            `unlabelled` or `labelled`, in this order.
        sources: one line per generator or file.
        samples: number of distinct calibration inputs that are stored for the search.
        fresh: whether gradient steps draw new procedural inputs as well.
        sha256: hash of the stored inputs (and labels).
        validation: source of the validation inputs.
        validation_samples: number of validation inputs.
        validation_sha256: their hash.
    """

    level: str
    sources: tuple[str, ...]
    samples: int
    fresh: bool
    sha256: str
    validation: str
    validation_samples: int
    validation_sha256: str


@dataclass(frozen=True)
class LayerCount:
    """A prunable layer: its weights, and how many of them are kept."""

    name: str
    total: int
    kept: int


@dataclass(frozen=True)
class BaselineScore:
    """A one-shot mask at the same budget: validation agreement, and test accuracy if known."""

    agreement: float
    accuracy: float | None = None


@dataclass(frozen=True)
class Generation:
    """One line of `history.jsonl`.

    Attributes:
        generation: 0 is the initial population.
        evaluations: candidates scored so far; every gradient step counts as one.
        seconds: since the start of the search.
        best: fitness of the best individual on the calibration inputs.
        mean: mean fitness of the population.
        validation: validation agreement of the best individual.
        operator_rates: `crossover` and `mutation` → operator → its current probability.
        phase: `warmup`, `density_search` or `search`; see `gaprune.evolution.search_plan`. The
            initial population counts to the first phase of the search.
    """

    generation: int
    evaluations: int
    seconds: float
    best: float
    mean: float
    validation: float
    operator_rates: dict[str, dict[str, float]] = field(default_factory=dict)
    phase: str = "search"


def as_json(record: Any) -> dict[str, Any]:  # noqa: ANN401 - any record of this file
    """Return a record as plain data that `json.dump` takes."""
    return asdict(record)
