"""From what the user stated to full settings: names checked, gaps filled, clashes refused."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gaprune.calibration.auto import resolve_calibration
from gaprune.config import EVOLVED, Settings
from gaprune.criteria import find_criterion
from gaprune.errors import InputError, unknown_name
from gaprune.evaluation.batch_pool import batch_cache_size
from gaprune.evaluation.objectives import AUTO, find_objective
from gaprune.evaluation.precision import check_precision, choose_precision
from gaprune.evolution.presets import Preset, as_pareto, find_preset
from gaprune.masks.budget import SCOPES, keep_total
from gaprune.models.forward import batched_forward
from gaprune.models.macs import macs_per_input, suitable_batch
from gaprune.models.patterns import check_pattern, fixed_scope, searched_layout
from gaprune.models.target import Target
from gaprune.repair import RepairSites, find_repair_sites
from gaprune.workers import WorkerOptions, choose_device
from gaprune.workers.serial import torch_threads

PATIENCE = 2  # generations that may lose on the validation inputs, where the calibration inputs were optimised
MANY_LAYERS = 8  # from so many on, keep counts are searched first and gradients are cut
CLIP = 3.0  # root mean squares
WARMUP, STATISTICS_LOSS = (
    300,
    2.0,
)  # where the calibration inputs were inverted and nothing speaks against them
_GUIDES = {
    "warmup": " of a strict search",
    "statistics_loss": " of a strict search",
    "feature_loss": "",
}
_NO_FEATURES = (
    "this network has nothing to compare: no BatchNorm with running statistics, and no layer or "
    "group norm with weight and bias, that forward uses once"
)


def check_settings(settings: Settings) -> Preset:
    """Check the names that settings hold and return the preset.

    Raises:
        InputError: an unknown preset, scope, method, start or precision; a search for a front and
            a limit at once; a device that is not there.
    """
    preset = find_preset(settings.preset)
    if settings.scope not in SCOPES:
        raise unknown_name("scope", settings.scope, SCOPES)
    if settings.method != EVOLVED:
        find_criterion(settings.method, "method", [EVOLVED])
    _check_starts(settings, preset)
    if settings.pareto and settings.max_drop is not None:
        raise InputError(
            "max_drop: looks for one sparsity and --pareto searches many at once; leave one out"
        )
    check_pattern(settings)
    check_precision(settings.precision, choose_device(WorkerOptions.from_settings(settings)))
    return as_pareto(preset) if settings.pareto else preset


def _check_starts(settings: Settings, preset: Preset) -> None:
    if settings.initial_criteria is None:
        return
    for name in settings.initial_criteria:
        find_criterion(name, "initial_criteria")
    if settings.method != EVOLVED:
        raise InputError(
            f"starts: says where a search begins, and method {settings.method!r} searches nothing; "
            "leave one out"
        )
    if preset.seeding != "baselines":
        raise InputError(
            f"starts: preset {settings.preset!r} begins with random scores; take another preset"
        )


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
    if preset.gradient and settings.batch_cache is None:
        changes["batch_cache"] = _batch_pool_of(target, changes.get("batch") or settings.batch or 1)
    if preset.gradient and settings.clip is None and len(target.layout.names) >= MANY_LAYERS:
        changes["clip"] = CLIP
    changes |= _for_calibration(settings, target)
    device = choose_device(WorkerOptions.from_settings(settings), target.device)
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
    resolved = _with_density_search(resolved, settings.density_search, target)
    resolved = _with_guidance(resolved, settings, preset, target)
    if resolved.max_drop is None:  # else the sparsity is only the largest that is tried
        keep_total(searched_layout(target, resolved), resolved.sparsity)
    if resolved.repair_in_loop:  # refused before the calibration inputs take their time
        repair_sites(target)
    return resolved


def repair_sites(target: Target, inputs: Tensor | None = None) -> RepairSites:
    """Survey what repair can correct, as forward uses it on some inputs `[N, …]`.

    Raises:
        InputError: it is nothing, and repair is asked to be in the loop.
    """
    inputs = _examples(target) if inputs is None else inputs
    sites = find_repair_sites(target.model, inputs, frozen=target.weights)
    if not sites.rules:
        raise InputError(f"repair_in_loop: {_nothing(sites)}; leave --repair-in-loop out")
    return sites


def _nothing(sites: RepairSites) -> str:
    found = sites.skipped[0] if sites.skipped else "it has no BatchNorm, no norm and no bias"
    return f"nothing in this network can be repaired ({found})"


def _examples(target: Target) -> Tensor:
    return torch.cat([target.example(), target.example()])


def _batch_pool_of(target: Target, batch: int) -> int:
    """Return how many batches of generated inputs are held beside the answers to them."""
    example = target.example()
    return batch_cache_size(example.nbytes + batched_forward(target.model, example).nbytes, batch)


def _for_calibration(settings: Settings, target: Target) -> dict[str, Any]:
    """Return what follows from the calibration inputs: a search learns optimised ones by heart.

    Inverted inputs lie between classes, where no decision is clear: all logits are compared.
    """
    changes: dict[str, Any] = {}
    with torch_threads(settings.threads_per_worker):
        request = resolve_calibration(settings.calibration, target).request
        if settings.objective == AUTO and request.inversion and _names_classes(target):
            changes["objective"] = "logits"
    searched = settings.method == EVOLVED and not settings.pareto
    if settings.patience is None and searched and (request.inversion or request.impressions):
        changes["patience"] = PATIENCE
    if request.inversion and searched and len(target.layout.names) >= MANY_LAYERS:
        guide = {"warmup": WARMUP, "statistics_loss": STATISTICS_LOSS}
        changes |= {name: own for name, own in guide.items() if getattr(settings, name) is None}
    return changes


def _names_classes(target: Target) -> bool:
    return find_objective(AUTO, batched_forward(target.model, target.example())).name == "kl"


def _with_density_search(settings: Settings, stated: int | None, target: Target) -> Settings:
    """Leave the allocation phase out where it cannot help, unless the user asked for it."""
    free = settings.scope != "layer" and not settings.pareto
    if stated and not free:
        why = "--pareto has none" if settings.pareto else "scope 'layer' fixes them"
        raise InputError(
            f"allocation: {stated} generations would change the layers' keep counts, and {why}; "
            "leave --density-search out"
        )
    many = len(target.layout.names) >= MANY_LAYERS
    if stated is not None or (free and many and settings.generations != 0):
        return settings
    return settings.replace(density_search=0)


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
    if settings.repair_in_loop and name != "feature_loss":
        return "with --repair-in-loop candidates answer after repair"
    if not preset.gradient:
        return f"preset {settings.preset!r} takes none"
    if settings.pareto and name == "warmup":
        return "--pareto searches many budgets at once, not one from which it could begin"
    sites = find_repair_sites(target.model, _examples(target), frozen=target.weights)
    if name == "feature_loss":
        return None if sites.features else _NO_FEATURES
    return None if sites.rules else _nothing(sites)
