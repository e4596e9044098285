"""How far a network can be pruned: the sparsest masks that lose no more on the validation inputs than allowed.

One-shot masks tell cheaply where to begin. From there a search at each sparsity: steps that double
until one search holds and the next does not, then halves of what lies between, in the logarithm of
the density, because networks break by ratios of kept weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Protocol

from torch import Tensor

from gaprune.calibration.samples import Samples
from gaprune.callbacks import Observer
from gaprune.config import EVOLVED, Settings
from gaprune.errors import GapruneError
from gaprune.evaluation.evaluator import Evaluator
from gaprune.evolution.genome import Genes, Individual
from gaprune.masks.budget import keep_total, uniform_counts
from gaprune.masks.supermask import Layout
from gaprune.profiling import profiled
from gaprune.runs.checkpointer import Checkpointer
from gaprune.runs.result import Result
from gaprune.workers.serial import torch_threads

LEAST_SPARSITY = 0.1  # below it nothing is tried
NEAR = 1.05  # where the kept weights of two searches differ by less, nothing between is tried
STEP = 0.7  # of the kept weights stay in the first step from search to search
GRID = 1.2  # how closely one-shot masks are looked at
SEARCHES, ONE_SHOTS = 5, 20  # tried at most; more only until a first one holds
GLANCED, GLANCED_SEEDS = (
    256,
    3,
)  # validation calibration inputs and one-shot masks that tell where to begin
ROUNDING = 1e-9


class Run(Protocol):
    """A run whose calibration inputs are made once, for any number of sparsities."""

    settings: Settings
    observer: Observer
    test: Samples | None
    checkpointer: Checkpointer
    earlier: float

    @property
    def evaluator(self) -> Evaluator:
        """The calibration inputs with the dense network's answers; made when they are first asked for."""

    def at(self, sparsity: float) -> Run:
        """Return a run at another sparsity on the same calibration inputs, without test data."""

    def seeds(self) -> list[Individual]:
        """Make every one-shot mask."""

    def result(self) -> Result:
        """Do it all."""

    def tested(self, test: Samples, *, interrupted: bool) -> Result:
        """Return the result once more, measured on labelled inputs."""


@dataclass(frozen=True)
class Span:
    """The sparsities that can be tried.

    Attributes:
        layout: the network's prunable layers.
        least, most: the ends.
    """

    layout: Layout
    least: float
    most: float

    @classmethod
    def of(cls, layout: Layout, scope: str, largest: float) -> Span:
        """Return the span up to a largest sparsity, or up to where a layer would be emptied."""
        density = Fraction(layout.min_cost, layout.dense_cost)
        if scope == "layer" and layout.mac_cost is None:
            density = max(density, Fraction(1, 2 * min(layout.sizes)))
        scale = Fraction(10) ** (2 - math.floor(math.log10(density)))  # as `at` rounds, but upwards
        most = min(largest, float(1 - math.ceil(density * scale) / scale))
        return cls(layout, min(LEAST_SPARSITY, most), most)

    def at(self, density: float) -> float:
        """Return the sparsity of a density, rounded to three digits of it, inside the span."""
        return min(max(round(1 - float(f"{density:.3g}"), 9), self.least), self.most)

    def kept(self, sparsity: float) -> int:
        """Return how many weights stay."""
        return keep_total(self.layout, sparsity)

    def next(self, held: float | None, failed: float | None, tried: int) -> float | None:
        """Return what to try after the sparsest that held and the least sparse that failed.

        Args:
            held: the sparsest that held, or None.
            failed: the least sparse that did not, or None; not both are None.
            tried: how many were.

        Returns:
            A sparsity, or None where nothing is left to be known.
        """
        if held is not None and failed is not None:
            if self.kept(held) <= NEAR * self.kept(failed):
                return None
            found = self.at(math.sqrt((1 - held) * (1 - failed)))
            return None if self.kept(found) in (self.kept(held), self.kept(failed)) else found
        last = failed if held is None else held
        end = self.least if held is None else self.most
        assert last is not None
        factor = STEP ** (2 ** (tried - 1) * (-1 if held is None else 1))
        found, density = last, 1 - last
        while found != end and self.kept(found) == self.kept(last):
            density = min(density * factor, 1.0)
            found = self.at(density)
        return None if self.kept(found) == self.kept(last) else found


def prune_to_limit(run: Run) -> Result:
    """Return the sparsest result that holds, with everything that was tried.

    Raises:
        GapruneError: none holds, down to `LEAST_SPARSITY`; the message has the figures.
        KeyboardInterrupt: an interrupt came before anything was found that holds.
    """
    tries = _Tries(run)
    interrupted = False
    try:
        tries.search()
    except KeyboardInterrupt:
        if tries.best is None:
            raise
        interrupted = True
    return tries.result(interrupted=interrupted)


class _Tries:
    """What was tried so far."""

    def __init__(self, run: Run) -> None:
        self.started = time.monotonic()
        self.run = run
        asked = run.settings.max_drop
        assert asked is not None, "a run without a limit has nothing to look for"
        self.drop = asked
        self.tried: list[dict[str, Any]] = []
        self.best: tuple[Run, Result] | None = None
        self.failed: float | None = None
        self.evaluations = 0

    def search(self) -> None:
        """Try one sparsity after the other."""
        run = self.run
        span = Span.of(run.evaluator.layout, run.settings.scope, run.settings.sparsity)
        most = SEARCHES if run.settings.method == EVOLVED else ONE_SHOTS
        sparsity: float | None = run.checkpointer.first(lambda: self._first(span))
        while sparsity is not None and (len(self.tried) < most or self.best is None):
            self._try(sparsity)
            sparsity = span.next(self._held, self.failed, len(self.tried))
        if sparsity is not None:
            run.observer.warning(
                f"{len(self.tried)} searches leave open where between sparsity {self._held} and "
                f"{self.failed or span.most} the limit lies; --sparsity {sparsity} without "
                "--max-drop tries one between"
            )

    def result(self, *, interrupted: bool) -> Result:
        """Return the sparsest result that holds, measured on the labelled inputs."""
        settings = self.run.settings
        if self.best is None:
            last = self.tried[-1]
            self.run.checkpointer.give_up()
            raise GapruneError(
                f"max_drop: {self.drop:g} cannot be met: at sparsity {last['sparsity']:g}, the "
                f"smallest tried, the pruned network agrees with the dense one on "
                f"{last['validation']:.2%} of the validation inputs, and {1 - self.drop:.2%} are asked; allow more, "
                f"search longer (--generations){'' if settings.repair else ', or add --repair'}"
            )
        best, result = self.best
        if self.run.test is not None:
            result = best.tested(self.run.test, interrupted=interrupted)
        asked = {"sparsity": settings.sparsity, "max_drop": self.drop}
        return replace(
            result,
            stopped="interrupted" if interrupted else result.stopped,
            evaluations=self.evaluations,
            seconds=time.monotonic() - self.started,
            settings={**result.settings, **asked},
            trials=tuple(self.tried),
        )

    @property
    def _held(self) -> float | None:
        return None if self.best is None else self.best[1].sparsity

    def _try(self, sparsity: float) -> None:
        before = ""
        if self.tried:
            last = self.tried[-1]
            verb = "holds" if last["within_limit"] else "does not hold"
            before = (
                f" ({last['sparsity']:g} {verb}: {last['validation']:.2%} on the validation inputs)"
            )
        number = len(self.tried) + 1
        self.run.observer.phase("limit", f"search {number}, sparsity {sparsity:g}{before}")
        one = self.run.at(sparsity)
        result = one.result()
        self.evaluations += result.evaluations
        self.started -= one.earlier
        validation = (
            result.validation_agreement if result.repaired is None else result.repaired.validation
        )
        held = 1 - validation <= self.drop + ROUNDING
        interrupted = result.stopped == "interrupted"
        if held:
            self.best = one, result
        elif not interrupted:
            self.failed = sparsity
        if held or not interrupted:  # half a search that does not hold tells nothing
            self.tried.append(
                {"sparsity": sparsity, "validation": validation, "within_limit": held}
            )
        if interrupted:
            raise KeyboardInterrupt

    def _first(self, span: Span) -> float:
        """Return the sparsity where one-shot masks begin to fail; for one of them, where it holds.

        The scores of one sparsity are cut at all of them, and only masks that did best so far are
        looked at further: this is where to begin, not what is found.
        """
        run, evaluator = self.run, self.run.evaluator
        lost = f"lose more than {self.drop:.2%}"
        run.observer.phase("limit", f"looking for the sparsity at which one-shot masks {lost}")
        low, high = 1 - span.most, 1 - span.least
        with profiled("baselines"), torch_threads(run.settings.threads_per_worker):
            seeds = run.at(span.at(math.sqrt(low * high))).seeds()
            seeds = [one for one in seeds if one.origin == run.settings.method] or seeds
            while high > GRID * low:
                density = math.sqrt(low * high)
                shown = evaluator.validation.select(slice(GLANCED))
                found = [
                    evaluator.validate(_cut(one, span, span.at(density)), shown).agreement
                    for one in seeds
                ]
                if 1 - max(found) <= self.drop + ROUNDING:
                    high = density
                else:
                    low = density
                seeds = _best(seeds, found)
        return span.at(low if run.settings.method == EVOLVED else high)


def _cut(seed: Individual, span: Span, sparsity: float) -> Tensor:
    """Return the flat mask of the same scores at another sparsity."""
    counts = tuple(uniform_counts(span.layout, sparsity)) if seed.genes.fixed else None
    genes: Genes = replace(seed.genes, keep=span.kept(sparsity), counts=counts)
    return genes.decode(span.layout)


def _best(seeds: Sequence[Individual], agreements: Sequence[float]) -> list[Individual]:
    order = sorted(range(len(seeds)), key=lambda index: -agreements[index])
    return [seeds[index] for index in order[:GLANCED_SEEDS]]
