"""The search: breed, race, select, judge, generation after generation, over a DEAP toolbox."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import torch
from deap import tools

from gaprune.errors import GapruneError
from gaprune.evaluation.evaluator import ValidationScore
from gaprune.evolution.archive import Remembered
from gaprune.evolution.genome import LARGE, Individual
from gaprune.evolution.offspring import Newborn
from gaprune.evolution.phases import WARMUP, SearchPhase
from gaprune.evolution.race import faster_half
from gaprune.evolution.scoring import Scores
from gaprune.evolution.search_plan import SearchPlan, SearchResult, parted_for
from gaprune.evolution.snapshot import SearchState
from gaprune.evolution.tasks import BreedResult, BreedTask, ValidateTask, derive_seed
from gaprune.evolution.toolbox import C, Contender, distinct, make_toolbox, python_random, same
from gaprune.evolution.variation import VariationSampler
from gaprune.profiling import profiled
from gaprune.records import Generation
from gaprune.workers import FailedTask, Warn, Workers

HALL_OF_FAME = 8
FIRST_RUNG, LAST_RUNG = 0, -1

UNSCORED = -float("inf")  # fitness of a candidate that cannot be scored; every other is finite


@dataclass
class _State:
    generation: int = 0
    evaluations: int = 0
    gained: int = 0  # the last generation that improved the best fitness
    best: float = -float("inf")
    leaders: dict[str, tuple[Individual | Remembered, ValidationScore]] = field(
        default_factory=dict
    )


class Evolution:
    """One search. `run` does it all; `step` does one generation.

    Args:
        plan: how to search.
        workers: where children are bred and scored.
        report: called with every generation's record.
        warn: told of candidates that are left out because they take down their workers.
    """

    def __init__(
        self,
        plan: SearchPlan,
        workers: Workers,
        report: Callable[[Generation], None] | None = None,
        warn: Warn = lambda _: None,
    ) -> None:
        self.plan = plan
        self._report, self._warn = report, warn
        self._state = _State()
        self._random = random.Random(derive_seed(plan.seed, "selection"))
        self._recipes = {phase.name: VariationSampler(plan, phase) for phase in plan.phases}
        self._started = time.monotonic()
        self.population: list[Individual] = []
        self.hall_of_fame = tools.HallOfFame(HALL_OF_FAME, similar=same)
        self.logbook = tools.Logbook()
        self.history: list[Generation] = []
        self.toolbox = make_toolbox(plan.preset, workers)
        self._scores = Scores(self.toolbox.map, plan.group)
        self._one_by_one = workers.count == 1 and plan.layout.total > LARGE

    def run(
        self,
        seeds: Sequence[Individual],
        validation_scores: Mapping[str, ValidationScore] | None = None,
    ) -> SearchResult:
        """Search from seeds until a limit of the plan is met.

        Args:
            seeds: the first population is drawn from the best of them.
            validation_scores: mask key → how it does on the validation inputs, where that is known.

        An interrupt (Ctrl-C) ends the search; what was found until then is returned. A search that
        was restored goes on from there; of the seeds, only the verdicts count then.
        """
        try:
            if not self.history:
                self._started = time.monotonic()
                with profiled("select"):
                    self._begin(seeds, validation_scores or {})
            while (stopped := self._limit()) is None:
                with profiled("select"):
                    self.step()
                    self._record()
        except KeyboardInterrupt:
            if not self._state.leaders:
                raise
            stopped = "interrupted"
        best, validation_score = self._choose(validation_scores or {})
        return SearchResult(
            best=best,
            validation_score=validation_score,
            population=self.population,
            hall_of_fame=list(self.hall_of_fame),
            front=[one for one in self._front() if one.key in self._state.leaders],
            judged={
                key: validation_score for key, (_, validation_score) in self._state.leaders.items()
            },
            history=self.history,
            stopped=stopped,
            evaluations=self._state.evaluations,
            seconds=time.monotonic() - self._started,
        )

    def snapshot(self) -> SearchState:
        """Return all that the next generation depends on; call it between two generations."""
        state = self._state
        return SearchState(
            generation=state.generation,
            evaluations=state.evaluations,
            gained=state.gained,
            best=state.best,
            seconds=time.monotonic() - self._started,
            random=self._random.getstate(),
            rates={name: book.memory for name, book in self._recipes.items()},
            history=tuple(self.history),
            population=tuple(self.population),
            hall_of_fame=tuple(self.hall_of_fame),
            leaders=tuple(state.leaders.values()),
        )

    def restore(self, one: SearchState) -> None:
        """Go on from a snapshot of a search under the same plan, instead of from seeds."""
        leaders = {pair[0].key: pair for pair in one.leaders}
        self._state = _State(one.generation, one.evaluations, one.gained, one.best, leaders)
        self._started = time.monotonic() - one.seconds
        self._random.setstate(one.random)
        for name, memory in one.rates.items():
            self._recipes[name].recall(memory)
        self.population, self.history = list(one.population), list(one.history)
        for record in self.history:
            self.logbook.record(**vars(record))
        for famous in reversed(one.hall_of_fame):  # of equals, DEAP puts the last one first
            self.hall_of_fame.insert(famous)

    def step(self) -> None:
        """Run one generation: breed, race, survive, judge."""
        self._state.generation += 1
        preset = self.plan.preset
        children = self._raced() if preset.races else list(self._breed())
        self._survive([*self.population, *children] if preset.elitist else children)
        self._judge_leaders()

    def _begin(
        self, seeds: Sequence[Individual], validation_scores: Mapping[str, ValidationScore]
    ) -> None:
        seeds = self.plan.starts(seeds)
        for one in seeds:
            if one.key in validation_scores:
                self._state.leaders[one.key] = (one, validation_scores[one.key])
        seeds = self._score(seeds)
        first = self._evaluate(seeds, FIRST_RUNG) if self.plan.preset.races else None
        for index, one in enumerate(seeds):
            one.sprint = first[index] if first else one.quality
        self._survive(seeds)
        self._judge_leaders()
        self._record()

    def _survive(self, contenders: Sequence[Contender]) -> None:
        """Select the next population; only now the genes of its children are fetched."""
        if not contenders:
            raise GapruneError(
                "search: no candidate is left, each took down its workers; look for what the "
                "warnings say, and try --workers 1 to see it happen here"
            )
        chosen = self.toolbox.survive(distinct(contenders), self.plan.population)
        children = [one for one in chosen if isinstance(one, Newborn)]
        genes = dict(zip(children, self.toolbox.fetch([c.child for c in children]), strict=True))
        layout = self.plan.layout
        self.population = [
            one.grown(genes[one], layout) if isinstance(one, Newborn) else one for one in chosen
        ]

    def _raced(self) -> list[Newborn]:
        most = self.plan.phase(self._state.generation).offspring
        return self._score(faster_half(self._breed(), most))

    def _breed(self) -> Iterator[Newborn]:
        """Yield the children as they come: one by one, where one worker breeds large ones."""
        plan, number = self.plan, self._state.generation
        phase = plan.phase(number)
        recipes = self._recipes[phase.name]
        generator = torch.Generator().manual_seed(derive_seed(plan.seed, "vary", number))
        parents = self._parents(phase)
        pairs = list(zip(parents[::2], parents[1::2], strict=True))
        drawn = [recipes.draw(pair, number, generator) for pair in pairs]
        tasks = [
            BreedTask(
                (a.genes,) if recipe.crossover is None else (a.genes, b.genes),
                recipe,
                derive_seed(plan.seed, "child", number, index),
                FIRST_RUNG if plan.preset.races else LAST_RUNG,
            )
            for index, ((a, b), (recipe, _)) in enumerate(zip(pairs, drawn, strict=True))
        ]
        lots = [[task] for task in tasks] if self._one_by_one else [tasks]
        bred: Iterator[BreedResult | FailedTask] = chain.from_iterable(map(self.toolbox.map, lots))
        for pair, (recipe, rate), child in zip(pairs, drawn, bred, strict=True):
            steps = recipe.refinement.steps if recipe.refinement else 0
            self._state.evaluations += 1 + steps
            origin = "+".join(recipe.operators) or "copy"
            if isinstance(child, FailedTask):
                recipes.learn(recipe, improved=False)
                self._leave_out(f"a child made by {origin}", child)
                continue
            recipes.learn(recipe, improved=child.fitness > max(one.sprint for one in pair))
            newborn = Newborn(child, origin, rate, plan.fitness)
            self._value(newborn, child.fitness)
            yield newborn

    def _parents(self, phase: SearchPhase) -> list[Individual]:
        """Select two parents per child; the continuation has one, the best known after repair."""
        if phase.name == WARMUP:
            leaders = [
                one for one, _ in self._state.leaders.values() if isinstance(one, Individual)
            ]
            known = distinct([*leaders, *self.population])
            fitness = self._evaluate(known, LAST_RUNG, repaired=True)
            best = known[max(range(len(known)), key=fitness.__getitem__)]
            return [best] * (2 * phase.offspring)
        with python_random(self._random):
            return list(self.toolbox.select(self.population, 2 * phase.offspring))

    def _evaluate(
        self, contenders: Sequence[Contender], rung: int, *, repaired: bool = False
    ) -> list[float]:
        """Score on a rung; those that take down their workers are infinitely bad."""
        self._state.evaluations += len(contenders)
        scores = self._scores.of(contenders, rung, repaired=repaired)
        return [
            self._leave_out(one.origin, found) if isinstance(found, FailedTask) else found
            for one, found in zip(contenders, scores, strict=True)
        ]

    def _score(self, contenders: Sequence[C]) -> list[C]:
        """Set the fitness of all and return those that have one."""
        scored = []
        for one, fitness in zip(contenders, self._evaluate(contenders, LAST_RUNG), strict=True):
            if fitness > UNSCORED:
                self._value(one, fitness)
                scored.append(one)
        return scored

    def _leave_out(self, what: str, lost: FailedTask) -> float:
        """Say that a candidate is left out, and return its fitness."""
        self._warn(
            f"generation {self._state.generation}: {what} is left out, it took down its worker "
            f"{lost.attempts} times ({lost.why})"
        )
        return UNSCORED

    def _value(self, one: Contender, fitness: float) -> None:
        """Set the DEAP fitness: the objective, and in a Pareto search the sparsity beside it."""
        sparsity = 1 - one.keep / self.plan.layout.dense_cost
        one.fitness.values = (fitness,) if self.plan.most is None else (fitness, sparsity)

    def _judge_leaders(self) -> None:
        """Judge the best, or the front, on the validation inputs; whoever cannot be judged leaves."""
        leaders = self._state.leaders
        while new := [one for one in distinct(self._best()) if one.key not in leaders]:
            validation_scores = self.toolbox.map([ValidateTask(one.bits) for one in new])
            for one, validation_score in zip(new, validation_scores, strict=True):
                if isinstance(validation_score, FailedTask):
                    self._leave_out(one.origin, validation_score)
                    self._survive([other for other in self.population if other is not one])
                else:
                    leaders[one.key] = (one, validation_score)

    def _best(self) -> list[Individual]:
        return self._front() or list(tools.selBest(self.population, 1))

    def _record(self) -> None:
        state = self._state
        phase = self.plan.phase(state.generation).name
        self.hall_of_fame.update([Remembered.of(one) for one in self.population])
        numbers = self.toolbox.describe(self.population)
        leader = tools.selBest(self.population, 1)[0]
        if numbers["best"] > state.best:
            state.best, state.gained = numbers["best"], state.generation
        record = Generation(
            generation=state.generation,
            evaluations=state.evaluations,
            seconds=time.monotonic() - self._started,
            best=numbers["best"],
            mean=numbers["mean"],
            validation=state.leaders[leader.key][1].agreement,
            operator_rates=self._recipes[phase].rates,
            phase=phase,
        )
        self.logbook.record(**vars(record))
        self.history.append(record)
        self._forget()
        if self._report is not None:
            self._report(record)

    def _forget(self) -> None:
        """Keep the mask alone of leaders that will have no more children: there are ever more."""
        state = self._state
        if self.plan.phase(state.generation + 1).name == WARMUP:
            return
        alive = {id(one) for one in self.population}
        for key, (one, validation_score) in state.leaders.items():
            if isinstance(one, Individual) and id(one) not in alive:
                state.leaders[key] = Remembered.of(one), validation_score

    def _front(self) -> list[Individual]:
        if self.plan.most is None:
            return []
        front = tools.sortLogNondominated(self.population, len(self.population), True)
        return sorted(front, key=lambda one: one.genes.keep)

    def _choose(self, known: Mapping[str, ValidationScore]) -> tuple[Individual, ValidationScore]:
        """Pick the fittest on the validation inputs among those that agree there at least like the baselines.

        Fitness tells candidates apart that agree on the same number of inputs, so it decides; the
        best baseline's agreement is the bar, which it meets itself.
        """
        leaders = list(self._state.leaders.values())
        judged = [pair for pair in leaders if pair[0].keep == self.plan.keep] or leaders
        bar = max((known[one.key].agreement for one, _ in judged if one.key in known), default=0.0)
        eligible = [pair for pair in judged if pair[1].agreement >= bar]
        best, validation_score = max(eligible, key=lambda pair: pair[1].fitness)
        return best if isinstance(best, Individual) else best.grown(
            self.plan.layout
        ), validation_score

    def _limit(self) -> str | None:
        state = self._state
        parted = parted_for(record.validation for record in self.history)
        return self.plan.limits.reached(
            generation=state.generation,
            evaluations=state.evaluations,
            seconds=time.monotonic() - self._started,
            idle=state.generation - max(state.gained, self.plan.before),
            parted=min(parted, state.generation - self.plan.before),  # it hands on its leader
        )
