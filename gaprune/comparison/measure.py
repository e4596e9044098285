"""One method at a time: run it, stop the clock, measure what it hands in."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from gaprune.bench import Shown, answers
from gaprune.comparison.contest import Contest, Entrant, part_name
from gaprune.comparison.methods import Method
from gaprune.comparison.rows import Key, Row
from gaprune.errors import GapruneError
from gaprune.objectives import AUTO, accuracy, find_objective, finite
from gaprune.probes.samples import Samples


class Judge:
    """Measures networks on the held-out inputs, the same for all.

    Args:
        contest: its guard probes stand in where there are no held-out inputs.
        test: held-out inputs with labels, or None.

    Attributes:
        measured_on: the inputs, in words.
        dense_accuracy: of the dense network, None without labels.
    """

    def __init__(self, contest: Contest, test: Samples | None) -> None:
        target = contest.target
        if test is None:
            guard = contest.bench(0).guard
            self._shown = Shown(guard.inputs, guard.teacher, None)
            self.measured_on = contest.plan(0).receipt.guard
        else:
            inputs = test.inputs.to(target.device)
            labels = None if test.labels is None else test.labels.to(target.device)
            self._shown = Shown(inputs, answers(target.model, inputs), labels)
            self.measured_on = test.source
        self._objective = find_objective(AUTO, self._shown.teacher)
        self.dense_accuracy = self._accuracy(self._shown.teacher)

    def measure(self, model: nn.Module) -> tuple[float | None, float]:
        """Return accuracy (None without labels) and agreement with the dense network."""
        outputs = answers(model, self._shown.inputs)
        agreement = self._objective.judge(outputs, self._shown.teacher, None)
        return self._accuracy(outputs), finite(float(agreement))

    def _accuracy(self, outputs: Tensor) -> float | None:
        if self._shown.labels is None:
            return None
        return float(accuracy(outputs, self._shown.teacher, self._shown.labels))


@dataclass(frozen=True)
class Entry:
    """One method with one seed in a contest.

    Attributes:
        contest: what all methods share.
        method: the method.
        seed: of its random choices.
        sparsities: all that are asked for, rising; a path passes through each of them.
    """

    contest: Contest
    method: Method
    seed: int
    sparsities: tuple[float, ...]

    @property
    def _path(self) -> tuple[float, ...]:
        return self.sparsities if self.method.path else ()

    def key(self, sparsity: float) -> Key:
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

    def rows(self, wanted: AbstractSet[float], judge: Judge) -> Iterator[Row]:
        """Yield the row of every wanted sparsity; where the method fails, the row says why."""
        parts = [self.sparsities] if self.method.path else [(one,) for one in self.sparsities]
        for part in parts:
            left = [sparsity for sparsity in part if sparsity in wanted]
            if not left:
                continue
            reason = "the method handed in no network for this sparsity"
            try:
                for entrant, seconds in self._entrants(part):
                    if entrant.sparsity in left:
                        row = self._measured(entrant, seconds, judge)
                        left.remove(entrant.sparsity)
                        yield row
                    if not left:
                        break
            except Exception as error:  # noqa: BLE001 # the network's own code runs, and the others go on
                reason = _in_a_line(error)
            for sparsity in left:
                yield self._row(judge, sparsity=sparsity, error=reason)

    def _entrants(self, part: Sequence[float]) -> Iterator[tuple[Entrant, float]]:
        """Run the method; yield what it hands in, and the seconds of its own work so far."""
        name = part_name(self.method.name, self.seed, None if self.method.path else part[0])
        self.contest.observer.progress(name, 0, None)
        if self.method.shows_probes:
            self.contest.bench(self.seed)  # made once for all: no method's own seconds
        seconds, since = 0.0, time.monotonic()
        for entrant in self.method.run(self.contest, part, self.seed):
            seconds += time.monotonic() - since
            yield entrant, seconds
            since = time.monotonic()

    def _measured(self, entrant: Entrant, seconds: float, judge: Judge) -> Row:
        measured, agreement = judge.measure(entrant.model)
        return self._row(
            judge,
            sparsity=entrant.sparsity,
            actual=1 - entrant.kept / self.contest.target.layout.total,
            accuracy=measured,
            agreement=agreement,
            evaluations=entrant.evaluations,
            epochs=round(entrant.epochs, 6),
            seconds=round(seconds, 3),
        )

    def _row(self, judge: Judge, **measured: Any) -> Row:
        return Row(
            target=self.contest.target.name,
            method=self.method.name,
            seed=self.seed,
            needs=self.method.needs_in(self.contest),
            dense_accuracy=judge.dense_accuracy,
            path=self._path,
            code=self.method.code,
            **measured,
        )


def _in_a_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, GapruneError) else f"{type(error).__name__}: {text}"
