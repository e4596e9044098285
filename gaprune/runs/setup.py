"""From full settings and a target to what a search needs: the evaluator and the plan."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from torch import Tensor

from gaprune.calibration.calibration_set import CalibrationSet
from gaprune.calibration.samples import Samples
from gaprune.config import EVOLVED, Settings
from gaprune.errors import InputError
from gaprune.evaluation.batch_pool import BatchPool
from gaprune.evaluation.evaluator import GROUP, Evaluator
from gaprune.evaluation.forward_modes import (
    STRICT_FORWARD,
    ForwardMode,
    GuidedForward,
    RepairedForward,
    TeacherBatch,
)
from gaprune.evaluation.objectives import Objective, find_objective
from gaprune.evolution.gradient import Refinement
from gaprune.evolution.presets import Preset
from gaprune.evolution.search_plan import SearchLimits, SearchPlan
from gaprune.evolution.tasks import derive_seed
from gaprune.masks.budget import keep_total
from gaprune.models.forward import batched_forward
from gaprune.models.patterns import searched_layout, units_of
from gaprune.models.target import Target
from gaprune.repair import find_repair_sites
from gaprune.runs.resolve_settings import repair_sites

T = TypeVar("T")

RUNG_FRACTION = 4  # the first rung of the race has one in so many search calibration inputs
LAST_RATE = 1 / 20  # of the first step length, at the end of the continuation
FADE = (0.0, 0.95)  # parts of its steps between which repair is faded out
LEAST_SPARSE = 0.5  # the dense end of a Pareto front removes this part of the asked sparsity
GROUPED = 1 << 22  # prunable weights of a network that has its masks scored in groups, at most


def make_evaluator(
    target: Target, settings: Settings, preset: Preset, plan: CalibrationSet
) -> Evaluator:
    """Compute the dense network's answers on all calibration inputs and put everything on the evaluator.

    Raises:
        InputError: the objective does not fit the outputs, the labels or the preset; or repair
            is to be in the loop and the network has nothing that can be repaired.
    """
    search = _shown(target, plan.search)
    objective = find_objective(settings.objective, search.teacher)
    _check_objective(objective, search, preset, evolved=settings.method == EVOLVED)
    nearest = plan.domain_inputs.inputs.to(target.device)
    uses_pool = plan.gradient_inputs is not None and preset.gradient and settings.method == EVOLVED
    return Evaluator(
        network=target.network,
        layout=searched_layout(target, settings),
        units=units_of(target, settings),
        objective=objective,
        search=search,
        validation=_shown(target, plan.validation),
        mixture=plan.mixture,
        gradient_inputs=_shown(target, plan.gradient_inputs)
        if uses_pool and plan.gradient_inputs is not None
        else None,
        gradient_share=plan.gradient_share,
        # after repair moved inputs lost: ResNet-20 at 0.9 had 61.9 instead of 67.2 %
        augmentation=target.inputs if plan.augment and not settings.repair_in_loop else None,
        rungs=(max(1, len(search.inputs) // RUNG_FRACTION), len(search.inputs)),
        forward_mode=_answering(target, settings, nearest),
        domain_inputs=None if plan.domain_inputs is plan.search else nearest,
        precision=settings.precision,
        batch_cache=_batch_cache(settings, plan),
    )


def _batch_cache(settings: Settings, plan: CalibrationSet) -> BatchPool | None:
    """Return what gradient steps draw generated inputs from, or None: new ones for every step."""
    if plan.mixture is None or not settings.batch_cache:
        return None
    # the text is part of the seed: another text gives other batches, hence other masks
    return BatchPool(plan.mixture, settings.batch_cache, derive_seed(settings.seed, "stock"))


def make_plan(target: Target, settings: Settings, preset: Preset) -> SearchPlan:
    """Translate resolved settings into the engine's plan."""
    refinement = None
    if preset.gradient:
        refinement = Refinement(
            steps=_filled(settings.steps),
            learning_rate=_filled(settings.learning_rate),
            batch=_filled(settings.batch),
            clip=settings.clip,
        )
    layout = searched_layout(target, settings)
    density_search, generations = settings.density_search or 0, settings.generations
    warmup = _warmup(refinement, settings.warmup)
    before = density_search + (warmup is not None)
    return SearchPlan(
        preset=preset,
        layout=layout,
        seed=settings.seed,
        population=_filled(settings.population),
        offspring=_filled(settings.offspring),
        refinement=refinement,
        limits=SearchLimits(
            None if generations is None else before + generations,
            settings.evaluations,
            settings.seconds,
            settings.stagnation,
            settings.patience,
        ),
        keep=keep_total(layout, settings.sparsity),
        most=keep_total(layout, LEAST_SPARSE * settings.sparsity) if settings.pareto else None,
        density_search=density_search,
        warmup=warmup,
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


def _warmup(refinement: Refinement | None, steps: int | None) -> Refinement | None:
    if refinement is None or not steps:
        return None
    last = LAST_RATE * refinement.learning_rate
    return replace(refinement, steps=steps, last_rate=last, cosine=True, fade=FADE)


def _filled(value: T | None) -> T:
    assert value is not None, "resolve_settings fills every setting that the preset uses"
    return value


def _check_objective(
    objective: Objective, search: TeacherBatch, preset: Preset, *, evolved: bool
) -> None:
    if objective.needs_labels and search.labels is None:
        raise InputError(
            f"objective: {objective.name!r} needs labelled calibration inputs and these have no labels; "
            "give --calibration labelled:FILE, or use the objective 'kl'"
        )
    if preset.gradient and objective.loss is None and evolved:
        raise InputError(
            f"objective: {objective.name!r} is a black box without gradients; "
            "use it with --preset black-box"
        )


def _answering(target: Target, settings: Settings, nearest: Tensor) -> ForwardMode:
    features = settings.feature_loss or 0.0
    if settings.repair_in_loop:
        return RepairedForward(repair_sites(target, nearest), nearest, features)
    guides = settings.warmup or settings.statistics_loss or features
    if settings.method != EVOLVED or not guides:
        return STRICT_FORWARD
    sites = find_repair_sites(target.model, nearest, frozen=target.weights)
    return GuidedForward(
        RepairedForward(sites, nearest, features), statistics_loss=settings.statistics_loss or 0.0
    )


def _shown(target: Target, samples: Samples) -> TeacherBatch:
    inputs = samples.inputs.to(target.device)
    labels = None if samples.labels is None else samples.labels.to(target.device)
    return TeacherBatch(inputs, batched_forward(target.model, inputs), labels)
