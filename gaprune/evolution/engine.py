"""The search: initial population → vary → race → select → validate → record, until a limit.

Every generation makes children from selected parents (vary). All children are scored on a few
calibration inputs, the better half of them on all (race, successive halving). The best individuals
survive (select), and the new leader is scored on the validation inputs, which decide at the end
which leader is returned.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from math import ceil, inf

import torch
from deap import tools

from gaprune.errors import GapruneError
from gaprune.evaluation.evaluator import ValidationScore
from gaprune.evolution.genome import LARGE, Individual
from gaprune.evolution.search_plan import (
    WARMUP,
    SearchPhase,
    SearchPlan,
    SearchResult,
    overfit_generations,
)
from gaprune.evolution.search_state import SearchState
from gaprune.evolution.tasks import BreedTask, ScoreGroupTask, ScoreTask, ValidateTask, derive_seed
from gaprune.evolution.toolbox import make_toolbox, python_random, unique
from gaprune.evolution.variation import VariationSampler
from gaprune.models.time_limit import TimeIsUp, active_limit
from gaprune.profiling import profiled
from gaprune.records import Generation
from gaprune.workers import FailedTask, Warn, Workers

FIRST_RUNG, LAST_RUNG = 0, -1  # of the race: a few calibration inputs, and all of them


class Evolution:
    """One search; `run` does all of it.

    It follows the plan; workers make and score the children. `report` receives the record of every
    generation, and `warn` a text about every candidate that crashes its workers.

    Attributes:
        generation: number of the current generation; 0 is the initial population.
        evaluations: candidates scored so far; every gradient step counts as one.
        population: the current individuals, with genes.
        leaders: mask key → individual and its validation score, for every individual that was the
            best of a generation (or on the front). Seeds with a known score are leaders too.
        history: one record per generation.
    """

    def __init__(
        self,
        plan: SearchPlan,
        workers: Workers,
        report: Callable[[Generation], None] | None = None,
        warn: Warn = lambda _: None,
    ) -> None:
        self.plan = plan
        self.toolbox = make_toolbox(plan.preset, workers)
        self.generation = 0
        self.evaluations = 0
        self.population: list[Individual] = []
        self.leaders: dict[str, tuple[Individual, ValidationScore]] = {}
        self.history: list[Generation] = []
        self._report, self._warn = report, warn
        self._best_fitness, self._best_generation = -inf, 0  # the last improvement
        self._random = random.Random(derive_seed(plan.seed, "selection"))
        self._samplers = {phase.name: VariationSampler(plan, phase) for phase in plan.phases}
        self._best_child: Individual | None = None  # of this generation so far, without genes
        self._started = time.monotonic()
        # with one worker and large genomes, children are made one at a time, so that the genes of
        # those that lose the race are freed at once.
        self._batch = 1 if workers.count == 1 and plan.layout.total > LARGE else None

    def run(
        self,
        seeds: Sequence[Individual],
        validation_scores: Mapping[str, ValidationScore] | None = None,
    ) -> SearchResult:
        """Search until a limit is reached, or until Ctrl-C, which keeps the result.

        The active `TimeLimit` may end a search inside a generation. Its best child until then is
        used if it beats its population on the first rung and can be validated in time.

        Args:
            seeds: individuals of the initial population. A restored search ignores them.
            validation_scores: mask key → validation score of the seeds, where it is known.

        Raises:
            GapruneError: every candidate crashes its workers.
            TimeIsUp: the time is over, and no individual has a validation score.
        """
        known = validation_scores or {}
        races, elitist = self.plan.preset.races, self.plan.preset.elitist
        try:
            if not self.history:
                self._started = time.monotonic()
                with profiled("select"):
                    initial = self.plan.initial_individuals(seeds)
                    self.leaders = {i.key: (i, known[i.key]) for i in initial if i.key in known}
                    initial = self._set_fitness(initial, self._evaluate(initial))
                    # Parents and children are compared on the first rung, too, see `_breed`.
                    race = self._evaluate(initial, FIRST_RUNG) if races else None
                    for index, individual in enumerate(initial):
                        individual.race_fitness = race[index] if race else individual.search_fitness
                    # masks without genes are there to be beaten
                    self._select([i for i in initial if i.genes is not None])
                    del initial  # frees the genes of seeds that were not selected
                    self._validate_leaders()
                    self._record()
            while (stopped := self._reached_limit()) is None:
                with profiled("select"):
                    self.generation += 1
                    self._best_child = None
                    children = self._breed()
                    if races:
                        children = self._set_fitness(children, self._evaluate(children))
                    self._select([*self.population, *children] if elitist else children)
                    del children  # frees the genes of those that were not selected
                    self._validate_leaders()
                    self._record()
        except KeyboardInterrupt:
            if not self.leaders:
                raise
            stopped = "interrupted"
        except TimeIsUp:
            if not self.leaders:
                raise
            self._use_unfinished()
            stopped = "seconds"
        return self.result(stopped, known)

    def result(self, stopped: str, known: Mapping[str, ValidationScore]) -> SearchResult:
        """Return the result so far; for `known` see `run`."""
        best, validation = self._choose_best(known)
        return SearchResult(
            best=best,
            validation_score=validation,
            population=self.population,
            front=[individual for individual in self._front() if individual.key in self.leaders],
            validation_scores={key: score for key, (_, score) in self.leaders.items()},
            history=self.history,
            stopped=stopped,
            evaluations=self.evaluations,
            seconds=time.monotonic() - self._started,
        )

    def state(self) -> SearchState:
        """Return everything that the next generation depends on; call it between generations."""
        return SearchState(
            generation=self.generation,
            evaluations=self.evaluations,
            best_fitness=self._best_fitness,
            best_generation=self._best_generation,
            seconds=time.monotonic() - self._started,
            random=self._random.getstate(),
            operator_success={name: sampler.success for name, sampler in self._samplers.items()},
            history=tuple(self.history),
            population=tuple(self.population),
            leaders=tuple(self.leaders.values()),
        )

    def restore(self, state: SearchState) -> None:
        """Continue from a state of a search under the same plan, instead of from seeds."""
        self.generation, self.evaluations = state.generation, state.evaluations
        self._best_fitness, self._best_generation = state.best_fitness, state.best_generation
        self._started = time.monotonic() - state.seconds
        self._random.setstate(state.random)
        for name, success in state.operator_success.items():
            self._samplers[name].restore(success)
        self.leaders = {leader.key: (leader, score) for leader, score in state.leaders}
        self.population, self.history = list(state.population), list(state.history)

    def _breed(self) -> list[Individual]:
        """Make the children of a generation; in a race, return the better half, best first."""
        plan, generation = self.plan, self.generation
        phase = plan.phase(generation)
        sampler = self._samplers[phase.name]
        generator = torch.Generator().manual_seed(derive_seed(plan.seed, "vary", generation))
        parents = self._select_parents(phase)
        pairs = list(zip(parents[::2], parents[1::2], strict=True))
        # All variations are drawn before any child is scored: then they depend neither on the
        # number of workers nor on the order in which they finish.
        drawn = [sampler.draw(pair, generation, generator) for pair in pairs]
        races = plan.preset.races
        tasks = [
            BreedTask(
                (a.genes,) if variation.crossover is None else (a.genes, b.genes),
                variation,
                derive_seed(plan.seed, "child", generation, index),
                FIRST_RUNG if races else LAST_RUNG,
            )
            for index, ((a, b), (variation, _)) in enumerate(zip(pairs, drawn, strict=True))
        ]
        children: list[Individual] = []
        num_children, size = 0, self._batch or len(tasks)
        for start in range(0, len(tasks), size):
            time_is_up: TimeIsUp | None = None
            try:
                results = self.toolbox.map(tasks[start : start + size])
            except TimeIsUp as error:
                results, time_is_up = error.results, error
            for index, result in enumerate(results, start):
                if result is None:
                    continue
                pair, (variation, step_scale) = pairs[index], drawn[index]
                self.evaluations += 1 + variation.steps
                if isinstance(result, FailedTask):
                    sampler.learn(variation, improved=False)
                    self._warn_skipped(f"a child made by {variation.origin}", result)
                    continue
                better_parent = max(parent.race_fitness for parent in pair)
                sampler.learn(variation, improved=result.fitness > better_parent)
                child = Individual(
                    bits=result.bits,
                    total=plan.layout.total,
                    keep=result.keep,
                    origin=variation.origin,
                    step_scale=step_scale,
                    genes=result.genes,
                    fitness=plan.new_fitness(),
                    race_fitness=result.fitness,
                )
                children += self._set_fitness([child], [result.fitness])
                if self._best_child is None or result.fitness > self._best_child.race_fitness:
                    self._best_child = replace(child, genes=None)
                num_children += 1
            if time_is_up is not None:
                raise time_is_up
            if races:  # a child outside the best half of all planned cannot win: free its genes
                children.sort(key=lambda child: -child.race_fitness)  # stable: earlier ones first
                del children[ceil(len(tasks) / 2) :]
        return children[: ceil(num_children / 2)] if races else children

    def _use_unfinished(self) -> None:
        """Validate the best child of a generation that was cut short, if there is time."""
        best = self._best_child
        if best is None or best.key in self.leaders or self.plan.most is not None:
            return
        if best.race_fitness > max(parent.race_fitness for parent in self.population):
            active_limit().start_grace()
            with suppress(TimeIsUp):
                (score,) = self.toolbox.map([ValidateTask(best.bits)])
                if not isinstance(score, FailedTask):
                    self.leaders[best.key] = (best, score)

    def _select_parents(self, phase: SearchPhase) -> list[Individual]:
        """Select two parents per child; in the warm-up all are the best individual after repair."""
        if phase.name == WARMUP:
            leaders = [leader for leader, _ in self.leaders.values() if leader.genes is not None]
            known = unique([*leaders, *self.population])
            fitness = self._evaluate(known, repaired=True)
            best = known[max(range(len(known)), key=fitness.__getitem__)]
            return [best] * (2 * phase.offspring)
        with python_random(self._random):
            return list(self.toolbox.select(self.population, 2 * phase.offspring))

    def _evaluate(
        self, individuals: Sequence[Individual], rung: int = LAST_RUNG, *, repaired: bool = False
    ) -> list[float]:
        """Return the fitness of individuals on a rung; −∞ for those that crash their workers."""
        self.evaluations += len(individuals)
        masks = {individual.key: individual.bits for individual in individuals}
        bits, size = list(masks.values()), self.plan.group
        if size == 1 or repaired:
            scores = self.toolbox.map([ScoreTask(mask, rung, repaired) for mask in bits])
        else:
            groups = [tuple(bits[start : start + size]) for start in range(0, len(bits), size)]
            results = self.toolbox.map([ScoreGroupTask(group, rung) for group in groups])
            scores = []
            for group, result in zip(groups, results, strict=True):
                if not isinstance(result, FailedTask):
                    scores += result
                    continue
                # One mask must not take the others of its group with it: retry each alone. Still as
                # a `ScoreGroupTask`, because `ScoreTask` rounds differently.
                retries = self.toolbox.map([ScoreGroupTask((mask,), rung) for mask in group])
                scores += [r if isinstance(r, FailedTask) else r[0] for r in retries]
        by_key = dict(zip(masks, scores, strict=True))
        fitness = []
        for individual in individuals:
            score = by_key[individual.key]
            if isinstance(score, FailedTask):
                self._warn_skipped(individual.origin, score)
                score = -inf
            fitness.append(score)
        return fitness

    def _set_fitness(
        self, individuals: Sequence[Individual], fitness: Sequence[float]
    ) -> list[Individual]:
        """Set the DEAP fitness and return the individuals that could be scored."""
        scored = []
        for individual, value in zip(individuals, fitness, strict=True):
            if value > -inf:
                # in a Pareto search, sparsity is the second value
                sparsity = 1 - individual.keep / self.plan.layout.dense_cost
                pareto = self.plan.most is not None
                individual.fitness.values = (value, sparsity) if pareto else (value,)
                scored.append(individual)
        return scored

    def _select(self, candidates: Sequence[Individual]) -> None:
        """Select the next population; only now the genes of surviving children are fetched."""
        if not candidates:
            raise GapruneError(
                "workers: every candidate crashes its workers, see the warnings; run with "
                "--workers=1 to see the error"
            )
        self.population = self.toolbox.survive(unique(candidates), self.plan.population)
        genes = self.toolbox.fetch(self.population)
        for individual, fetched in zip(self.population, genes, strict=True):
            individual.genes = fetched

    def _validate_leaders(self) -> None:
        """Score the best individual, or the front, on the validation inputs.

        An individual that cannot be scored there leaves the population, and the next one leads.
        """
        while new := [
            individual
            for individual in unique(self._front() or tools.selBest(self.population, 1))
            if individual.key not in self.leaders
        ]:
            scores = self.toolbox.map([ValidateTask(individual.bits) for individual in new])
            for individual, score in zip(new, scores, strict=True):
                if isinstance(score, FailedTask):
                    self._warn_skipped(individual.origin, score)
                    self._select([other for other in self.population if other is not individual])
                else:
                    self.leaders[individual.key] = (individual, score)

    def _front(self) -> list[Individual]:
        if self.plan.most is None:
            return []
        front = tools.sortLogNondominated(self.population, len(self.population), True)
        return sorted(front, key=lambda individual: individual.keep)

    def _record(self) -> None:
        phase = self.plan.phase(self.generation).name
        statistics = self.toolbox.describe(self.population)
        leader = tools.selBest(self.population, 1)[0]
        if statistics["best"] > self._best_fitness:
            self._best_fitness, self._best_generation = statistics["best"], self.generation
        record = Generation(
            generation=self.generation,
            evaluations=self.evaluations,
            seconds=time.monotonic() - self._started,
            best=statistics["best"],
            mean=statistics["mean"],
            validation=self.leaders[leader.key][1].agreement,
            operator_rates=self._samplers[phase].rates,
            phase=phase,
        )
        self.history.append(record)
        self._drop_genes()
        if self._report is not None:
            self._report(record)

    def _drop_genes(self) -> None:
        """Drop the genes of former leaders: their number grows, and they have no more children."""
        if self.plan.phase(self.generation + 1).name == WARMUP:
            return  # its parent is chosen among all leaders
        alive = {id(individual) for individual in self.population}
        for key, (leader, score) in self.leaders.items():
            if leader.genes is not None and id(leader) not in alive:
                self.leaders[key] = replace(leader, genes=None), score

    def _choose_best(
        self, known: Mapping[str, ValidationScore]
    ) -> tuple[Individual, ValidationScore]:
        """Return the leader of the highest validation fitness that is never worse than a seed."""
        # Agreement is what users are promised, but many leaders agree on the same number of inputs.
        # So leaders need at least the agreement of the best seed, and fitness decides among them.
        leaders = list(self.leaders.values())
        exact = [pair for pair in leaders if pair[0].keep == self.plan.keep] or leaders
        bar = max(
            (known[leader.key].agreement for leader, _ in exact if leader.key in known), default=0.0
        )
        return max(
            (pair for pair in exact if pair[1].agreement >= bar), key=lambda pair: pair[1].fitness
        )

    def _reached_limit(self) -> str | None:
        main_start = self.plan.phases[-1].start
        overfit = overfit_generations([record.validation for record in self.history])
        reached = self.plan.limits.reached(
            generation=self.generation,
            evaluations=self.evaluations,
            stagnant=self.generation - max(self._best_generation, main_start),
            # the main phase starts with the leader of the earlier ones, so those do not count
            overfit=min(overfit, self.generation - main_start),
        )
        return reached or ("seconds" if active_limit().left <= 0 else None)

    def _warn_skipped(self, what: str, failed: FailedTask) -> None:
        self._warn(
            f"generation {self.generation}: {what} is skipped: it crashed its worker "
            f"{failed.attempts} times ({failed.why})"
        )
