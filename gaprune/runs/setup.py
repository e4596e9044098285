"""From full settings and a target to what a search needs: the bench and the plan."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from torch import Tensor

from gaprune.calibration.calibration_set import ProbePlan
from gaprune.calibration.samples import Samples
from gaprune.config import EVOLVED, Settings
from gaprune.errors import InputError
from gaprune.evaluation.batch_pool import Stock
from gaprune.evaluation.evaluator import GROUP, Bench
from gaprune.evaluation.forward_modes import STRICT, AfterRepair, Answering, Guided, Shown
from gaprune.evaluation.objectives import Objective, find_objective
from gaprune.evolution.gradient import Refinement
from gaprune.evolution.presets import Preset
from gaprune.evolution.search_plan import Limits, Plan
from gaprune.evolution.tasks import derive_seed
from gaprune.masks.budget import keep_total
from gaprune.models.forward import answers
from gaprune.models.patterns import searched_layout, units_of
from gaprune.models.target import Target
from gaprune.repair import survey
from gaprune.runs.resolve_settings import repair_sites

T = TypeVar("T")

RUNG_FRACTION = 4  # the first rung of the race has one in so many search probes
LAST_RATE = 1 / 20  # of the first step length, at the end of the continuation
FADE = (0.0, 0.95)  # parts of its steps between which repair is faded out
LEAST_SPARSE = 0.5  # the dense end of a Pareto front removes this part of the asked sparsity
GROUPED = 1 << 22  # prunable weights of a network that has its masks scored in groups, at most


def make_bench(target: Target, settings: Settings, preset: Preset, plan: ProbePlan) -> Bench:
    """Compute the dense network's answers on all probes and put everything on the bench.

    Raises:
        InputError: the objective does not fit the outputs, the labels or the preset; or repair
            is to be in the loop and the network has nothing that can be repaired.
    """
    search = _shown(target, plan.search)
    objective = find_objective(settings.objective, search.teacher)
    _check_objective(objective, search, preset, evolved=settings.method == EVOLVED)
    nearest = plan.nearest.inputs.to(target.device)
    uses_pool = plan.pool is not None and preset.gradient and settings.method == EVOLVED
    return Bench(
        model=target.model,
        weights=target.weights,
        layout=searched_layout(target, settings),
        units=units_of(target, settings),
        objective=objective,
        search=search,
        guard=_shown(target, plan.guard),
        fresh=plan.fresh,
        pool=_shown(target, plan.pool) if uses_pool and plan.pool is not None else None,
        pool_share=plan.pool_share,
        # after repair moved inputs lost: ResNet-20 at 0.9 had 61.9 instead of 67.2 %
        moving=target.inputs if plan.moving and not settings.repair_in_loop else None,
        rungs=(max(1, len(search.inputs) // RUNG_FRACTION), len(search.inputs)),
        answering=_answering(target, settings, nearest),
        near=None if plan.nearest is plan.search else nearest,
        precision=settings.precision,
        stock=_stock(settings, plan),
    )


def _stock(settings: Settings, plan: ProbePlan) -> Stock | None:
    """Return what gradient steps draw generated inputs from, or None: new ones for every step."""
    if plan.fresh is None or not settings.stock:
        return None
    return Stock(plan.fresh, settings.stock, derive_seed(settings.seed, "stock"))


def make_plan(target: Target, settings: Settings, preset: Preset) -> Plan:
    """Translate resolved settings into the engine's plan."""
    refinement = None
    if preset.gradient:
        refinement = Refinement(
            steps=_filled(settings.steps),
            rate=_filled(settings.rate),
            batch=_filled(settings.batch),
            clip=settings.clip,
        )
    layout = searched_layout(target, settings)
    allocation, generations = settings.allocation or 0, settings.generations
    continuation = _continuation(refinement, settings.continuation)
    before = allocation + (continuation is not None)
    return Plan(
        preset=preset,
        layout=layout,
        seed=settings.seed,
        population=_filled(settings.population),
        offspring=_filled(settings.offspring),
        refinement=refinement,
        limits=Limits(
            None if generations is None else before + generations,
            settings.evaluations,
            settings.seconds,
            settings.stagnation,
            settings.patience,
        ),
        keep=keep_total(layout, settings.sparsity),
        most=keep_total(layout, LEAST_SPARSE * settings.sparsity) if settings.pareto else None,
        allocation=allocation,
        continuation=continuation,
        group=_group(target, settings),
    )


def _group(target: Target, settings: Settings) -> int:
    """Return how many masks pass at once: several of a small network of matrices on a GPU.

    Starting its kernels takes longer there than running them. Rounding follows from this number,
    so that it depends on network and device, not on a clock. On the CPU groups are no faster, and
    convolutions become grouped ones, which are slower than each alone.
    """
    matrices = all(weight.ndim == 2 for weight in target.weights.values())
    small = matrices and target.layout.total <= GROUPED
    return GROUP if settings.device != "cpu" and small else 1


def _continuation(refinement: Refinement | None, steps: int | None) -> Refinement | None:
    if refinement is None or not steps:
        return None
    last = LAST_RATE * refinement.rate
    return replace(refinement, steps=steps, last_rate=last, cosine=True, fade=FADE)


def _filled(value: T | None) -> T:
    assert value is not None, "resolve_settings fills every setting that the preset uses"
    return value


def _check_objective(objective: Objective, search: Shown, preset: Preset, *, evolved: bool) -> None:
    if objective.needs_labels and search.labels is None:
        raise InputError(
            f"objective: {objective.name!r} needs labelled probes and these have no labels; "
            "give --probes labelled:FILE, or use the objective 'kl'"
        )
    if preset.gradient and objective.loss is None and evolved:
        raise InputError(
            f"objective: {objective.name!r} is a black box without gradients; "
            "use it with --preset black-box"
        )


def _answering(target: Target, settings: Settings, nearest: Tensor) -> Answering:
    features = settings.features or 0.0
    if settings.repair_in_loop:
        return AfterRepair(repair_sites(target, nearest), nearest, features)
    guides = settings.continuation or settings.drift or features
    if settings.method != EVOLVED or not guides:
        return STRICT
    sites = survey(target.model, nearest, frozen=target.weights)
    return Guided(AfterRepair(sites, nearest, features), drift=settings.drift or 0.0)


def _shown(target: Target, samples: Samples) -> Shown:
    inputs = samples.inputs.to(target.device)
    labels = None if samples.labels is None else samples.labels.to(target.device)
    return Shown(inputs, answers(target.model, inputs), labels)
