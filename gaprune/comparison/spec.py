"""What is compared, and what networks are trained with and measured on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from gaprune.calibration.samples import Samples
from gaprune.comparison.methods.method_registry import ALL, SCHEDULED
from gaprune.comparison.methods.schedule import PruningStep, check_steps
from gaprune.comparison.methods.training import TrainingOptions
from gaprune.config import EVOLVED, Settings, make_settings
from gaprune.errors import InputError
from gaprune.masks.budget import check_sparsity
from gaprune.models.patterns import check_pattern

UNUSED = (
    *("sparsity", "method", "seed", "pareto", "max_drop", "repair", "repair_in_loop"),
    *("checkpoint_every", "budget", "budget_macs", "width_multiple"),
    *("latency_batch", "latency_runtime"),
)
"""Settings that rows state, or that fit no row: all are measured as they are, at one sparsity."""
DEFAULT_SPARSITIES = (0.5, 0.9, 0.95, 0.98)


@dataclass(frozen=True)
class ComparisonSpec:
    """What is compared.

    Attributes:
        sparsities: fractions of prunable weights to remove, in any order.
        methods: names as `find_methods` takes them.
        seeds: a method without chance runs with the first one only.
        settings: of the search and the calibration inputs, with the pattern that all obey; sparsity and seed in
            it are not used.
        training: how networks are trained where they are.
        epochs: of training at one step of a schedule; may be a fraction.
        schedule: steps of the user's own, for the method `imp-schedule`.
        clusters: values of a layer's codebook.

    Raises:
        InputError: a value that breaks its rule.
    """

    sparsities: Sequence[float]
    methods: Sequence[str] = (ALL,)
    seeds: Sequence[int] = (0,)
    settings: Settings = field(default_factory=lambda: make_settings({"sparsity": 0.5}))
    training: TrainingOptions = field(default_factory=TrainingOptions)
    epochs: float = 1.0
    schedule: Sequence[PruningStep] = ()
    clusters: int = 16

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
        stated = self.settings
        further = stated.pareto or stated.repair or stated.max_drop is not None
        if stated.method != EVOLVED or further:
            raise InputError(
                "settings: the search is one of the methods, at stated sparsities and without "
                "repair; leave method, pareto, max_drop, repair and repair_in_loop out"
            )
        for sparsity in self.sparsities:
            check_pattern(stated.replace(sparsity=sparsity))
        if SCHEDULED in self.methods:
            self._check_schedule()

    def _check_schedule(self) -> None:
        if not self.schedule:
            raise InputError(
                f"schedule: the method {SCHEDULED!r} needs one; give pairs of sparsity and epochs, "
                "such as --schedule 0.5:1,0.9:3"
            )
        passed = {step.sparsity for step in check_steps(self.schedule)}
        beside = sorted(set(self.sparsities) - passed)
        if beside:
            raise InputError(
                "schedule: must pass through every sparsity that is compared, and leaves out "
                f"{', '.join(map(str, beside))}; add them, such as {beside[0]}:1, or name other "
                "sparsities"
            )


class ComparisonData(NamedTuple):
    """What networks are trained with and measured on.

    Attributes:
        train: labelled inputs for the methods that train; without them these say so.
        test: held-out labelled inputs; without them agreement is measured on the validation inputs calibration inputs.
    """

    train: Samples | None = None
    test: Samples | None = None


NOTHING = ComparisonData()
