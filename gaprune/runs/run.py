"""One run from start to end: calibration inputs, baselines, search, repair, what came of it."""

from __future__ import annotations

import copy
import time
from dataclasses import replace
from functools import cached_property

import torch

from gaprune.calibration.calibration_set import CalibrationSet, make_calibration_set
from gaprune.calibration.samples import Samples
from gaprune.callbacks import Observer
from gaprune.config import EVOLVED, Settings
from gaprune.errors import GapruneError
from gaprune.evaluation.evaluator import Evaluator, ValidationScore
from gaprune.evaluation.labelled import check_labelled
from gaprune.evolution.engine import Evolution
from gaprune.evolution.genome import Individual
from gaprune.evolution.search_plan import SearchResult
from gaprune.evolution.seeding import baselines, kaiming_population
from gaprune.evolution.tasks import ValidateTask, derive_seed
from gaprune.models.target import Target
from gaprune.profiling import profiled
from gaprune.records import BaselineScore, Generation
from gaprune.report.data import report_data_of
from gaprune.runs.checkpointer import Checkpointer, SavedSearch, SearchCheckpointer
from gaprune.runs.final_metrics import FinalMetrics
from gaprune.runs.resolve_settings import check_settings, resolve_settings
from gaprune.runs.result import Result
from gaprune.runs.setup import make_evaluator, make_plan
from gaprune.runs.warnings import advise, doubts
from gaprune.workers import FailedTask, WorkerOptions, Workers, open_workers
from gaprune.workers.serial import torch_threads

Judged = tuple[list[Individual], dict[str, ValidationScore]]
"""The one-shot masks, and mask key → how each does on the validation inputs."""

CRITERION_INPUTS = 256  # inputs shown to the criteria that need some


class PruningRun:
    """One network, its settings, and what comes of them; the methods follow the flow of the data.

    Args:
        target: the dense network.
        settings: how to prune it.
        test: labelled inputs for the final accuracy, or None.
        observer: told of progress.
        checkpointer: keeps what the run needs to go on in another process; where it goes on, the settings
            are those that it kept.

    Raises:
        InputError: a setting does not fit the target; nothing has been computed then.
    """

    def __init__(
        self,
        target: Target,
        settings: Settings,
        test: Samples | None,
        observer: Observer,
        checkpointer: Checkpointer | None = None,
    ) -> None:
        self.started = time.monotonic()
        self.checkpointer = checkpointer or Checkpointer()
        self.preset = check_settings(settings)
        if not self.checkpointer.resumed:
            with profiled("settings"):
                settings = resolve_settings(settings, self.preset, target)
        self.settings = settings
        self.target, self.observer = target, observer
        self.test = None if test is None else check_labelled("test", test, target)
        self.generator = torch.Generator().manual_seed(derive_seed(settings.seed, "run"))
        self.agreed: list[float] = []  # where search and validation did not part, shared by `at`
        self.earlier = 0.0  # seconds, in other processes
        self.level: float | None = None  # the sparsity, where it is one of several

    @cached_property
    def shown(self) -> tuple[CalibrationSet, Evaluator]:
        """Make the calibration inputs and let the dense network answer; once for all sparsities."""
        settings, target = self.settings, self.target
        if target.inputs.assumed:
            self.observer.warning(
                "the value range of the inputs is not stated; 0 to 1 is assumed "
                "(--range LOW,HIGH or --mean and --std say it)"
            )
        with profiled("calibration"), torch_threads(settings.threads_per_worker):
            plan = self.checkpointer.calibration(target, self.generator)
            if plan is None:
                self.observer.phase(
                    "calibration", "making the inputs that are shown to the network"
                )
                plan = make_calibration_set(target, settings, self.generator, self.observer)
                self.checkpointer.save_calibration(target, settings, plan, self.generator)
            evaluator = make_evaluator(target, settings, self.preset, plan)
        for said in doubts(evaluator):
            self.observer.warning(said)
        return plan, evaluator

    @property
    def seconds(self) -> float:
        """How long the run has taken until now."""
        return self.earlier + time.monotonic() - self.started

    @property
    def evaluator(self) -> Evaluator:
        """The calibration inputs with the dense network's answers."""
        return self.shown[1]

    def at(self, sparsity: float) -> PruningRun:
        """Return a run at another sparsity, on the same calibration inputs: what `prune` does there.

        It has no test data; see `tested`.
        """
        assert self.shown  # made before the generator is copied, so that no copy makes them
        one = copy.copy(self)
        one.started, one.earlier, one.test, one.level = time.monotonic(), 0.0, None, sparsity
        one.settings = self.settings.replace(sparsity=sparsity, max_drop=None)
        one.generator = self.generator.clone_state()
        return one

    def tested(self, test: Samples, *, interrupted: bool) -> Result:
        """Return the result of a run that has ended once more, measured on labelled inputs."""
        self.test = test
        seeds, validation_scores, outcome = self._found
        if interrupted and outcome is not None:
            outcome = replace(outcome, stopped="interrupted")
        return self._result(self.evaluator, self.shown[0], seeds, validation_scores, outcome)

    def result(self) -> Result:
        """Do it all, or what is left of it."""
        plan, evaluator = self.shown
        settings = self.settings
        checkpointer = self.checkpointer.search(self.level)
        kept = self._kept(checkpointer)
        with profiled("baselines"), torch_threads(settings.threads_per_worker):
            seeds = self.seeds() if kept is None else kept.seeds
        with (
            checkpointer.watch(),
            open_workers(
                evaluator, WorkerOptions.from_settings(settings), self.observer.warning
            ) as workers,
        ):
            validation_scores = (
                self._judge_baselines(seeds, workers) if kept is None else kept.validation_scores
            )
            seeds = [seed for seed in seeds if seed.key in validation_scores]
            outcome = self._search(workers, checkpointer, kept, (seeds, validation_scores))
        if outcome is not None:
            self._warn_if_parted(outcome)
        self._found = seeds, validation_scores, outcome
        return self._result(evaluator, plan, seeds, validation_scores, outcome)

    def seeds(self) -> list[Individual]:
        """Make every baseline at this budget; they seed the search and are what it must beat.

        Where starts are stated: these. Where a criterion is asked for and nothing is searched: that
        one, and magnitude beside it.
        """
        evaluator, method = self.evaluator, self.settings.method
        stated = self.settings.initial_criteria if method == EVOLVED else (method, "magnitude")
        only = None if stated is None else dict.fromkeys(stated)
        after = ", to be judged after repair" if self.settings.repair_in_loop else ""
        what = "every data-free criterion" if only is None else " and ".join(only)
        self.observer.phase("baselines", f"scoring the weights with {what}{after}")
        found = baselines(
            evaluator.network,
            evaluator.statistics_inputs[:CRITERION_INPUTS],
            self.settings.sparsity,
            self.settings.scope,
            self.generator,
            gradients=self.preset.gradient or only is not None,
            only=only,
            ranked=evaluator,
            warn=self.observer.warning,
        )
        return [Individual.from_genes(one.genes, evaluator.layout, one.name) for one in found]

    def _judge_baselines(
        self, seeds: list[Individual], workers: Workers
    ) -> dict[str, ValidationScore]:
        """Judge the seeds on the validation inputs; those that take down their workers are left out."""
        found: list[ValidationScore | FailedTask] = workers.run(
            [ValidateTask(seed.bits) for seed in seeds]
        )
        validation_scores = {}
        for seed, validation_score in zip(seeds, found, strict=True):
            if isinstance(validation_score, FailedTask):
                self.observer.warning(
                    f"{seed.origin} is left out, its mask took down the worker that judged it "
                    f"{validation_score.attempts} times ({validation_score.why})"
                )
                continue
            self.observer.baseline(seed.origin, BaselineScore(validation_score.agreement))
            validation_scores[seed.key] = validation_score
        if not validation_scores:
            raise GapruneError(
                "workers: every mask takes down the worker that judges it, as the warnings say; "
                "try --workers 1 to see it happen here"
            )
        return validation_scores

    def _kept(self, checkpointer: SearchCheckpointer) -> SavedSearch | None:
        """Return what an earlier process kept of this search, and say from where it goes on."""
        if self.settings.method != EVOLVED:
            return None
        kept = checkpointer.last(make_plan(self.target, self.settings, self.preset))
        if kept is None:
            return None
        self.earlier = kept.seconds
        for seed in kept.seeds:
            score = BaselineScore(kept.validation_scores[seed.key].agreement)
            self.observer.baseline(seed.origin, score)
        self.observer.phase("resume", f"generation {kept.search.generation} was kept")
        return kept

    def _search(
        self,
        workers: Workers,
        checkpointer: SearchCheckpointer,
        kept: SavedSearch | None,
        judged: Judged,
    ) -> SearchResult | None:
        """Evolve, or return None where a one-shot method was asked for."""
        settings, preset = self.settings, self.preset
        if settings.method != EVOLVED:
            return None
        self.observer.phase("search", preset.description)
        plan = make_plan(self.target, settings, preset)
        seeds, validation_scores = judged

        def report(record: Generation) -> None:
            checkpointer.note(evolution, seeds, validation_scores, self.seconds)
            self.observer.generation(record, plan.limits.generations)

        evolution = Evolution(plan, workers, report, self.observer.warning)
        if kept is not None:
            evolution.restore(kept.search)
        if preset.seeding == "baselines":
            return evolution.run(seeds, validation_scores)
        genes = kaiming_population(
            plan.layout, settings.sparsity, settings.scope, plan.population, self.generator
        )
        return evolution.run([Individual.from_genes(one, plan.layout, "kaiming") for one in genes])

    def _warn_if_parted(self, outcome: SearchResult) -> None:
        """Say when the search still gains while the validation inputs loses: it has learnt its own calibration inputs."""
        settings = self.settings
        with profiled("validate"), torch_threads(settings.threads_per_worker):
            advice = advise(
                outcome, self.evaluator, settings.sparsity, self.agreed, front=settings.pareto
            )
        if advice is not None:
            self.observer.warning(advice)

    def _result(
        self,
        evaluator: Evaluator,
        plan: CalibrationSet,
        seeds: list[Individual],
        validation_scores: dict[str, ValidationScore],
        outcome: SearchResult | None,
    ) -> Result:
        settings = self.settings
        best = outcome.best if outcome else self._asked(seeds)
        strict = evaluator.strict
        with profiled("validate"), torch_threads(settings.threads_per_worker):
            search = strict.validate(best.mask, evaluator.search).agreement
            validation = strict.validate(best.mask, evaluator.validation).agreement
        interrupted = outcome is not None and outcome.stopped == "interrupted"
        figures = FinalMetrics(self.target, settings, self.test, self.observer, evaluator, best)
        tested, confusion = figures.tested([] if interrupted else seeds)
        repaired = figures.repaired(validation) if settings.repair else None
        return Result(
            target=self.target,
            masks=evaluator.masks(best.mask),
            method=settings.method,
            preset=settings.preset if outcome else None,
            origin=best.origin,
            sparsity=settings.sparsity,
            calibration_agreement=search,
            validation_agreement=validation,
            accuracy=tested.get("pruned"),
            dense_accuracy=tested.get("dense"),
            baselines={
                seed.origin: BaselineScore(
                    validation_scores[seed.key].agreement, tested.get(seed.origin)
                )
                for seed in seeds
            },
            provenance=plan.provenance,
            history=outcome.history if outcome else (),
            stopped=outcome.stopped if outcome else "one-shot",
            evaluations=outcome.evaluations if outcome else 0,
            seconds=self.seconds,
            settings=settings.model_dump(mode="json"),
            repaired=repaired,
            front=[
                {
                    "sparsity": 1 - one.keep / evaluator.layout.dense_cost,
                    "validation": outcome.validation_scores[one.key].agreement,
                }
                for one in outcome.front
            ]
            if outcome
            else (),
            front_masks=[evaluator.masks(one.mask) for one in outcome.front] if outcome else (),
            report_data=report_data_of(
                evaluator, self.target.inputs, seeds, validation_scores, best, confusion
            ),
        )

    def _asked(self, seeds: list[Individual]) -> Individual:
        for seed in seeds:
            if seed.origin == self.settings.method:
                return seed
        raise GapruneError(
            f"method: {self.settings.method!r} cannot be computed on this network (the warning "
            f"says why); these can: {', '.join(seed.origin for seed in seeds)}"
        )
