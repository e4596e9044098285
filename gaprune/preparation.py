"""From settings and a target to what a search needs: names checked, gaps filled, bench, plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from gaprune.answering import STRICT, AfterRepair, Answering, Guided
from gaprune.bench import GROUP, Bench, Shown, answers
from gaprune.budget import SCOPES, keep_total
from gaprune.config import EVOLVED, Settings
from gaprune.cost import macs_per_input, suitable_batch
from gaprune.errors import InputError, unknown_name
from gaprune.evolution.breeding import derive_seed
from gaprune.evolution.gradient import Refinement
from gaprune.evolution.plan import Limits, Plan
from gaprune.evolution.presets import Preset, as_pareto, find_preset
from gaprune.objectives import AUTO, Objective, find_objective
from gaprune.patterning import check_pattern, fixed_scope, searched_layout, units_of
from gaprune.precision import check_precision, choose_precision
from gaprune.probes.choice import decide
from gaprune.probes.plan import ProbePlan
from gaprune.probes.samples import Samples
from gaprune.repair import Sites, survey
from gaprune.saliency import find_saliency
from gaprune.stock import Stock, stock_size
from gaprune.target import Target
from gaprune.workers import Staff, choose_device
from gaprune.workers.serial import torch_threads

T = TypeVar("T")

RUNG_FRACTION = 4  # the first rung of the race has one in so many search probes
PATIENCE = 2  # generations that may lose on the guard, where the probes were optimised
MANY_LAYERS = 8  # from so many on, keep counts are searched first and gradients are cut
CLIP = 3.0  # root mean squares
CONTINUATION, DRIFT = 300, 2.0  # where the probes were inverted and nothing speaks against them
LAST_RATE = 1 / 20  # of the first step length, at the end of the continuation
FADE = (0.0, 0.95)  # parts of its steps between which repair is faded out
_GUIDES = {"continuation": " of a strict search", "drift": " of a strict search", "features": ""}
LEAST_SPARSE = 0.5  # the dense end of a Pareto front removes this part of the asked sparsity
GROUPED = 1 << 22  # prunable weights of a network that has its masks scored in groups, at most
_NO_FEATURES = (
    "this network has nothing to compare: no BatchNorm with running statistics, and no layer or "
    "group norm with weight and bias, that forward uses once"
)


def check_settings(settings: Settings) -> Preset:
    """Check the names that settings hold and return the preset.

    Raises:
        InputError: an unknown preset, scope, method or precision; a search for a front and a limit
            at once; a device that is not there.
    """
    preset = find_preset(settings.preset)
    if settings.scope not in SCOPES:
        raise unknown_name("scope", settings.scope, SCOPES)
    if settings.method != EVOLVED:
        find_saliency(settings.method, "method", [EVOLVED])
    if settings.pareto and settings.max_drop is not None:
        raise InputError(
            "max_drop: looks for one sparsity and --pareto searches many at once; leave one out"
        )
    check_pattern(settings)
    check_precision(settings.precision, choose_device(Staff.of(settings)))
    return as_pareto(preset) if settings.pareto else preset


def resolve_settings(settings: Settings, preset: Preset, target: Target) -> Settings:
    """Fill what the user left open with what the preset and the network's size suggest.

    Raises:
        InputError: settings that exclude each other, or nothing to repair where repair is asked
            to be in the loop.
    """
    changes: dict[str, Any] = {
        name: value for name, value in preset.defaults.items() if getattr(settings, name) is None
    }
    if preset.gradient and settings.batch is None:
        changes["batch"] = suitable_batch(macs_per_input(target.model, target.example()))
    if preset.gradient and settings.stock is None:
        changes["stock"] = _stock_of(target, changes.get("batch") or settings.batch or 1)
    if preset.gradient and settings.clip is None and len(target.layout.names) >= MANY_LAYERS:
        changes["clip"] = CLIP
    changes |= _for_probes(settings, target)
    device = choose_device(Staff.of(settings), target.device)
    precision = choose_precision(settings.precision, device, target.dtype)
    changes |= {"device": device, "precision": precision}
    own = {"scope": preset.scope, "objective": preset.objective}
    if settings.pareto:
        own["scope"] = "global"  # children of different budgets share no counts
    stated = settings.model_fields_set
    changes |= {name: value for name, value in own.items() if value and name not in stated}
    if (scope := fixed_scope(settings)) is not None:
        changes["scope"] = scope
    resolved = settings.replace(**changes)
    if resolved.pareto and resolved.scope != "global":
        raise InputError(
            f"scope: a Pareto search ranks all layers together, got {resolved.scope!r}; "
            "leave --scope out or use --scope global"
        )
    resolved = _with_allocation(resolved, settings.allocation, target)
    resolved = _with_guidance(resolved, settings, preset, target)
    if resolved.max_drop is None:  # else the sparsity is only the largest that is tried
        keep_total(searched_layout(target, resolved), resolved.sparsity)
    if resolved.repair_in_loop:  # refused before the probes take their time
        _sites(target)
    return resolved


def _stock_of(target: Target, batch: int) -> int:
    """Return how many batches of generated inputs are held beside the answers to them."""
    example = target.example()
    return stock_size(example.nbytes + answers(target.model, example).nbytes, batch)


def _for_probes(settings: Settings, target: Target) -> dict[str, Any]:
    """Return what follows from the probes: a search learns optimised ones by heart.

    Inverted inputs lie between classes, where no decision is clear: all logits are compared.
    """
    changes: dict[str, Any] = {}
    with torch_threads(settings.threads_per_worker):
        request = decide(settings.probes, target).request
        if settings.objective == AUTO and request.inversion and _names_classes(target):
            changes["objective"] = "logits"
    searched = settings.method == EVOLVED and not settings.pareto
    if settings.patience is None and searched and (request.inversion or request.impressions):
        changes["patience"] = PATIENCE
    if request.inversion and searched and len(target.layout.names) >= MANY_LAYERS:
        guide = {"continuation": CONTINUATION, "drift": DRIFT}
        changes |= {name: own for name, own in guide.items() if getattr(settings, name) is None}
    return changes


def _names_classes(target: Target) -> bool:
    return find_objective(AUTO, answers(target.model, target.example())).name == "kl"


def _with_allocation(settings: Settings, stated: int | None, target: Target) -> Settings:
    """Leave the allocation phase out where it cannot help, unless the user asked for it."""
    free = settings.scope != "layer" and not settings.pareto
    if stated and not free:
        why = "--pareto has none" if settings.pareto else "scope 'layer' fixes them"
        raise InputError(
            f"allocation: {stated} generations would change the layers' keep counts, and {why}; "
            "leave --allocation out"
        )
    many = len(target.layout.names) >= MANY_LAYERS
    if stated is not None or (free and many and settings.generations != 0):
        return settings
    return settings.replace(allocation=0)


def _with_guidance(
    settings: Settings, stated: Settings, preset: Preset, target: Target
) -> Settings:
    """Settle what guides gradient steps; by default it is off where something speaks against it.

    Raises:
        InputError: one is stated, and cannot be.
    """
    changes: dict[str, Any] = {}
    for name, steps in _GUIDES.items():
        wanted, own = getattr(settings, name) or 0, getattr(stated, name) is not None
        if not own and settings.generations == 0:
            wanted = 0
        why = _against(name, settings, preset, target) if wanted else None
        if why and own:
            raise InputError(
                f"{name}: {wanted} would guide the gradient steps{steps}, and {why}; "
                f"leave --{name} out"
            )
        changes[name] = 0 if why else wanted
    return settings.replace(**changes)


def _against(name: str, settings: Settings, preset: Preset, target: Target) -> str | None:
    """Say why there can be no such guidance, or return None."""
    if settings.repair_in_loop and name != "features":
        return "with --repair-in-loop candidates answer after repair"
    if not preset.gradient:
        return f"preset {settings.preset!r} takes none"
    if settings.pareto and name == "continuation":
        return "--pareto searches many budgets at once, not one from which it could begin"
    sites = survey(target.model, _examples(target), frozen=target.weights)
    if name == "features":
        return None if sites.features else _NO_FEATURES
    return None if sites.kinds else _nothing(sites)


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
        return AfterRepair(_sites(target, nearest), nearest, features)
    guides = settings.continuation or settings.drift or features
    if settings.method != EVOLVED or not guides:
        return STRICT
    sites = survey(target.model, nearest, frozen=target.weights)
    return Guided(AfterRepair(sites, nearest, features), drift=settings.drift or 0.0)


def _sites(target: Target, inputs: Tensor | None = None) -> Sites:
    inputs = _examples(target) if inputs is None else inputs
    sites = survey(target.model, inputs, frozen=target.weights)
    if not sites.kinds:
        raise InputError(f"repair_in_loop: {_nothing(sites)}; leave --repair-in-loop out")
    return sites


def _nothing(sites: Sites) -> str:
    found = sites.skipped[0] if sites.skipped else "it has no BatchNorm, no norm and no bias"
    return f"nothing in this network can be repaired ({found})"


def _examples(target: Target) -> Tensor:
    return torch.cat([target.example(), target.example()])


def _shown(target: Target, samples: Samples) -> Shown:
    inputs = samples.inputs.to(target.device)
    labels = None if samples.labels is None else samples.labels.to(target.device)
    return Shown(inputs, answers(target.model, inputs), labels)
