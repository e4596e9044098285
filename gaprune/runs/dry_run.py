"""What a run would do, and about how long it would take, without doing it."""

from __future__ import annotations

import math
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from gaprune.calibration.auto import resolve_calibration
from gaprune.calibration.calibration_set import make_calibration_set
from gaprune.callbacks import Observer
from gaprune.config import EVOLVED, Settings
from gaprune.evaluation.batch_pool import BatchPool
from gaprune.evaluation.evaluator import Evaluator
from gaprune.evolution.genome import Genes, score_dtype, seed_genes
from gaprune.evolution.gradient import Refinement, refine
from gaprune.evolution.search_plan import SearchPhase, SearchPlan
from gaprune.masks.budget import keep_total
from gaprune.models.patterns import units_of
from gaprune.models.target import Target
from gaprune.pattern_names import LATENCY
from gaprune.runs.resolve_settings import check_settings, resolve_settings
from gaprune.runs.setup import RUNG_FRACTION, make_evaluator, make_plan
from gaprune.workers.serial import torch_threads

ROUNDS, STEPS = 3, 8  # how often what is timed is done, and the gradient steps of each
_MAXRSS = 1 if sys.platform == "darwin" else 1024  # bytes that getrusage counts as one


@dataclass(frozen=True)
class DryRunPhase:
    """Generations of a kind.

    Attributes:
        name: of the phase.
        generations: None where no number bounds them.
        children: per generation.
        steps: gradient steps per child.
        seconds: of all of them, or of one generation where nothing bounds their number.
    """

    name: str
    generations: int | None
    children: int
    steps: int
    seconds: float


@dataclass(frozen=True)
class DryRun:
    """A run before it is one.

    Attributes:
        layers: name, shape and weights of every prunable layer.
        total: prunable weights.
        parameters: all of the network.
        unit: what the budget counts, in words: weights, what the pattern removes together, or
            multiply-adds.
        units: how many there are.
        keep: how many stay, or None where `max_drop` or a clock (budget `latency`) finds it.
        calibration inputs: what would be shown, in the words of `--calibration`.
        why: why `auto` chose them, or None.
        stages: of the search; empty for a one-shot method.
        seconds_per: measured here, on noise: of a candidate on all calibration inputs, of a gradient step,
            and of what a child takes beside its steps.
        search_seconds: of all stages with the asked workers, and no more than the limit in seconds;
            None where nothing bounds them. With `max_drop` there are about five such searches.
        peak_mb: of one worker, and of this process where it is the worker.
        settings: with every gap filled, as the run would.
    """

    layers: tuple[tuple[str, tuple[int, ...], int], ...]
    total: int
    parameters: int
    unit: str
    units: int
    keep: int | None
    calibration: tuple[str, ...]
    why: str | None
    stages: tuple[DryRunPhase, ...]
    seconds_per: Mapping[str, float]
    search_seconds: float | None
    peak_mb: float
    settings: Settings

    def record(self) -> dict[str, Any]:
        """Return it as plain data."""
        found = asdict(self)
        found["layers"] = [
            {"name": name, "shape": list(shape), "total": total}
            for name, shape, total in self.layers
        ]
        found["settings"] = self.settings.model_dump(mode="json")
        return found


def dry_run(target: Target, settings: Settings) -> DryRun:
    """Look at what `prune` would do with a network.

    A candidate and a gradient step are timed on noise. What is not foreseen: inverting inputs,
    which takes longest where it happens (`--calibration-seconds` bounds it), criteria that pass the
    network many times, and limits that stop a search early.

    Raises:
        InputError: a setting does not fit the target.
    """
    preset = check_settings(settings)
    resolved = resolve_settings(settings, preset, target)
    decision = resolve_calibration(resolved.calibration, target)
    units = units_of(target, resolved)
    plan = make_plan(target, resolved, preset)
    searched = resolved.method == EVOLVED
    with torch_threads(resolved.threads_per_worker):
        evaluator = _evaluator_on_noise(target, resolved)
        timed = _timed(evaluator, plan, resolved) if searched else {}
    stages = tuple(_stage(one, timed, resolved) for one in plan.phases) if searched else ()
    layout = plan.layout
    keeps = resolved.max_drop is None and resolved.budget != LATENCY  # both are found by trying
    unit = "weights" if units is None else f"units of pattern {resolved.pattern}"
    return DryRun(
        layers=tuple((name, tuple(one.shape), one.numel()) for name, one in target.weights.items()),
        total=sum(one.numel() for one in target.weights.values()),
        parameters=sum(one.numel() for one in target.model.parameters()),
        unit=unit if layout.mac_cost is None else "multiply-adds for one input",
        units=layout.dense_cost,
        keep=keep_total(layout, resolved.sparsity) if keeps else None,
        calibration=tuple(decision.choice.calibration if decision.choice else resolved.calibration),
        why=None if decision.choice is None else decision.choice.reason,
        stages=stages,
        seconds_per=timed,
        search_seconds=_at_most(resolved.seconds, stages) if stages else None,
        peak_mb=_peak_mb(plan, evaluator, resolved),
        settings=resolved,
    )


def _evaluator_on_noise(target: Target, settings: Settings) -> Evaluator:
    """Return the evaluator of the run with noise in the place of its calibration inputs: made in no time."""
    noisy = settings.replace(calibration=("noise",), validation="noise", validation_count=1)
    generator = torch.Generator().manual_seed(settings.seed)
    calibration = make_calibration_set(target, noisy, generator, Observer())
    evaluator = make_evaluator(target, settings, check_settings(settings), calibration)
    if evaluator.batch_cache is None or calibration.mixture is None:
        return evaluator
    return replace(
        evaluator, batch_cache=BatchPool(calibration.mixture, 1, settings.seed)
    )  # drawn before it is timed


def _timed(evaluator: Evaluator, plan: SearchPlan, settings: Settings) -> dict[str, float]:
    """Return the seconds of a candidate on all calibration inputs, of a child and of each gradient step.

    Each is the least of some: what the machine sets up once, or does beside, is not counted.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    least: dict[int, float] = {}  # gradient steps → seconds; 0 scores a candidate
    for _ in range(ROUNDS):
        scores = torch.rand(plan.layout.total, generator=generator)
        genes = seed_genes(scores, plan.layout, plan.keep, settings.scope)
        began = time.perf_counter()
        evaluator.fitness(genes.decode(plan.layout))
        now = {0: time.perf_counter() - began}
        if plan.refinement is not None:
            now |= {n: _child(genes, evaluator, plan.refinement, n) for n in (1, 1 + STEPS)}
        least = {steps: min(value, least.get(steps, value)) for steps, value in now.items()}
    if plan.refinement is None:
        return {"candidate": least[0]}
    step = max(0.0, least[1 + STEPS] - least[1]) / STEPS
    return {"candidate": least[0], "step": step, "child": max(0.0, least[1] - step)}


def _child(genes: Genes, evaluator: Evaluator, how: Refinement, steps: int) -> float:
    """Return how many seconds a child of so many steps takes."""
    began = time.perf_counter()
    refine(genes, evaluator, replace(how, steps=steps), torch.Generator().manual_seed(0))
    return time.perf_counter() - began


def _stage(phase: SearchPhase, timed: Mapping[str, float], settings: Settings) -> DryRunPhase:
    """Return what a phase takes: children on the first rung, half of them on all calibration inputs."""
    steps = phase.refinement.steps if phase.refinement else 0
    passes = 1 / RUNG_FRACTION + 1 / 2 if phase.preset.races else 1.0
    refined = timed["child"] + steps * timed["step"] if steps else 0.0
    child = refined + passes * timed["candidate"]
    rounds = math.ceil(phase.offspring / settings.workers)
    generation = (
        rounds * child + timed["candidate"]
    )  # the leader is judged on the validation inputs
    return DryRunPhase(
        phase.name, phase.length, phase.offspring, steps, generation * (phase.length or 1)
    )


def _at_most(limit: float | None, stages: Sequence[DryRunPhase]) -> float | None:
    if any(one.generations is None for one in stages):
        return limit
    return min(sum(one.seconds for one in stages), math.inf if limit is None else limit)


def _peak_mb(plan: SearchPlan, evaluator: Evaluator, settings: Settings) -> float:
    """Return what this process needed until here, and what a search holds beside that."""
    now = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS
    genomes = (
        (plan.population + plan.offspring) * plan.layout.total * score_dtype(plan.layout).itemsize
    )
    batches = (
        (settings.batch_cache or 0) * (settings.batch or 0) * evaluator.search.inputs[0].nbytes
    )
    return round((now + genomes + batches) / 1e6, 1)
