"""The plain records that rooms hand to each other and that files hold; no torch here."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

SCHEMA = 1


@dataclass(frozen=True)
class Provenance:
    """What the search was shown: the data level and where the inputs came from.

    Attributes:
        level: `none`, `noise`, `procedural`, `inversion`, `proxy`, `unlabelled` or `labelled`;
            the highest one used, in that order.
        sources: one line per generator or file, in words.
        samples: distinct inputs held for the search (fresh ones per step come on top and are
            counted in `fresh`).
        fresh: whether new procedural inputs were drawn at every step.
        sha256: hash of the held inputs (and labels).
        validation: the same in words for the validation inputs set.
        validation_samples: inputs in the validation inputs set.
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
    """A prunable layer and how many of its weights stay."""

    name: str
    total: int
    kept: int


@dataclass(frozen=True)
class BaselineScore:
    """A data-free baseline at the same budget: validation agreement, and test accuracy if known."""

    agreement: float
    accuracy: float | None = None


@dataclass(frozen=True)
class Generation:
    """One line of `history.jsonl`.

    Attributes:
        generation: 0 is the seeded population.
        evaluations: candidates scored so far (a refinement counts once per gradient step).
        seconds: since the start of the search.
        best: fitness of the best individual on the search calibration inputs.
        mean: mean fitness of the population.
        validation: validation agreement of the best individual.
        rates: current probability of every crossover and mutation.
        phase: `warmup` where gradient steps led from the repaired network to the strict one,
            `density_search` where keep counts alone changed, else `search`; generation 0 counts to the
            first phase.
    """

    generation: int
    evaluations: int
    seconds: float
    best: float
    mean: float
    validation: float
    rates: dict[str, dict[str, float]] = field(default_factory=dict)
    phase: str = "search"


def as_json(record: Any) -> dict[str, Any]:  # noqa: ANN401 - any record of this file
    """Return a record as plain data that `json.dump` takes."""
    return asdict(record)
