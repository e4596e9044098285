"""Who takes part in a comparison at equal time; each is run in a process of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

from torch import Tensor

from benchmarks.pace.counts import cma_counts, evolved_counts
from benchmarks.pace.rivals import deap_lists, evotorch_ga, snes
from benchmarks.pace.trial import Match, Score, Trial, kept, lamp_ranks, random_ranks, scored
from benchmarks.real.process import in_own_process, peak_mb
from gaprune.callbacks import Observer
from gaprune.errors import GapruneError
from gaprune.records import Generation
from gaprune.runs.run import PruningRun


@dataclass(frozen=True)
class Contender:
    """A search that can be given the same as others.

    Attributes:
        play: does it.
        needs: a package of the extra `bench`, or None.
    """

    play: Callable[[Match], Score]
    needs: str | None = None


def gaprune(preset: str) -> Callable[[Match], Score]:
    """Return a whole search of gaprune: its one-shot masks are made in the same seconds."""

    def play(match: Match) -> Score:
        bell = _Bell(match.seconds)
        run = match.run(bell, preset=preset, seconds=match.seconds)
        before = peak_mb()
        bell.start()
        result = run.run()
        memory = peak_mb(), before
        mask = run.evaluator.layout.flatten(dict(result.masks))
        return scored(run.evaluator, mask, result.evaluations, bell.seconds, memory)

    return play


class _Bell(Observer):
    """Ends a search as Ctrl-C does, between two generations, when the time is over.

    Attributes:
        seconds: from the start to the end of the last generation.
    """

    def __init__(self, limit: float) -> None:
        self._limit, self._started, self.seconds = limit, 0.0, 0.0

    def start(self) -> None:
        """Take the time from now on."""
        self._started = time.monotonic()

    def generation(self, record: Generation, total: int | None) -> None:
        """Look at the clock.

        Raises:
            KeyboardInterrupt: the time is over.
        """
        del record, total
        self.seconds = time.monotonic() - self._started
        if self.seconds >= self._limit:
            raise KeyboardInterrupt


def on_scores(
    search: Callable[[Trial, Tensor, int], None], start: Callable[[PruningRun], Tensor]
) -> Callable[[Match], Score]:
    """Return a search of others for one flat score vector."""

    def play(match: Match) -> Score:
        run = match.run()
        scores = start(run)
        trial = Trial(run.evaluator, match.seconds, kept(run))
        search(trial, scores, match.seed)
        return trial.score()

    return play


CONTENDERS: dict[str, Contender] = {
    "gaprune": Contender(gaprune("default")),
    "gaprune-black-box": Contender(gaprune("black-box")),
    "evotorch-snes-lamp": Contender(on_scores(snes, lamp_ranks), "evotorch"),
    "evotorch-snes-random": Contender(on_scores(snes, random_ranks), "evotorch"),
    "evotorch-ga-lamp": Contender(on_scores(evotorch_ga, lamp_ranks), "evotorch"),
    "evotorch-ga-random": Contender(on_scores(evotorch_ga, random_ranks), "evotorch"),
    "deap": Contender(on_scores(deap_lists, lamp_ranks)),
    "gaprune-counts": Contender(evolved_counts),
    "cma-counts": Contender(cma_counts, "cma"),
}


def play(name: str, match: Match) -> Score:
    """Let one contender search, in this process."""
    return CONTENDERS[name].play(match)


def compare(names: Sequence[str], match: Match) -> tuple[Mapping[str, Score], Mapping[str, str]]:
    """Let contenders search one after the other, each in a process with one thread.

    Where gaprune ends its last generation later than asked, those after it have as long as it took.

    Returns:
        Name → what it found; name → why it found nothing.
    """
    found: dict[str, Score] = {}
    missing: dict[str, str] = {}
    for name in names:
        needs = CONTENDERS[name].needs
        if needs is not None and find_spec(needs) is None:
            missing[name] = f"needs {needs}; pip install 'gaprune[bench]'"
            continue
        try:
            found[name] = one = in_own_process(play, name, match)
        except GapruneError as error:
            missing[name] = str(error)
            continue
        if name.startswith("gaprune"):
            match = replace(match, seconds=max(match.seconds, one.seconds))
    return found, missing
