"""One pruning run: calibration inputs, one-shot masks, search, final metrics."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch

from gaprune.calibration.calibration_set import CalibrationSet, make_calibration_set
from gaprune.calibration.samples import Samples
from gaprune.callbacks import Observer
from gaprune.config import EVOLVED
from gaprune.errors import GapruneError
from gaprune.evaluation.evaluator import Evaluator, ValidationScore
from gaprune.evaluation.labelled import check_labelled
from gaprune.evolution.engine import Evolution
from gaprune.evolution.genome import Individual
from gaprune.evolution.search_plan import SearchPlan, SearchResult
from gaprune.evolution.seeding import baselines, kaiming_population
from gaprune.evolution.tasks import ValidateTask, derive_seed
from gaprune.models.target import Target
from gaprune.pattern_names import LATENCY
from gaprune.profiling import profiled
from gaprune.records import BaselineScore, Generation
from gaprune.report.data import report_data_of
from gaprune.runs.checkpointer import Checkpointer, SavedSearch
from gaprune.runs.final_metrics import FinalMetrics
from gaprune.runs.latency_budget import measure_latency
from gaprune.runs.result import Result
from gaprune.runs.setup import ResolvedSettings, make_evaluator, make_plan
from gaprune.runs.warnings import overfitting_warning, validation_warnings
from gaprune.workers import FailedTask, Workers, on_device, open_workers
from gaprune.workers.serial import torch_threads

NUM_CRITERION_INPUTS = 256  # calibration inputs for the criteria that need some


@dataclass(frozen=True)
class _Outcome:
    """One-shot masks, their validation scores by mask key, and the search, if there was one."""

    seeds: list[Individual]
    scores: dict[str, ValidationScore]
    search: SearchResult | None


class PruningRun:
    """One network and the settings to prune it; `run` does it.

    Args:
        target: the dense network.
        resolved: the settings.
        test: labelled inputs for the final accuracy, or None.
        observer: told of progress.
        checkpointer: writes the checkpoints, and has those of a run that is resumed.
        base: the run whose calibration inputs this one shares, at another sparsity.

    Raises:
        InputError: the test data does not fit the target.
    """

    def __init__(  # parts of a run, each by its own name
        self,
        target: Target,
        resolved: ResolvedSettings,
        test: Samples | None = None,
        observer: Observer | None = None,
        checkpointer: Checkpointer | None = None,
        base: PruningRun | None = None,
    ) -> None:
        self.target, self.resolved, self.settings = target, resolved, resolved.settings
        self.observer = observer or Observer()
        self.checkpointer = checkpointer or Checkpointer()
        self.test = None if test is None else check_labelled("test", test, target)
        self.earlier_seconds = 0.0  # in processes that this one continues
        self._started = time.monotonic()
        self._outcome: _Outcome | None = None
        self._shared_inputs: tuple[CalibrationSet, Evaluator] | None = None
        if base is None:
            self.generator = torch.Generator().manual_seed(derive_seed(self.settings.seed, "run"))
            self.agreed: list[float] = []  # sparsities without overfitting, of all runs of a base
        else:
            self._shared_inputs = base.inputs  # made before the state of the generator is copied
            self.generator, self.agreed = base.generator.clone_state(), base.agreed

    @cached_property
    def inputs(self) -> tuple[CalibrationSet, Evaluator]:
        """Calibration inputs, and the evaluator with the dense network's outputs on them."""
        if self._shared_inputs is not None:
            return self._shared_inputs
        target, settings, observer = self.target, self.settings, self.observer
        if target.inputs.assumed:
            observer.warning(
                "the value range of the inputs is not stated; 0 to 1 is assumed "
                "(--range LOW,HIGH or --mean and --std state it)"
            )
        with profiled("calibration"), torch_threads(settings.threads_per_worker):
            calibration_set = self.checkpointer.load_calibration(target, self.generator)
            if calibration_set is None:
                observer.phase("calibration", "making the calibration inputs")
                calibration_set = make_calibration_set(target, settings, self.generator, observer)
                self.checkpointer.save_calibration(
                    target, settings, calibration_set, self.generator
                )
            evaluator = make_evaluator(target, self.resolved, calibration_set)
        for text in validation_warnings(evaluator):
            observer.warning(text)
        return calibration_set, evaluator

    @cached_property
    def plan(self) -> SearchPlan:
        """The plan of the search."""
        return make_plan(self.target, self.resolved)

    @property
    def evaluator(self) -> Evaluator:
        """The calibration inputs with the dense network's outputs."""
        return self.inputs[1]

    def at(self, sparsity: float) -> PruningRun:
        """Return the run at another sparsity, with the same calibration inputs and no test data."""
        settings = self.settings.model_copy(update={"sparsity": sparsity, "max_drop": None})
        resolved = replace(self.resolved, settings=settings)
        return PruningRun(self.target, resolved, None, self.observer, self.checkpointer, base=self)

    def run(self) -> Result:
        """Do the run, or what is left of it."""
        settings = self.settings
        with on_device(str(self.target.device)):
            evaluator = self.evaluator
            saved = self._load_search()
            with profiled("baselines"), torch_threads(settings.threads_per_worker):
                seeds = self.seeds() if saved is None else saved.seeds
            options, warn = self.resolved.worker_options, self.observer.warning
            with (
                self.checkpointer.saving_at_exit(),
                open_workers(evaluator, options, warn) as workers,
            ):
                scores = (
                    self._validate(seeds, workers) if saved is None else saved.validation_scores
                )
                seeds = [seed for seed in seeds if seed.key in scores]
                search = None
                if settings.method == EVOLVED:
                    evolution = self._make_evolution(workers, seeds, scores)
                    if saved is not None:
                        evolution.restore(saved.state)
                    if self.resolved.preset.seeding == "baselines":
                        search = evolution.run(seeds, scores)
                    else:
                        search = evolution.run(self._random_population())
            if search is not None:
                self._warn_if_overfitting(search)
            self._outcome = _Outcome(seeds, scores, search)
            result = self.make_result(self.test)
        if settings.budget == LATENCY:
            latency = measure_latency(self.target, result.masks, self.resolved)
            result = replace(result, latency=latency.record())
        return result

    def seeds(self) -> list[Individual]:
        """Make every one-shot mask at this sparsity: the first population, and what it must beat.

        With `initial_criteria` these alone; with a one-shot method that one, and magnitude.
        """
        settings, evaluator = self.settings, self.evaluator
        evolved = settings.method == EVOLVED
        stated = settings.initial_criteria if evolved else (settings.method, "magnitude")
        only = None if stated is None else dict.fromkeys(stated)
        after = ", to be validated after repair" if settings.repair_in_loop else ""
        what = "every data-free criterion" if only is None else " and ".join(only)
        self.observer.phase("baselines", f"scoring the weights with {what}{after}")
        masks = baselines(
            evaluator.network,
            evaluator.statistics_inputs[:NUM_CRITERION_INPUTS],
            settings.sparsity,
            settings.scope,
            self.generator,
            gradients=self.resolved.preset.gradient or only is not None,
            only=only,
            ranked=evaluator,
            warn=self.observer.warning,
        )
        return list(masks)  # they share the generator, so all are drawn before the search begins

    def _load_search(self) -> SavedSearch | None:
        settings = self.settings
        if settings.method != EVOLVED:
            return None
        is_one_of_several = self._shared_inputs is not None
        saved = self.checkpointer.load_search(
            self.plan, settings.sparsity if is_one_of_several else None
        )
        if saved is None:
            return None
        self.earlier_seconds = saved.seconds
        for seed in saved.seeds:
            score = saved.validation_scores[seed.key]
            self.observer.baseline(seed.origin, BaselineScore(score.agreement))
        self.observer.phase("resume", f"from the checkpoint of generation {saved.state.generation}")
        return saved

    def _validate(self, seeds: list[Individual], workers: Workers) -> dict[str, ValidationScore]:
        """Score the one-shot masks on the validation inputs; leave out those that end workers."""
        scores = {}
        results = workers.run([ValidateTask(seed.bits) for seed in seeds])
        for seed, score in zip(seeds, results, strict=True):
            if isinstance(score, FailedTask):
                self.observer.warning(
                    f"{seed.origin} is left out: its mask ended the worker that scored it "
                    f"{score.attempts} times ({score.why})"
                )
                continue
            self.observer.baseline(seed.origin, BaselineScore(score.agreement))
            scores[seed.key] = score
        if not scores:
            raise GapruneError(
                "workers: every mask ends the worker that scores it, see the warnings; "
                "try --workers 1 to see it happen in this process"
            )
        return scores

    def _make_evolution(
        self,
        workers: Workers,
        seeds: list[Individual],
        scores: dict[str, ValidationScore],
    ) -> Evolution:
        self.observer.phase("search", self.resolved.preset.description)

        def report(record: Generation) -> None:
            seconds = self.earlier_seconds + time.monotonic() - self._started
            self.checkpointer.record_generation(evolution, seeds, scores, seconds)
            self.observer.generation(record, self.plan.limits.generations)

        evolution = Evolution(self.plan, workers, report, self.observer.warning)
        return evolution

    def _random_population(self) -> list[Individual]:
        plan, settings = self.plan, self.settings
        genes = kaiming_population(
            plan.layout, settings.sparsity, settings.scope, plan.population, self.generator
        )
        return [Individual.from_genes(random, plan.layout, "kaiming") for random in genes]

    def _warn_if_overfitting(self, search: SearchResult) -> None:
        settings = self.settings
        with profiled("validate"), torch_threads(settings.threads_per_worker):
            text = overfitting_warning(
                search, self.evaluator, settings.sparsity, self.agreed, front=settings.pareto
            )
        if text is not None:
            self.observer.warning(text)

    def make_result(self, test: Samples | None, *, interrupted: bool = False) -> Result:
        """Return the result of a run that has ended.

        Args:
            test: labelled inputs for the accuracy, or None.
            interrupted: whether the user ended a search of several.
        """
        settings, (calibration_set, evaluator) = self.settings, self.inputs
        assert self._outcome is not None, "run() comes first"
        seeds, scores, search = self._outcome.seeds, self._outcome.scores, self._outcome.search
        if search is not None and interrupted:
            search = replace(search, stopped="interrupted")
        best = search.best if search else self._requested(seeds)
        with profiled("validate"), torch_threads(settings.threads_per_worker):
            calibration = evaluator.strict.validate(best.mask, evaluator.search).agreement
            validation = evaluator.strict.validate(best.mask, evaluator.validation).agreement
        metrics = FinalMetrics(self.target, settings, test, self.observer, evaluator, best)
        stopped = search.stopped if search else "one-shot"
        accuracy, confusion = metrics.accuracies([] if stopped == "interrupted" else seeds)
        front = search.front if search else []
        repaired = metrics.repaired(validation) if settings.repair else None
        seconds = self.earlier_seconds + time.monotonic() - self._started
        return Result(
            target=self.target.to("cpu"),
            masks=evaluator.masks(best.mask),
            method=settings.method,
            preset=settings.preset if search else None,
            origin=best.origin,
            sparsity=settings.sparsity,
            calibration_agreement=calibration,
            validation_agreement=validation,
            accuracy=accuracy.get("pruned"),
            dense_accuracy=accuracy.get("dense"),
            baselines={
                seed.origin: BaselineScore(scores[seed.key].agreement, accuracy.get(seed.origin))
                for seed in seeds
            },
            provenance=calibration_set.provenance,
            history=search.history if search else (),
            stopped=stopped,
            evaluations=search.evaluations if search else 0,
            settings=settings.model_dump(mode="json"),
            repaired=repaired,
            seconds=seconds,
            front=[
                _front_point(individual, evaluator, search.validation_scores)
                for individual in front
            ]
            if search
            else (),
            front_masks=[evaluator.masks(individual.mask) for individual in front],
            report_data=report_data_of(
                evaluator, self.target.inputs, seeds, scores, best, confusion
            ),
        )

    def _requested(self, seeds: list[Individual]) -> Individual:
        for seed in seeds:
            if seed.origin == self.settings.method:
                return seed
        raise GapruneError(
            f"method: {self.settings.method!r} cannot be computed on this network (see warnings); "
            f"these can: {', '.join(seed.origin for seed in seeds)}"
        )


def _front_point(
    individual: Individual, evaluator: Evaluator, scores: Mapping[str, ValidationScore]
) -> dict[str, float]:
    return {
        "sparsity": 1 - individual.keep / evaluator.layout.dense_cost,
        "validation": scores[individual.key].agreement,
    }
