"""From a target and settings to a result: probes, baselines, search, final figures."""

from __future__ import annotations

import platform
import time
from importlib import metadata
from typing import Any

import torch
from torch import Tensor, nn

from gaprune.bench import Bench, Verdict, answers
from gaprune.budget import keep_total
from gaprune.config import EVOLVED, Settings, make_settings
from gaprune.errors import GapruneError
from gaprune.evolution.breeding import Judge, derive_seed
from gaprune.evolution.engine import Evolution
from gaprune.evolution.genome import Individual
from gaprune.evolution.plan import Outcome
from gaprune.evolution.seeding import baselines, kaiming_population
from gaprune.held_out import HeldOut
from gaprune.input_options import InputOptions
from gaprune.labelled import check_labelled
from gaprune.objectives import accuracy, finite
from gaprune.observe import Observer, Silence
from gaprune.preparation import check_settings, make_bench, make_plan, resolve_settings
from gaprune.probes.plan import ProbePlan, plan_probes
from gaprune.probes.samples import Samples
from gaprune.records import BaselineScore
from gaprune.repair import repair, repaired_copy
from gaprune.result import RepairedScore, Result
from gaprune.saliency import Network
from gaprune.target import Target, target_from_module
from gaprune.workers import Workers, open_workers
from gaprune.workers.serial import torch_threads

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
        The result; `result.pruned_model()` is the pruned copy, and `gaprune.save_run` writes a
        run directory.

    Raises:
        InputError: a setting or the network breaks a rule; the message says which.

    >>> import torch
    >>> from gaprune import InputOptions, prune
    >>> net = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    >>> found = prune(net, sparsity=0.5, inputs=InputOptions(range=(0, 1)), generations=1, steps=2)
    >>> found.kept, found.target.layout.total
    (88, 176)
    """
    chosen = make_settings({"sparsity": sparsity, **settings})
    check_settings(chosen)
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

    Args:
        target: the network.
        settings: how to prune it.
        test: labelled inputs for the final accuracy, such as `zoo_test(target)`; None measures
            none.
        observer: told of progress.

    Raises:
        InputError: a setting does not fit the target; nothing has been computed then.
    """
    return _Run(target, settings, test, observer or Silence()).result()


class _Run:
    """One run; the methods follow the flow of the data."""

    def __init__(
        self, target: Target, settings: Settings, test: Samples | None, observer: Observer
    ) -> None:
        self.started = time.monotonic()
        self.preset = check_settings(settings)
        keep_total(target.layout, settings.sparsity)  # an impossible budget is refused at once
        self.settings = resolve_settings(settings, self.preset, target)
        self.target, self.observer = target, observer
        self.test = None if test is None else check_labelled("test", test, target)
        self.generator = torch.Generator().manual_seed(derive_seed(settings.seed, "run"))

    def result(self) -> Result:
        """Do it all."""
        settings, target = self.settings, self.target
        if target.inputs.assumed:
            self.observer.warning(
                "the value range of the inputs is not stated; 0 to 1 is assumed "
                "(--range LOW,HIGH or --mean and --std say it)"
            )
        with torch_threads(settings.threads):
            self.observer.phase("probes", "making the inputs that are shown to the network")
            plan = plan_probes(target, settings, self.generator, self.observer)
            bench = make_bench(target, settings, self.preset, plan)
            seeds = self._seeds(bench)
        with open_workers(bench, settings.workers, settings.threads) as workers:
            verdicts = self._judge_baselines(seeds, workers)
            outcome = self._search(seeds, verdicts, workers)
        if outcome is not None:
            self._warn_if_parted(outcome)
        return self._result(bench, plan, seeds, verdicts, outcome)

    def _seeds(self, bench: Bench) -> list[Individual]:
        """Make every baseline at this budget; they seed the search and are what it must beat."""
        self.observer.phase("baselines", "scoring the weights with every data-free criterion")
        found = baselines(
            Network(bench.model, bench.weights, bench.layout, self.target.inputs),
            bench.search.inputs[:SALIENCY_PROBES],
            self.settings.sparsity,
            self.settings.scope,
            self.generator,
            gradients=self.preset.gradient or self.settings.method != EVOLVED,
            warn=self.observer.warning,
        )
        return [Individual(one.genes, bench.layout, one.name) for one in found]

    def _judge_baselines(self, seeds: list[Individual], workers: Workers) -> dict[str, Verdict]:
        verdicts: list[Verdict] = workers.run([Judge.of(seed.mask) for seed in seeds])
        for seed, verdict in zip(seeds, verdicts, strict=True):
            self.observer.baseline(seed.origin, BaselineScore(verdict.agreement))
        return {seed.key: verdict for seed, verdict in zip(seeds, verdicts, strict=True)}

    def _search(
        self, seeds: list[Individual], verdicts: dict[str, Verdict], workers: Workers
    ) -> Outcome | None:
        """Evolve, or return None where a one-shot method was asked for."""
        settings, preset = self.settings, self.preset
        if settings.method != EVOLVED:
            return None
        self.observer.phase("search", preset.description)
        plan = make_plan(self.target, settings, preset)
        evolution = Evolution(
            plan, workers, lambda record: self.observer.generation(record, settings.generations)
        )
        if preset.seeding == "baselines":
            return evolution.run(seeds, verdicts)
        genes = kaiming_population(
            plan.layout, settings.sparsity, settings.scope, plan.population, self.generator
        )
        return evolution.run([Individual(one, plan.layout, "kaiming") for one in genes])

    def _warn_if_parted(self, outcome: Outcome) -> None:
        """Say when the search still gains while the guard loses: it has learnt its own probes."""
        judged = [one for one in outcome.population if one.key in outcome.judged]
        if not judged:  # interrupted before the first population was complete
            return
        reached = outcome.judged[max(judged, key=lambda one: one.quality).key].agreement
        if outcome.verdict.agreement - reached > PARTED and not self.settings.pareto:
            self.observer.warning(
                f"the search and the guard part at sparsity {self.settings.sparsity}: the best on "
                f"the search probes agrees {reached:.1%} on the guard, an earlier one "
                f"{outcome.verdict.agreement:.1%}, which is returned; more search on these probes "
                "does harm"
            )

    def _result(
        self,
        bench: Bench,
        plan: ProbePlan,
        seeds: list[Individual],
        verdicts: dict[str, Verdict],
        outcome: Outcome | None,
    ) -> Result:
        settings = self.settings
        best = outcome.best if outcome else self._asked(seeds)
        with torch_threads(settings.threads):
            search = bench.judge(best.mask, bench.search).agreement
            guard = bench.judge(best.mask, bench.guard).agreement
        interrupted = outcome is not None and outcome.stopped == "interrupted"
        tested = self._test(bench, best, [] if interrupted else seeds)
        repaired = self._repair(bench, best) if settings.repair else None
        return Result(
            target=self.target,
            masks=bench.layout.split(best.mask),
            method=settings.method,
            preset=settings.preset if outcome else None,
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
            history=outcome.history if outcome else (),
            stopped=outcome.stopped if outcome else "one-shot",
            evaluations=outcome.evaluations if outcome else 0,
            seconds=time.monotonic() - self.started,
            settings=settings.model_dump(mode="json"),
            repaired=repaired,
            front=[
                {
                    "sparsity": 1 - one.genes.keep / bench.layout.total,
                    "guard": outcome.judged[one.key].agreement,
                }
                for one in outcome.front
            ]
            if outcome
            else (),
            front_masks=[bench.layout.split(one.mask) for one in outcome.front] if outcome else (),
            versions=_versions(),
        )

    def _repair(self, bench: Bench, best: Individual) -> RepairedScore:
        """Match the pruned network's activations to the dense network's on the search probes."""
        self.observer.phase("repair", "matching its activations to the dense network's")
        with torch_threads(self.settings.threads):
            masks, guard = bench.layout.split(best.mask), bench.guard
            done = repair(self.target, masks, bench.search.inputs)
            model = repaired_copy(self.target, masks, done)
            outputs = answers(model, guard.inputs)
            agreement = bench.objective.judge(outputs, guard.teacher, guard.labels)
            held_out = None if self.test is None else HeldOut(self.target, self.test)
            tested = None if held_out is None else held_out.measure(model).accuracy
        for reason in done.skipped:
            self.observer.warning(f"not repaired: {reason}")
        strict = bench.judge(best.mask).agreement
        if float(agreement) < strict:
            self.observer.warning(
                f"repair lowers the agreement on the guard from {strict:.1%} to "
                f"{float(agreement):.1%}; take the strict network"
            )
        return RepairedScore(done, finite(float(agreement)), tested)

    def _asked(self, seeds: list[Individual]) -> Individual:
        for seed in seeds:
            if seed.origin == self.settings.method:
                return seed
        raise GapruneError(
            f"method: {self.settings.method!r} cannot be computed on this network (the warning "
            f"says why); these can: {', '.join(seed.origin for seed in seeds)}"
        )

    def _test(self, bench: Bench, best: Individual, seeds: list[Individual]) -> dict[str, float]:
        """Measure accuracy on labelled test data, after everything is decided."""
        test = self.test
        if test is None or test.labels is None:
            return {}
        self.observer.phase("test", f"measuring accuracy on {len(test.inputs)} labelled inputs")
        inputs, labels = test.inputs.to(self.target.device), test.labels.to(self.target.device)
        with torch_threads(self.settings.threads):
            dense = answers(bench.model, inputs)
            rows = {"dense": float(accuracy(dense, dense, labels))}
            for name, one in [("pruned", best), *((seed.origin, seed) for seed in seeds)]:
                rows[name] = float(accuracy(bench.outputs(one.mask, inputs), dense, labels))
        return rows


def _versions() -> dict[str, str]:
    packages = ("gaprune", "torch", "numpy", "deap", "ray")
    versions = {name: metadata.version(name) for name in packages}
    return {"python": platform.python_version(), **versions}
