"""From settings and a target to what a search needs: names checked, gaps filled, bench, plan."""

from __future__ import annotations

from typing import Any, TypeVar

from gaprune.bench import Bench, Shown, answers
from gaprune.budget import SCOPES, keep_total
from gaprune.config import EVOLVED, Settings
from gaprune.cost import macs_per_input, suitable_batch
from gaprune.errors import InputError, unknown_name
from gaprune.evolution.gradient import Refinement
from gaprune.evolution.plan import Limits, Plan
from gaprune.evolution.presets import Preset, as_pareto, find_preset
from gaprune.objectives import Objective, find_objective
from gaprune.probes.plan import ProbePlan
from gaprune.probes.samples import Samples
from gaprune.saliency import SALIENCIES
from gaprune.target import Target

T = TypeVar("T")

RUNG_FRACTION = 4  # the first rung of the race has one in so many search probes
LEAST_SPARSE = 0.5  # the dense end of a Pareto front removes this part of the asked sparsity


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
    return as_pareto(preset) if settings.pareto else preset


def resolve_settings(settings: Settings, preset: Preset, target: Target) -> Settings:
    """Fill what the user left open with what the preset and the network's size suggest."""
    changes: dict[str, Any] = {
        name: value for name, value in preset.defaults.items() if getattr(settings, name) is None
    }
    if preset.gradient and settings.batch is None:
        changes["batch"] = suitable_batch(macs_per_input(target.model, target.example()))
    own = {"scope": preset.scope, "objective": preset.objective}
    if settings.pareto:
        own["scope"] = "global"  # children of different budgets share no counts
    stated = settings.model_fields_set
    changes |= {name: value for name, value in own.items() if value and name not in stated}
    resolved = settings.replace(**changes)
    if resolved.pareto and resolved.scope != "global":
        raise InputError(
            f"scope: a Pareto search ranks all layers together, got {resolved.scope!r}; "
            "leave --scope out or use --scope global"
        )
    return resolved


def make_bench(target: Target, settings: Settings, preset: Preset, plan: ProbePlan) -> Bench:
    """Compute the dense network's answers on all probes and put everything on the bench.

    Raises:
        InputError: the objective does not fit the outputs, the labels or the preset.
    """
    search = _shown(target, plan.search)
    objective = find_objective(settings.objective, search.teacher)
    _check_objective(objective, search, preset, evolved=settings.method == EVOLVED)
    uses_pool = plan.pool is not None and preset.gradient and settings.method == EVOLVED
    return Bench(
        model=target.model,
        weights=target.weights,
        layout=target.layout,
        objective=objective,
        search=search,
        guard=_shown(target, plan.guard),
        fresh=plan.fresh,
        pool=_shown(target, plan.pool) if uses_pool and plan.pool is not None else None,
        pool_share=plan.pool_share,
        rungs=(max(1, len(search.inputs) // RUNG_FRACTION), len(search.inputs)),
    )


def make_plan(target: Target, settings: Settings, preset: Preset) -> Plan:
    """Translate resolved settings into the engine's plan."""
    refinement = None
    if preset.gradient:
        refinement = Refinement(
            steps=_filled(settings.steps),
            rate=_filled(settings.rate),
            batch=_filled(settings.batch),
        )
    layout = target.layout
    return Plan(
        preset=preset,
        layout=layout,
        seed=settings.seed,
        population=_filled(settings.population),
        offspring=_filled(settings.offspring),
        refinement=refinement,
        limits=Limits(
            settings.generations, settings.evaluations, settings.seconds, settings.stagnation
        ),
        keep=keep_total(layout, settings.sparsity),
        most=keep_total(layout, LEAST_SPARSE * settings.sparsity) if settings.pareto else None,
    )


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


def _shown(target: Target, samples: Samples) -> Shown:
    inputs = samples.inputs.to(target.device)
    labels = None if samples.labels is None else samples.labels.to(target.device)
    return Shown(inputs, answers(target.model, inputs), labels)
