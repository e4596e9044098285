"""What is compared, and the data that networks are trained and measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from gaprune.calibration.samples import Samples
from gaprune.comparison.methods.iterative import SCHEDULES, PruningStep, check_steps
from gaprune.comparison.methods.training import TrainingOptions
from gaprune.config import EVOLVED, Settings, make_settings
from gaprune.errors import InputError, unknown_name
from gaprune.masks.budget import check_sparsity
from gaprune.models.patterns import check_pattern
from gaprune.runs.option_keys import ALL, IMP, LINEAR


@dataclass(frozen=True)
class ComparisonSpec:
    """What is compared.

    Attributes:
        settings: of the search and the calibration inputs, with the pattern that all methods obey;
            its sparsity and seed are not used.
        schedule: of the method `imp`: a key of `SCHEDULES`, or steps of the user's own.

    Raises:
        InputError: a value that breaks its rule.
    """

    sparsities: Sequence[float]  # fractions of prunable weights to remove
    methods: Sequence[str] = (ALL,)  # names as `find_methods` takes them
    seeds: Sequence[int] = (0,)  # methods without randomness run for the first one only
    settings: Settings = field(default_factory=lambda: make_settings({"sparsity": 0.5}))
    training: TrainingOptions = field(default_factory=TrainingOptions)  # how networks are trained
    epochs: float = 1.0  # of training at one step of a schedule; may be a fraction
    schedule: str | Sequence[PruningStep] = LINEAR  # a name, or the steps themselves
    clusters: int = 16  # values per codebook, for the method `clustered`

    def __post_init__(self) -> None:
        if not self.sparsities:
            raise InputError("sparsity: name at least one, such as 0.5,0.9")
        for sparsity in self.sparsities:
            check_sparsity(sparsity)
        if not self.seeds or not all(isinstance(s, int) and 0 <= s < 2**32 for s in self.seeds):
            raise InputError(
                "seeds: must be one or more whole numbers from 0 to 4294967295, got "
                f"{', '.join(map(str, self.seeds)) or 'none'}"
            )
        if not 0 < self.epochs < float("inf"):
            raise InputError(f"epochs: must be above 0 and finite, got {self.epochs}")
        if self.clusters < 1:
            raise InputError(f"clusters: must be at least 1, got {self.clusters}")
        settings = self.settings
        corrected = settings.repair or settings.compensate
        other = settings.pareto or corrected or settings.max_drop is not None
        if settings.method != EVOLVED or other:
            raise InputError(
                "settings: the search is one of the methods, at given sparsities and without "
                "repair; leave method, pareto, max_drop, repair, repair_in_loop and compensate out"
            )
        for sparsity in self.sparsities:
            check_pattern(self.settings.replace(sparsity=sparsity))
        self._check_schedule()

    def _check_schedule(self) -> None:
        if isinstance(self.schedule, str):
            if self.schedule not in SCHEDULES:
                raise unknown_name("schedule", self.schedule, SCHEDULES)
        elif {ALL, IMP} & set(self.methods):
            steps = check_steps(self.schedule)
            # a row needs a network at its sparsity
            missing = sorted(set(self.sparsities) - {step.sparsity for step in steps})
            if missing:
                raise InputError(
                    "schedule: must reach every sparsity that is compared, and leaves out "
                    f"{', '.join(map(str, missing))}; add them, such as {missing[0]}:1, or compare "
                    "other sparsities"
                )


class ComparisonData(NamedTuple):
    """The data that networks are trained and measured on.

    Without `test` the agreement with the dense network is measured on the validation inputs.
    """

    train: Samples | None = None  # labelled, for the methods that train; without it those fail
    test: Samples | None = None  # held out, labelled
