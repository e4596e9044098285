"""The largest sparsity that loses no more agreement on the validation inputs than allowed.

One-shot masks, which are cheap, tell where to start. Then every sparsity is searched in turn. Steps
double until one search is within the limit and the next is not; then the interval between them is
halved, in the logarithm of the density, because networks degrade with ratios of kept weights.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from typing import Any

from torch import Tensor

from gaprune.config import EVOLVED
from gaprune.errors import GapruneError
from gaprune.evolution.genome import Genes, Individual
from gaprune.masks.budget import keep_total, uniform_counts
from gaprune.masks.supermask import Layout
from gaprune.models.time_limit import TimeIsUp
from gaprune.profiling import profiled
from gaprune.runs.result import Result
from gaprune.runs.run import PruningRun
from gaprune.workers import on_device
from gaprune.workers.serial import torch_threads

LEAST_SPARSITY = 0.1  # nothing below it is tried
CLOSE = 1.05  # ratio of kept weights under which nothing between two searches is tried
STEP = 0.7  # ratio of kept weights between the first two searches
GRID = 1.2  # ratio of kept weights to which one-shot masks are compared
MAX_SEARCHES, MAX_ONE_SHOT = 5, 20  # more only until a first one is within the limit
NUM_QUICK_INPUTS, NUM_QUICK_SEEDS = 256, 3  # validation inputs and one-shot masks at the start
ROUNDING = 1e-9


@dataclass(frozen=True)
class SparsityRange:
    """The sparsities that can be tried, from `least` to `most`."""

    layout: Layout
    least: float
    most: float

    @classmethod
    def up_to(cls, layout: Layout, scope: str, largest: float) -> SparsityRange:
        """Return the range up to a largest sparsity, or up to where a layer would be emptied."""
        density = Fraction(layout.min_cost, layout.dense_cost)
        if scope == "layer" and layout.mac_cost is None:
            density = max(density, Fraction(1, 2 * min(layout.sizes)))
        # Rounded as in `at`, but upwards.
        scale = Fraction(10) ** (2 - math.floor(math.log10(density)))
        most = min(largest, float(1 - math.ceil(density * scale) / scale))
        return cls(layout, min(LEAST_SPARSITY, most), most)

    def at(self, density: float) -> float:
        """Return the sparsity of a density rounded to three digits, inside the range."""
        return min(max(round(1 - float(f"{density:.3g}"), 9), self.least), self.most)

    def next(self, within: float | None, beyond: float | None, num_trials: int) -> float | None:
        """Return the next sparsity to try, or None if nothing is left to try.

        After `num_trials`, `within` is the largest sparsity within the limit, and `beyond` the
        smallest beyond it; at most one of them is None.
        """
        count = partial(keep_total, self.layout)
        if within is not None and beyond is not None:
            if count(within) <= CLOSE * count(beyond):
                return None
            middle = self.at(math.sqrt((1 - within) * (1 - beyond)))
            return None if count(middle) in (count(within), count(beyond)) else middle
        last, end = (beyond, self.least) if within is None else (within, self.most)
        assert last is not None, "the first trial is within or beyond the limit"
        factor = STEP ** (2 ** (num_trials - 1) * (-1 if within is None else 1))
        sparsity, density = last, 1 - last
        while sparsity != end and count(sparsity) == count(last):
            density = min(density * factor, 1.0)
            sparsity = self.at(density)
        return None if count(sparsity) == count(last) else sparsity


class MaxDropSearch:
    """Searches one sparsity after the other, on the calibration inputs of the run `base`."""

    def __init__(self, base: PruningRun) -> None:
        self.base, self.settings = base, base.settings
        self.drop = base.settings.max_drop or 0.0
        self.trials: list[dict[str, Any]] = []
        self.best: tuple[PruningRun, Result] | None = None
        self.within: float | None = None  # the largest sparsity within the limit
        self.beyond: float | None = None  # the smallest beyond it
        self.evaluations = 0
        self._started = time.monotonic()

    def run(self) -> Result:
        """Return the sparsest result within the limit, with all trials; GapruneError if none is."""
        interrupted = False
        with on_device(str(self.base.target.device)):
            try:
                self._search()
            except KeyboardInterrupt:
                if self.best is None:
                    raise
                interrupted = True
            return self._result(interrupted=interrupted)

    def _search(self) -> None:
        base, settings = self.base, self.settings
        most = MAX_SEARCHES if settings.method == EVOLVED else MAX_ONE_SHOT
        try:
            with base.limit.active(base.target.model):
                layout = base.evaluator.layout
                sparsities = SparsityRange.up_to(layout, settings.scope, settings.sparsity)
                sparsity: float | None = self._first(sparsities)
        except TimeIsUp as error:
            raise GapruneError(
                f"seconds: {settings.seconds:g} are over before the first search of max_drop; "
                "allow more, or use fewer inputs (--calibration-count)"
            ) from error
        while sparsity is not None and (len(self.trials) < most or self.best is None):
            self._try(sparsity)
            sparsity = sparsities.next(self.within, self.beyond, len(self.trials))
        if sparsity is not None:
            base.observer.warning(
                f"after {len(self.trials)} searches the limit is between sparsity {self.within} "
                f"and {self.beyond or sparsities.most}; --sparsity={sparsity} without --max-drop "
                "tries one between"
            )

    def _try(self, sparsity: float) -> None:
        base, text = self.base, f"search {len(self.trials) + 1}, sparsity {sparsity:g}"
        if self.trials:
            last = self.trials[-1]
            verb = "is" if last["within_limit"] else "is not"
            text += f" ({last['sparsity']:g} {verb} within the limit: {last['validation']:.2%})"
        base.observer.phase("limit", text)
        run = base.at(sparsity)
        result = run.run()
        self.evaluations += result.evaluations
        self._started -= run.earlier_seconds
        validation, _ = result.final_scores
        within = 1 - validation <= self.drop + ROUNDING
        interrupted = result.stopped == "interrupted"
        if within:
            self.best, self.within = (run, result), sparsity
        elif not interrupted:
            self.beyond = sparsity
        if within or not interrupted:  # an interrupted search beyond the limit says nothing
            trial = {"sparsity": sparsity, "validation": validation, "within_limit": within}
            self.trials.append(trial)
        if interrupted:
            raise KeyboardInterrupt

    def _first(self, sparsities: SparsityRange) -> float:
        """Return the sparsity where one-shot masks leave the limit; of a one-shot method, its own.

        The scores at one sparsity are cut at all others, and only the best masks so far are
        compared further: this is a place to start, not a result.
        """
        base, evaluator = self.base, self.base.evaluator
        base.observer.phase(
            "limit", f"finding the sparsity at which one-shot masks lose more than {self.drop:.2%}"
        )
        low, high = 1 - sparsities.most, 1 - sparsities.least
        with profiled("baselines"), torch_threads(self.settings.threads_per_worker):
            seeds = base.at(sparsities.at(math.sqrt(low * high))).seeds()
            seeds = [seed for seed in seeds if seed.origin == self.settings.method] or seeds
            seeds = [seed for seed in seeds if seed.genes is not None]
            batch = evaluator.validation.select(slice(NUM_QUICK_INPUTS))
            while high > GRID * low:
                density = math.sqrt(low * high)
                masks = [_cut(seed, sparsities, sparsities.at(density)) for seed in seeds]
                agreements = [evaluator.validate(mask, batch).agreement for mask in masks]
                if 1 - max(agreements) <= self.drop + ROUNDING:
                    high = density
                else:
                    low = density
                order = sorted(range(len(seeds)), key=lambda index: -agreements[index])
                seeds = [seeds[index] for index in order[:NUM_QUICK_SEEDS]]
        return sparsities.at(low if self.settings.method == EVOLVED else high)

    def _result(self, *, interrupted: bool) -> Result:
        settings = self.settings
        if self.best is None:
            last, remedy = (
                self.trials[-1],
                "" if settings.repair or settings.compensate else ", or add --repair",
            )
            self.base.checkpointer.discard()
            raise GapruneError(
                f"max_drop: {self.drop:g} cannot be met: at sparsity {last['sparsity']:g}, the "
                f"smallest tried, the agreement on the validation inputs is "
                f"{last['validation']:.2%}, and at least {1 - self.drop:.2%} is required; allow "
                f"more, search longer (--generations){remedy}"
            )
        run, result = self.best
        if self.base.test is not None:
            result = run.make_result(self.base.test, interrupted=interrupted)
        stated = {"sparsity": settings.sparsity, "max_drop": self.drop}
        return replace(
            result,
            stopped="interrupted" if interrupted else result.stopped,
            evaluations=self.evaluations,
            seconds=time.monotonic() - self._started,
            settings={**result.settings, **stated},
            trials=tuple(self.trials),
            warnings=tuple(self.base.observer.warnings),
        )


def _cut(seed: Individual, sparsities: SparsityRange, sparsity: float) -> Tensor:
    """Return the flat mask of the same scores at another sparsity."""
    counts = tuple(uniform_counts(sparsities.layout, sparsity)) if seed.genes.fixed else None
    genes: Genes = replace(seed.genes, keep=keep_total(sparsities.layout, sparsity), counts=counts)
    return genes.decode(sparsities.layout)
