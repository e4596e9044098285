"""Plain records that packages exchange and that files store; importing them needs no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

LOW_FIT = 0.7  # domain fit below which generated inputs tell little, see `calibration.domain_fit`


@dataclass(frozen=True)
class Provenance:
    """Where the calibration and validation inputs came from."""

    # highest data level used: `none`, `noise`, `procedural`, `inversion`, `proxy`, `unlabelled` or
    # `labelled`, in this order
    level: str
    sources: tuple[str, ...]  # one line per generator or file
    samples: int  # distinct calibration inputs that are stored for the search
    fresh: bool  # whether gradient steps draw new procedural inputs as well
    sha256: str  # of the stored inputs (and labels)
    validation: str  # source of the validation inputs
    validation_samples: int  # number of validation inputs
    validation_sha256: str
    # from 0 to 1, see `calibration.domain_fit`; None for networks that are no classifiers
    domain_fit: float | None = None
    # nats per channel from the BatchNorm statistics to the nearest mixture of generators; None
    # where there are none, or nothing depended on it
    statistics_divergence: float | None = None

    @property
    def is_generated(self) -> bool:
        """Whether gaprune made the validation inputs; otherwise they came from the user."""
        made = self.level in ("none", "noise", "procedural", "inversion")
        return made or self.validation.startswith("generated")


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
    """One line of `history.jsonl`."""

    generation: int  # 0 is the initial population
    evaluations: int  # candidates scored so far; every gradient step counts as one
    seconds: float  # since the start of the search
    best: float  # fitness of the best individual on the calibration inputs
    mean: float  # mean fitness of the population
    validation: float  # validation agreement of the best individual
    # `crossover` and `mutation` → operator → its current probability
    operator_rates: dict[str, dict[str, float]] = field(default_factory=dict)
    phase: str = "search"  # or `warmup`, `density_search`; see `gaprune.evolution.search_plan`
