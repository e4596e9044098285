"""From a target and settings to a result: probes, baselines, search, final figures."""

from __future__ import annotations

import os
import platform
import time
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

from gaprune.bench import Bench, Shown, Verdict, answers
from gaprune.budget import SCOPES, keep_total
from gaprune.config import EVOLVED, Settings, make_settings
from gaprune.cost import macs_per_input, suitable_batch
from gaprune.errors import InputError, unknown_name
from gaprune.evolution.breeding import Judge, derive_seed
from gaprune.evolution.engine import Evolution, Outcome, Plan
from gaprune.evolution.genome import Individual
from gaprune.evolution.gradient import Refinement
from gaprune.evolution.presets import Preset, find_preset
from gaprune.evolution.seeding import baselines, kaiming_population
from gaprune.input_options import InputOptions
from gaprune.objectives import accuracy, find_objective
from gaprune.observe import Observer, Silence
from gaprune.probes.plan import ProbePlan, plan_probes
from gaprune.probes.samples import Samples
from gaprune.records import BaselineScore
from gaprune.result import Result
from gaprune.saliency import SALIENCIES, Network
from gaprune.target import Target, target_from_module
from gaprune.workers import Workers, open_workers
from gaprune.workers.serial import torch_threads
from gaprune.zoo import mnist

RUNG_FRACTION = 4  # the first rung of the race has one in so many search probes
SALIENCY_PROBES = 256  # inputs shown to the criteria that need some
PARTED = 0.02  # agreement on the guard lost between the best there and the leader of the search


def prune(
    model: nn.Module,
    *,
    sparsity: float,
    inputs: InputOptions | None = None,
    test: tuple[Tensor, Tensor] | None = None,
    prune_also: tuple[str, ...] = (),
    observer: Observer | None = None,
    **settings: Any,
) -> Result:
    """Prune a pretrained network without its training data; the network itself is not changed.

    Args:
        model: any trained network that takes one tensor and returns one.
        sparsity: fraction of its prunable weights to remove, in (0, 1).
        inputs: shape, range, normalisation of one input; the shape can be left out where the
            first layer is linear or an embedding.
        test: inputs `[N, …]` as the network takes them and int64 labels `[N]`, for the final
            accuracy only; they never reach the search.
        prune_also: further parameters to prune, by qualified name.
        observer: told of progress.
        settings: any other field of `Settings` (preset, probes, seed, workers, …).

    Returns:
        The result; `result.pruned_model()` is the pruned copy, `result.save(folder)` a run folder.

    Raises:
        InputError: a setting or the network breaks a rule; the message says which.

    >>> import torch
    >>> from gaprune.input_options import InputOptions
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    >>> found = prune(net, sparsity=0.5, inputs=InputOptions(range=(0, 1)), generations=1, steps=2)
    >>> found.kept, found.target.layout.total
    (88, 176)
    """
    chosen = make_settings({"sparsity": sparsity, **settings})
    target = target_from_module(model, inputs=inputs or InputOptions(), prune_also=prune_also)
    labelled = None if test is None else Samples(*test, "test data given by the caller")
    return prune_target(target, chosen, test=labelled, observer=observer)


def prune_target(
    target: Target,
    settings: Settings,
    *,
    test: Samples | None = None,
    observer: Observer | None = None,
) -> Result:
    """Prune a loaded target; see `prune`.

    Raises:
        InputError: a setting does not fit the target; nothing has been computed then.
    """
    return _Run(target, settings, test, observer or Silence()).result()


def check_settings(settings: Settings) -> Preset:
    """Check the names that settings hold and return the preset.

    Raises:
        InputError: an unknown preset, scope or method.
    """
    preset = find_preset(settings.preset)
    if settings.scope not in SCOPES:
        raise unknown_name("scope", settings.scope, SCOPES)
    if settings.method != EVOLVED and settings.method not in SALIENCIES:
        raise unknown_name("method", settings.method, [EVOLVED, *SALIENCIES])
    return preset


def resolve_settings(settings: Settings, preset: Preset) -> Settings:
    """Fill what the user left open with what the preset uses."""
    stated = settings.model_fields_set
    changes: dict[str, Any] = {
        name: value for name, value in preset.defaults.items() if getattr(settings, name) is None
    }
    for name in ("scope", "objective"):
        value = getattr(preset, name)
        if value is not None and name not in stated:
            changes[name] = value
    return settings.replace(**changes)


class _Run:
    """One run; the methods follow the flow of the data."""

    def __init__(
        self, target: Target, settings: Settings, test: Samples | None, observer: Observer
    ) -> None:
        self.started = time.monotonic()
        self.preset = check_settings(settings)
        self.settings = resolve_settings(settings, self.preset)
        self.target, self.test, self.observer = target, test, observer
        self.layout = target.layout
        keep_total(self.layout, self.settings.sparsity)
        self.generator = torch.Generator().manual_seed(derive_seed(self.settings.seed, "run"))

    def result(self) -> Result:
        """Do it all."""
        if self.target.inputs.assumed:
            self.observer.warning(
                "the value range of the inputs is not stated; 0 to 1 is assumed "
                "(--range LOW,HIGH or --mean and --std say it)"
            )
        settings = self.settings
        with torch_threads(settings.threads):
            self.observer.phase("probes", "making the inputs that are shown to the network")
            plan = plan_probes(self.target, settings, self.generator)
            bench = self._bench(plan)
            seeds = self._seeds(bench)
        with open_workers(bench, settings.workers, settings.threads) as workers:
            verdicts = self._judge_baselines(seeds, workers)
            outcome = self._search(bench, seeds, verdicts, workers)
        return self._finish(bench, plan, seeds, verdicts, outcome)

    def _bench(self, plan: ProbePlan) -> Bench:
        target = self.target
        search, guard = _shown(target, plan.search), _shown(target, plan.guard)
        if self.preset.gradient and self.settings.batch is None:
            batch = suitable_batch(macs_per_input(target.model, search.inputs[:1]))
            self.settings = self.settings.replace(batch=batch)
        objective = find_objective(self.settings.objective, search.teacher)
        if objective.needs_labels and search.labels is None:
            raise InputError(
                f"objective: {objective.name!r} needs labelled probes and these have no labels; "
                "give --probes labelled:FILE, or use the objective 'kl'"
            )
        if self.preset.gradient and objective.loss is None and self.settings.method == EVOLVED:
            raise InputError(
                f"objective: {objective.name!r} is a black box without gradients; "
                "use it with --preset black-box"
            )
        count = len(search.inputs)
        return Bench(
            model=target.model,
            weights=target.weights,
            layout=self.layout,
            objective=objective,
            search=search,
            guard=guard,
            fresh=plan.fresh,
            pool=None
            if plan.pool is None or not self.preset.gradient
            else _shown(target, plan.pool),
            pool_share=plan.pool_share,
            rungs=(max(1, count // RUNG_FRACTION), count),
        )

    def _seeds(self, bench: Bench) -> list[Individual]:
        """Make every baseline at this budget; they seed the search and are what it must beat."""
        self.observer.phase("baselines", "scoring the weights with every data-free criterion")
        target = self.target
        found = baselines(
            Network(target.model, target.weights, target.layout, target.inputs),
            bench.search.inputs[:SALIENCY_PROBES],
            self.settings.sparsity,
            self.settings.scope,
            self.generator,
            gradients=self.preset.gradient or self.settings.method != EVOLVED,
            warn=self.observer.warning,
        )
        return [Individual(one.genes, self.layout, one.name) for one in found]

    def _judge_baselines(self, seeds: list[Individual], workers: Workers) -> dict[str, Verdict]:
        verdicts: list[Verdict] = workers.run([Judge.of(seed.mask) for seed in seeds])
        for seed, verdict in zip(seeds, verdicts, strict=True):
            self.observer.baseline(seed.origin, BaselineScore(verdict.agreement))
        return {seed.key: verdict for seed, verdict in zip(seeds, verdicts, strict=True)}

    def _search(
        self,
        bench: Bench,
        seeds: list[Individual],
        verdicts: dict[str, Verdict],
        workers: Workers,
    ) -> Outcome | Individual:
        settings, preset = self.settings, self.preset
        if settings.method != EVOLVED:
            return next(seed for seed in seeds if seed.origin == settings.method)
        self.observer.phase("search", preset.description)
        evolution = Evolution(
            self._plan(bench),
            workers,
            lambda record: self.observer.generation(record, settings.generations),
        )
        if preset.seeding == "baselines":
            return evolution.run(seeds, verdicts)
        genes = kaiming_population(
            self.layout,
            settings.sparsity,
            settings.scope,
            evolution.plan.population,
            self.generator,
        )
        return evolution.run([Individual(one, self.layout, "kaiming") for one in genes])

    def _plan(self, bench: Bench) -> Plan:
        settings = self.settings
        refinement = None
        if self.preset.gradient:
            assert settings.steps and settings.rate and settings.batch  # the preset filled them in
            refinement = Refinement(settings.steps, settings.rate, settings.batch)
        assert settings.population and settings.offspring
        return Plan(
            preset=self.preset,
            layout=self.layout,
            seed=settings.seed,
            population=settings.population,
            offspring=settings.offspring,
            refinement=refinement,
            rungs=len(bench.rungs),
            generations=settings.generations,
            evaluations=settings.evaluations,
            seconds=settings.seconds,
            stagnation=settings.stagnation,
        )

    def _finish(
        self,
        bench: Bench,
        plan: ProbePlan,
        seeds: list[Individual],
        verdicts: dict[str, Verdict],
        outcome: Outcome | Individual,
    ) -> Result:
        settings = self.settings
        evolved = isinstance(outcome, Outcome)
        best = outcome.best if isinstance(outcome, Outcome) else outcome
        with torch_threads(settings.threads):
            search = bench.judge(best.mask, bench.search).agreement
            guard = bench.judge(best.mask, bench.guard).agreement
        if isinstance(outcome, Outcome):
            self._warn_if_parted(outcome)
        tested = self._test(bench, best, seeds)
        return Result(
            target=self.target,
            masks=self.layout.split(best.mask),
            method=settings.method,
            preset=settings.preset if evolved else None,
            origin=best.origin,
            sparsity=settings.sparsity,
            search=search,
            guard=guard,
            accuracy=tested.get("pruned"),
            dense_accuracy=tested.get("dense"),
            baselines={
                seed.origin: BaselineScore(verdicts[seed.key].agreement, tested.get(seed.origin))
                for seed in seeds
            },
            receipt=plan.receipt,
            history=outcome.history if isinstance(outcome, Outcome) else (),
            stopped=outcome.stopped if isinstance(outcome, Outcome) else "one-shot",
            evaluations=outcome.evaluations if isinstance(outcome, Outcome) else 0,
            seconds=time.monotonic() - self.started,
            settings=settings.model_dump(mode="json"),
            versions=_versions(),
        )

    def _warn_if_parted(self, outcome: Outcome) -> None:
        """Say when the search still gains while the guard loses: it has learnt its own probes."""
        leader = max(outcome.population, key=lambda one: one.quality)
        lost = outcome.verdict.agreement - outcome.judged[leader.key].agreement
        if lost > PARTED:
            self.observer.warning(
                f"the search and the guard part: the best on the search probes agrees "
                f"{outcome.judged[leader.key].agreement:.1%} on the guard, an earlier one "
                f"{outcome.verdict.agreement:.1%}, which is returned; more search on these probes "
                "does harm"
            )

    def _test(self, bench: Bench, best: Individual, seeds: list[Individual]) -> dict[str, float]:
        """Measure accuracy on labelled test data, after everything is decided."""
        test = self.test or _zoo_test(self.target)
        if test is None or test.labels is None:
            return {}
        self.observer.phase("test", f"measuring accuracy on {len(test.inputs)} labelled inputs")
        with torch_threads(os.cpu_count() or 1):
            dense = answers(bench.model, test.inputs)
            rows = {"dense": _accuracy(dense, test.labels)}
            for name, one in [("pruned", best), *((seed.origin, seed) for seed in seeds)]:
                outputs = bench.outputs(one.mask, test.inputs)
                rows[name] = _accuracy(outputs, test.labels)
        return rows


def _accuracy(outputs: Tensor, labels: Tensor) -> float:
    return float(accuracy(outputs, outputs, labels.to(outputs.device)))


def _zoo_test(target: Target) -> Samples | None:
    return None if target.zoo is None else Samples(*mnist.test_set(), "the MNIST test set")


def _shown(target: Target, samples: Samples) -> Shown:
    inputs = samples.inputs.to(target.device)
    labels = None if samples.labels is None else samples.labels.to(target.device)
    return Shown(inputs, answers(target.model, inputs), labels)


def _versions() -> dict[str, str]:
    packages = ("gaprune", "torch", "numpy", "deap", "ray")
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
    }
