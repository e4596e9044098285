"""From settings and a target to what a run needs: settings with every gap filled, evaluator, plan.

`check_settings` runs before the network is loaded, `resolve_settings` after. What they return holds
everything parsed; nothing below parses or checks a setting again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from gaprune.calibration.auto import filled_up, resolve_calibration
from gaprune.calibration.calibration_set import CalibrationSet
from gaprune.calibration.inversion.batchnorm_statistics import batchnorms
from gaprune.calibration.parse import CalibrationRequest
from gaprune.calibration.samples import Samples
from gaprune.choices import SCOPES
from gaprune.config import EVOLVED, LIMITS, Settings
from gaprune.criteria import find_criterion
from gaprune.errors import InputError, unknown_name
from gaprune.evaluation.batch_pool import BatchPool, batch_cache_size
from gaprune.evaluation.evaluator import GROUP, Evaluator
from gaprune.evaluation.forward_modes import (
    STRICT_FORWARD,
    ForwardMode,
    GuidedForward,
    RepairedForward,
    TeacherBatch,
)
from gaprune.evaluation.labelled import check_classes, is_language_model
from gaprune.evaluation.objectives import AUTO, accuracy, find_objective
from gaprune.evaluation.precision import check_precision, choose_precision
from gaprune.evolution.gradient import Refinement
from gaprune.evolution.presets import Preset, as_pareto, find_preset
from gaprune.evolution.search_plan import SearchLimits, SearchPlan
from gaprune.evolution.swap_refinement import CORRELATED, SWAPS
from gaprune.evolution.tasks import derive_seed
from gaprune.masks.budget import keep_total
from gaprune.masks.supermask import Layout
from gaprune.masks.units import Units
from gaprune.models.channel_readers import find_readers
from gaprune.models.forward import batched_forward
from gaprune.models.mac_cost import MacCounts
from gaprune.models.macs import suitable_batch
from gaprune.models.patterns import (
    channels_of,
    check_pattern,
    fixed_scope,
    searched_layout,
    units_of,
)
from gaprune.models.target import Target
from gaprune.pattern_names import UNSTRUCTURED, NMPattern, parse_pattern
from gaprune.repair import RepairSites, find_repair_sites
from gaprune.workers import WorkerOptions, choose_device
from gaprune.workers.malloc import keep_heap
from gaprune.workers.serial import torch_threads

# With optimised calibration inputs: generations that may lose on the validation inputs.
PATIENCE = 2
MANY_LAYERS = 8  # from here on, densities are searched first and gradients are clipped
TEXTS = {"calibration_count": 64, "validation_count": 16}  # for language models
# A network of so many multiply-adds per input is run on fewer inputs where its mask needs none.
SLOW_MACS, FEWER_INPUTS = 1 << 27, 256
CLIP = 3.0  # root mean squares
WARMUP, STATISTICS_LOSS = 300, 2.0  # with inverted calibration inputs
FIRST_RUNG = 4  # the first rung of the race has a quarter of the calibration inputs
LAST_RATE = 1 / 20  # learning rate at the end of a descent that decays, as a fraction of the first
FADE = (0.0, 0.95)  # fractions of the warm-up steps between which repair is faded out
LEAST_SPARSE = 0.5  # the dense end of a Pareto front, as a fraction of the asked sparsity
MAX_GROUPED = 1 << 22  # prunable weights of a network whose masks are scored in groups

_LIMITS = ("evaluations", "stagnation", "patience")
_GUIDES = ("warmup", "statistics_loss", "feature_loss")
_NO_FEATURES = (
    "this network has nothing to compare: no BatchNorm with running statistics, and no layer or "
    "group norm with weight and bias, that forward uses once"
)


@dataclass(frozen=True, kw_only=True)
class CheckedSettings:
    """Settings whose names and combinations are valid."""

    settings: Settings  # as the user stated them
    preset: Preset
    worker_options: WorkerOptions  # their device chosen
    # With budget `latency`, the fraction of the time that `budget_macs` is predicted to save.
    predicted_speedup: float | None = None

    @property
    def driver_device(self) -> str:
        """The device of the dense network: Ray actors are sent a copy from the CPU."""
        return self.worker_options.device if self.worker_options.in_process else "cpu"


@dataclass(frozen=True, kw_only=True)
class ResolvedSettings(CheckedSettings):
    """Settings for one network, with every gap filled."""

    units: Units | None  # of the pattern; None if every weight has its own score
    layout: Layout  # the flat vector of scores and masks: of weights, or of units


def check_settings(settings: Settings, device: torch.device | None = None) -> CheckedSettings:
    """Check everything that does not depend on the network.

    `device` is where the network is, if it is loaded: `auto` is its GPU.

    Raises:
        InputError: an unknown name, settings that exclude each other, or a missing device.
    """
    preset = find_preset(settings.preset)
    if settings.scope not in SCOPES:
        raise unknown_name("scope", settings.scope, SCOPES)
    if settings.method != EVOLVED:
        find_criterion(settings.method, "method", [EVOLVED])
    if settings.initial_criteria is not None:
        _check_initial_criteria(settings, preset)
    if settings.pareto and settings.max_drop is not None:
        raise InputError(
            "max_drop: looks for one sparsity and --pareto searches many at once; leave one out"
        )
    check_pattern(settings)
    _check_units(settings)
    options = WorkerOptions.from_settings(settings)
    if not options.in_process and find_spec("ray") is None:
        raise InputError(
            "workers: more than one worker, GPUs per worker and clusters need Ray; "
            "pip install 'gaprune[ray]', or leave out --workers, --gpus-per-worker, "
            "--ray-address"
        )
    options = replace(options, device=choose_device(options, device))
    check_precision(settings.precision, options.device)
    preset = as_pareto(preset) if settings.pareto else preset
    return CheckedSettings(settings=settings, preset=preset, worker_options=options)


def _check_units(settings: Settings) -> None:
    """Raise `InputError` if a named criterion cannot rank what the pattern removes."""
    pattern = parse_pattern(settings.pattern)
    singles = isinstance(pattern, NMPattern) or settings.pattern == UNSTRUCTURED
    one_shot = () if settings.method == EVOLVED else (settings.method,)
    for argument, names in (("method", one_shot), ("initial_criteria", settings.initial_criteria)):
        for name in names or ():
            criterion = find_criterion(name)
            if criterion.pattern not in (None, pattern):
                raise InputError(
                    f"{argument}: {name!r} ranks whole {criterion.pattern}s, got pattern "
                    f"{settings.pattern!r}; add --pattern={criterion.pattern}, or use another "
                    "criterion"
                )
            if criterion.single_weights and not singles:
                raise InputError(
                    f"{argument}: {name!r} ranks single weights, and pattern {settings.pattern!r} "
                    "keeps or removes groups of them; use another criterion"
                )


def _check_initial_criteria(settings: Settings, preset: Preset) -> None:
    for name in settings.initial_criteria or ():
        find_criterion(name, "initial_criteria")
    if settings.method != EVOLVED:
        raise InputError(
            f"initial_criteria: method {settings.method!r} does not search; leave one of them out"
        )
    if preset.seeding != "baselines":
        raise InputError(
            f"initial_criteria: preset {settings.preset!r} starts from random scores; use another "
            "preset"
        )


def resolve_settings(checked: CheckedSettings, target: Target) -> ResolvedSettings:
    """Fill what the user left open by the preset and the network.

    Raises:
        InputError: a setting does not fit the network.
    """
    settings, preset = checked.settings, checked.preset
    # what the user may have to change is refused before generators are weighed, which takes longer
    resolved = add_layout(checked, target)
    if settings.max_drop is None:  # else the sparsity is only the largest one tried
        keep_total(resolved.layout, settings.sparsity)
    if settings.repair_in_loop:
        repair_sites(target)
    keep_heap()  # generators are weighed now
    num_layers = len(target.layout.names)
    changes: dict[str, Any] = {
        name: value for name, value in preset.defaults.items() if getattr(settings, name) is None
    }
    if preset.gradient and settings.batch is None:
        changes["batch"] = suitable_batch(MacCounts.of(target).total)
    if preset.gradient and settings.batch_cache is None:
        # One slot of the cache holds a batch of inputs and the teacher's outputs on it.
        example = target.example()
        size = example.nbytes + batched_forward(target.model, example).nbytes
        batch = changes.get("batch") or settings.batch or 1
        changes["batch_cache"] = batch_cache_size(size, batch)
    if preset.gradient and settings.clip is None and num_layers >= MANY_LAYERS:
        changes["clip"] = CLIP
    changes |= _calibration_changes(settings, target)
    device = checked.worker_options.device
    precision = choose_precision(settings.precision, device, target.dtype)
    changes |= {"device": device, "precision": precision}
    # Children of a Pareto search have different budgets, so they cannot share counts per layer.
    preset_scope = "global" if settings.pareto else preset.scope
    for name, value in (("scope", preset_scope), ("objective", preset.objective)):
        if value and name not in settings.model_fields_set:
            changes[name] = value
    if (scope := fixed_scope(settings)) is not None:
        changes["scope"] = scope
    draft = settings.model_copy(update=changes)
    if draft.pareto and draft.scope != "global":
        raise InputError(
            f"scope: a Pareto search ranks all layers together, got {draft.scope!r}; "
            "leave --scope out or use --scope=global"
        )
    changes |= _density_search(draft, settings.density_search, num_layers)
    changes |= _guides(draft, settings, preset, target)
    return replace(resolved, settings=settings.replace(**changes))


def add_layout(checked: CheckedSettings, target: Target) -> ResolvedSettings:
    """Add units and layout to settings that have no gaps."""
    settings = checked.settings
    return ResolvedSettings(
        **vars(checked),
        units=units_of(target, settings),
        layout=searched_layout(target, settings),
    )


def repair_sites(target: Target, inputs: Tensor | None = None) -> RepairSites:
    """Find what repair can correct, on `inputs` `[N, …]` or an example.

    Raises:
        InputError: nothing can be corrected.
    """
    sites = _sites(target, inputs)
    if not sites.rules:
        raise InputError(f"repair_in_loop: {_nothing(sites)}; leave --repair-in-loop out")
    return sites


def _sites(target: Target, inputs: Tensor | None = None) -> RepairSites:
    if inputs is None:
        inputs = torch.cat([target.example(), target.example()])
    return find_repair_sites(target.model, inputs, target.weights, target.inputs.padding)


def _nothing(sites: RepairSites) -> str:
    reason = sites.skipped[0] if sites.skipped else "it has no BatchNorm, no norm and no bias"
    return f"nothing in this network can be repaired ({reason})"


def _calibration_changes(settings: Settings, target: Target) -> dict[str, Any]:
    """Return what follows from the calibration inputs: a search overfits optimised ones."""
    with torch_threads(settings.threads_per_worker):
        request = resolve_calibration(settings.calibration, target).request
        changes = _text_counts(settings) if is_language_model(target) else {}
        # Inverted inputs lie between classes, where no decision is clear: compare all logits.
        # Where no generator fits, impressions help, and only decisions carry over to real inputs.
        impressions = request.impressions or _impressions_would_help(request, target)
        objective = "logits" if request.inversion else "scaled-kl" if impressions else None
        if settings.objective == AUTO and objective and target.inputs.kind != "tokens":
            outputs = batched_forward(target.model, target.example())
            if find_objective(AUTO, outputs).name == "kl":
                changes["objective"] = objective
    if settings.method != EVOLVED:
        is_stated = "calibration_count" in {*settings.model_fields_set, *changes}
        corrected = settings.repair or settings.compensate
        if corrected or is_stated or find_criterion(settings.method).needs_inputs:
            return changes
        # The mask does not depend on them: they only tell the agreement on such inputs.
        large = MacCounts.of(target).total >= SLOW_MACS
        return changes | ({"calibration_count": FEWER_INPUTS} if large else {})
    if settings.pareto:
        return changes
    if not request.files and _is_text_encoder(settings, target):
        # Steps towards the dense embeddings of generated texts move those of real texts away:
        # MiniLM at 0.7 loses 0.7 points of rank correlation. So the best one-shot mask is returned.
        changes["generations"] = 0
    if settings.patience is None and (request.inversion or request.impressions):
        changes["patience"] = PATIENCE
    if request.inversion and len(target.layout.names) >= MANY_LAYERS:
        defaults = {"warmup": WARMUP, "statistics_loss": STATISTICS_LOSS}
        changes |= {name: v for name, v in defaults.items() if getattr(settings, name) is None}
    return changes


def _is_text_encoder(settings: Settings, target: Target) -> bool:
    """Return whether the default search of an encoder of texts is meant: no limit is stated."""
    if target.inputs.kind != "tokens" or is_language_model(target):
        return False
    if not find_preset(settings.preset).gradient or settings.model_fields_set & set(LIMITS):
        return False
    if settings.objective != AUTO:
        return settings.objective == "relative-error"
    outputs = batched_forward(target.model, target.example())
    return find_objective(AUTO, outputs, target.inputs.vocabulary).name == "relative-error"


def _impressions_would_help(request: CalibrationRequest, target: Target) -> bool:
    """Return whether no generator fits the network that unlabelled files are for.

    Generators are not weighed for networks with BatchNorm: what `auto` adds there is inverted.
    """
    if not request.files or any(file.level == "labelled" for file in request.files):
        return False
    if batchnorms(target.model):
        return False
    return filled_up(request, target).impressions


def _text_counts(settings: Settings) -> dict[str, Any]:
    """Return the numbers of texts for a language model: every text is hundreds of predictions."""
    stated = settings.model_fields_set
    return {name: count for name, count in TEXTS.items() if name not in stated}


def _density_search(draft: Settings, stated: int | None, num_layers: int) -> dict[str, Any]:
    """Leave the layer-wise density search out if it cannot help and was not asked for."""
    possible = draft.scope != "layer" and not draft.pareto
    if stated and not possible:
        why = "--pareto has none" if draft.pareto else "scope 'layer' fixes them"
        raise InputError(
            f"density_search: {stated} generations would change counts per layer, and {why}; "
            "leave --density-search out"
        )
    useful = possible and num_layers >= MANY_LAYERS and draft.generations != 0
    return {} if stated is not None or useful else {"density_search": 0}


def _guides(draft: Settings, stated: Settings, preset: Preset, target: Target) -> dict[str, Any]:
    """Choose what guides gradient steps; a default is dropped where it is impossible."""
    changes: dict[str, Any] = {}
    sites = cache(partial(_sites, target))  # found once, if anything needs them
    for name in _GUIDES:
        is_stated = getattr(stated, name) is not None
        value = getattr(draft, name) or 0
        if not is_stated and draft.generations == 0:
            value = 0
        why = _why_impossible(name, draft, preset, sites) if value else None
        if why and is_stated:
            option = name.replace("_", "-")
            raise InputError(
                f"{name}: {value} would guide the gradient steps, and {why}; leave --{option} out"
            )
        changes[name] = 0 if why else value
    return changes


def _why_impossible(
    name: str, draft: Settings, preset: Preset, find_sites: Callable[[], RepairSites]
) -> str | None:
    if draft.scores_corrected and name != "feature_loss":
        option = "--compensate" if draft.compensates_channels else "--repair-in-loop"
        return f"with {option} candidates are scored after repair"
    if not preset.gradient:
        return f"preset {draft.preset!r} takes no gradient steps"
    if draft.pareto and name == "warmup":
        return "--pareto searches many budgets at once, and a warm-up starts from one"
    sites = find_sites()
    if name == "feature_loss":
        return None if sites.features else _NO_FEATURES
    return None if sites.rules else _nothing(sites)


def make_evaluator(
    target: Target, resolved: ResolvedSettings, calibration_set: CalibrationSet
) -> Evaluator:
    """Run the dense network on all calibration inputs and return the evaluator of candidates.

    Raises:
        InputError: the objective does not fit the outputs, the labels or the preset; or the network
            has nothing that can be repaired in the loop.
    """
    settings, evolved = resolved.settings, resolved.settings.method == EVOLVED
    search = _teacher_batch(target, calibration_set.search)
    objective = find_objective(settings.objective, search.teacher, target.inputs.vocabulary)
    refined = resolved.preset.gradient and evolved
    if objective.needs_labels and search.labels is None:
        raise InputError(
            f"objective: {objective.name!r} needs labelled calibration inputs, and these have no "
            "labels; give --calibration=labelled:FILE, or use the objective 'kl'"
        )
    if objective.fitness is accuracy:
        for samples in (calibration_set.search, calibration_set.gradient_inputs):
            if samples is not None and samples.labels is not None:
                check_classes("calibration", samples.labels, search.teacher)
    if refined and objective.loss is None:
        raise InputError(
            f"objective: {objective.name!r} is a black box without gradients; "
            "use it with --preset=black-box"
        )
    domain_inputs = calibration_set.domain_inputs.inputs.to(target.device)
    own_domain = calibration_set.domain_inputs is not calibration_set.search
    mixture = calibration_set.mixture
    gradient_samples = calibration_set.gradient_inputs if refined else None
    batch_cache = None
    if mixture is not None and settings.batch_cache:
        # The text is part of the seed: another text gives other batches, hence other masks.
        batch_cache = BatchPool(mixture, settings.batch_cache, derive_seed(settings.seed, "stock"))
    augmentation = calibration_set.augmentation
    if augmentation is not None:
        augmentation = augmentation.for_search(corrected=settings.scores_corrected)
    return Evaluator(
        network=target,
        layout=resolved.layout,
        units=resolved.units,
        objective=objective,
        search=search,
        validation=_teacher_batch(target, calibration_set.validation),
        mixture=mixture,
        gradient_inputs=gradient_samples and _teacher_batch(target, gradient_samples),
        gradient_share=calibration_set.gradient_share,
        augmentation=augmentation,
        rungs=(max(1, len(search.inputs) // FIRST_RUNG), len(search.inputs)),
        forward_mode=_forward_mode(target, settings, domain_inputs),
        domain_inputs=domain_inputs if own_domain else None,
        precision=settings.precision,
        batch_cache=batch_cache,
    )


def _forward_mode(target: Target, settings: Settings, domain_inputs: Tensor) -> ForwardMode:
    features, statistics = settings.feature_loss or 0.0, settings.statistics_loss or 0.0
    if settings.compensates_channels:
        readers = find_readers(target.model, channels_of(target))
        return RepairedForward(_sites(target, domain_inputs), domain_inputs, features, readers)
    if settings.repair_in_loop:
        return RepairedForward(repair_sites(target, domain_inputs), domain_inputs, features)
    if settings.method != EVOLVED or not (settings.warmup or statistics or features):
        return STRICT_FORWARD
    sites = _sites(target, domain_inputs)
    repaired = RepairedForward(sites, domain_inputs, features)
    return GuidedForward(repaired, statistics_loss=statistics)


def _teacher_batch(target: Target, samples: Samples) -> TeacherBatch:
    inputs = samples.inputs.to(target.device)
    labels = None if samples.labels is None else samples.labels.to(target.device)
    return TeacherBatch(inputs, batched_forward(target.model, inputs), labels)


def _density_swaps(resolved: ResolvedSettings) -> str | None:
    """Return the first of the initial criteria whose swaps can refine children."""
    if resolved.units is not None:
        return None
    stated = resolved.settings.initial_criteria or ()
    return next((name for name in stated if name in (SWAPS, CORRELATED)), None)


def make_plan(target: Target, resolved: ResolvedSettings) -> SearchPlan:
    """Translate resolved settings into the plan of the search."""
    settings, preset, layout = resolved.settings, resolved.preset, resolved.layout
    refinement = warmup = None
    if preset.gradient:
        refinement = Refinement(
            steps=settings.steps or 0,
            learning_rate=settings.learning_rate or 0.0,
            batch=settings.batch or 0,
            clip=settings.clip,
        )
        decaying = replace(refinement, last_rate=LAST_RATE * refinement.learning_rate, cosine=True)
        if settings.warmup:
            warmup = replace(decaying, steps=settings.warmup, fade=FADE)
        if settings.scores_corrected:  # there is no warm-up: every descent decays
            refinement = decaying
    density_search, generations = settings.density_search or 0, settings.generations
    if generations is not None:
        generations += density_search + (warmup is not None)
    sparsest = LEAST_SPARSE * settings.sparsity
    # A small network of matrices on a GPU scores several masks in one pass: starting its kernels
    # takes longer than running them. On the CPU groups are no faster, and grouped convolutions are
    # slower. Rounding depends on this number, so it is not measured by a clock.
    matrices = all(weight.ndim == 2 for weight in target.weights.values())
    grouped = settings.device != "cpu" and matrices and target.layout.total <= MAX_GROUPED
    return SearchPlan(
        preset=preset,
        layout=layout,
        seed=settings.seed,
        population=settings.population or 0,
        offspring=settings.offspring or 0,
        refinement=refinement,
        limits=SearchLimits(generations, *(getattr(settings, name) for name in _LIMITS)),
        keep=keep_total(layout, settings.sparsity),
        most=keep_total(layout, sparsest) if settings.pareto else None,
        density_search=density_search,
        density_swaps=_density_swaps(resolved),
        warmup=warmup,
        group=GROUP if grouped else 1,
    )
