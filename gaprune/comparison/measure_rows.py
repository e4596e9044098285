"""One method at a time: run it, stop the clock, measure what it hands in."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from typing import Any

from gaprune.calibration.samples import Samples
from gaprune.comparison.context import ComparisonContext, MethodResult, part_name
from gaprune.comparison.methods.method_registry import Method
from gaprune.comparison.rows import Row, RowKey
from gaprune.errors import GapruneError
from gaprune.evaluation.held_out import HeldOut


def held_out(context: ComparisonContext, test: Samples | None) -> HeldOut:
    """Return what all methods are measured on: labelled inputs, or the validation inputs calibration inputs of seed 0."""
    return HeldOut(
        context.target, context.plan(0).validation._replace(labels=None) if test is None else test
    )


STEP = ("sparsity", "accuracy", "agreement", "epochs")  # what is noted of every step on the way


@dataclass(frozen=True)
class MethodRun:
    """One method with one seed in a contest.

    Attributes:
        context: what all methods share.
        method: the method.
        seed: of its random choices.
        sparsities: all that are asked for, rising; a path passes through each of them.
    """

    context: ComparisonContext
    method: Method
    seed: int
    sparsities: tuple[float, ...]

    @property
    def _path(self) -> tuple[float, ...]:
        return self.sparsities if self.method.path else ()

    def key(self, sparsity: float) -> RowKey:
        """Return the key of its row at one sparsity."""
        return self.method.name, sparsity, self.seed

    def made(self, row: Row) -> bool:
        """Tell whether a row is one of this entry, and holds a figure that stays true."""
        return (
            row.sparsity in self.sparsities
            and row.key == self.key(row.sparsity)
            and (row.path, row.code) == (self._path, self.method.code)
            and row.error is None
        )

    def rows(self, wanted: AbstractSet[float], judge: HeldOut) -> Iterator[Row]:
        """Yield the row of every wanted sparsity.

        Where the method fails, or has no place under the pattern, the row says why.
        """
        placeless = self.method.placeless_in(self.context)
        if placeless is None:
            yield from self._made(wanted, judge)
            return
        for sparsity in self.sparsities:
            if sparsity in wanted:
                yield self._row(judge, sparsity=sparsity, note=placeless)

    def _made(self, wanted: AbstractSet[float], judge: HeldOut) -> Iterator[Row]:
        parts = [self.sparsities] if self.method.path else [(one,) for one in self.sparsities]
        for part in parts:
            left = [sparsity for sparsity in part if sparsity in wanted]
            if not left:
                continue
            reason = "the method handed in no network for this sparsity"
            steps: list[dict[str, float | None]] = []
            try:
                for entrant, seconds in self._entrants(part):
                    row = self._measured(entrant, seconds, judge)
                    if self.method.needs.training:
                        steps.append({name: getattr(row, name) for name in STEP})
                        row = replace(row, steps=tuple(steps))
                    if entrant.sparsity in left:
                        left.remove(entrant.sparsity)
                        yield row
                    if not left:
                        break
            except Exception as error:  # noqa: BLE001 # the network's own code runs, and the others go on
                reason = _in_a_line(error)
            for sparsity in left:
                yield self._row(judge, sparsity=sparsity, error=reason)

    def _entrants(self, part: Sequence[float]) -> Iterator[tuple[MethodResult, float]]:
        """Run the method; yield what it hands in, and the seconds of its own work so far."""
        name = part_name(self.method.name, self.seed, None if self.method.path else part[0])
        self.context.observer.progress(name, 0, None)
        if self.method.uses_calibration:
            self.context.evaluator(self.seed)  # made once for all: no method's own seconds
        seconds, since = 0.0, time.monotonic()
        for entrant in self.method.run(self.context, part, self.seed):
            seconds += time.monotonic() - since
            yield entrant, seconds
            since = time.monotonic()

    def _measured(self, entrant: MethodResult, seconds: float, judge: HeldOut) -> Row:
        measured, agreement = judge.measure(entrant.model)
        return self._row(
            judge,
            sparsity=entrant.sparsity,
            actual=1 - entrant.kept / self.context.target.layout.total,
            accuracy=measured,
            agreement=agreement,
            evaluations=entrant.evaluations,
            epochs=round(entrant.epochs, 6),
            seconds=round(seconds, 3),
        )

    def _row(self, judge: HeldOut, **measured: Any) -> Row:
        return Row(
            target=self.context.target.name,
            method=self.method.name,
            seed=self.seed,
            needs=self.method.needs_in(self.context),
            dense_accuracy=judge.dense.accuracy,
            path=self._path,
            code=self.method.code,
            **measured,
        )


def _in_a_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, GapruneError) else f"{type(error).__name__}: {text}"
