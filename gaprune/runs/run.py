"""One pruning run: calibration inputs, one-shot masks, search, final metrics."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gaprune.calibration.calibration_set import (
    CalibrationSet,
    draw_calibration_set,
    make_calibration_set,
)
from gaprune.calibration.samples import Samples
from gaprune.calibration.weighing import weighing
from gaprune.callbacks import Observer, WarnOnce
from gaprune.config import EVOLVED
from gaprune.criteria import CRITERIA, NUM_INPUTS
from gaprune.errors import GapruneError
from gaprune.evaluation.evaluator import Evaluator, ValidationScore
from gaprune.evaluation.forward_modes import StrictForward
from gaprune.evaluation.held_out import HeldOut
from gaprune.evaluation.labelled import check_test, is_language_model
from gaprune.evaluation.objectives import AUTO, accuracy, finite
from gaprune.evaluation.perplexity import perplexity
from gaprune.evolution.engine import Evolution
from gaprune.evolution.genome import Individual
from gaprune.evolution.search_plan import SearchPlan, SearchResult
from gaprune.evolution.seeding import baselines, kaiming_population
from gaprune.evolution.tasks import ValidateTask, derive_seed
from gaprune.models.forward import batched_forward
from gaprune.models.target import Target
from gaprune.models.time_limit import TimeIsUp, TimeLimit
from gaprune.pattern_names import LATENCY
from gaprune.profiling import profiled
from gaprune.records import BaselineScore, Generation
from gaprune.repair import repair, repaired_copy
from gaprune.report.data import confusion_of, report_data_of
from gaprune.runs.budget_check import check_budget
from gaprune.runs.checkpointer import Checkpointer, SavedSearch
from gaprune.runs.latency_budget import measure_latency
from gaprune.runs.layer_workers import layers_on_workers
from gaprune.runs.result import RepairedScore, Result
from gaprune.runs.setup import ResolvedSettings, make_evaluator, make_plan
from gaprune.runs.warnings import (
    baseline_warning,
    domain_warning,
    network_warnings,
    overfitting_warning,
    validation_warnings,
)
from gaprune.workers import FailedTask, Workers, on_device, open_workers
from gaprune.workers.serial import torch_threads

# Of a run whose time is over: passes of one input that all its inputs cost, fewest inputs, and
# passes of the validation inputs that a result takes after a search.
PASSES, FEW, FINISHING = 16, 8, 4


class _Outcome(NamedTuple):
    """What a run has computed."""

    seeds: list[Individual]  # one-shot masks
    scores: dict[str, ValidationScore]  # of the seeds, by mask key
    search: SearchResult | None


class PruningRun:
    """One network and the settings to prune it; `run` does it.

    `test` are labelled inputs for the final accuracy, and `base` is the run whose calibration
    inputs this one shares, at another sparsity. The time `limit` of a search begins here; a caller
    may replace it by one that began earlier. A one-shot method has none.

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
        self.observer = WarnOnce.of(observer)
        self.checkpointer = checkpointer or Checkpointer()
        self.test = None if test is None else check_test(test, target)
        self.earlier_seconds = 0.0  # in processes that this one continues
        self._started = time.monotonic()
        seconds = self.settings.seconds if self.settings.method == EVOLVED else None
        self.limit = TimeLimit(seconds)
        self._outcome: _Outcome | None = None
        self._calibration_set: CalibrationSet | None = None
        self._seeds: list[Individual] = []  # one-shot masks made so far
        self._scores: dict[str, ValidationScore] = {}  # of the seeds, by mask key, so far
        self._evolution: Evolution | None = None
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
        for text in network_warnings(target):
            observer.warning(text)
        threads = torch_threads(settings.threads_per_worker)
        with profiled("calibration"), threads, weighing(observer):
            calibration_set = self.checkpointer.load_calibration(target, self.generator)
            if calibration_set is None:
                observer.phase("calibration", "making the calibration inputs")
                calibration_set = make_calibration_set(target, settings, self.generator, observer)
                self.checkpointer.save_calibration(
                    target, settings, calibration_set, self.generator
                )
            self._calibration_set = calibration_set
            if target.inputs.in_memory:  # read by now; workers are not sent the caller's data
                inputs = replace(target.inputs, in_memory={})
                target = self.target = replace(target, inputs=inputs)
            evaluator = make_evaluator(target, self.resolved, calibration_set)
        domain = domain_warning(calibration_set.provenance, settings.method)
        for text in filter(None, [*validation_warnings(evaluator), domain]):
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
            try:
                with self.limit.active(self.target.model):
                    search = self._search()
            except TimeIsUp:
                search = self._cut_short()
            if search is not None:
                with profiled("validate"), torch_threads(settings.threads_per_worker):
                    text = overfitting_warning(
                        search,
                        self.evaluator,
                        settings.sparsity,
                        self.agreed,
                        front=settings.pareto,
                    )
                if text is not None:
                    self.observer.warning(text)
            seeds = self._scored_seeds
            self._outcome = _Outcome(seeds, self._scores, search)
            if text := baseline_warning({s.origin: self._scores[s.key].agreement for s in seeds}):
                self.observer.warning(text)
            result = self.make_result(self.test)
        if settings.budget == LATENCY:
            latency = measure_latency(self.target, result.masks, self.resolved)
            result = replace(result, latency=latency)
        return result

    def _search(self) -> SearchResult | None:
        """Make and score the one-shot masks and search from them; None with a one-shot method."""
        settings, evaluator = self.settings, self.evaluator
        saved = self._load_search()
        if saved is None:
            with layers_on_workers(self.resolved, evaluator.network, self.observer.warning):
                self.seeds(with_genes=settings.method == EVOLVED)
        else:
            self._seeds, self._scores = saved.seeds, saved.validation_scores
            self.limit.bring_forward(saved.seconds)
        if settings.method != EVOLVED:  # one mask needs no workers, and they keep freed memory
            for seed in self._seeds:
                self._score_here(seed)
            return None
        workers = open_workers(evaluator, self.resolved.worker_options, self.observer.warning)
        if saved is not None:
            self._evolution = self._make_evolution(workers)
            self._evolution.restore(saved.state)
        with self.checkpointer.saving_at_exit(), workers:
            if saved is None:
                self._validate(workers)
            self._evolution = self._evolution or self._make_evolution(workers)
            if self.resolved.preset.seeding == "baselines":
                return self._evolution.run(self._scored_seeds, self._scores)
            return self._evolution.run(self._random_population())

    @property
    def _scored_seeds(self) -> list[Individual]:
        return [seed for seed in self._seeds if seed.key in self._scores]

    def _cut_short(self) -> SearchResult | None:
        """Return the best of a search whose time is over; None if it has not begun.

        Then at least one of its one-shot masks is scored, on a few inputs if there are no others.
        """
        if self._evolution is not None and self._evolution.leaders:
            return self._evolution.result("seconds", self._scores)
        self.observer.warning(
            f"seconds: {self.settings.seconds:g} are over before the search, so the result is the "
            "best one-shot mask made until now; allow more, or use fewer inputs "
            "(--calibration-count) or other ones (--calibration=procedural)"
        )
        limit, settings = TimeLimit(self.limit.grace / 2), self.settings
        with torch_threads(settings.threads_per_worker):
            if "inputs" not in self.__dict__:
                self.inputs = self._few_inputs()
            self._seeds = self._seeds or list(self._baselines(("magnitude",), with_genes=False))
            for seed in sorted(self._seeds, key=lambda seed: seed.origin == "random"):
                if self._scores and limit.left <= 0:
                    break
                if seed.key not in self._scores:
                    self._score_here(seed)
        return None

    def _score_here(self, seed: Individual) -> None:
        """Score a one-shot mask on the validation inputs, in this process."""
        with profiled("validate"), torch_threads(self.settings.threads_per_worker):
            score = self._scores[seed.key] = self.evaluator.validate(seed.mask)
        self.observer.baseline(seed.origin, BaselineScore(score.agreement))

    def _few_inputs(self) -> tuple[CalibrationSet, Evaluator]:
        """Return as many inputs as the network can run in the time for finishing the result."""
        target = self.target
        with torch.no_grad():
            since = time.monotonic()
            target.model(target.example())
            passes = self.limit.grace / PASSES / max(time.monotonic() - since, 1e-9)
        count = int(min(max(passes, FEW), NUM_INPUTS))
        made = self._calibration_set or draw_calibration_set(target, count, self.generator)
        # generated inputs have no labels, which an objective may need; nothing is searched anyway
        settings = self.settings.model_copy(update={"objective": AUTO})
        few = made.first(count)
        return few, make_evaluator(target, replace(self.resolved, settings=settings), few)

    def seeds(self, *, with_genes: bool = True) -> list[Individual]:
        """Make every one-shot mask at this sparsity: the first population, and what it must beat.

        With `initial_criteria` these alone, with a one-shot method that one. Masks that are not
        searched, nor cut at other sparsities, need no genes.
        """
        settings = self.settings
        evolved = settings.method == EVOLVED
        stated = settings.initial_criteria if evolved else (settings.method,)
        only = None if stated is None else dict.fromkeys(stated)
        after = ", to be validated after repair" if settings.scores_corrected else ""
        what = "every data-free criterion" if only is None else " and ".join(only)
        self.observer.phase("baselines", f"scoring the weights with {what}{after}")
        self._seeds = []
        # all are drawn before the search draws anything
        for seed in self._baselines(only, with_genes=with_genes):
            self._seeds.append(seed)
            if seed.origin == settings.method:  # a variant of the same criterion may follow
                break
        if not self._seeds:
            argument = "initial_criteria" if evolved else "method"
            plain = [name for name, rule in CRITERIA.items() if not rule.takes_gradients]
            raise GapruneError(
                f"{argument}: {', '.join(map(repr, only or CRITERIA))} cannot be computed on this "
                f"network (see warnings); these need no gradients: {', '.join(plain)}"
            )
        return self._seeds

    def _baselines(self, only: Collection[str] | None, *, with_genes: bool) -> Iterator[Individual]:
        settings, evaluator = self.settings, self.evaluator
        return baselines(
            evaluator.network,
            evaluator.statistics_inputs,
            settings.sparsity,
            settings.scope,
            self.generator,
            gradients=self.resolved.preset.gradient or only is not None,
            only=only,
            ranked=evaluator,
            repairs=settings.repair or settings.compensate,
            rivals=not settings.pareto,  # a front consists of masks of the search alone
            with_genes=with_genes,
            warn=self.observer.warning,
        )

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

    def _validate(self, workers: Workers) -> None:
        """Score the one-shot masks on the validation inputs; leave out those that end workers."""
        tasks, since = [ValidateTask(seed.bits) for seed in self._seeds], time.monotonic()
        time_is_up: TimeIsUp | None = None
        try:
            results: Sequence[Any] = workers.run(tasks)
        except TimeIsUp as error:
            results, time_is_up = error.results, error
        for seed, score in zip(self._seeds, results, strict=False):
            if score is None:
                continue
            if isinstance(score, FailedTask):
                self.observer.warning(
                    f"{seed.origin} is left out: its mask ended the worker that scored it "
                    f"{score.attempts} times ({score.why})"
                )
                continue
            self.observer.baseline(seed.origin, BaselineScore(score.agreement))
            self._scores[seed.key] = score
        if time_is_up is not None:
            raise time_is_up
        if not self._scores:
            raise GapruneError(
                "workers: every mask ends the worker that scores it, see the warnings; "
                "try --workers=1 to see it happen in this process"
            )
        each = (time.monotonic() - since) * workers.count / len(tasks)
        self.limit.bring_forward(max(0.0, FINISHING * each - self.limit.grace))

    def _make_evolution(self, workers: Workers) -> Evolution:
        self.observer.phase("search", self.resolved.preset.description)

        def report(record: Generation) -> None:
            seconds = self.earlier_seconds + time.monotonic() - self._started
            self.checkpointer.record_generation(
                evolution, self._scored_seeds, self._scores, seconds
            )
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
        evolved = settings.method == EVOLVED
        # without a search, of a one-shot method or if no time was left: the best one-shot mask
        best = search.best if search else max(seeds, key=lambda seed: scores[seed.key])
        known = search.validation_score if search else scores[best.key]
        with profiled("validate"), torch_threads(settings.threads_per_worker):
            calibration = evaluator.strict.validate(best.mask, evaluator.search).agreement
            validation = known.agreement
            if not isinstance(evaluator.forward_mode, StrictForward):
                validation = evaluator.strict.validate(best.mask).agreement
        stopped = search.stopped if search else "seconds" if evolved else "one-shot"
        accuracies, confusion = self._accuracies(best, seeds, test)
        front = search.front if search else []
        report_data = report_data_of(evaluator, self.target.inputs, seeds, scores, best, confusion)
        # only now: every score above has needed a copy of the masked weights
        masks = evaluator.masks(best.mask)
        check_budget(self.target, self.plan, best, masks)
        repaired = compensated = None
        if settings.repair:
            repaired = self._corrected("repair", masks, validation, test)
        if settings.compensate:
            compensated = self._corrected("compensate", masks, validation, test)
        perplexities = self._perplexities(masks, test)
        seconds = self.earlier_seconds + time.monotonic() - self._started
        return Result(
            target=self.target.to("cpu"),
            masks=masks,
            method=settings.method,
            preset=settings.preset if evolved else None,
            origin=best.origin,
            sparsity=settings.sparsity,
            calibration_agreement=calibration,
            validation_agreement=validation,
            accuracy=accuracies.get("pruned"),
            dense_accuracy=accuracies.get("dense"),
            perplexity=perplexities,
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
            compensated=compensated,
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
            report_data=report_data,
            warnings=tuple(self.observer.warnings),
        )

    def _corrected(
        self, step: str, masks: Mapping[str, Tensor], strict: float, test: Samples | None
    ) -> RepairedScore:
        """Repair, or compensate and repair, the best network on the calibration inputs; score it.

        `strict` is its agreement on the validation inputs without.
        """
        evaluator, validation = self.evaluator, self.evaluator.validation
        self.observer.phase(step, "matching activations to those of the dense network")
        settings, compensate = self.settings, step == "compensate"
        with profiled("repair"), torch_threads(settings.threads_per_worker):
            inputs = evaluator.statistics_inputs
            result = repair(self.target, masks, inputs, settings.pattern if compensate else None)
            model = repaired_copy(self.target, masks, result)
            outputs = batched_forward(model, validation.inputs)
            value = evaluator.objective.agreement(outputs, validation.teacher, validation.labels)
            agreement = finite(float(value))
            tested = None if test is None else HeldOut(self.target, test).measure(model).accuracy
        for reason in result.skipped:
            self.observer.warning(f"not repaired: {reason}")
        if agreement < strict:
            self.observer.warning(
                f"{step}: lowers the agreement on the validation inputs from {strict:.1%} to "
                f"{agreement:.1%}: use the strict network, unless your own inputs say otherwise"
            )
        channels = settings.compensates_channels
        in_loop = channels if compensate else settings.repair_in_loop and not channels
        return RepairedScore(result, agreement, tested, in_loop)

    def _perplexities(
        self, masks: Mapping[str, Tensor], test: Samples | None
    ) -> dict[str, float] | None:
        """Return the perplexity of the dense and of the pruned language model on a test text."""
        if test is None or not is_language_model(self.target):
            return None
        self.observer.phase("test", f"measuring perplexity on {test.inputs.numel():,} tokens")
        ids = test.inputs.to(self.target.device)
        with profiled("test"), torch_threads(self.settings.threads_per_worker):
            dense = perplexity(self.target.model, ids)
            return {"dense": dense, "pruned": perplexity(self.target.masked_copy(masks), ids)}

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
