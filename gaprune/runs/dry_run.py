"""What a run would do, and about how long it would take (`--dry-run`)."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch

from gaprune.calibration.auto import resolve_calibration
from gaprune.calibration.calibration_set import make_calibration_set
from gaprune.calibration.weighing import weighing
from gaprune.callbacks import Observer
from gaprune.config import EVOLVED, Settings
from gaprune.evaluation.batch_pool import BatchPool
from gaprune.evaluation.evaluator import Evaluator
from gaprune.evolution.genome import score_dtype, seed_genes
from gaprune.evolution.gradient import refine
from gaprune.evolution.search_plan import SearchPhase, SearchPlan
from gaprune.masks.budget import keep_total
from gaprune.models.mac_cost import MacCounts
from gaprune.models.macs import activation_bytes
from gaprune.models.patterns import whole_layers
from gaprune.models.prunable import floating_total
from gaprune.models.target import Target
from gaprune.pattern_names import CHANNEL, LATENCY
from gaprune.runs.setup import (
    FIRST_RUNG,
    CheckedSettings,
    ResolvedSettings,
    make_evaluator,
    make_plan,
    resolve_settings,
)
from gaprune.runs.warnings import coverage_warning
from gaprune.workers.serial import torch_threads

NUM_ROUNDS, NUM_STEPS = 3, 8  # of every measurement; the fastest round counts
# Multiply-adds of all measurements: seconds on one core. A network that would need more is measured
# once, on so few inputs, and the times are scaled up.
MEASURED_MACS, FEWEST, FEW_STEPS = 1e10, 4, 1
PASSES = 3  # forward and backward pass of a gradient step, in forward passes
_MAXRSS = 1 if sys.platform == "darwin" else 1024  # bytes per unit of getrusage


@dataclass(frozen=True)
class DryRunPhase:
    """A phase of the search."""

    name: str
    generations: int | None  # None without a limit
    children: int  # per generation
    steps: int  # of the gradient, per child
    seconds: float  # of all generations; of one without a limit


@dataclass(frozen=True)
class DryRun:
    """What a run would do."""

    layers: tuple[tuple[str, tuple[int, ...], int], ...]  # name, shape, number of weights
    whole: tuple[tuple[str, str], ...]  # layers with channels that stay, and why; by channels only
    total: int  # prunable weights
    parameters: int  # of the network, prunable or not
    coverage: str | None  # the warning that many weights are not prunable
    unit: str  # what the budget counts: weights, units of a pattern, or multiply-adds
    units: int  # how many there are
    keep: int | None  # how many stay; None if `max_drop` or a measured latency decides
    calibration: tuple[str, ...]  # in the words of `--calibration`
    why: str | None  # why `auto` chose them
    phases: tuple[DryRunPhase, ...]  # of the search; empty for a one-shot method
    # Of a candidate, of a gradient step, and of a child without its steps; measured on noise.
    seconds_per: Mapping[str, float]
    # Of all phases with the asked workers, at most the limit in seconds; None without a limit.
    # With `max_drop` there are about five such searches.
    search_seconds: float | None
    peak_mb: float  # memory of one worker, or of this process if it is the worker
    settings: Settings  # with every gap filled, as the run would

    def record(self) -> dict[str, Any]:
        """Return it as plain data."""
        layers = [
            {"name": name, "shape": list(shape), "total": total}
            for name, shape, total in self.layers
        ]
        return {**asdict(self), "layers": layers, "settings": self.settings.model_dump(mode="json")}


def dry_run(target: Target, checked: CheckedSettings, observer: Observer | None = None) -> DryRun:
    """Return what `prune` would do with a network, without doing it.

    A candidate and a gradient step are timed on noise. Inverting inputs, criteria that run the
    network many times and limits that stop a search early are not predicted. For large networks all
    figures are estimates from a few inputs, also those by which `auto` chooses.

    Raises:
        InputError: a setting does not fit the target.
    """
    with weighing(observer or Observer(), quick=True):
        resolved = resolve_settings(checked, target)
        settings, layout = resolved.settings, resolved.layout
        choice = resolve_calibration(settings.calibration, target).choice
        plan = make_plan(target, resolved)
        evolved = settings.method == EVOLVED
        sample = _sample(target, plan, settings)
        with torch_threads(settings.threads_per_worker):
            evaluator = _evaluator_on_noise(target, resolved, sample)
            seconds_per = _measure(evaluator, plan, settings, sample) if evolved else {}
    phases = tuple(_phase(phase, seconds_per, settings) for phase in plan.phases if evolved)
    search_seconds = settings.seconds
    if all(phase.generations is not None for phase in phases):
        limit = math.inf if search_seconds is None else search_seconds
        search_seconds = min(sum(phase.seconds for phase in phases), limit)
    found_by_trying = settings.max_drop is not None or settings.budget == LATENCY
    unit = "weights" if resolved.units is None else f"units of pattern {settings.pattern}"
    weights = target.weights
    return DryRun(
        layers=tuple((name, tuple(w.shape), w.numel()) for name, w in weights.items()),
        whole=tuple(whole_layers(target).items()) if settings.pattern == CHANNEL else (),
        total=sum(weight.numel() for weight in weights.values()),
        parameters=floating_total(target.model),
        coverage=coverage_warning(target),
        unit=unit if layout.mac_cost is None else "multiply-adds for one input",
        units=layout.dense_cost,
        keep=None if found_by_trying else keep_total(layout, settings.sparsity),
        calibration=tuple(choice.calibration if choice else settings.calibration),
        why=choice.reason if choice else None,
        phases=phases,
        seconds_per=seconds_per,
        search_seconds=search_seconds if phases else None,
        peak_mb=_peak_mb(plan, evaluator, settings, sample, target),
        settings=settings,
    )


class _Sample(NamedTuple):
    """What is measured of a run: rounds, gradient steps, and inputs of a candidate and a step."""

    rounds: int
    steps: int
    inputs: int
    batch: int

    def scaled(self, settings: Settings) -> tuple[float, float]:
        """Return by how much a candidate and a step of the run take longer."""
        return settings.calibration_count / self.inputs, (settings.batch or 1) / self.batch


def _sample(target: Target, plan: SearchPlan, settings: Settings) -> _Sample:
    """Measure all inputs and several rounds, unless the network is too large for that."""
    count, batch = settings.calibration_count, settings.batch or 1
    steps = 0 if plan.refinement is None else NUM_STEPS
    passes = count + NUM_ROUNDS * (count + PASSES * batch * steps)
    fits = MEASURED_MACS / max(1, MacCounts.of(target).total)
    if passes <= fits:
        return _Sample(NUM_ROUNDS, NUM_STEPS, count, batch)
    # half for the teacher and the candidate, half for the steps
    few = max(FEWEST, int(fits / 4))
    return _Sample(1, FEW_STEPS, min(count, few), min(batch, max(FEWEST, few // 6)))


def _evaluator_on_noise(target: Target, resolved: ResolvedSettings, sample: _Sample) -> Evaluator:
    """Return the evaluator of the run with noise as calibration inputs, which takes no time."""
    settings = resolved.settings
    noise = settings.model_copy(
        update={
            "calibration": ("noise",),
            "validation": "noise",
            "validation_count": 1,
            "calibration_count": sample.inputs,
        }
    )
    generator = torch.Generator().manual_seed(settings.seed)
    calibration_set = make_calibration_set(target, noise, generator)
    evaluator = make_evaluator(target, resolved, calibration_set)
    if evaluator.batch_cache is None or calibration_set.mixture is None:
        return evaluator
    evaluator = replace(evaluator, batch_cache=BatchPool(calibration_set.mixture, 1, settings.seed))
    evaluator.draw_batch(sample.batch, generator)  # the only one, drawn before steps are timed
    return evaluator


def _measure(
    evaluator: Evaluator, plan: SearchPlan, settings: Settings, sample: _Sample
) -> dict[str, float]:
    """Return the seconds of a candidate, of a gradient step and of a child without its steps."""
    generator = torch.Generator().manual_seed(settings.seed)
    more_inputs, larger_batch = sample.scaled(settings)
    least: dict[str, float] = {}  # seconds
    for _ in range(sample.rounds):
        scores = torch.rand(plan.layout.total, generator=generator)
        genes = seed_genes(scores, plan.layout, plan.keep, settings.scope)
        started = time.perf_counter()
        evaluator.fitness(genes.decode(plan.layout))
        times = {"candidate": time.perf_counter() - started}
        if plan.refinement is not None:
            for name, steps in (("child", 0), ("steps", sample.steps)):
                refinement = replace(plan.refinement, steps=steps, batch=sample.batch)
                fixed, started = torch.Generator().manual_seed(0), time.perf_counter()
                refine(genes, evaluator, refinement, fixed)
                times[name] = time.perf_counter() - started
        least = {name: min(value, least.get(name, value)) for name, value in times.items()}
    candidate = more_inputs * least["candidate"]
    if plan.refinement is None:
        return {"candidate": candidate}
    step = max(0.0, least["steps"] - least["child"]) / sample.steps
    return {"candidate": candidate, "step": larger_batch * step, "child": least["child"]}


def _phase(phase: SearchPhase, seconds_per: Mapping[str, float], settings: Settings) -> DryRunPhase:
    steps = phase.refinement.steps if phase.refinement else 0
    # In a race all children run on the first rung, and half of them on all calibration inputs.
    passes = 1 / FIRST_RUNG + 1 / 2 if phase.preset.races else 1.0
    refined = seconds_per["child"] + steps * seconds_per["step"] if steps else 0.0
    child = refined + passes * seconds_per["candidate"]
    rounds = math.ceil(phase.offspring / settings.workers)
    generation = rounds * child + seconds_per["candidate"]  # the best one is validated
    seconds = generation * (phase.length or 1)
    return DryRunPhase(phase.name, phase.length, phase.offspring, steps, seconds)


def _peak_mb(
    plan: SearchPlan, evaluator: Evaluator, settings: Settings, sample: _Sample, target: Target
) -> float:
    """Return the peak memory of this process so far, and what a search adds."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS
    genomes = (
        (plan.population + plan.offspring) * plan.layout.total * score_dtype(plan.layout).itemsize
    )
    num_inputs = (settings.batch_cache or 0) * (settings.batch or 0)
    num_inputs += settings.calibration_count - sample.inputs
    inputs = num_inputs * evaluator.search.inputs[0].nbytes
    activations = 0
    if plan.refinement is not None and plan.refinement.batch > sample.batch:
        leaves = {name: w.detach().requires_grad_() for name, w in target.weights.items()}
        of_one = activation_bytes(target.model, target.example(), leaves)
        activations = (plan.refinement.batch - sample.batch) * of_one
    return round((peak + genomes + inputs + activations) / 1e6, 1)
