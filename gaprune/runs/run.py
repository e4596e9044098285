"""One pruning run: calibration inputs, one-shot masks, search, final metrics."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import torch

from gaprune.calibration.calibration_set import CalibrationSet, make_calibration_set
from gaprune.calibration.samples import Samples
from gaprune.callbacks import Observer
from gaprune.config import EVOLVED
from gaprune.errors import GapruneError
from gaprune.evaluation.evaluator import Evaluator, ValidationScore
from gaprune.evaluation.held_out import HeldOut
from gaprune.evaluation.labelled import check_labelled
from gaprune.evaluation.objectives import accuracy, finite
from gaprune.evolution.engine import Evolution
from gaprune.evolution.genome import Individual
from gaprune.evolution.search_plan import SearchPlan, SearchResult
from gaprune.evolution.seeding import baselines, kaiming_population
from gaprune.evolution.tasks import ValidateTask, derive_seed
from gaprune.models.forward import batched_forward
from gaprune.models.target import Target
from gaprune.pattern_names import LATENCY
from gaprune.profiling import profiled
from gaprune.records import BaselineScore, Generation
from gaprune.repair import repair, repaired_copy
from gaprune.report.data import confusion_of, report_data_of
from gaprune.runs.checkpointer import Checkpointer, SavedSearch
from gaprune.runs.latency_budget import measure_latency
from gaprune.runs.result import RepairedScore, Result
from gaprune.runs.setup import ResolvedSettings, make_evaluator, make_plan
from gaprune.runs.warnings import overfitting_warning, validation_warnings
from gaprune.workers import FailedTask, Workers, on_device, open_workers
from gaprune.workers.serial import torch_threads

NUM_CRITERION_INPUTS = 256  # calibration inputs for the criteria that need some


class _Outcome(NamedTuple):
    """What a run has computed."""

    seeds: list[Individual]  # one-shot masks
    scores: dict[str, ValidationScore]  # of the seeds, by mask key
    search: SearchResult | None


class PruningRun:
    """One network and the settings to prune it; `run` does it.

    `test` are labelled inputs for the final accuracy, and `base` is the run whose calibration
    inputs this one shares, at another sparsity.

    Raises:
        InputError: the test data does not fit the target.
    """

    def __init__(
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
                with profiled("validate"), torch_threads(settings.threads_per_worker):
                    text = overfitting_warning(
                        search, evaluator, settings.sparsity, self.agreed, front=settings.pareto
                    )
                if text is not None:
                    warn(text)
            self._outcome = _Outcome(seeds, scores, search)
            result = self.make_result(self.test)
        if settings.budget == LATENCY:
            latency = measure_latency(self.target, result.masks, self.resolved)
            result = replace(result, latency=latency)
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
        if self.settings.method != EVOLVED:
            return None
        # one of several searches has its own folder of checkpoints
        sparsity = None if self._shared_inputs is None else self.settings.sparsity
        saved = self.checkpointer.load_search(self.plan, sparsity)
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

    def make_result(self, test: Samples | None, *, interrupted: bool = False) -> Result:
        """Return the result of a run that has ended, or (one search of several) was interrupted."""
        settings, (calibration_set, evaluator) = self.settings, self.inputs
        assert self._outcome is not None, "run() comes first"
        seeds, scores, search = self._outcome
        if search is not None and interrupted:
            search = replace(search, stopped="interrupted")
        best = search.best if search else self._requested(seeds)
        with profiled("validate"), torch_threads(settings.threads_per_worker):
            calibration = evaluator.strict.validate(best.mask, evaluator.search).agreement
            validation = evaluator.strict.validate(best.mask, evaluator.validation).agreement
        stopped = search.stopped if search else "one-shot"
        measured = [] if stopped == "interrupted" else seeds
        accuracies, confusion = self._accuracies(best, measured, test)
        front = search.front if search else []
        repaired = self._repaired(best, validation, test) if settings.repair else None
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
            accuracy=accuracies.get("pruned"),
            dense_accuracy=accuracies.get("dense"),
            baselines={
                seed.origin: BaselineScore(scores[seed.key].agreement, accuracies.get(seed.origin))
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
                {
                    "sparsity": 1 - individual.keep / evaluator.layout.dense_cost,
                    "validation": search.validation_scores[individual.key].agreement,
                }
                for individual in front
                if search
            ],
            front_masks=[evaluator.masks(individual.mask) for individual in front],
            report_data=report_data_of(
                evaluator, self.target.inputs, seeds, scores, best, confusion
            ),
        )

    def _repaired(self, best: Individual, strict: float, test: Samples | None) -> RepairedScore:
        """Repair the best network on the calibration inputs, and score it.

        `strict` is its agreement on the validation inputs without repair.
        """
        evaluator, validation = self.evaluator, self.evaluator.validation
        self.observer.phase("repair", "matching activations to those of the dense network")
        with profiled("repair"), torch_threads(self.settings.threads_per_worker):
            masks = evaluator.masks(best.mask)
            result = repair(self.target, masks, evaluator.statistics_inputs)
            model = repaired_copy(self.target, masks, result)
            outputs = batched_forward(model, validation.inputs)
            value = evaluator.objective.agreement(outputs, validation.teacher, validation.labels)
            agreement = finite(float(value))
            tested = None if test is None else HeldOut(self.target, test).measure(model).accuracy
        for reason in result.skipped:
            self.observer.warning(f"not repaired: {reason}")
        if agreement < strict:
            self.observer.warning(
                f"repair lowers the agreement on the validation inputs from {strict:.1%} to "
                f"{agreement:.1%}: use the strict network, unless your own inputs say otherwise"
            )
        return RepairedScore(result, agreement, tested, self.settings.repair_in_loop)

    def _accuracies(
        self, best: Individual, seeds: list[Individual], test: Samples | None
    ) -> tuple[dict[str, float], dict[str, Any] | None]:
        """Measure the accuracy on labelled test data, after all choices are made.

        Returns:
            `dense`, `pruned` or the origin of a seed → accuracy in [0, 1], and the confusion matrix
            (`confusion_of`); nothing and None without test data.
        """
        if test is None or test.labels is None:
            return {}, None
        evaluator = self.evaluator
        self.observer.phase("test", f"measuring accuracy on {len(test.inputs)} labelled inputs")
        inputs, labels = test.inputs.to(self.target.device), test.labels.to(self.target.device)
        with profiled("test"), torch_threads(self.settings.threads_per_worker):
            dense = batched_forward(evaluator.network.model, inputs)
            outputs = {"dense": dense, "pruned": evaluator.outputs(best.mask, inputs)}
            confusion = confusion_of(labels, **outputs)
            rows = {name: float(accuracy(out, dense, labels)) for name, out in outputs.items()}
            for seed in seeds:
                out = evaluator.validation_outputs(seed.mask, inputs)
                rows[seed.origin] = float(accuracy(out, dense, labels))
        return rows, confusion

    def _requested(self, seeds: list[Individual]) -> Individual:
        for seed in seeds:
            if seed.origin == self.settings.method:
                return seed
        raise GapruneError(
            f"method: {self.settings.method!r} cannot be computed on this network (see warnings); "
            f"these can: {', '.join(seed.origin for seed in seeds)}"
        )
